"""What a run trains one after the other: every fold with every seed, then every seed on all labelled
clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    pass

# stands for a fold's number where random numbers are drawn for all clips: no fold is called so
EVERYTHING = 1 << 31


class Part(NamedTuple):
    """One model of a run: its fold (None: trained on all clips), its seed, and is that the run's first?"""

    fold: int | None
    seed: int = 0
    first: bool = True

    @property
    def folder(self) -> str:
        """Its folder's name in the run; that of the first seed is as if there were no other."""
        if self.fold is None:
            return f"refit_{self.seed}"
        return f"fold_{self.fold}" if self.first else f"fold_{self.fold}_seed{self.seed}"

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.fold is None:
            return f"refit seed {self.seed}"
        return f"fold {self.fold}" if self.first else f"fold {self.fold} seed {self.seed}"


def of_fold(training: dict[str, Any], number: int) -> list[Part]:
    """A fold with each seed.

    Args:
        training: a run's settings of training; older ones know of one seed.
    """
    seed = training.get("seed", 0)
    return [Part(number, seed + index, not index) for index in range(training.get("seeds", 1))]


def refits(training: dict[str, Any]) -> list[Part]:
    """The models on all clips, none without --refit."""
    return [part._replace(fold=None) for part in of_fold(training, 0)] if training.get("refit") else []


def of_run(training: dict[str, Any], folds: Sequence[int]) -> list[Part]:
    """All that is to be trained, in order: all folds with a seed before the next seed, all clips last."""
    by_fold = [of_fold(training, number) for number in folds]
    return [part for one in zip(*by_fold, strict=True) for part in one] + refits(training)


def listed(parts: Sequence[Part]) -> str:
    """Parts in words, such as "fold 0, 1, fold 0 seed 8, refit seed 7"."""
    plain = [str(part.fold) for part in parts if part.first and part.fold is not None]
    others = [part.name for part in parts if not part.first or part.fold is None]
    return ", ".join([*(["fold " + ", ".join(plain)] if plain else []), *others])


def folders(run: Path) -> list[Path]:
    """The folders of a run's parts, those that are there."""
    return [folder for kind in ("fold_*", "refit_*") for folder in sorted(run.glob(kind))]
