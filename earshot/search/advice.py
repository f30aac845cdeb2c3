"""What to try after a bake-off, in one to three sentences, each from something that was seen in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MOST = 3  # sentences
CONFIDENT = 0.9
FEW = 3  # confident errors that are worth a sentence
GAP = 1.5  # times the error that makes features clearly worse than others
SOLVED = 0.02  # an error below which better features are not worth a sentence
STILL, LAST = 0.05, 0.2  # share by which the validation loss fell in this last share of the epochs
MEMORISED = 0.25  # training loss, as a share of the validation loss
TIGHT = 1.1  # time to ask for, relative to what is expected


@dataclass(frozen=True)
class Seen:
    """What a bake-off saw.

    Args:
        hours: it had. untrained: candidates without time that were worth it, and the seconds that they need.
        need_gpu: candidates that were left out without a GPU.
        features: by cache the lowest error of its finished candidates. pretrained: caches of an encoder with
            weights.
        best: the best finished candidate's recipe. losses: its validation loss by epoch, the mean over folds.
            train_loss: its last.
        confident, expected: clips predicted confidently as another class, and how many that would be if the
            probabilities were right. clips: of all.
        cache, folder: of the command that lists them.
    """

    hours: float
    untrained: Sequence[tuple[str, float]] = ()
    need_gpu: Sequence[str] = ()
    features: dict[str, float] = field(default_factory=dict)
    pretrained: Sequence[str] = ()
    best: str = ""
    losses: Sequence[float] = ()
    train_loss: float = 0.0
    confident: int = 0
    expected: float = 0.0
    clips: int = 0
    cache: str = ""
    folder: str = ""


def suggest_next(seen: Seen) -> list[str]:
    """At most three sentences, those that promise most first."""
    found = [
        _suggest_time(seen),
        _suggest_encoder(seen),
        _suggest_labels(seen),
        _suggest_gpu(seen),
        _suggest_epochs(seen),
        _suggest_data(seen),
    ]
    lines = [line for line in found if line][:MOST]
    return lines or [
        "nothing stands out: more labelled clips or another encoder's features are what is left to try."
    ]


def _suggest_time(seen: Seen) -> str:
    if not seen.untrained:
        return ""
    seconds, count = sum(needs for _, needs in seen.untrained), len(seen.untrained)
    hours = seen.hours + TIGHT * seconds / 3600
    names = _name_few([name for name, _ in seen.untrained])
    minutes = max(1, round(seconds / 60))
    return (
        f"{count} candidate{'s' * (count > 1)} had no time ({names}): about {minutes} minute"
        f"{'s' * (minutes > 1)} more would do, --max-hours {math.ceil(100 * hours) / 100:g}."
    )


def _suggest_encoder(seen: Seen) -> str:
    if not seen.features:
        return ""
    best, worst = (pick(seen.features, key=lambda name: seen.features[name]) for pick in (min, max))
    if seen.features[best] < SOLVED:
        return ""
    if not seen.pretrained:
        return (
            "no features here are of a pretrained encoder: with few clips they are the likeliest gain, "
            "get_features.py --extractor efficientat."
        )
    if seen.features[worst] > GAP * seen.features[best]:
        times = seen.features[worst] / seen.features[best]
        return (
            f"{worst} makes {times:.1f} times the errors of {best}: features matter most here, so try "
            "another encoder before other heads."
        )
    return ""


def _suggest_labels(seen: Seen) -> str:
    if seen.confident < FEW or seen.confident <= seen.expected + 2 * np.sqrt(seen.expected):
        return ""
    return (
        f"{seen.confident} of {seen.clips} clips are predicted as another class with {CONFIDENT:.0%} "
        f"confidence or more: labels may be wrong, see python doctor.py --data {seen.cache} "
        f"--runs {seen.folder}."
    )


def _suggest_gpu(seen: Seen) -> str:
    if not seen.need_gpu:
        return ""
    count = len(seen.need_gpu)
    return (
        f"{count} candidate{'s' * (count > 1)} need{'s' * (count == 1)} a GPU ({_name_few(seen.need_gpu)})."
    )


def _suggest_epochs(seen: Seen) -> str:
    count = len(seen.losses)
    before = seen.losses[-1 - round(LAST * count)] if count >= 5 else 0.0
    if before <= (1 + STILL) * (seen.losses[-1] if count else 0.0):
        return ""
    return (
        f"{seen.best} was still learning: its validation loss fell from {before:.3f} to "
        f"{seen.losses[-1]:.3f} in its last epochs, so try train.py --recipe {seen.best} "
        f"--epochs {2 * count}."
    )


def _suggest_data(seen: Seen) -> str:
    # scikit-learn heads, which have no epochs, mostly fit their training clips perfectly
    valid = seen.losses[-1] if len(seen.losses) >= 5 else 0.0
    lowest = min(seen.features.values(), default=0.0)
    if not valid or seen.train_loss > MEMORISED * valid or lowest < SOLVED:
        return ""
    return (
        f"{seen.best} fits its training clips far better than others (loss {seen.train_loss:.3f} against "
        f"{valid:.3f}): more labelled clips or augmentation help more than larger models."
    )


def _name_few(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count_confident_errors(probabilities: np.ndarray, truth: np.ndarray) -> tuple[int, float]:
    """Clips predicted confidently as another class, and how many that would be if the probabilities were
    right.

    Args:
        probabilities: (clips, classes). truth: (clips,) class indices, or (clips, classes) of 0 and 1.
    """
    if truth.ndim == 1:
        top = probabilities.max(1)
        sure, wrong = top >= CONFIDENT, probabilities.argmax(1) != truth
        return int((sure & wrong).sum()), float((1 - top[sure]).sum())
    doubt = np.minimum(probabilities, 1 - probabilities)
    sure = doubt <= 1 - CONFIDENT
    wrong = sure & ((probabilities >= 0.5) != (truth == 1))
    none_wrong = np.prod(np.where(sure, 1 - doubt, 1.0), axis=1)
    return int(wrong.any(1).sum()), float((1 - none_wrong).sum())
