"""Augmented copies of the training clips, some of them mixed with a second clip.

A copy depends on (seed, clip, number) alone, not on history, shard or thread: a kill changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from earshot.audio import augment
from earshot.core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from earshot.core.config import AugmentFlags

NAME = "augmented"  # beside train, test and subm


class Copy(NamedTuple):
    """One copy's wave; `clip` and `partner` count the competition's training clips, bad ones included."""

    wave: np.ndarray
    offset: float
    clip: int
    copy: int
    partner: int
    share: float


# of Copy, one value a row
COLUMNS = {"clip": np.int32, "copy": np.int32, "partner": np.int32, "share": np.float32}


class Copies:
    """The copies of a competition's training clips, clip by clip: number n is copy n % N of clip n // N.

    Args:
        clips: the training clips.
        bad: indices of unreadable clips, which have no copies and are no partners.
    """

    def __init__(self, clips: pd.DataFrame, flags: AugmentFlags, bad: np.ndarray):
        self.flags, self.ids, self.paths = flags, clips.id.tolist(), clips.path.tolist()
        self.readable = np.ones(len(clips), dtype=bool)
        self.readable[bad] = False
        # several labels of a clip are a class of their own here
        labels = [str(label) for label in clips.label]
        self.labels = np.unique(labels, return_inverse=True)[1]
        # Only a partner of the same fold is sure to be trained on whenever the clip is.
        self.folds = np.asarray(clips.fold.tolist(), dtype=np.int64)
        self.pools = {
            fold: np.flatnonzero(self.readable & (self.folds == fold)) for fold in np.unique(self.folds)
        }
        self.mixable = {fold: len(np.unique(self.labels[pool])) > 1 for fold, pool in self.pools.items()}

    def alone(self) -> int:
        """How many clips have no clip of another class to be mixed with."""
        return sum(len(pool) for fold, pool in self.pools.items() if not self.mixable[fold])

    def random(self, clip: int, copy: int) -> np.random.Generator:
        """The source of everything random in one copy."""
        text = f"{self.flags.augment_seed}\0{self.ids[clip]}\0{copy}"
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()))

    def partner(self, clip: int, rng: np.random.Generator) -> tuple[int, float]:
        """The clip that a copy is mixed with, and the share of the copy's own label: (-1, 1.0) if it is not
        mixed."""
        fold = int(self.folds[clip])
        if not rng.random() < self.flags.bc_mix or not self.mixable[fold]:
            return -1, 1.0
        share = float(np.float32(1 - rng.random()))  # in (0, 1]
        while True:
            other = int(rng.choice(self.pools[fold]))
            if self.labels[other] != self.labels[clip]:
                return other, max(share, 1e-6)

    def submit(
        self, first: int, last: int, pool: ThreadPoolExecutor, decode: Callable[[str], Any], rate: int
    ) -> list[Future]:
        """Futures of the copies number first ... last - 1, each a `Copy`; a file is decoded once for all of
        them."""
        drawn = []
        for number in range(first, last):
            clip, copy = divmod(number, self.flags.augment)
            if self.readable[clip]:
                rng = self.random(clip, copy)
                drawn.append((clip, copy, *self.partner(clip, rng), rng))
        needed = dict.fromkeys(
            index for clip, _, partner, _, _ in drawn for index in (clip, partner) if index >= 0
        )
        # Submitted before the jobs that wait for them: a single thread would otherwise wait for ever.
        waves = {index: pool.submit(decode, self.paths[index]) for index in needed}
        return [pool.submit(self._make, *one, waves, rate) for one in drawn]

    def _make(
        self,
        clip: int,
        copy: int,
        partner: int,
        share: float,
        rng: np.random.Generator,
        waves: dict[int, Future],
        rate: int,
    ) -> Copy:
        found = self._get_decoded(clip, waves)
        wave = augment.vary(found.wave, rate, self.flags, rng)
        if partner >= 0:
            other = augment.vary(self._get_decoded(partner, waves).wave, rate, self.flags, rng)
            other = np.resize(augment.crop_at_random(other, len(wave), rng), len(wave))
            wave = augment.mix(wave, other, share, rate)
        return Copy(augment.finish(wave, self.flags, rng), found.offset, clip, copy, partner, share)

    def _get_decoded(self, clip: int, waves: dict[int, Future]) -> Any:
        found = waves[clip].result()
        if isinstance(found, str):
            raise UserError(
                f"{self.paths[clip]} could be read before and cannot now ({found}): run the same command "
                "again"
            )
        return found


def check_flags(clips: pd.DataFrame, flags: AugmentFlags) -> list[str]:
    """Lines to print about the copies of these training clips.

    Raises:
        UserError: nothing would change in a copy, or no clip can be mixed.
    """
    if not flags.augment:
        return []
    moved = (flags.speed > 1, flags.stretch > 1, flags.pitch, flags.shift)
    if not any((*moved, flags.noise is not None, flags.bc_mix, flags.augment_gain)):
        raise UserError(
            f"--augment {flags.augment}: no augmentation is chosen, all copies would equal their clips: give "
            "--speed, --stretch, --pitch, --shift, --noise, --bc-mix or --augment-gain"
        )
    alone = Copies(clips, flags, np.zeros(0, dtype=np.int64)).alone() if flags.bc_mix else 0
    if alone == len(clips):
        raise UserError(
            f"--bc-mix {flags.bc_mix:g}: no clip has a clip of another class in its own fold to be mixed "
            "with: leave it out"
        )
    return (
        [f"augment: {alone} clips have no clip of another class in their fold and stay unmixed"]
        if alone
        else []
    )


def build_columns(made: list[Copy], windows: list[int]) -> dict[str, np.ndarray]:
    """clip, copy, partner and share per row, from the number of windows of each copy."""
    return {
        key: np.repeat(np.array([getattr(one, key) for one in made], dtype=kind), windows)
        for key, kind in COLUMNS.items()
    }
