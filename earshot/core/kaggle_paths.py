"""Kaggle's attached inputs, read-only: competitions, weights, earlier outputs; found by content, not by path.

Competitions lie at /kaggle/input/competitions/<slug>, data sets at /kaggle/input/datasets/<owner>/<slug>,
and in older sessions either at /kaggle/input/<slug>.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from earshot.core.errors import UserError
from earshot.core.file_names import is_audio
from earshot.core.files import read_json

INPUT, WORKING = "/kaggle/input", "/kaggle/working"
KEPT = 20_000_000_000  # bytes of /kaggle/working that Kaggle keeps
DEPTH = 8  # /kaggle/input/notebooks/<owner>/<notebook>/data/<competition>/<cache>, and one more
OWNED = ("datasets", "notebooks", "models")  # /kaggle/input/<one of these>/<owner>/<slug>
EXAMPLES = 5  # audio files remembered per suffix and folder


@dataclass
class Folder:
    """A folder below the root: its files other than audio, the number of audio files and the first of them by
    suffix."""

    path: Path
    names: set[str]
    audio: int = 0
    examples: dict[str, list[Path]] = field(default_factory=dict)


def get_input_root() -> Path | None:
    """Kaggle's folder of inputs (EARSHOT_ATTACHED names another); None outside Kaggle."""
    path = Path(os.environ.get("EARSHOT_ATTACHED", INPUT))
    return path if path.is_dir() else None


def get_working_folder() -> Path | None:
    """Kaggle's folder for outputs (EARSHOT_WORKING names another); None outside Kaggle."""
    path = Path(os.environ.get("EARSHOT_WORKING", WORKING))
    return path if path.is_dir() else None


def count_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for below, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(below, name)).st_size
            except OSError:
                continue  # deleted meanwhile
    return total


def get_quota_left(folder: Path) -> int | None:
    """Bytes left of Kaggle's limit for outputs, in a folder of these; None where only the disk limits."""
    place = get_working_folder()
    if place is None or not folder.absolute().resolve().is_relative_to(place.resolve()):
        return None
    return max(0, KEPT - count_bytes(place))


def list_folders(below: Path | None = None) -> list[Folder]:
    """All attached folders, or those below one of them; cached per process, as inputs don't change."""
    top = get_input_root()
    if top is None:
        return []
    return [folder for folder in _walk_once(str(top)) if below is None or folder.path.is_relative_to(below)]


@lru_cache(maxsize=4)
def _walk_once(top: str) -> tuple[Folder, ...]:
    return tuple(walk(Path(top)))


def walk(top: Path) -> list[Folder]:
    """A folder and those below it, sorted; links are not followed."""
    folders_below = []
    for path, below, names in os.walk(top):
        below[:] = (
            sorted(n for n in below if not n.startswith(".") and n != "__MACOSX")
            if len(Path(path).relative_to(top).parts) < DEPTH
            else []
        )
        folder = Folder(Path(path), set())
        for name in names:
            if name.startswith("._"):  # what a Mac keeps beside a file
                continue
            if not is_audio(name):
                folder.names.add(name)
                continue
            folder.audio += 1
            first = folder.examples.setdefault(os.path.splitext(name)[1].lower(), [])
            if len(first) < EXAMPLES:
                first.append(Path(path, name))
        folders_below.append(folder)
    return folders_below


def list_mounts() -> list[Path]:
    """The attached inputs, those of competitions/ first."""
    top = get_input_root()
    places: list[Path] = []
    for entry in _list_subfolders(top) if top else []:
        if entry.name == "competitions":
            places = _list_subfolders(entry) + places
        elif entry.name in OWNED:
            places += [slug for owner in _list_subfolders(entry) for slug in _list_subfolders(owner)]
        else:
            places.append(entry)
    return places


def _list_subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def find_competitions() -> list[Path]:
    """The attached competitions: by Kaggle's folder, else what looks like one."""
    named = [
        path
        for path in list_mounts()
        if path.parent.name == "competitions" and path.parent.parent == get_input_root()
    ]
    audible = [path for path in named if any(folder.audio for folder in list_folders(path))]
    if named:
        return audible or named
    likely = [path for path in list_mounts() if is_competition_like(path)]
    return [
        path for path in likely if any(has_sample(folder.names) for folder in list_folders(path))
    ] or likely


def has_sample(names: set[str]) -> bool:
    """Is there a sample submission among the names?"""
    return any(re.search(r"sample.*sub.*\.csv$", name.lower()) for name in names)


def is_competition_like(path: Path) -> bool:
    """Audio beside a csv, or in several folders; and no outputs of an earlier session."""
    inside = list_folders(path)
    audible = [folder for folder in inside if folder.audio]
    earlier = any({"unique_labels.pkl", "config.yaml"} & folder.names for folder in inside)
    return (
        bool(audible)
        and not earlier
        and (len(audible) > 1 or any(n.endswith(".csv") for folder in inside for n in folder.names))
    )


def find_competition() -> Path | None:
    """The only attached competition, None without one.

    Raises:
        UserError: there are several.
    """
    paths = find_competitions()
    if len(paths) > 1:
        raise UserError(
            f"several competitions are attached: choose one with --competition: {', '.join(map(str, paths))}"
        )
    return paths[0] if paths else None


def resolve_slug(slug: str) -> str:
    """The attached competition or data set of that slug, unless a local file or folder has the name; else the
    name itself."""
    here = slug == "sample" or Path(slug).exists()
    places = (
        []
        if here
        else [
            path
            for path in list_mounts()
            if path.name == slug.removeprefix("competitions/").rpartition("/")[2]
        ]
    )
    return str(places[0]) if places else slug


def find_by_name(name: str) -> Path | None:
    """The attached file or folder of that name, the first of several."""
    for folder in list_folders():
        if name in folder.names:
            return folder.path / name
        if folder.path.name == name and (folder.names or folder.audio):
            return folder.path
    return None


def find_files(*suffixes: str) -> list[Path]:
    """The attached files with one of these suffixes."""
    return [
        folder.path / name
        for folder in list_folders()
        for name in sorted(folder.names)
        if name.lower().endswith(suffixes)
    ]


def find_networks(kinds: Collection[str]) -> dict[Path, str]:
    """The attached folders of networks of transformers, each with the `model_type` of its config.json, which
    is one of `kinds`."""
    found = {}
    for folder in list_folders():
        weights = any(re.fullmatch(r".+\.safetensors|pytorch_model.*\.bin", name) for name in folder.names)
        if not weights or "config.json" not in folder.names:
            continue
        try:
            settings = read_json(folder.path / "config.json")
        except UserError:
            continue
        kind = settings.get("model_type") if isinstance(settings, dict) else None
        if isinstance(kind, str) and kind in kinds:
            found[folder.path] = kind
    return found


def find_pretrained_folder(kinds: Collection[str], weights: str, default: bool) -> Path | None:
    """The attached folder of a network of transformers.

    Args:
        kinds: `model_type` of its config.json, any of these.
        weights: a hub id; a folder's name must match it, or its last part.
        default: is it the default id? Then the only folder of that kind matches, whatever its name.
    Raises:
        UserError: several folders match.
    """
    candidates = list(find_networks(kinds))
    wanted = {_keep_letters(weights), _keep_letters(weights.rpartition("/")[2])}
    fitting = [
        path
        for path in candidates
        if any(_keep_letters(part) in wanted for part in path.relative_to(get_input_root() or path).parts)
    ]
    fitting = fitting or (candidates if default else [])
    if len(fitting) > 1:
        raise UserError(
            f"{len(fitting)} attached folders may be {weights}: choose one with --weights: "
            f"{', '.join(map(str, fitting))}"
        )
    return fitting[0] if fitting else None


def _keep_letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
