"""The bake-off's schedule by a counted clock: candidates are made up, nothing is trained."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import ROOT

from earshot.search import schedule
from earshot.search.schedule import Entry, FoldResult, Schedule

FOLDS = (0, 1, 2, 3, 4)


@pytest.fixture
def replays(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import anytime_replay

    return anytime_replay


def entry(name: str, guess: float, **changed) -> Entry:
    return replace(Entry(name, name, "cache/mel", "network", guess, timed=True), **changed)


def results(seconds: float, error: float, folds=FOLDS) -> dict[int, FoldResult]:
    # the folds differ as real ones do
    return {
        fold: FoldResult(seconds, error + 0.01 * (fold - 2), 3 * error + 0.03 * (fold - 2)) for fold in folds
    }


def choose(*entries: Entry, left: float = 900.0, budget: float = 900.0, **more):
    return Schedule(entries, FOLDS, left, budget, **more).choose()


def record(replays, name: str, seconds: float, error: float, guess: float | None = None, **changed):
    guess = seconds if guess is None else guess
    made = replace(entry(name, guess, timed=False), **changed)
    return replays.Record(made, seconds, results(seconds, error))


def names(finished) -> list[str]:
    return [name for _, name in finished]


def test_a_guess_of_twice_the_time_left_is_tried_by_a_fold(replays) -> None:
    """`patches` on ESC-10 with three minutes: a guess of 3:33 was refused with 1:53 left, but it takes 80."""
    records = [
        record(replays, "svm", 8.0, 0.2, family="sklearn"),
        record(replays, "patches", 16.0, 0.1, guess=42.6, family="sklearn"),
        *(record(replays, f"net{n}", 300.0, 0.3) for n in range(4)),
    ]
    records[1] = replace(records[1], timed=42.6)
    assert names(replays.replay_schedule(records, FOLDS, 180.0)) == ["svm", "patches"]


@pytest.mark.parametrize("budget", [540.0, 560.0, 900.0, 1100.0])
def test_one_is_finished_where_none_learns_anything(replays, budget: float) -> None:
    """Also where the time is tight: what is begun can be finished."""
    records = [replace(record(replays, f"net{n}", 100.0, 0.9), timed=100.001) for n in range(6)]
    finished = replays.replay_schedule(records, FOLDS, budget, chance=1.0)
    assert finished or budget * (1 - replays.RESERVE) < 530


def test_a_fold_that_was_stopped_says_nothing_once_others_are_finished() -> None:
    stopped = entry("svm", 1.0, least=48.0, results=results(8.0, 0.2, (0, 1, 2)))
    assert Schedule([stopped], FOLDS, 900, 900).estimate_cost(stopped) == pytest.approx(2 * 1.05 * 8)


def test_the_quickest_is_timed_where_it_is_guessed_to_take_a_while() -> None:
    guessed = entry("net", 10.0, timed=False)
    assert choose(guessed, left=-5.0).kind == "time"
    assert choose(replace(guessed, tried=True), left=-5.0).anyhow
    assert choose(replace(guessed, guess=2.0), left=-5.0).anyhow


def test_the_quickest_is_trained_first_whatever_the_time() -> None:
    slow, quick = entry("slow", 100.0), entry("quick", 2.0)
    step = choose(slow, quick, left=-5.0)
    assert (step.name, step.folds, step.anyhow) == ("quick", FOLDS, True)
    assert choose(entry("slow", 100.0), left=-5.0) is None
    # once one is finished, nothing is trained without time
    assert choose(slow, replace(quick, results=results(2.0, 0.2)), left=0.0) is None


def test_quick_ones_whole_and_first_then_the_most_gain_per_second() -> None:
    done = entry("svm", 1.0, results=results(1.0, 0.2))
    quick, slow, slower = entry("b", 3.0), entry("c", 30.0), entry("d", 45.0)
    step = choose(done, slower, slow, quick)
    assert (step.name, step.folds) == ("b", FOLDS)
    step = choose(done, slower, slow)
    assert (step.name, step.folds) == ("c", (0,))
    # the slower one comes first where its recipe promises so much more
    promising = replace(slower, recipe="patches")
    assert choose(done, promising, replace(slow, recipe="convnext_ggcn_scratch")).name == "d"


def test_folds_of_the_promising_are_finished_before_new_ones_begin() -> None:
    done = entry("svm", 1.0, results=results(1.0, 0.2))
    begun, new = entry("a", 30.0, results=results(30.0, 0.15, (0,))), entry("b", 25.0)
    step = choose(done, new, begun)
    assert (step.name, step.folds) == ("a", (1,))
    # two devices train two folds side by side
    assert choose(done, new, replace(begun, devices=2)).folds == (1, 2)
    # one that has three times the error waits for the others
    assert choose(done, new, replace(begun, results=results(30.0, 0.6, (0,)))).name == "b"


def test_what_learnt_nothing_waits_even_where_nothing_is_finished() -> None:
    begun = entry("a", 100.0, results={0: FoldResult(100.0, 0.9, 2.3)})
    new = entry("b", 100.0)
    assert choose(begun, new, left=2000, budget=2000, chance=2.3).name == "b"
    assert choose(begun, new, left=2000, budget=2000, chance=10.0).name == "a"


def test_a_third_of_the_time_left_unless_there_is_nothing_else() -> None:
    done = entry("svm", 1.0, results=results(1.0, 0.2))
    large, small = entry("large", 100.0, recipe="patches"), entry("small", 50.0)
    assert choose(done, large, small).name == "small"
    assert choose(done, large).name == "large"
    # none is begun whose other folds would have no time then
    assert choose(done, large, left=520.0) is None
    assert choose(done, replace(large, guess=200.0)) is None


def test_no_candidate_is_refused_for_a_guess() -> None:
    done = entry("svm", 1.0, results=results(1.0, 0.2))
    guessed = entry("linear", 1e5, timed=False)
    assert choose(done, guessed).kind == "time"
    assert choose(done, replace(guessed, timed=True)) is None
    assert choose(done, guessed, left=3.9 * schedule.TRIAL_SECONDS) is None
    # a fold of it is trained where that is half of the time left at most
    svm = entry("svm", 50.0, timed=False)
    assert choose(done, svm, left=100.0).kind == "time"
    step = choose(done, replace(svm, tried=True), left=100.0)
    assert (step.kind, step.folds) == ("train", (0,))
    assert choose(done, replace(svm, tried=True), left=99.0) is None
    assert choose(done, entry("svm", 50.0), left=100.0) is None
    # before the next candidate takes so much that a trial is no longer cheap, but not much earlier
    small, large = entry("mlp", 15.0), entry("cnn", 50.0)
    assert choose(done, guessed, small, left=290.0).name == "linear"
    assert choose(done, guessed, small, left=400.0).name == "mlp"
    assert choose(done, guessed, large, left=400.0).name == "linear"
    # one whose timing said nothing is not timed again
    assert choose(done, replace(guessed, tried=True)) is None
    assert choose(done, replace(svm, tried=True)).kind == "train"
    # timed, too, before it takes more than a little
    assert choose(done, entry("mlp", 30.0, timed=False)).kind == "time"


def test_times_are_corrected_by_those_that_ran() -> None:
    ran = [
        entry(name, 10.0, results=results(20.0 * by, 0.2)) for name, by in (("a", 0.9), ("b", 1), ("c", 9))
    ]
    other = entry("svm", 10.0, family="sklearn", results=results(1.0, 0.2))
    found = Schedule([*ran, other, entry("d", 10.0)], FOLDS, 900, 900)
    assert found.estimate_seconds(found.entries[-1]) == pytest.approx(20.0)
    assert found.estimate_seconds(entry("e", 10.0, family="sklearn")) == pytest.approx(1.0)
    assert found.estimate_seconds(entry("f", 10.0, timed=False)) == 10.0
    # what was computed is corrected by those that were timed later, too
    timed = entry("svm", 3.0, family="sklearn", computed=10.0, results=results(3.0, 0.2))
    again = Schedule([timed], FOLDS, 900, 900)
    assert again.estimate_seconds(entry("p", 40.0, family="sklearn", timed=False)) == pytest.approx(12.0)
    assert again.estimate_seconds(entry("p", 40.0, family="sklearn")) == pytest.approx(40.0)
    # overheads of quick ones say nothing about the others
    quick = entry("knn", 1.0, family="sklearn", results=results(5.0, 0.2))
    assert Schedule([quick], FOLDS, 900, 900).estimate_seconds(entry("h", 9.0, family="sklearn")) == 9.0
    # its own folds count most, and an unfinished fold is a lower limit
    assert found.estimate_seconds(found.entries[2]) == pytest.approx(1.05 * 180.0)
    assert found.estimate_seconds(entry("g", 10.0, least=77.0)) == 77.0


def test_seeds_come_once_the_first_is_finished_and_before_the_hopeless() -> None:
    done = entry("svm", 1.0, results=results(1.0, 0.2))
    first = entry("mlp", 30.0, results=results(30.0, 0.15))
    again = entry("mlp-seed1", math.inf, recipe="mlp", after="mlp")
    assert choose(done, replace(first, results=results(30.0, 0.15, FOLDS[:4])), again).name == "mlp"
    assert choose(done, first, again, entry("new", 30.0)).name == "new"
    behind = entry("worse", 30.0, results=results(30.0, 0.6, (0,)))
    step = choose(done, first, again, behind)
    assert step.name == "mlp-seed1" and step.seconds == pytest.approx(1.05 * 30)
    # there is time for the worse one, at last
    seeded = replace(again, results=results(30.0, 0.15))
    assert choose(done, first, seeded, behind).name == "worse"


def test_features_that_are_worse_lower_what_is_expected_of_the_rest() -> None:
    good, bad = "cache/pooled", "other/mel"
    known = [
        entry("svm", 1.0, source=good, results=results(1.0, 0.03)),
        entry("logistic", 1.0, source=bad, results=results(1.0, 0.3)),
    ]
    found = Schedule(known, FOLDS, 900, 900)
    near, far = entry("a", 9.0, source=good), entry("b", 9.0, source=bad)
    assert found.expect(near)[0] > -0.1 and found.expect(far)[0] < -1
    assert found.expect_gain(near) > 10 * found.expect_gain(far)


def test_a_late_good_one_is_reached(replays) -> None:
    records = [
        record(replays, "svm", 1.0, 0.2, family="sklearn"),
        *(record(replays, f"poor{n}", 20.0, 0.5) for n in range(6)),
        record(replays, "good", 20.0, 0.1),
    ]
    finished = replays.replay_schedule(records, FOLDS, 600.0)
    assert "good" in names(finished) and finished[-1][0] <= 600.0
    when = dict((name, seconds) for seconds, name in finished)
    # each of the poor ones cost a fold, not five, until the good one was through
    assert when["good"] < 6 * 20 + 5 * 20 + 60


def test_cheap_ones_are_through_in_a_tenth_of_the_time(replays) -> None:
    records = [
        *(record(replays, f"large{n}", 60.0, 0.15) for n in range(3)),
        *(record(replays, f"quick{n}", 1.0, 0.2) for n in range(4)),
    ]
    finished = replays.replay_schedule(records, FOLDS, 900.0)
    assert set(names(finished)[:4]) == {f"quick{n}" for n in range(4)} and finished[3][0] <= 90.0


@pytest.mark.parametrize("factor", [0.01, 0.1, 10.0, 200.0])
def test_wrong_guesses_cost_little(replays, factor: float) -> None:
    """All that fits is finished, however wrong the first guesses are."""
    truth = {
        "svm": (1.0, 0.2),
        "linear": (2.0, 0.18),
        "mlp": (8.0, 0.15),
        "cnn": (30.0, 0.1),
        "huge": (4000.0, 0.1),
    }
    records = [
        record(replays, name, seconds, error, guess=seconds * factor)
        for name, (seconds, error) in truth.items()
    ]
    finished = replays.replay_schedule(records, FOLDS, 900.0)
    assert set(names(finished)) == set(truth) - {"huge"}, finished


def test_all_minutes_are_used_where_there_is_something_to_do(replays) -> None:
    records = [record(replays, "svm", 1.0, 0.2), record(replays, "cnn", 30.0, 0.15)] + [
        record(replays, f"cnn-seed{n}", 30.0, 0.15, recipe="cnn", after="cnn") for n in range(9)
    ]
    finished = replays.replay_schedule(records, FOLDS, 900.0)
    assert finished[-1][0] > 900 * 0.94 - 5 * 32 and len(finished) >= 5


def test_a_finished_one_of_an_earlier_version_has_no_guess() -> None:
    old = entry("svm", math.inf, timed=False, results=results(1.0, 0.2))
    assert choose(old, entry("mlp", 2.0)).seconds == pytest.approx(10.0)


def test_another_candidate_is_chosen_while_one_has_a_step_under_way() -> None:
    quick, slow = entry("svm", 1.0), entry("mlp", 30.0)
    made = Schedule([quick, slow], FOLDS, 900.0, 900.0)
    assert made.choose().anyhow and made.choose().name == "svm"
    then = made.choose({"svm"})
    assert then.name == "mlp" and not then.anyhow and made.choose({"svm", "mlp"}) is None
    # a submission is made in any case, but once
    late = replace(made, left=-1.0)
    assert late.choose().anyhow and late.choose({"svm"}) is None


def test_a_part_that_is_all_rows_is_not_timed() -> None:
    """It would take as long as a fold, which is kept; `solve` is not called."""
    from earshot.search import timing

    head = SimpleNamespace(is_sklearn=True, estimate_seconds=lambda rows: (0.01 * rows, 0.0))
    assert timing.measure_fold_seconds(lambda: head, range(400), None, None, 5) is None


def test_seeds_of_a_dropped_one_are_open_again_with_more_hours(tmp_path) -> None:
    """They get its status, unless it failed or was left out for good."""
    from earshot.search.candidate_training import DROPPED, OPEN, CandidateTrainer

    class Trainer(CandidateTrainer):
        def __init__(self) -> None:
            self.candidates = {
                name: SimpleNamespace(after=after)
                for name, after in {
                    "svm": None,
                    "poor": None,
                    "poor-seed1": "poor",
                    "bad-seed1": "bad",
                }.items()
            }
            self.folder, self.rest, self.flags = tmp_path, [], SimpleNamespace(metric="f1_macro")
            names = (*self.candidates, "bad")
            self.state = {"folds": list(FOLDS), "of": {name: {"status": OPEN, "note": ""} for name in names}}
            self.state["of"]["svm"]["status"], self.state["of"]["bad"]["status"] = "finished", "failed"

        def build_schedule(self) -> Schedule:
            known = {"svm": results(1.0, 0.1), "poor": results(9.0, 0.9, (0,))}
            return Schedule(
                [
                    entry(name, 9.0, results=known.get(name, {}), after=candidate.after)
                    for name, candidate in self.candidates.items()
                ],
                FOLDS,
                5.0,
                900.0,
            )

        def save(self) -> None: ...

    trainer = Trainer()
    trainer.close()
    found = {name: trainer.state["of"][name]["status"] for name in trainer.candidates}
    assert found == {"svm": "finished", "poor": DROPPED, "poor-seed1": "no time", "bad-seed1": "left out"}


@pytest.mark.slow
def test_records_are_kept_continued_and_replayed(tmp_path) -> None:
    from conftest import read_csv
    from made_cache import make

    cache, out = make(tmp_path / "data/c/one", {"pooled": (12, 1, 1)}), tmp_path / "records"
    recipe = tmp_path / "small.yaml"
    recipe.write_text("head: {name: mlp, hidden: [16]}\ntraining: {epochs: 6, batch_size: 16, lr: 3e-3}\n")

    def run(*args) -> str:
        command = [sys.executable, str(ROOT / "benchmarks/anytime.py"), *map(str, args)]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert not found.returncode, found.stderr
        return found.stdout

    record = ["record", "--features", cache, "--out", out, "--candidates", "knn", "logistic", recipe]
    assert "the time is used up" in run(*record, "--max-hours", 0)
    assert "all candidates are recorded" in run(*record)
    rows = read_csv(out / "records.csv")
    assert len(rows) == 9 and {row["fold"] for row in rows} == {"0", "1", "2"}
    assert all(float(row["seconds"]) > 0 and float(row["guess"]) > 0 for row in rows)
    before = (out / "records.csv").read_bytes()
    assert "all candidates are recorded" in run(*record)
    assert (out / "records.csv").read_bytes() == before
    said = run("replay", "--records", out, "--out", tmp_path / "docs")
    last = [line for line in said.splitlines() if line.startswith("| 100% |")]
    scores = [float(cell) for cell in last[0].strip("| ").split("|")[1:]]
    assert len(last) == 2 and len(scores) == 3 and min(scores) > 0.5
    assert (tmp_path / "docs/anytime.svg").stat().st_size > 1000 and said.strip() in (
        tmp_path / "docs/anytime.md"
    ).read_text()


def test_the_order_before_and_the_oracle(replays) -> None:
    """Both are yardsticks: neither finishes more than there is time for."""
    records = [record(replays, "svm", 1.0, 0.2)] + [
        record(replays, f"net{n}", 30.0, 0.3 - 0.05 * n) for n in range(5)
    ]
    errors = {one.name: sum(r.error for r in one.results.values()) / 5 for one in records}

    def compare(name, best, folds):
        return errors[name] - errors[best], 0.01

    finished = replays.replay_halving(records, FOLDS, 450.0, compare)
    assert names(finished)[0] == "svm" and "net4" in names(finished) and finished[-1][0] <= 450.0
    score = lambda chosen: 1 - min(errors[name] for name in chosen)  # noqa: E731
    assert replays.choose_oracle(records, 5.0, score) == pytest.approx(0.8)
    assert replays.choose_oracle(records, 150.0, score) == pytest.approx(0.9)
    assert replays.choose_oracle(records, 1.0, score) == -math.inf


def test_the_same_state_gives_the_same_decision_and_a_resumed_one_goes_on(replays) -> None:
    """The decisions of a schedule that is rebuilt after every step are those of one that ran through."""
    truth = {"svm": (1.0, 0.2), "mlp": (8.0, 0.15), "cnn": (30.0, 0.1), "poor": (20.0, 0.5)}

    def run(rebuild: bool) -> list:
        entries, left, steps = {name: entry(name, seconds) for name, (seconds, _) in truth.items()}, 800.0, []
        while (step := Schedule(list(entries.values()), FOLDS, left, 900.0).choose()) is not None:
            steps.append(step)
            mine, (seconds, error) = entries[step.name], truth[step.name]
            left -= seconds * len(step.folds)
            entries[step.name] = replace(mine, results=mine.results | results(seconds, error, step.folds))
            if rebuild:
                entries = {name: replace(one, results=dict(one.results)) for name, one in entries.items()}
        return steps

    assert run(True) == run(False) and len(run(True)) > 8
