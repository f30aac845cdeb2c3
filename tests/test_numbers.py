"""Numbers that would lie: each undefined or odd case has one sensible answer, without a warning and without a
NaN."""

from __future__ import annotations

import types
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layout_files import csv, files, refused, rows

from earshot.competition.holdout import draw_holdout
from earshot.competition.load import load
from earshot.core import checksums
from earshot.core.errors import UserError
from earshot.features.cache import Cache
from earshot.prediction import submission
from earshot.training import folds, metrics, predict, run_scores, text_report

ALONE = np.array([""] * 12)
CLASSES = ["emu", "jay", "owl"]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def certain(predicted: list[int], classes: int = 3) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[predicted]


# --- scores


@pytest.mark.parametrize(
    "truth, predicted, f1, accuracy, recall",
    [
        ([0, 0, 1, 1], [0, 0, 0, 0], (2 / 3 + 0) / 2, 0.5, 0.5),  # all said to be one class
        ([0, 0, 0, 0], [0, 0, 0, 0], 1, 1, 1),  # one class only, right
        ([0, 0, 0, 0], [1, 1, 1, 1], 0, 0, 0),  # one class only, wrong
        (
            [0, 0, 1, 1],
            [0, 0, 1, 2],
            (1 + 2 / 3 + 0) / 3,
            0.75,
            0.75,
        ),  # a class that is only predicted counts as 0
        ([0, 1, 1, 1], [0, 1, 1, 1], 1, 1, 1),  # one that is nowhere does not count
        ([2], [2], 1, 1, 1),  # one clip
    ],
)
def test_scores_of_odd_sets(truth: list, predicted: list, f1: float, accuracy: float, recall: float) -> None:
    found = metrics.compute_scores(certain(predicted), np.array(truth))
    assert (found["f1_macro"], found["accuracy"], found["balanced_accuracy"]) == pytest.approx(
        (f1, accuracy, recall)
    )
    assert all(np.isfinite(value) for value in found.values())
    assert "nan" not in text_report.format_report(certain(predicted), np.array(truth), CLASSES).lower()


def test_a_probability_of_zero_costs_much_but_not_everything() -> None:
    assert metrics.compute_scores(certain([0]), np.array([1]))["log_loss"] == pytest.approx(-np.log(1e-15))
    assert metrics.compute_scores(certain([0]), np.array([[0, 1, 0]]))["log_loss"] == pytest.approx(
        -2 * np.log(1e-15) / 3, rel=1e-3
    )


@pytest.mark.parametrize("truth", [np.array([0, 1]), np.array([[1, 0, 0], [0, 1, 0]])])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_no_number_has_no_score(truth: np.ndarray, odd: float) -> None:
    p = np.array([[0.2, 0.3, 0.5], [0.1, odd, 0.1]], dtype=np.float32)
    with pytest.raises(UserError, match="1 of 2 predictions are not numbers"):
        metrics.compute_scores(p, truth)
    with pytest.raises(UserError, match="no clips to score"):
        metrics.compute_scores(p[:0], truth[:0])


def test_no_positive_of_any_class_is_said_in_words() -> None:
    truth, p = np.zeros((4, 3), dtype=int), np.full((4, 3), 0.2, dtype=np.float32)
    found = metrics.compute_scores(p, truth)
    assert found["accuracy"] == 1 and all(np.isfinite(value) for value in found.values())
    said = metrics.format_summary({**found, "undefined": metrics.list_undefined_metrics(truth)})
    assert said.startswith(
        "map_macro undefined  lwlrap undefined  roc_auc_macro undefined  log_loss 0.2231  "
        "f1_macro undefined  accuracy 1.0000"
    )
    assert "nan" not in text_report.format_report(p, truth, CLASSES).lower()
    truth[0, 1] = 1  # one label of one clip defines them all; the clips without count in neither
    assert (
        metrics.list_undefined_metrics(truth) == [] and metrics.list_undefined_metrics(np.array([0, 1])) == []
    )
    assert metrics.list_undefined_metrics(np.array([0, 0])) == ["roc_auc_macro"]
    assert metrics.list_undefined_metrics(np.ones((2, 3))) == ["roc_auc_macro", "roc_auc_micro"]
    only = metrics.compute_scores(p[:1], truth[:1])
    assert (
        metrics.compute_scores(p, truth)["lwlrap"] == only["lwlrap"] == pytest.approx(1 / 3)
    )  # a tie of three


class Quiet:
    """A run whose folds are done: what `summarise` needs of one."""

    quiet = False

    def __init__(self, folder: Path, kept: dict[int, np.ndarray]):
        self.folder, self.kept, self.classes, self.said, self.files = folder, kept, CLASSES, [], {}
        self.config = {"record": {"training": {"metric": "map_macro"}}}

    def list_finished_folds(self) -> list[int]:
        return sorted(self.kept)

    def get_fold_folder(self, number: int):
        from types import SimpleNamespace

        return SimpleNamespace(
            folder=self.folder / f"fold_{number}",
            load_predictions=lambda kind: self.kept[number],
            read_history=list,
        )

    def get_slot_folder(self, part):
        return self.get_fold_folder(part.fold)

    def write_json(self, name: str, value: dict) -> None:
        self.files[name] = value

    def log(self, text: str) -> None:
        self.said.append(text)


def test_a_fold_without_any_label_has_no_say(tmp_path: Path) -> None:
    from types import SimpleNamespace

    truth = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]])
    p = np.array([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.1], [0.1, 0.1, 0.1]], dtype=np.float32)
    rows_of = SimpleNamespace(truth=truth, ids=np.array(list("abcd")))
    run = Quiet(tmp_path, {0: p[:2], 1: p[2:]})
    found = run_scores.summarise_run(run, rows_of, np.array([0, 0, 1, 1]))
    assert found["best"]["fold_mean"] == 1 and "map_macro by fold 1.0000" in run.said[1]
    rows_of.truth = np.zeros_like(truth)
    run_scores.summarise_run(run, rows_of, np.array([0, 0, 1, 1]))
    assert "map_macro by fold undefined" in run.said[-2] and "nan" not in " ".join(run.said)
    # Another run's predictions: another number of labels, or of clips.
    run.kept[1] = np.zeros((2, 5), dtype=np.float32)
    with pytest.raises(UserError, match="holds predictions of 2 x 5, and the fold has 2 clips x 3 labels"):
        run_scores.summarise_run(run, rows_of, np.array([0, 0, 1, 1]))


# --- folds


def test_folds_of_rare_classes() -> None:
    labels = np.array([0] * 6 + [1] * 5 + [2])
    # a class with one clip: validated once, and there never learnt
    found, _ = folds.assign_folds(labels, np.full(12, -1), ALONE, 3, 0)
    assert set(found) == {0, 1, 2} and all((labels[found == f] == 0).any() for f in range(3))
    with pytest.raises(UserError, match="commonest label has 6 clips, too few for 7 folds: give --folds 6"):
        folds.assign_folds(labels, np.full(12, -1), ALONE, 7, 0)
    with pytest.raises(UserError, match="at least 2 folds"):
        folds.assign_folds(labels, np.full(12, -1), ALONE, 1, 0)


def test_folds_of_the_data_that_are_odd() -> None:
    labels = np.arange(12) % 3
    own = np.where(np.arange(12) < 4, 7, -1)
    with pytest.raises(UserError, match="single fold of its own: give --folds K"):
        folds.assign_folds(labels, own, ALONE, None, 0)
    # with holes: the rest is trained on in every fold; a fold that bad audio emptied is not there at
    # all
    own[4:6] = 9
    found, about = folds.assign_folds(labels, own, ALONE, None, 0)
    assert about == "the data's own 2 folds" and folds.choose_folds(found, ()) == [7, 9]
    with pytest.raises(UserError, match="no fold 8: the folds are 7, 9"):
        folds.choose_folds(found, (8,))
    with pytest.raises(UserError, match="too few|cannot make"):
        folds.assign_folds(np.array([0]), np.array([-1]), np.array([""]), None, 0)


# --- hold-outs, priors, submissions


def test_a_label_that_only_the_test_clips_have(tmp_path: Path) -> None:
    root = tmp_path / "c"
    files(root, *(f"audio/{n}.wav" for n in "abcxy"))
    csv(root / "train.csv", "id,label a,owl b,jay c,owl")
    csv(root / "test.csv", "id,label x,emu y,jay")
    comp = load(root)
    # scored, as a mistake
    assert comp.classes == CLASSES and rows(comp, "test")[0] == ("x", "audio/x.wav", "emu")
    assert any("no training clip has the label emu: the model cannot learn it" in n for n in comp.notes), (
        comp.notes
    )
    csv(root / "train.csv", "id,label a,owl b,owl c,owl")
    assert "all training clips" in refused(root) and "owl" in refused(root)


def test_a_hold_out_without_some_class() -> None:
    table = pd.DataFrame(
        {"id": list("abcdefghi"), "group": [""] * 9, "label": ["owl"] * 4 + ["jay"] * 4 + ["emu"]}
    )
    held = draw_holdout(table, 0.5, 0)
    assert not held[8] and 0 < held.sum() < 8  # the only emu is learnt
    found = metrics.compute_scores(certain([2] * int(held.sum())), np.where(table.label[held] == "owl", 2, 1))
    assert all(np.isfinite(value) for value in found.values())


def test_a_prior_with_an_absent_class(tmp_path: Path) -> None:
    made = object.__new__(Cache)
    made.record, made.classes, made.manifest = {}, CLASSES, {"splits": {"train": {}}}
    made._sound_rows = lambda name: {"labels": np.array(["owl", "owl", "jay", "owl"])}
    assert made.prior().tolist() == [0, 0.25, 0.75]
    filled, skipped = predict.fill_with_prior(np.full((3, 3), np.nan, dtype=np.float32), made.prior())
    # nothing can be heard: every clip is answered all the same
    assert skipped.all() and (filled == [0, 0.25, 0.75]).all()
    table = submission.write(
        tmp_path / "s.csv", np.array(list("abc")), filled, CLASSES, ("id", "label"), None
    )
    assert table.label.tolist() == ["owl"] * 3
    assert submission.warn_same_answer(table, "id") == (
        "warning: all 3 rows of the submission have the same values (owl): did the head learn anything?"
    )
    table.loc[0, "label"] = "jay"
    assert (
        submission.warn_same_answer(table, "id") is None
        and submission.warn_same_answer(table[:1], "id") is None
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("f1_macro"),
        lambda s: s.pop("clips"),
        lambda s: s.update(clips=5),
        lambda s: s.update(accuracy="1"),
        lambda s: s.update(log_loss=None),
        lambda s: s.update(undefined=3),
    ],
)
def test_a_sealed_hold_out_score_that_is_none_is_made_again(tmp_path, change):
    """Its checksum holds, and yet nothing here wrote it."""
    rows = types.SimpleNamespace(truth=np.array([0, 1, 1, -1]), multilabel=False)
    run = types.SimpleNamespace(
        folder=tmp_path, classes=["a", "b"], list_finished_folds=lambda: [0, 1], log=print
    )
    answers = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    right = run_scores.score_holdout(run, rows, lambda: answers)
    assert run_scores.score_holdout(run, rows, lambda: pytest.fail("scored twice")) == right
    content = checksums.read(tmp_path / "test.json")
    change(content)
    checksums.write(tmp_path / "test.json", content)
    assert (
        run_scores.score_holdout(run, rows, lambda: answers)
        == right
        == checksums.read(tmp_path / "test.json")
    )
