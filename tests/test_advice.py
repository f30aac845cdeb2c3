"""The sentences at the end of a bake-off: each only where what it says was seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from earshot.search.advice import Seen, count_confident_errors, suggest_next

PLAIN = Seen(1.0, features={"mn04": 0.1}, pretrained=("mn04",))
CASES = {
    "3 candidates had no time": {"untrained": (("a", 600.0), ("b", 500.0), ("c", 700.0))},
    "no features here are of a pretrained encoder": {"pretrained": ()},
    "logmel makes 3.0 times the errors of mn04": {"features": {"mn04": 0.1, "logmel": 0.3}},
    "7 of 400 clips are predicted as another class": {"confident": 7, "expected": 1.0, "clips": 400},
    "1 candidate needs a GPU (itmo2025)": {"need_gpu": ("itmo2025",)},
    "crnn was still learning": {"best": "crnn", "losses": (2.0, 1.5, 1.2, 1.0, 0.5), "train_loss": 0.4},
    "more labelled clips or augmentation": {"best": "mlp", "losses": (1.0, 0.6, 0.6, 0.6, 0.6, 0.6)},
}


@pytest.mark.parametrize("words", CASES)
def test_each_sentence_has_its_reason(words: str) -> None:
    assert "nothing stands out" in " ".join(suggest_next(PLAIN))
    found = suggest_next(replace(PLAIN, **CASES[words]))
    assert len(found) == 1 and words in found[0] and found[0].endswith(".")


def test_at_most_three_and_time_comes_first() -> None:
    found = suggest_next(
        replace(PLAIN, **{key: value for case in CASES.values() for key, value in case.items()})
    )
    assert len(found) == 3 and "--max-hours 1.55" in found[0] and "about 30 minutes more" in found[0]


def test_confident_errors_are_counted_against_what_is_expected() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, 4000)
    right = np.where(random.random(4000) < 0.95, truth, (truth + 1) % 4)
    calibrated = np.full((4000, 4), 0.05 / 3)
    calibrated[np.arange(4000), right] = 0.95
    wrong, expected = count_confident_errors(calibrated, truth)
    assert wrong == (right != truth).sum() and abs(wrong - expected) < 3 * np.sqrt(expected)
    several, expected = count_confident_errors(calibrated, np.eye(4)[truth])
    assert several == wrong and expected > 150
    unsure = np.full((4000, 4), 0.25)
    assert count_confident_errors(unsure, truth) == (0, 0.0)
