"""Members of a blend: runs and saved blends, with their predictions and out-of-fold predictions."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from earshot.core import latest
from earshot.core.errors import UserError
from earshot.prediction import blend_weights, saved_blend
from earshot.prediction.blend_weights import BlendResult, FittedBlend
from earshot.training import resume
from earshot.training.oof import Oof, load_oof
from earshot.training.run import CONFIG, RUN_FILES, Run


@dataclass(frozen=True)
class Member:
    """A run, or a blend of members.

    Args:
        folder: its folder; None for a blend that is not saved.
        run: None for a blend.
        of: a blend's members. fitted: how they are blended. kind: the checkpoint that its runs predict by,
            "best" or "last".
        metric: the metric it was chosen by. score: a fitted blend's out-of-fold metric, cross-fitted.
    """

    folder: Path | None
    run: Run | None
    of: tuple[Member, ...]
    fitted: FittedBlend | None
    kind: str
    metric: str
    score: float | None = None

    def __str__(self) -> str:
        if self.run is not None:
            record = self.run.config["record"]
            return f"{self.folder} ({record['head']['name']} on {record['view']})"
        fitted = self.fitted
        if fitted is not None and fitted.alone is not None:
            return f"{self.folder} (the same as {self.of[fitted.alone]})"
        return (
            f"{self.folder} ({self.fitted.method} of {', '.join(str(member.folder) for member in self.of)})"
        )

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name if self.folder else ""

    def list_runs(self) -> list[Run]:
        """The runs that it predicts with, each once."""
        return list({run.folder.resolve(): run for run, _ in self.list_checkpoints()}.values())

    def list_checkpoints(self, kind: str | None = None) -> list[tuple[Run, str]]:
        """The runs that it predicts with, each once for every kind of checkpoint: "best" or "last"."""
        if self.run is not None:
            return [(self.run, kind or self.kind)]
        found, weights = {}, self.fitted.weights if self.fitted else np.ones(len(self.of))
        for member, weight in zip(self.of, weights, strict=True):
            if weight > 0:
                for run, which in member.list_checkpoints(self.kind):
                    found[run.folder.resolve(), which] = (run, which)
        return list(found.values())

    def predict(self, ask: Callable[[Run, str], np.ndarray], kind: str | None = None) -> np.ndarray:
        """Probabilities (clips, classes) of the clips that `ask(run, kind)` predicts with a run; NaN where no
        run has a prediction."""
        if self.run is not None:
            return ask(self.run, kind or self.kind)
        used = self.fitted.weights > 0
        predictions = [
            member.predict(ask, self.kind) if weight else None
            for member, weight in zip(self.of, used, strict=True)
        ]
        known = next(p for p in predictions if p is not None)
        blank = np.full_like(known, np.nan)
        return self.fitted.apply(np.stack([blank if p is None else p for p in predictions]))

    def read_oof(self) -> Oof:
        """Its unbiased out-of-fold predictions: a run's of the last epoch, a blend's cross-fitted."""
        if self.run is not None:
            return load_oof(self.run)
        return Oof.read(self.folder / saved_blend.OOF, self.classes, self.multilabel)

    @property
    def classes(self) -> list[str]:
        """The labels in the order of the probabilities' columns."""
        return self.list_runs()[0].classes

    @property
    def multilabel(self) -> bool:
        """May a clip have several labels?"""
        return self.list_runs()[0].multilabel


def _find_latest_run(folder: str) -> Path:
    """The run or kept blend that was finished last; printed where there are others.

    Raises:
        UserError: there is none; it is not finished; it is not recorded which is the latest.
    """
    files = [path for name in RUN_FILES for path in Path(folder).glob(f"*/{name}")]
    found = sorted({path.parent for path in files}) or resume.list_attached_runs()
    if not found:
        raise UserError(
            f"no run in {folder}/ and none attached: train one with train.py, or name its folder with --runs"
        )
    recorded = latest.find_latest(found, 1)
    if recorded is None and len(found) > 1:
        raise UserError(f"which run? there are {', '.join(map(str, found))}: choose with --runs")
    run, command = recorded or (found[0], "")
    if command:
        raise UserError(f"{run} is not finished: finish it with: {command}; or choose a run with --runs")
    if len(found) > 1:
        others = ", ".join(str(other) for other in found if other != run)
        print(f"run: {run} (finished last; others: {others}: choose with --runs)", flush=True)
    return run


def open_members(names: tuple[str, ...], folder: str) -> list[Member]:
    """The named runs or kept blends (paths, or names in the runs' folder), else the run that was finished
    last.

    Raises:
        UserError: none there, or several and it is not recorded which is the latest; one named twice.
    """
    if not names:
        names = (str(_find_latest_run(folder)),)
    members = []
    for name in names:
        here = Path(name)
        # A run may have the name of another folder here, such as its competition's.
        is_here = any((here / file).is_file() for file in RUN_FILES)
        members.append(open_member(here if is_here or here.is_file() else Path(folder) / name))
    return members


def open_member(folder: Path) -> Member:
    """Open a run or a saved blend.

    Raises:
        UserError: neither, or damaged; a blend whose members are missing or have changed.
    """
    if (folder / CONFIG).is_file() or not (folder / saved_blend.NAME).is_file():
        run = Run.open(folder).validate()
        metric = run.config["record"]["training"].get("metric", "f1_macro")
        return Member(folder, run, (), None, "best", metric)
    content = saved_blend.read(folder)
    method, members = content["method"], []
    places = [Path(os.path.relpath((folder / path).resolve())) for path in content["members"]]
    for place, there in zip(places, content["fingerprints"], strict=True):
        # Checked before it is opened: so a blend that contains itself fails here.
        here = saved_blend.read_fingerprint(place)
        if here != there:
            changed = "is missing" if here is None else "has changed"
            again = saved_blend.format_refit_hint(folder, method, [path for path in places if path.is_dir()])
            raise UserError(
                f"{folder} is a blend of {place}, which {changed} (fingerprint {there} in the blend, "
                f"{here or 'none'} now): put it back, or {again}"
            )
        members.append(open_member(place))
    fitted = saved_blend.build_fitted_blend(content)
    blend = Member(
        folder, None, tuple(members), fitted, content["kind"], content["metric"], content.get("score")
    )
    check_same_classes([blend, *members])
    if len(blend.classes) != content["classes"]:
        raise UserError(
            f"{folder / saved_blend.NAME} has {content['classes']} classes, but its members have "
            f"{len(blend.classes)}: {saved_blend.format_refit_hint(folder, method, places)}"
        )
    return blend


def check_same_classes(members: list[Member]) -> list[str]:
    """The classes that all members share; UserError if two differ in classes, their order or the task."""
    from earshot.training import run_cache

    return run_cache.check_same_classes([run for member in members for run in member.list_runs()])


def mean_blend(members: list[Member], method: str = "mean") -> Member:
    """The mean of members, or of their ranks, each by its best checkpoints: no weights are fitted, so no
    out-of-fold predictions are needed. UserError: they have other classes or another task."""
    if len(members) == 1:
        return members[0]
    check_same_classes(members)
    fitted = FittedBlend(method, np.full(len(members), 1 / len(members)))
    return Member(None, None, tuple(members), fitted, "best", members[0].metric)


def align_oof(members: list[Member]) -> tuple[Oof, np.ndarray, list[str]]:
    """Out-of-fold predictions of the clips that all members have, in the same order.

    Returns:
        ids, folds and labels of those clips, as the first member has them; (members, clips, classes)
        probabilities; lines to print.
    Raises:
        UserError: different labels; different clips in a fold; different folds, so that no clip's predictions
            are all from models that never saw its fold.
    """
    import pandas as pd

    check_same_classes(members)
    names = [str(member.folder) for member in members]
    complete = [member.read_oof() for member in members]
    indexes = [pd.Index(oof.ids) for oof in complete]
    ids = indexes[0]
    for index in indexes[1:]:
        ids = ids[ids.isin(index)]
    if not len(ids):
        raise UserError(
            f"{' and '.join(names)} have no out-of-fold clip in common: train the same --fold of both"
        )
    oofs = [oof.take(index.get_indexer(ids)) for oof, index in zip(complete, indexes, strict=True)]
    first, lines = oofs[0], []
    for name, oof, whole, index in zip(names, oofs, complete, indexes, strict=True):
        differ = (oof.labels != first.labels).reshape(len(ids), -1).any(1)
        if differ.any():
            raise UserError(
                f"{names[0]} and {name} have different labels for {ids[differ][0]} ({int(differ.sum())} "
                "clips in all): train both on the same data"
            )
        # Half a fold means that the clips differ.
        lost = whole.ids[np.isin(whole.folds, oof.folds) & ~index.isin(ids)]
        if len(lost):
            other = next(n for n, theirs in zip(names, indexes, strict=True) if lost[0] not in theirs)
            raise UserError(
                f"{name} and {other} have different clips: {lost[0]} is not in {other} ({len(lost)} "
                "such clips): extract and train both on the same data"
            )
        if len(ids) < len(whole.ids):
            shared = ", ".join(map(str, np.unique(oof.folds)))
            lines.append(f"{name}: only the folds that all have are used, {shared}")
    folds = merge_folds([oof.folds for oof in oofs])
    most = max(len(np.unique(oof.folds)) for oof in oofs)
    if len(np.unique(folds)) == 1 < most:
        other = next(
            name for name, oof in zip(names, oofs, strict=True) if not np.array_equal(oof.folds, first.folds)
        )
        raise UserError(
            f"{names[0]} and {other} have different folds for the same clips: weights fitted to "
            "such folds would be scored on clips they were fitted to; train both with the same --folds and "
            "--seed, or use --blend mean"
        )
    if not np.array_equal(folds, first.folds):
        lines.append(f"folds differ: those that share clips are merged, {len(np.unique(folds))} are left")
    return replace(first, folds=folds), np.stack([oof.probabilities for oof in oofs]), lines


def merge_folds(folds: list[np.ndarray]) -> np.ndarray:
    """(clips,) the finest folds that split none of the given ones, each numbered by the first's lowest number
    in it."""
    import pandas as pd

    merged = folds[0]
    while True:
        before = merged
        for numbers in folds:
            merged = pd.Series(merged).groupby(numbers).transform("min").to_numpy()
        if np.array_equal(before, merged):
            return merged


def read_groups(members: list[Member], ids: np.ndarray) -> np.ndarray | None:
    """(clips,) the source of each clip, "" for none, by the first run whose cache is there; else None."""
    import pandas as pd

    from earshot.training import run_cache

    for run in [run for member in members for run in member.list_runs()]:
        try:
            split = run_cache.open_run_cache(run, None).split("train")
        except UserError:
            continue
        groups = pd.Series(split["groups"], index=split["ids"]).astype(str)
        return groups.reindex(ids, fill_value="").to_numpy()
    return None


def fit_members(members: list[Member], how: str) -> tuple[Member, BlendResult, Oof, list[str]]:
    """Fit a blend to members' out-of-fold predictions.

    Args:
        how: "auto" (see `blend_weights.fit_blend`), "mean", or "pool", also by its old names.
    Returns:
        the blend, the result, its out-of-fold predictions, and lines to print.
    """
    oof, probabilities, lines = align_oof(members)
    metric = members[0].metric
    others = [f"{member.folder} ({member.metric})" for member in members if member.metric != metric]
    if others:
        lines.append(
            f"the blend is chosen by {metric}, the metric of {members[0].folder}; not by that of "
            f"{', '.join(others)}"
        )
    names = [member.folder.name for member in members]
    if len(set(names)) < len(names):
        names = [str(member.folder) for member in members]
    methods = blend_weights.AUTO if how == "auto" else ("mean" if how == "mean" else "pool",)
    offsets = how != "mean"
    found = blend_weights.fit_blend(
        probabilities, oof.labels, oof.folds, metric, names, methods, offsets, read_groups(members, oof.ids)
    )
    blend = Member(None, None, tuple(members), found.fitted, "last", metric, found.score)
    return blend, found, replace(oof, probabilities=found.oof), lines


def format_table(found: BlendResult, metric: str) -> list[str]:
    """The rows of a blend's scores as text, then the sentences that explain the choice."""
    width = max(len(row["name"]) for row in found.table)
    lines = [f"{'':{width}}  {metric:>10}  {'± folds':>7}  {'log loss':>8}"]
    lines += [
        f"{row['name']:{width}}  {row['score']:>10.4f}  {row['spread']:>7.4f}  {row['log_loss']:>8.4f}"
        for row in found.table
    ]
    return lines + found.reasons


def format_weights(members: list[Member], fitted: FittedBlend) -> str:
    """A blend's weights and power, and the range of its factors or thresholds, on a line."""
    pairs = list(zip([member.name for member in members], fitted.weights, strict=True))
    line = "weights: " + "  ".join(f"{name} {weight:.3f}" for name, weight in pairs if weight > 0)
    if unused := [name for name, weight in pairs if weight == 0]:
        line += f" (unused: {', '.join(unused)})"
    line += "" if fitted.power is None else f"; power {fitted.power:.2f}"
    for name, values in (("factors", fitted.scale), ("thresholds", fitted.thresholds)):
        if values is not None:
            line += f"; {name} {values.min():.3g} to {values.max():.3g}"
    return line
