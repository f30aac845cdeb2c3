"""The plan of a cache: all settings decided, the source files known, the fingerprint computed."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot import extractors
from earshot.competition import segments
from earshot.core import checksums, kaggle_paths
from earshot.core.config import AugmentFlags
from earshot.core.disk_space import SLACK
from earshot.core.errors import UserError
from earshot.core.file_names import to_text
from earshot.core.files import hash_value
from earshot.core.fingerprint import compute_fingerprint, list_differences
from earshot.features import augmented_copies, cache, clip_weights, reasons
from earshot.features.schema import validate_manifest
from earshot.features.source_files import INDEX, Sources, check_files_exist, find_unreadable

if TYPE_CHECKING:
    from earshot.audio.load import AudioSettings
    from earshot.competition.load import Competition
    from earshot.core.config import WindowFlags
    from earshot.extractors.base import Window

DENSER = 10  # compressed files hold about so many times the seconds of others of their size


@dataclass(frozen=True)
class Plan:
    """A cache to be made. Its fingerprint is computed from `record`, which has no path, time or device."""

    competition: Competition
    folder: Path
    extractor: str
    settings: Any
    audio: AudioSettings
    window: Window
    weights: str | None
    recipe: str | None
    record: dict[str, Any]
    notes: list[str]
    augment: AugmentFlags = AugmentFlags()
    windows: float = 1.0  # of a clip, on average
    unreadable: frozenset[str] = frozenset()  # files of clips that could not be read when this was planned
    digests: tuple[str, ...] = ()  # of the training clips' files, SHA-256, "" where one cannot be read
    saved_run: Any = None  # whose export may compute the extractor's network

    @property
    def fingerprint(self) -> str:
        """16 hex digits of `record`."""
        return compute_fingerprint(self.record)


def make_plan(
    competition: Competition,
    out: Path,
    extractor: str,
    settings: Any,
    audio: AudioSettings,
    window: WindowFlags,
    weights: str | None,
    name: str | None,
    recipe: str | None,
    workers: int,
    augment: AugmentFlags | None = None,
    like: dict[str, Any] | None = None,
) -> Plan:
    """Choose from the data what the flags leave open: the window's length, the rate, the kind of padding.

    Args:
        like: a saved run's record of its features, which the plan has to equal.
    Raises:
        UserError: weights are missing, the network cannot take the window, or copies cannot be made.
    """
    from earshot.extractors.base import Window, to_record

    augment = augment or AugmentFlags()
    made_by = extractors.load_module(extractor).Extractor
    notes = []
    sources = Sources(out / competition.name / INDEX)
    clips = competition.clips
    labelled = clips[clips.split == "train"]
    # Only training clips decide: the clips to submit may be swapped for hidden ones later.
    paths = [str(path) for path in (labelled.path if len(labelled) else clips.path)]
    paths = [path for path in paths if path] if like is None else []
    known = [
        (header, sources.known[path]["size"])
        for path, header in zip(paths, sources.read_headers(paths), strict=True)
        if header
    ]
    headers = [header for header, _ in known]
    notes += augmented_copies.check_flags(labelled, augment)
    if not headers and like is None:
        raise UserError(
            f"none of the {len(paths)} clips in {competition.root} can be opened: "
            f"{reasons.format_commonest(reasons.list_header_errors(paths))}"
        )
    made_by.choose_views(settings)  # a wrong one is refused before the weights are downloaded
    weights = weights or made_by.default_weights
    files = made_by.find_weights(settings, weights)
    if not files:
        made_by.fetch(settings, weights)
        files = made_by.find_weights(settings, weights)
    made_by = made_by.configure(settings, weights)
    seconds = window.seconds or made_by.get_default_seconds(settings)
    if seconds is None:
        from earshot.audio.windows import choose_seconds

        longest = max(h[0] for h in headers)
        seconds = choose_seconds([h[0] for h in headers], made_by.limit)
        notes.append(
            f"window: {seconds:g} s, chosen from {len(headers)} training clips of "
            f"{min(h[0] for h in headers):.2f} to {longest:.2f} s (--seconds overrides)"
        )
    if seconds <= 0:
        raise UserError(f"--seconds {seconds:g}: a window must be longer than 0 s")
    if made_by.seconds and seconds > made_by.seconds + 1e-6:
        raise UserError(
            f"--seconds {seconds:g}: {extractor} takes windows of at most {made_by.seconds:g} s; longer "
            "clips become several windows by themselves"
        )
    if (
        window.hop is not None
        and window.hop <= 0
        or window.max_windows is not None
        and window.max_windows < 1
    ):
        raise UserError("--hop and --max-windows must be above 0")
    rate = getattr(settings, "rate", made_by.rate or None)
    if like is not None:
        rate = like["window"].get("rate")
    elif rate is None:
        rate = Counter(h[1] for h in headers).most_common(1)[0][0]
        notes.append(f"rate: {rate} Hz, the most common one of the training clips")
    filled = Window(float(seconds), window.hop, window.pad or made_by.pad, window.max_windows, int(rate))
    if segments.widen(clips, filled.seconds, filled.hop) is not clips:
        notes.append(
            "stretches: three windows each, its own and those a hop before and after, which are pooled"
        )
    # Copies played slower are a little longer, which an estimate of disk space may ignore.
    windows = (
        _estimate_windows([header[0] for header in headers], [size for _, size in known], filled)
        if known
        else 1.0
    )

    place = kaggle_paths.get_input_root()
    if files and place is not None and files[0].is_relative_to(place):
        notes.append(f"weights: {files[0] if len(files) == 1 else files[0].parent}, attached")
    contents = _digest_clips(competition, sources, workers)
    record = {
        "competition": competition.name,
        **({"task": "multilabel"} if competition.multilabel else {}),
        "classes": len(competition.classes),
        "extractor": extractor,
        "settings": to_record(settings),
        "audio": asdict(audio),
        "window": asdict(filled),
        **(
            {"augment": to_record(augment)} if augment.augment else {}
        ),  # records without copies stay what they were
        "weights": hash_value(sources.compute_digests(files, workers))[:16] if files else None,
        "labels": hash_value(competition.classes)[:16],
        "sample_submission": _digest_sample(competition, sources, workers),
        "clips": _describe_splits(competition, contents),
        **({"metric": competition.metric} if competition.metric else {}),
    }
    sources.save()
    if like is not None:
        found = list_differences(like, {key: record[key] for key in like})
        if found:
            raise UserError(
                f'features differ from the run\'s ({"; ".join(found[:3])}; "there" is the run): attach the '
                "weights that it was trained with, or say where they are with --weights"
            )
    return Plan(
        competition,
        out / competition.name / (name or extractor),
        extractor,
        settings,
        audio,
        filled,
        weights,
        recipe,
        record,
        notes,
        augment,
        windows,
        find_unreadable(contents),
        tuple(contents.get(path, "") for path in labelled.path),
    )


def _estimate_windows(seconds: list[float], sizes: list[int], window: Window) -> float:
    """Windows of a clip, on average, for the estimate of the disk.

    A clip counts for at most `DENSER` times the seconds that a file of its size usually holds here. Headers
    may be wrong: an estimate that is too high would refuse data that fits, while one that is too low costs a
    line when the disk is full, and the same command continues.
    """
    import numpy as np

    from earshot.audio.windows import count_windows

    bytes_each = np.maximum(sizes, 1)
    likely = DENSER * float(np.median(seconds / bytes_each)) * bytes_each
    return float(
        np.mean(
            [
                count_windows(float(s), window.seconds, window.hop, window.max_windows)
                for s in np.minimum(seconds, likely)
            ]
        )
    )


def _digest_sample(competition: Competition, sources: Sources, workers: int) -> str | None:
    """The content of the sample submission: the submission is built on the copy beside the cache."""
    if competition.sample_submission is None:
        return None
    return sources.compute_digests([competition.sample_submission], workers)[0][:12]


def check_unchanged(plan: Plan) -> None:
    """Raise UserError where audio files were changed since the plan was made: the cache would mix features of
    both."""
    sources = Sources(plan.folder.parent / INDEX)  # not saved: what is read again here has no header
    if (
        _describe_splits(plan.competition, _digest_clips(plan.competition, sources, 4))
        != plan.record["clips"]
    ):
        raise UserError(
            f"audio files of {plan.competition.root} were changed while features were extracted from them: "
            "start over with --fresh once nothing writes to them"
        )


def _digest_clips(competition: Competition, sources: Sources, workers: int) -> dict[str, str]:
    """SHA-256 of each clip's file, by its path, "" for one that cannot be read."""
    paths = [path for path in dict.fromkeys(competition.clips.path) if path]
    return dict(zip(paths, sources.compute_digests(paths, workers), strict=True))


def _describe_splits(competition: Competition, contents: dict[str, str]) -> dict[str, str]:
    """`_describe_clips` of each split."""
    return {
        split: _describe_clips(competition, part, contents, split == "train")
        for split, part in competition.clips.groupby("split", sort=False)
    }


def _describe_clips(competition: Competition, part: Any, contents: dict[str, str], weighted: bool) -> str:
    """A split as text: its size, and a digest of its rows and their files' contents.

    Args:
        weighted: do its clips' weights count? Those of the training clips do.
    """
    # of text: a Path for each of many clips takes longer than all the rest
    root = f"{competition.root}{os.sep}"
    names = [to_text(path.removeprefix(root)) for path in part.path]
    rows = [
        list(row)
        for row in zip(
            part.id,
            names,
            part.label.fillna("").astype(str),
            map(int, part.fold),
            part.group,
            (contents.get(path, "") for path in part.path),
            strict=True,
        )
    ]
    # records of clips that count alike, and of whole files, stay what they were
    if weighted and clip_weights.get_weights(part) is not None:
        rows = [[*row, weight] for row, weight in zip(rows, part.weight.tolist(), strict=True)]
    if part.end.notna().any():
        rows = [
            [*row, *stretch]
            for row, stretch in zip(
                rows, zip(part.start.tolist(), part.end.tolist(), strict=True), strict=True
            )
        ]
    return f"{len(rows)} clips {hash_value(rows)[:12]}"


def find_state(plan: Plan) -> str:
    """The state of the cache: "new", "started", "complete", or "damaged" after damaged files were set aside.

    Raises:
        UserError: the folder holds a cache with other settings, whose differences are named; or other files.
        TemporaryError: the clips differ because files are gone that an earlier run has read.
    """
    path = plan.folder / cache.MANIFEST
    if not path.exists():
        strange = (
            sorted(p.name for p in plan.folder.iterdir() if not cache.is_cache_file(p.name))
            if plan.folder.is_dir()
            else []
        )
        if strange:
            raise UserError(
                f"{plan.folder} holds files that are not a cache's ({', '.join(strange[:3])}): give the "
                "cache another name with --cache NAME"
            )
        return "new"
    try:
        manifest = cache.read_manifest(path)
        if isinstance(manifest, dict) and manifest.get("version") == cache.VERSION:
            manifest = checksums.read(path)
    except UserError as error:
        return _set_aside(path, str(error).partition(f": {cache.MAKE_ANEW}")[0])
    if not isinstance(manifest, dict) or not isinstance(manifest.get("record"), dict):
        raise UserError(f"{path} is another program's: give the cache another name with --cache NAME")
    if manifest.get("version") != cache.VERSION:
        raise UserError(
            f"{plan.folder} was made by cache version {manifest.get('version')}, this is version "
            f"{cache.VERSION}: start over with --fresh, or choose another --cache NAME"
        )
    found = list_differences(manifest["record"], plan.record)
    if found and not manifest.get("complete") and not any((plan.folder / "shards").glob("*.json")):
        return "new"  # started with other files or settings, but nothing was made yet
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        other = UserError(
            f"{plan.folder} was made with other settings: {'; '.join(found[:3])}{more}: give the new cache a "
            "name with --cache NAME, or start over with --fresh"
        )
        if manifest["record"].get("clips") != plan.record["clips"]:
            check_files_exist(plan.folder.parent, plan.competition.root, other)
        raise other
    wrong = validate_manifest(manifest)
    if wrong:
        return _set_aside(path, f"{path} {wrong}")
    if not manifest.get("complete"):
        return "started"
    digests = checksums.find_digests(plan.folder, list(manifest["sha256"]))
    broken = [name for name, wanted in manifest["sha256"].items() if digests[name] != wanted]
    for name in broken:
        _set_aside(
            plan.folder / name,
            f"{plan.folder / name} is {'damaged' if (plan.folder / name).exists() else 'missing'}",
        )
    return "damaged" if broken else "complete"


def _set_aside(path: Path, reason: str) -> str:
    if path.exists():
        os.replace(path, path.with_name(path.name + ".damaged"))
    print(f"{reason}: set aside, the cache is made again", flush=True)
    return "damaged"


def estimate_bytes(
    plan: Plan, shapes: dict[str, tuple[int, ...]], clips: int, missing: int
) -> tuple[int, int]:
    """Bytes that a cache will take, and bytes that making the missing part still needs.

    Shards stay until they are joined, so that features are on disk twice at the end.

    Args:
        shapes: (D, F, T) of each view.
        clips: all clips and copies. missing: those whose shard is still to be made.
    """
    row = sum(int(np.prod(shape)) * 2 for shape in shapes.values())  # float16 or int16
    whole = row * plan.windows * clips
    return int(whole) + SLACK, int(whole + whole * missing / max(clips, 1)) + SLACK
