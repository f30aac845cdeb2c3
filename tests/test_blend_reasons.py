"""Why a blend is chosen, in sentences; none is used with a worse log loss than its best member."""

from __future__ import annotations

import numpy as np
import pytest
from test_blending import CLASSES, CLIPS, drawn, probabilities, row

from earshot.prediction.blend_weights import fit_blend


def sure_but_for_one_fold(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A good member, and one that is sure of everything: right in all folds but one, there mostly wrong."""
    members, truth, folds = drawn(seed, (7.0, 0.0))
    wrong = (folds == 0) & (np.random.default_rng(seed).random(CLIPS) < 0.7)
    members[1] = probabilities(12.0 * np.eye(CLASSES)[(truth + wrong) % CLASSES])
    return members, truth, folds


def test_a_blend_with_a_worse_log_loss_than_its_best_member_is_not_used() -> None:
    """The best member is, and a sentence says so. A blend that is asked for by name is not replaced."""
    for seed in range(4):
        members, truth, folds = sure_but_for_one_fold(seed)
        found = fit_blend(members, truth, folds, "f1_macro", ["good", "sure"])
        assert found.fitted.weights.tolist() == [1, 0] and found.fitted.alone == 0
        assert (found.fitted.apply(members) == members[0]).all()
        assert found.table[-1]["name"] == "chosen: good"
        loss = row(found, "pool")["log_loss"] - row(found, "good")["log_loss"]
        assert loss > 0 and found.gains["log_loss"][0] == pytest.approx(-loss)
        assert f"log_loss {-loss:+.4f} ± " in found.reasons[0]
        assert ": good is used alone, " in found.reasons[0]
        named = fit_blend(members, truth, folds, "f1_macro", ["good", "sure"], ("mean",), offsets=False)
        assert named.fitted.weights.tolist() == [0.5, 0.5] and not named.gains


def test_a_row_that_looks_better_than_the_chosen_one_is_explained() -> None:
    explained = 0
    for seed in range(8):
        members, truth, folds = drawn(seed, (3.0, 2.8))
        found = fit_blend(members, truth, folds, "accuracy", ["a", "b"], offsets=False)
        name = found.table[-1]["name"].removeprefix("chosen: ")
        best = max(found.table[:-1], key=lambda one: one["score"])
        lines = [reason for reason in found.reasons if " has a better accuracy than " in reason]
        assert bool(lines) == (best["score"] > row(found, name)["score"]), (seed, found.table, found.reasons)
        if lines:
            explained += 1
            assert lines[0].startswith(f"{best['name']} has a better accuracy than {name}, by ")
            assert lines[0].endswith(f"so {name} stays") and "within noise" in lines[0]
    assert explained
