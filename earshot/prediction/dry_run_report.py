"""The lines of a dry run: minutes by stage, whether they fit, and what to leave out if they do not."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from earshot.core import graphs
from earshot.core.config import DryRunFlags, PredictFlags
from earshot.core.deadline import parse_duration
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.prediction import dry_run, exported, members, new_audio, stretches
from earshot.prediction.blend_weights import FittedBlend
from earshot.prediction.dry_run import GroupTimes, Workload
from earshot.prediction.hidden_clips import group_by_features, list_recordings
from earshot.prediction.members import Member
from earshot.training import predict

SMALL = 0.01  # of the time: what saves less is not worth a line
TIGHT = 0.5  # of the budget, from which on it is worth knowing what can be left out


@dataclass(frozen=True)
class Estimate:
    """Seconds that hidden recordings will take.

    Args:
        started: from the start of this process to the measuring.
        here: cores that were measured with. cores: of the machine that will predict.
    """

    whole: Member
    groups: list[GroupTimes]
    work: Workload
    started: float
    here: int
    cores: int
    device: Device

    @property
    def share(self) -> float:
        """What the time becomes with all cores if everything scales with them."""
        return min(1.0, self.here / self.cores)

    def count_start(self) -> float:
        """Seconds until the first recording is done."""
        return self.started + sum(group.load for group in self.groups)

    def count_seconds(self, whole: Member | None = None) -> float:
        """All seconds as measured, start-up included; `whole`: of this part of the blend alone."""
        kept = None
        if whole is not None:
            kept = {(run.folder.resolve(), kind) for run, kind in whole.list_checkpoints()}
        return self.count_start() + sum(
            group.count_seconds(self.work.recordings, kept) for group in self.groups
        )

    def scale(self, seconds: float) -> float:
        """The same with all cores, if everything but the start scales."""
        start = min(seconds, self.count_start())
        return start + (seconds - start) * self.share


def format_minutes(seconds: float) -> str:
    """Seconds as minutes, short times with two digits."""
    return f"{seconds / 60:.{2 if seconds < 60 else 1}f} min"


def _format_stages(group: GroupTimes, estimate: Estimate) -> str:
    count = estimate.work.recordings
    heads = sum(group.heads.values())
    names = ", ".join(sorted({run.folder.name for run in group.of.values()}))
    parts = [("decode", group.decode), ("features", group.features), ("heads", heads)]
    return (
        f"{group.name} for {names}{', three windows a stretch' if group.shifted else ''}: "
        + ", ".join(f"{name} {format_minutes(count * value)}" for name, value in parts)
        + f"; side by side {format_minutes(group.count_seconds(count))}"
    )


def format_lines(estimate: Estimate, budget: float) -> list[str]:
    """What a dry run prints, in minutes."""
    work, here, cores = estimate.work, estimate.here, estimate.cores
    rows = f" in stretches of {work.stretch:g} s" if work.stretch else ""
    lines = [
        f"dry run: {work.recordings} recordings of {work.seconds:.3g} s{rows}, measured with "
        f"{here} core{'s' if here > 1 else ''} here on {work.about}",
        *(_format_stages(group, estimate) for group in estimate.groups),
        f"start-up: {format_minutes(estimate.count_start())}",
    ]
    total = estimate.count_seconds()
    best = estimate.scale(total)
    if cores > here:
        lines.append(
            f"{cores} cores are an extrapolation from {here}: {format_minutes(best)} if everything scales, "
            f"{format_minutes(total)} if nothing does"
        )
    if total <= budget:
        verdict = "fits"
    elif best <= budget:
        verdict = f"fits only if it scales from {here} to {cores} cores"
    else:
        verdict = "does not fit"
    shown = f"{format_minutes(total)} ({total:.1f} s)"
    if cores > here:
        shown = f"{format_minutes(best)} to {format_minutes(total)}"
    lines.append(f"total: {shown}, budget {format_minutes(budget)}: {verdict}")
    if total > TIGHT * budget:
        lines += list_savings(estimate)
    return lines


def list_savings(estimate: Estimate) -> list[str]:
    """What can be left out, and the minutes that it saves as measured: members of a blend, folds, TTA."""
    whole, total = estimate.whole, estimate.count_seconds()
    found: list[tuple[float, str]] = []
    if (fitted := whole.fitted) is not None:
        for index in np.flatnonzero(fitted.weights > 0).tolist():
            if (rest := drop_member(fitted, index)) is not None:
                saved = total - estimate.count_seconds(replace(whole, fitted=rest))
                lost = describe_loss(whole, [fitted, rest])
                found.append((saved, f"without {whole.of[index].name}: %s less; {lost}"))
    for group in estimate.groups:
        if group.shifted:
            heads = {key: value / 3 for key, value in group.heads.items()}
            less = replace(group, features=group.features / 3, heads=heads)
            count = estimate.work.recordings
            saved = group.count_seconds(count) - less.count_seconds(count)
            again = "get_features.py without --hop, then train.py"
            found.append((saved, f"{group.name} with one window a stretch ({again}): %s less"))
        for key, run in group.of.items():
            seconds = estimate.work.recordings * group.heads[key]
            models = len(predict.list_predictors(run))
            if models > 1:
                text = f"{run.folder.name} with one model in place of {models} (train.py --refit): %s less"
                found.append((seconds * (1 - 1 / models), text))
            if run.shifts > 1:
                text = f"{run.folder.name} without its {run.shifts} shifts (train.py --tta 1): %s less"
                found.append((seconds * (1 - 1 / run.shifts), text))
    found = [(saved, text) for saved, text in found if saved > SMALL * total]
    lines = [
        text.replace("%s", format_minutes(saved)) for saved, text in sorted(found, key=lambda one: -one[0])
    ]
    plain = [
        run
        for run, kind in whole.list_checkpoints()
        if not any(exported.get_folder(run, kind, runtime).is_dir() for runtime in graphs.PACKAGES)
    ]
    if plain and estimate.device.name == "cpu":
        lines.append("an export of a run (python -m earshot.export) may compute the same in less time")
    return [f"to save time: {line}" for line in lines]


def drop_member(fitted: FittedBlend, index: int) -> FittedBlend | None:
    """A blend without one of its members; the weights of the others keep their proportions. None where there
    is no other."""
    weights = fitted.weights.copy()
    weights[index] = 0
    return replace(fitted, weights=weights / weights.sum()) if weights.any() else None


def describe_loss(whole: Member, blends: list[FittedBlend]) -> str:
    """What a blend's out-of-fold metric becomes with the second of two sets of weights, in words."""
    try:
        oof, probabilities, _ = members.align_oof(list(whole.of))
    except (UserError, OSError) as error:
        return f"the out-of-fold score without it is not known here ({error})"
    found = [replace(oof, probabilities=one.apply(probabilities)) for one in blends]
    scores = [one.score(whole.metric)[whole.metric] for one in found]
    return f"out-of-fold {whole.metric} {scores[0]:.4f} becomes {scores[1]:.4f}"


def build_workload(
    whole: Member, flags: PredictFlags, dry: DryRunFlags, files: list[str], place: str | None, folder: Path
) -> Workload:
    """The recordings of --audio or of the competition at `place`, where it has some, else of noise in a
    temporary folder.

    Rows are stretches where the competition's are; where none is named, as a run's neighbours were fitted.
    """
    paths: list[Path] = []
    stretch: float | None = None
    if place is not None:
        paths, stretch = list_recordings(place, "data")
        if not paths and not files:
            print("dry run: the hidden recordings are not here yet, so it is measured on others", flush=True)
    if files:
        paths = new_audio.list_files(files)[1]
    elif not paths:
        stretch = stretch or stretches.find_seconds(whole.list_runs())
    if paths:
        work = dry_run.describe_recordings(paths, dry.files, dry.seconds, stretch)
    else:
        count, seconds = dry.files or dry_run.FILES, dry.seconds or dry_run.SECONDS
        work = dry_run.make_noise_workload(whole.list_runs()[0], folder, count, seconds, stretch)
    return work._replace(stored=flags.hidden or not files)


def print_dry_run(
    whole: Member,
    flags: PredictFlags,
    dry: DryRunFlags,
    files: list[str],
    place: str | None,
    device: Device,
    began: float,
) -> None:
    """Measure, and print the minutes that hidden recordings will take.

    Args:
        files: new audio to measure on. place: a competition whose clips to submit are measured on.
        began: when this process started, by `time.perf_counter`.
    """
    budget = parse_duration("--budget", dry.budget)
    here = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="earshot-dry-run-") as folder:
        started = time.perf_counter() - began
        work = build_workload(whole, flags, dry, files, place, Path(folder))
        asked = group_by_features(whole.list_checkpoints())
        groups = [dry_run.measure(each, work, flags.weights, device) for each in asked]
    estimate = Estimate(whole, groups, work, started, here, dry.cores or here, device)
    print(*format_lines(estimate, budget), sep="\n", flush=True)
