"""What a blend is made of: runs, and blends that were kept, each with its out-of-fold predictions and what it
predicts with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from earshot.core.errors import UserError
from earshot.prediction import blend_weights, saved_blend
from earshot.prediction.blend_weights import Blended, Fitted
from earshot.training import resume
from earshot.training.oof import Oof, of_run, read_oof
from earshot.training.run import CONFIG, Run


@dataclass(frozen=True)
class Member:
    """A run, or a blend of members.

    Args:
        folder: where it lies; of a blend that is not kept, None.
        run: None for a blend.
        of: a blend's members. fitted: how they are blended. kind: the checkpoint that its runs predict by,
            "best" or "last".
        metric: what it was chosen by. score: a fitted blend's out-of-fold metric, cross-fitted.
    """

    folder: Path | None
    run: Run | None
    of: tuple[Member, ...]
    fitted: Fitted | None
    kind: str
    metric: str
    score: float | None = None

    def __str__(self) -> str:
        if self.run is not None:
            record = self.run.config["record"]
            return f"{self.folder} ({record['head']['name']} on {record['view']})"
        return (
            f"{self.folder} ({self.fitted.method} of {', '.join(str(member.folder) for member in self.of)})"
        )

    def runs(self) -> list[Run]:
        """The runs that it predicts with, each once."""
        if self.run is not None:
            return [self.run]
        inside = [
            run
            for member, weight in zip(self.of, self.fitted.weights, strict=True)
            if weight > 0
            for run in member.runs()
        ]
        return list({run.folder.resolve(): run for run in inside}.values())

    def predict(self, ask: Callable[[Run, str], np.ndarray], kind: str | None = None) -> np.ndarray:
        """Probabilities (clips, classes) of whatever clips `ask(run, kind)` predicts a run's for; NaN for
        what no run heard."""
        if self.run is not None:
            return ask(self.run, kind or self.kind)
        used = self.fitted.weights > 0
        found = [
            member.predict(ask, self.kind) if weight else None
            for member, weight in zip(self.of, used, strict=True)
        ]
        blank = np.full_like(next(p for p in found if p is not None), np.nan)
        return self.fitted.apply(np.stack([blank if p is None else p for p in found]))

    def oof(self) -> Oof:
        """Its honest out-of-fold predictions: a run's of the final epoch, a blend's cross-fitted."""
        return (
            of_run(self.run)
            if self.run is not None
            else read_oof(self.folder, "oof", self.classes, self.multilabel)
        )

    @property
    def classes(self) -> list[str]:
        """The labels in the order of the probabilities' columns."""
        return self.runs()[0].classes

    @property
    def multilabel(self) -> bool:
        """May a clip have several labels?"""
        return self.runs()[0].multilabel


def open_all(names: tuple[str, ...], folder: str) -> list[Member]:
    """The named runs or kept blends (paths, or names in the runs' folder), else the only run.

    Raises:
        UserError: none there, or several and none named; one named twice.
    """
    if not names:
        found = (
            sorted(
                {
                    path.parent
                    for name in (CONFIG, saved_blend.NAME)
                    for path in Path(folder).glob(f"*/{name}")
                }
            )
            or resume.runs()
        )
        if len(found) != 1:
            raise UserError(
                f"which run? there are {', '.join(map(str, found))}: choose with --runs"
                if found
                else f"no run in {folder}/ and none attached: train one with train.py, or name its folder "
                "with --runs"
            )
        names = (str(found[0]),)
    # A name may also be that of another folder here, its competition's for example.
    return [
        open_one(
            Path(n)
            if any((Path(n) / name).is_file() for name in (CONFIG, saved_blend.NAME))
            else Path(folder) / n
        )
        for n in names
    ]


def open_one(folder: Path) -> Member:
    """A run or a kept blend.

    Raises:
        UserError: neither, or damaged; a blend whose members are missing or are others by now.
    """
    if (folder / CONFIG).is_file() or not (folder / saved_blend.NAME).is_file():
        run = Run.open(folder).whole()
        return Member(
            folder, run, (), None, "best", run.config["record"]["training"].get("metric", "f1_macro")
        )
    said = saved_blend.read(folder)
    inside = []
    places = [Path(os.path.relpath((folder / path).resolve())) for path in said["members"]]
    for where, fingerprint in zip(places, said["fingerprints"], strict=True):
        # Before it is opened: a blend that came to hold itself ends here.
        here = saved_blend.fingerprint_of(where)
        if here != fingerprint:
            raise UserError(
                f"{folder} is a blend of {where}, which is "
                f"{'missing' if here is None else 'another one by now'} ({fingerprint} there, "
                f"{here or 'nothing'} here): put it back, or "
                f"{saved_blend.anew(folder, said['method'], list(filter(Path.is_dir, places)))}"
            )
        inside.append(open_one(where))
    found = Member(
        folder, None, tuple(inside), saved_blend.fitted(said), said["kind"], said["metric"], said.get("score")
    )
    same_classes([found, *inside])
    if len(found.classes) != said["classes"]:
        raise UserError(
            f"{folder / saved_blend.NAME} speaks of {said['classes']} labels, and its members have "
            f"{len(found.classes)}: {saved_blend.anew(folder, said['method'], places)}"
        )
    return found


def same_classes(members: list[Member]) -> list[str]:
    """The labels that all members share; UserError if two have others, another order or another task."""
    from earshot.training import run_cache

    return run_cache.same_classes([run for member in members for run in member.runs()])


def plain_mean(members: list[Member]) -> Member:
    """The mean of members, each by its best checkpoints: nothing is fitted, no out-of-fold predictions are
    needed."""
    if len(members) == 1:
        return members[0]
    return Member(
        None,
        None,
        tuple(members),
        Fitted("mean", np.full(len(members), 1 / len(members))),
        "best",
        members[0].metric,
    )


def aligned(members: list[Member]) -> tuple[Oof, np.ndarray, list[str]]:
    """Out-of-fold predictions of the clips that all members have, row for row.

    Returns:
        ids, folds and labels of those clips, as the first member has them; (members, clips, classes); lines
        to say.
    Raises:
        UserError: other labels; other clips in a fold; folds that cut the clips in another way, so that no
            clip's prediction is from models that have seen none of its fold.
    """
    same_classes(members)
    found = [member.oof() for member in members]
    place = [{id: row for row, id in enumerate(oof.ids)} for oof in found]
    ids = [id for id in found[0].ids if all(id in at for at in place)]
    names = [str(member.folder) for member in members]
    if not ids:
        raise UserError(
            f"{' and '.join(names)} have no out-of-fold clip in common: train the same --fold of each"
        )
    rows = [np.array([at[id] for id in ids]) for at in place]
    first, lines = found[0].rows(rows[0]), []
    for name, oof, which in zip(names, found, rows, strict=True):
        mine = oof.rows(which)
        odd = (mine.labels != first.labels).reshape(len(ids), -1).any(1)
        if odd.any():
            raise UserError(
                f"{names[0]} and {name} have different labels for {ids[int(odd.argmax())]} ({int(odd.sum())} "
                "clips in all): train both on the same data"
            )
        # A fold is there or is not: half of one means that the clips are others.
        half = np.setdiff1d(np.flatnonzero(np.isin(oof.folds, mine.folds)), which)
        if len(half):
            lacks = next(one for one, at in zip(names, place, strict=True) if oof.ids[half[0]] not in at)
            raise UserError(
                f"{name} and {lacks} have different clips: {oof.ids[half[0]]} is not in {lacks} ({len(half)} "
                "such clips): extract and train both on the same data"
            )
        if len(which) < len(oof.ids):
            lines.append(
                f"{name}: only the folds that all have are used, {', '.join(map(str, np.unique(mine.folds)))}"
            )
    folds = _common([oof.folds[which] for oof, which in zip(found, rows, strict=True)])
    most = max(len(np.unique(oof.folds[which])) for oof, which in zip(found, rows, strict=True))
    if len(np.unique(folds)) == 1 < most:
        other = next(
            name
            for name, oof, which in zip(names, found, rows, strict=True)
            if not np.array_equal(oof.folds[which], first.folds)
        )
        raise UserError(
            f"{names[0]} and {other} have different folds for the same clips: a weight fitted over such "
            "folds has seen what it is scored on; train both with the same --folds and --seed, or blend with "
            "--blend mean"
        )
    if not np.array_equal(folds, first.folds):
        lines.append(
            f"folds differ: those that share clips are taken together, {len(np.unique(folds))} are left"
        )
    return (
        Oof(first.ids, folds, first.labels, first.probabilities),
        np.stack([oof.probabilities[which] for oof, which in zip(found, rows, strict=True)]),
        lines,
    )


def _common(folds: list[np.ndarray]) -> np.ndarray:
    """(clips,) the finest folds that cut none of the given ones, each called by the least number that the
    first gives it."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if all(np.array_equal(folds[0], other) for other in folds[1:]):
        return folds[0]
    numbers = [np.unique(each, return_inverse=True)[1] for each in folds]
    starts = np.cumsum([0] + [int(each.max()) + 1 for each in numbers])
    pairs = [(numbers[0], each + start) for each, start in zip(numbers[1:], starts[1:-1], strict=True)]
    here, there = (np.concatenate(part) for part in zip(*pairs, strict=True))
    part = connected_components(
        coo_matrix((np.ones(len(here)), (here, there)), shape=(starts[-1],) * 2), directed=False
    )[1][numbers[0]]
    least = {p: int(folds[0][part == p].min()) for p in np.unique(part)}
    return np.array([least[p] for p in part])


def fit(members: list[Member], how: str) -> tuple[Member, Blended, Oof, list[str]]:
    """Fit a blend to members' out-of-fold predictions.

    Args:
        how: "auto", or one of `blend_weights.METHODS`.
    Returns:
        the blend, what was found, its clips, and lines to say.
    """
    common, probabilities, lines = aligned(members)
    metric = members[0].metric
    others = [f"{member.folder} ({member.metric})" for member in members if member.metric != metric]
    if others:
        lines.append(
            f"the blend is chosen by {metric}, as {members[0].folder} was; otherwise {', '.join(others)}"
        )
    names = [member.folder.name for member in members]
    names = names if len(set(names)) == len(names) else [str(member.folder) for member in members]
    methods = blend_weights.METHODS if how == "auto" else (how,)
    found = blend_weights.auto(
        probabilities, common.labels, common.folds, metric, names, methods, offsets=how != "mean"
    )
    blended = Member(None, None, tuple(members), found.fitted, "last", metric, found.score)
    return blended, found, Oof(common.ids, common.folds, common.labels, found.oof), lines


def table(found: Blended, metric: str) -> list[str]:
    """The rows of a blend's scores as text."""
    width = max(len(row["name"]) for row in found.table)
    lines = [f"{'':{width}}  {metric:>10}  {'± folds':>7}  {'log loss':>8}"]
    lines += [
        f"{row['name']:{width}}  {row['score']:>10.4f}  {row['spread']:>7.4f}  {row['log_loss']:>8.4f}"
        for row in found.table
    ]
    return lines


def weights(members: list[Member], fitted: Fitted) -> str:
    """A blend's weights, and what it moves, on a line."""
    said = "  ".join(
        f"{member.folder.name} {weight:.3f}" for member, weight in zip(members, fitted.weights, strict=True)
    )
    moved = fitted.scale if fitted.scale is not None else fitted.thresholds
    about = "factors" if fitted.scale is not None else "thresholds"
    return f"weights: {said}" + ("" if moved is None else f"; {about} {moved.min():.3g} to {moved.max():.3g}")
