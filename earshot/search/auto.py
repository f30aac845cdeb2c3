"""`train.py --recipe auto`: trains a ladder of heads on all caches within the time, blends the best of them
and writes the submission.

Each candidate is an ordinary run in the bake-off's folder, and the folder is a kept blend: predict.py opens
both.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.core import checksums, config, latest
from earshot.core.errors import UserError
from earshot.core.files import check_output, check_plain_name, empty_folder, hash_file, hold_lock, read_json
from earshot.core.fingerprint import compute_fingerprint, list_differences, to_json
from earshot.features import find_cache
from earshot.prediction import saved_blend
from earshot.search import leaderboard
from earshot.search.advice import Seen, count_confident_errors, suggest_next
from earshot.search.flags import HOURS, AutoFlags
from earshot.training import metrics
from earshot.training.run import Run

if TYPE_CHECKING:
    from earshot.features.cache import Cache
    from earshot.prediction.blend_weights import BlendResult
    from earshot.search.candidate_training import CandidateTrainer
    from earshot.training.oof import Oof


def open_caches(flags: AutoFlags, machine: config.TrainMachineFlags) -> list[Cache]:
    """The caches to use; they are printed before torch is imported, which takes seconds."""
    caches, lines = find_cache.find_all(flags.data, flags.features, machine.continue_from)
    metrics.check_metric(flags.metric, caches[0].multilabel)
    check_plain_name("--name", flags.name)
    check_output(flags.out)
    print(f"bake-off: {', '.join(str(one.folder) for one in caches)}; {machine.max_hours or HOURS:g} h")
    for line in lines:
        print(line)
    return caches


def describe_inputs(opened: list[Cache], flags: AutoFlags) -> dict[str, Any]:
    """The caches, folds, metric and candidates of a bake-off; its time is not among them."""
    recipes = [config.load_recipe(name) for name in flags.candidates]
    names = [one.folder.name for one in opened]
    named = {
        name if names.count(name) == 1 else str(one.folder): one.fingerprint
        for name, one in zip(names, opened, strict=True)
    }
    return to_json(
        {
            "features": named,
            "folds": flags.folds,
            "metric": flags.metric,
            "candidates": [
                [r.name, compute_fingerprint({"head": r.head, "training": r.training})] for r in recipes
            ],
        }
    )


def read_state(folder: Path, inputs: dict[str, Any], hours: float) -> dict[str, Any]:
    """The content of auto.json, or a fresh state; with more hours than before, candidates without time, or
    dropped for want of it, are open again.

    Raises:
        UserError: it has other features or settings.
    """
    fresh = {"inputs": inputs, "hours": hours, "spent": 0.0, "done": False, "folds": [], "of": {}}
    if not (folder / saved_blend.AUTO).exists():
        return fresh
    try:
        state = checksums.read(folder / saved_blend.AUTO)
    except checksums.CorruptFile as error:
        print(f"warning: {error}: its runs continue, decisions about candidates are made again")
        return fresh
    changes = list_differences(state["inputs"], inputs)
    if changes:
        raise UserError(
            f"{folder} is a bake-off with other settings: {'; '.join(changes[:3])}: give the new one another "
            "--name, or start over with --fresh"
        )
    if hours > state["hours"]:
        for entry in state["of"].values():
            entry |= {"status": "open"} if entry["status"] in ("no time", "dropped") else {}
        state |= {"hours": hours, "done": False}
    return state


def run(opened: list[Cache], flags: AutoFlags, machine: config.TrainMachineFlags, began: float) -> Path:
    """The whole bake-off, from its folder to the submission; the folder.

    Args:
        began: start of the command on the monotonic clock.
    """
    inputs, hours = describe_inputs(opened, flags), HOURS if machine.max_hours is None else machine.max_hours
    folder, out = (
        Path(flags.runs_folder) / (flags.name or f"auto-{compute_fingerprint(inputs)[:8]}"),
        Path(flags.out),
    )
    if (folder / "config.yaml").exists():
        raise UserError(f"--name {flags.name}: {folder} is a trained run: give the bake-off another name")
    with hold_lock(folder, "the bake-off"):
        if machine.fresh:
            empty_folder(folder)
        state = read_state(folder, inputs, hours)
        if (
            state["done"]
            and (folder / saved_blend.NAME).is_file()
            and (out.exists() or not opened[0].has_split("subm"))
        ):
            print(
                f"bake-off: {folder} is finished; --max-hours above {state['hours']:g} would train the "
                "candidates that had no time"
            )
            print("\n".join([*leaderboard.format_table(leaderboard.read(folder)), *state.get("advice", [])]))
            return folder
        from earshot.prediction import submit
        from earshot.report.make import report_on
        from earshot.search import candidate_training
        from earshot.search import candidates as search_candidates

        submit.dry_run(opened[0], out, flags.metric)
        latest.begin(folder.parent, folder.name, "train.py")
        candidates = search_candidates.list_candidates(opened, flags.candidates)
        trainer_class = candidate_training.CandidateTrainer
        if machine.cluster is not None:
            from earshot.search.cluster_training import ClusterTrainer

            trainer_class = ClusterTrainer
        trainer = trainer_class(candidates, flags, machine, folder, state, began)
        trainer.report(f"bake-off: {folder}, {len(candidates)} candidates")
        trainer.run()
        _blend_candidates(trainer, opened, out)
        if machine.report:
            report_on(folder, trainer.report)
        latest.finish(folder.parent, folder.name)
        state["done"] = True
        trainer.save()
    return folder


def _blend_candidates(trainer: CandidateTrainer, opened: list[Cache], out: Path) -> None:
    """Blend the finished candidates, score the hold-out, write the leaderboard and the submission."""
    from earshot.prediction import members

    finished, first = trainer.list_with_status("finished"), opened[0]
    if not finished:
        failed = [one["note"] for one in trainer.state["of"].values() if one["status"] == "failed"]
        trainer.save()
        raise UserError(
            f"all candidates failed, the first with: {failed[0]}"
            if failed
            else f"no candidate was finished within --max-hours {trainer.state['hours']:g}: give the same "
            "command more hours"
        )
    chosen = [members.open_member(trainer.folder / name) for name in finished]
    whole, blended, oof, lines = members.fit_members(chosen, "auto")
    before = (
        hash_file(trainer.folder / saved_blend.NAME) if (trainer.folder / saved_blend.NAME).exists() else None
    )
    saved_blend.write(trainer.folder, [member.folder for member in chosen], whole.metric, blended, oof)
    if hash_file(trainer.folder / saved_blend.NAME) != before:
        (trainer.folder / "test.json").unlink(missing_ok=True)
    for line in [
        f"out-of-fold scores at the last epoch, {len(oof.ids)} clips:",
        *lines,
        *members.format_table(blended, whole.metric),
        "weights: "
        + "  ".join(
            f"{m.folder.name} {w:.3f}" for m, w in zip(chosen, blended.fitted.weights, strict=True) if w > 0
        ),
    ]:
        trainer.report(line)
    # Further seeds that never started are left out.
    rows = [
        _build_row(trainer, name)
        for name, candidate in trainer.candidates.items()
        if candidate.after is None or trainer.state["of"][name]["folds"]
    ]
    blend_scores = metrics.compute_scores(oof.probabilities, oof.labels, trainer.flags.metric)
    rows.append(
        {
            "run": str(trainer.folder),
            "recipe": "auto",
            "features": " ".join(str(one.folder) for one in opened),
            "view": "",
            "folds": " ".join(map(str, sorted(set(oof.folds.tolist())))),
            **leaderboard.select_scores(blend_scores, trainer.flags.metric),
            "fold_std": blended.spread,
            "seconds": trainer.before + time.monotonic() - trainer.began,
            "status": f"blend: {_describe_blend(finished, blended)}, cross-fitted",
        }
    )
    rows = leaderboard.sort_rows(rows, trainer.flags.metric)
    leaderboard.write(trainer.folder, rows)
    leaderboard.write(trainer.folder.parent, rows)
    for line in leaderboard.format_table(rows):
        trainer.report(line)
    if any(one["status"] == "dropped" for one in trainer.state["of"].values()):
        trainer.report(
            "note: candidates were dropped by their scores on the folds named; unlike the blend, this choice "
            "is not cross-fitted"
        )
    advice = suggest_next(_look_back(trainer, opened, oof))
    trainer.state["advice"] = [f"next to try: {line}" for line in advice]
    for line in trainer.state["advice"]:
        trainer.report(line)
    _submit(trainer, whole, first, out)


def _look_back(trainer: CandidateTrainer, opened: list[Cache], oof: Oof) -> Seen:
    """What the bake-off saw, for the sentences on what to try next."""
    from earshot.search import fold_results

    errors = {
        name: fmean(result.error for result in trainer.read_results(name).values())
        for name in trainer.list_with_status("finished")
    }
    features: dict[str, float] = {}
    for name, error in errors.items():
        cache = trainer.candidates[name].cache.folder.name
        features[cache] = min(error, features.get(cache, error))
    best = min(errors, key=lambda name: errors[name])
    losses, train_loss = fold_results.read_losses(Run(trainer.folder / best))
    confident, expected = count_confident_errors(oof.probabilities, oof.labels)
    return Seen(
        trainer.state["hours"],
        trainer.rest,
        [name for name in trainer.list_with_status("left out") if "GPU" in trainer.state["of"][name]["note"]],
        features,
        [cache.folder.name for cache in opened if cache.record.get("weights")],
        trainer.candidates[best].recipe.name,
        losses,
        train_loss,
        confident,
        expected,
        len(oof.ids),
        str(opened[0].folder),
        str(trainer.folder),
    )


def _describe_blend(names: list[str], blended: BlendResult) -> str:
    used = [name for name, weight in zip(names, blended.fitted.weights, strict=True) if weight > 0]
    if len(used) == 1:
        return f"{used[0]} alone"
    return f"{blended.fitted.method} of {len(used)}"


def _build_row(trainer: CandidateTrainer, name: str) -> dict[str, Any]:
    """A candidate's row of the leaderboard."""
    from earshot.search import fold_results

    entry, candidate = trainer.state["of"][name], trainer.candidates[name]
    folder = trainer.folder / name
    row = {
        "run": str(folder),
        "recipe": candidate.recipe.name,
        "features": str(candidate.cache.folder),
        "view": candidate.view,
        "folds": "",
        "seconds": 0.0,
        "status": entry["status"] + (f" {entry['note']}" if entry["note"] else ""),
    }
    if not fold_results.run_exists(folder) or not (folder / "scores.json").exists():
        return row
    last_scores = read_json(folder / "scores.json")["last"]
    return row | {
        "folds": " ".join(map(str, last_scores["folds"])),
        **leaderboard.select_scores(last_scores, trainer.flags.metric),
        "fold_std": last_scores["fold_std"],
        "seconds": fold_results.sum_training_seconds(Run.open(folder)),
    }


def _submit(trainer: CandidateTrainer, whole: Any, first: Cache, out: Path) -> None:
    """Score the hold-out and write the submission, both with the last epoch of the blend's members."""
    from earshot.core import worker_pool
    from earshot.core.device import name_local
    from earshot.prediction import stretches, submit
    from earshot.training import dataset, predict, run_scores

    device = worker_pool.choose(name_local(trainer.machine.device, trainer.cluster))[0]
    prior = first.prior()

    lines: dict[str, None] = {}  # each once

    def predict_split(split: str) -> np.ndarray:
        rows, ids = {}, first.split(split)["ids"]

        def predict_clips(run: Run, kind: str) -> np.ndarray:
            candidate = trainer.candidates[run.folder.name]
            key = (candidate.cache.folder, candidate.view)
            if key not in rows:
                rows.clear()  # one at a time: they may be large
                rows[key] = dataset.load_rows(
                    candidate.cache, split, candidate.view, device, trainer.machine.memory
                )
            found = predict.predict_run(run, rows[key], device, kind)
            if split == "subm":
                own = candidate.cache.split(split)
                found, about = stretches.smooth_run(run, own, found, trainer.folder)
                lines.update(dict.fromkeys(about))
            return predict.reorder_clips(found, rows[key].ids, ids)

        return whole.predict(predict_clips)

    if first.has_split("test"):
        scored = Run(trainer.folder)
        scored.config = {"record": {"classes": first.classes}}
        rows = dataset.load_rows(first, "test", next(iter(first.shapes)), device, trainer.machine.memory)
        predicted = run_scores.score_holdout(
            scored,
            rows,
            lambda: predict.fill_with_prior(predict_split("test"), prior)[0],
            metric=trainer.flags.metric,
        )
        trainer.report(
            f"hold-out, {predicted['clips']} clips: {metrics.format_summary(predicted, trainer.flags.metric)}"
        )
    if not first.has_split("subm"):
        trainer.report("nothing to submit: the data set has no clips without labels")
        return
    probabilities = predict_split("subm")
    for line in lines:
        trainer.report(line)
    for line in submit.write_submission(
        first,
        first.split("subm")["ids"],
        probabilities,
        prior,
        first.classes,
        out,
        trainer.folder.name,
        runs=whole.list_runs(),
        how=whole.fitted.method,
        oof=(whole.metric, whole.score),
    ):
        trainer.report(line)
