"""`train.py --recipe auto`: a ladder of heads on all caches within the time, then the best blend of them,
scored and submitted.

Each candidate is an ordinary run in the bake-off's folder, which is itself a kept blend: predict.py opens
both.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.core import checksums, config
from earshot.core.errors import UserError
from earshot.core.files import check_output, digest, empty, locked, plain_name, read_json
from earshot.core.fingerprint import differences, fingerprint, plain
from earshot.features import find_cache
from earshot.prediction import saved_blend
from earshot.search import leaderboard
from earshot.search.flags import HOURS, AutoFlags
from earshot.training import metrics
from earshot.training.run import Run

if TYPE_CHECKING:
    from earshot.features.cache import Cache
    from earshot.search.candidate_training import Contest


def announce(flags: AutoFlags, machine: config.TrainMachineFlags) -> list[Cache]:
    """The caches to use; says which, before torch is imported."""
    opened, lines = find_cache.all_of(flags.data, flags.features, machine.continue_from)
    metrics.check(flags.metric, opened[0].multilabel)
    plain_name("--name", flags.name)
    check_output(flags.out)
    print(f"bake-off: {', '.join(str(one.folder) for one in opened)}; {machine.max_hours or HOURS:g} h")
    for line in lines:
        print(line)
    return opened


def inputs_of(opened: list[Cache], flags: AutoFlags) -> dict[str, Any]:
    """What a bake-off is made from; the time is not part of it."""
    recipes = [config.load_recipe(name) for name in flags.candidates]
    names = [one.folder.name for one in opened]
    named = {
        name if names.count(name) == 1 else str(one.folder): one.fingerprint
        for name, one in zip(names, opened, strict=True)
    }
    return plain(
        {
            "features": named,
            "folds": flags.folds,
            "metric": flags.metric,
            "candidates": [[r.name, fingerprint({"head": r.head, "training": r.training})] for r in recipes],
        }
    )


def read_state(folder: Path, inputs: dict[str, Any], hours: float) -> dict[str, Any]:
    """auto.json, or a fresh one; with more hours than before, what had no time is open again.

    Raises:
        UserError: it is of other features or settings, or damaged.
    """
    fresh = {"inputs": inputs, "hours": hours, "spent": 0.0, "done": False, "folds": [], "of": {}}
    if not (folder / saved_blend.AUTO).exists():
        return fresh
    try:
        state = checksums.read(folder / saved_blend.AUTO)
    except checksums.Damaged as error:
        print(f"{error}: its runs are taken up again, what was decided is decided anew")
        return fresh
    found = differences(state["inputs"], inputs)
    if found:
        raise UserError(
            f"{folder} is a bake-off of something else: {'; '.join(found[:3])}: give the new one another "
            "--name, or start over with --fresh"
        )
    if hours > state["hours"]:
        for one in state["of"].values():
            one |= {"status": "open"} if one["status"] == "no time" else {}
        state |= {"hours": hours, "done": False}
    return state


def run(opened: list[Cache], flags: AutoFlags, machine: config.TrainMachineFlags, began: float) -> None:
    """The whole bake-off, from its folder to the submission.

    Args:
        began: when the command did, on the monotonic clock.
    """
    inputs, hours = inputs_of(opened, flags), HOURS if machine.max_hours is None else machine.max_hours
    folder, out = Path(flags.runs_folder) / (flags.name or f"auto-{fingerprint(inputs)[:8]}"), Path(flags.out)
    if (folder / "config.yaml").exists():
        raise UserError(f"--name {flags.name}: {folder} is a trained run: give the bake-off another name")
    with locked(folder, "the bake-off"):
        if machine.fresh:
            empty(folder)
        state = read_state(folder, inputs, hours)
        if (
            state["done"]
            and (folder / saved_blend.NAME).is_file()
            and (out.exists() or not opened[0].has("subm"))
        ):
            print(
                f"bake-off: {folder} is finished; more --max-hours than {state['hours']:g} would go on with "
                "what had no time"
            )
            print("\n".join(leaderboard.table(leaderboard.read(folder))))
            return
        from earshot.prediction import submit
        from earshot.report.make import report_on
        from earshot.search import candidate_training
        from earshot.search import candidates as search_candidates

        submit.rehearse(opened[0], out, flags.metric)
        candidates = search_candidates.candidates(opened, flags.candidates)
        made = candidate_training.Contest(candidates, flags, machine, folder, state, began)
        made.say(f"bake-off: {folder}, {len(candidates)} candidates")
        made.run()
        _end(made, opened, out)
        if machine.report:
            report_on(folder, made.say)
        state["done"] = True
        made.save()


def _end(made: Contest, opened: list[Cache], out: Path) -> None:
    """Blend the finished candidates, score the hold-out, write the leaderboard and the submission."""
    from earshot.prediction import members

    finished, first = made.having("finished"), opened[0]
    if not finished:
        failed = [one["note"] for one in made.state["of"].values() if one["status"] == "failed"]
        made.save()
        raise UserError(
            f"no candidate was finished: {failed[0]}"
            if failed
            else f"no candidate was finished within --max-hours {made.state['hours']:g}: the same command "
            "with more goes on"
        )
    inside = [members.open_one(made.folder / name) for name in finished]
    whole, found, oof, lines = members.fit(inside, "auto")
    before = digest(made.folder / saved_blend.NAME) if (made.folder / saved_blend.NAME).exists() else None
    saved_blend.write(made.folder, [member.folder for member in inside], whole.metric, found, oof)
    if digest(made.folder / saved_blend.NAME) != before:
        (made.folder / "test.json").unlink(missing_ok=True)
    for line in [
        f"out-of-fold, final epochs, {len(oof.ids)} clips",
        *lines,
        *members.table(found, whole.metric),
        "weights: "
        + "  ".join(
            f"{m.folder.name} {w:.3f}" for m, w in zip(inside, found.fitted.weights, strict=True) if w > 0
        ),
    ]:
        made.say(line)
    # A further seed that never began is no news.
    rows = [
        _row(made, name)
        for name, candidate in made.candidates.items()
        if candidate.after is None or made.state["of"][name]["folds"]
    ]
    told = metrics.scores(oof.probabilities, oof.labels, made.flags.metric)
    rows.append(
        {
            "run": str(made.folder),
            "recipe": "auto",
            "features": " ".join(str(one.folder) for one in opened),
            "view": "",
            "folds": " ".join(map(str, sorted(set(oof.folds.tolist())))),
            **leaderboard.scores(told, made.flags.metric),
            "fold_std": found.spread,
            "seconds": made.before + time.monotonic() - made.began,
            "status": f"blend: {found.fitted.method} of {int((found.fitted.weights > 0).sum())}, "
            "cross-fitted",
        }
    )
    rows = leaderboard.ordered(rows, made.flags.metric)
    leaderboard.write(made.folder, rows)
    leaderboard.write(made.folder.parent, rows)
    for line in leaderboard.table(rows):
        made.say(line)
    if any(one["status"] == "dropped" for one in made.state["of"].values()):
        made.say(
            "dropped candidates were dropped by the labels of the folds named: that choice, unlike the "
            "blend's, is not cross-fitted"
        )
    _submit(made, whole, first, out)


def _row(made: Contest, name: str) -> dict[str, Any]:
    """A candidate's row of the leaderboard."""
    from earshot.search import candidate_training

    one, candidate = made.state["of"][name], made.candidates[name]
    folder = made.folder / name
    row = {
        "run": str(folder),
        "recipe": candidate.recipe.name,
        "features": str(candidate.cache.folder),
        "view": candidate.view,
        "folds": "",
        "seconds": 0.0,
        "status": one["status"] + (f" {one['note']}" if one["note"] else ""),
    }
    if not candidate_training.begun(folder) or not (folder / "scores.json").exists():
        return row
    told = read_json(folder / "scores.json")["last"]
    return row | {
        "folds": " ".join(map(str, told["folds"])),
        **leaderboard.scores(told, made.flags.metric),
        "fold_std": told["fold_std"],
        "seconds": candidate_training.seconds(Run.open(folder)),
    }


def _submit(made: Contest, whole: Any, first: Cache, out: Path) -> None:
    """The hold-out's score and the submission, by the members' final epochs."""
    from earshot.core import worker_pool
    from earshot.prediction import submit
    from earshot.training import dataset, predict, run_scores

    at = worker_pool.choose(made.machine.device)[0]
    prior = first.prior()

    def answers(split: str) -> np.ndarray:
        rows, ids = {}, first.split(split)["ids"]

        def ask(run: Run, kind: str) -> np.ndarray:
            candidate = made.candidates[run.folder.name]
            key = (candidate.cache.folder, candidate.view)
            if key not in rows:
                rows.clear()  # one at a time: they may be large
                rows[key] = dataset.rows_of(candidate.cache, split, candidate.view, at, made.machine.memory)
            return predict.predict_run(run, rows[key], at, kind, ids)

        return whole.predict(ask)

    if first.has("test"):
        scored = Run(made.folder)
        scored.config = {"record": {"classes": first.classes}}
        rows = dataset.rows_of(first, "test", next(iter(first.shapes)), at, made.machine.memory)
        found = run_scores.score_test(
            scored, rows, lambda: predict.fill(answers("test"), prior)[0], metric=made.flags.metric
        )
        made.say(f"hold-out, {found['clips']} clips: {metrics.summary(found, made.flags.metric)}")
    if not first.has("subm"):
        made.say("nothing to submit: the data set has no clips without labels")
        return
    for line in submit.submit(first, first.split("subm")["ids"], answers("subm"), prior, first.classes, out):
        made.say(line)
