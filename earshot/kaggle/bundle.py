"""One folder to upload as a Kaggle dataset: the code, and the chosen weights, runs and wheels."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from earshot.core import disk_space, graphs
from earshot.core.errors import UserError
from earshot.core.files import hash_file, write_json, write_text
from earshot.kaggle.flags import BundleFlags

ROOT = Path(__file__).resolve().parents[2]
# The files for Kaggle, below ROOT: no tests, benchmarks, data/, runs/ or submissions/.
CODE = (
    "get_features.py train.py predict.py doctor.py app.py earshot models recipes notebooks requirements.txt "
    "requirements-onnx.txt requirements-openvino.txt constraints-kaggle.txt constraints-p100.txt README.md "
    "LICENSE"
).split()
KINDS = (".py", ".yaml", ".md", ".txt", ".ipynb", ".json", ".html", ".css", ".js", "")
METADATA, SUMS = "dataset-metadata.json", "SHA256SUMS"
SECRETS = ("kaggle.json", "access_token", "access_token.txt", "credentials.json", "token")
LACKING = ("tyro",)  # packages of requirements.txt that Kaggle's image lacks
NEVER = (
    "torch",
    "torchaudio",
    "torchvision",
    "torchcodec",
    "triton",
)  # never replaced: the image's are built for its driver
# Requirements of torch and transformers, which the image has in suitable versions.
THERE = (
    "filelock fsspec jinja2 markupsafe mpmath networkx packaging pillow regex safetensors setuptools sympy "
    "typing-extensions"
).split()
# Kaggle's Python and the wheels that run on it
TARGET = (
    "--only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 "
    "--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64"
).split()
OWNER = "INSERT_YOUR_NAME"
Files = list[tuple[Path, str]]  # and their names in a folder, "" for a file alone
Part = tuple[str, str, Files]  # its name, and its owner's


def make(flags: BundleFlags) -> Path:
    """Build the folder beside its place, then rename it; returns it.

    Raises:
        UserError: a slug that Kaggle refuses, missing weights or runs, another folder in its place, no wheels
            found.
    """
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{4,48})[a-z0-9]", flags.slug):
        raise UserError(f"--slug {flags.slug}: Kaggle takes 6 to 50 lower-case letters, digits and hyphens")
    out = Path(flags.out)
    if out.exists() and not (out / SUMS).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not a bundle: move it away, or choose another folder")
    runs = find_runs(flags)
    parts = {
        "code": [(ROOT / name, name) for name in list_product_files()],
        **find_weights(flags.weights, runs),
        **{f"runs/{path.name}": [*walk_files(path)] for path in runs},
    }
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    needed = sum(path.stat().st_size for files in parts.values() for path, _ in files)
    disk_space.check_space(new, needed, needed)
    for part, files in parts.items():
        for path, name in files:
            target = new / part / name if name else new / part
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        size = disk_space.format_bytes(sum(path.stat().st_size for path, _ in files))
        print(f"bundle: {part}, {len(files)} files, {size}", flush=True)
    for line in list_lacking_runtimes(runs, flags):
        print(line, flush=True)
    if flags.wheels or flags.packages:
        download_wheels(new / "wheels", (*LACKING, *flags.packages))
    write_checksums(new)
    ref = f"{read_owner(out)}/{flags.slug}"
    write_json(new / METADATA, {"title": make_title(flags.slug), "id": ref, "licenses": [{"name": "other"}]})
    shutil.rmtree(out, ignore_errors=True)
    os.replace(new, out)
    return out


def list_product_files() -> list[str]:
    """The project's files, relative to ROOT: those that git tracks; in an unpacked copy, all with the usual
    suffixes."""
    names: list[str] = []
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", *CODE]
        listing = subprocess.run(command, capture_output=True, text=True).stdout
        names = [name for name in listing.split("\0") if name]
    if not names:
        for top in CODE:
            names += [f"{top}/{name}" if name else top for _, name in walk_files(ROOT / top)]
    names = [name for name in names if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]
    return sorted(name for name in names if Path(name).suffix in KINDS and "__pycache__" not in name)


def walk_files(path: Path) -> Iterator[tuple[Path, str]]:
    """(file, name relative to `path`) of a folder, or the file itself, named ""; no links, hidden files or
    credentials."""
    if path.is_file():
        yield path, ""
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(names):
            file = Path(folder) / name
            if name.startswith(".") or name.endswith(".tmp") or file.is_symlink() or not file.is_file():
                continue
            if name.lower() in SECRETS:
                print(f"bundle: left out {file}: it is named like credentials")
                continue
            yield file, file.relative_to(path).as_posix()


def check_sources(flag: str, names: tuple[str, ...]) -> list[Path]:
    """The named files and folders; UserError for one that is missing, named like credentials, or named like
    another."""
    paths = [Path(name).expanduser().resolve() for name in names]
    for path, name in zip(paths, names, strict=True):
        if not path.exists():
            raise UserError(f"{flag} {name}: no such file or folder")
        if path.name.lower() in SECRETS or path.name.startswith("."):
            raise UserError(f"{flag} {name}: hidden files and credentials are not bundled")
        if sum(other.name == path.name for other in paths) > 1:
            raise UserError(f"{flag}: two have the name {path.name}: rename one")
    return paths


def find_runs(flags: BundleFlags) -> list[Path]:
    """The folders of the chosen runs, each checked to be a complete run."""
    from earshot.training.run import CONFIG, Run

    folders = []
    for name in flags.runs:
        is_path = (Path(name) / CONFIG).is_file()
        folders.append(name if is_path else str(Path(flags.runs_folder) / name))
    return [Run.open(path).validate().folder for path in check_sources("--runs", tuple(folders))]


def list_lacking_runtimes(runs: list[Path], flags: BundleFlags) -> list[str]:
    """A warning for each run whose exports have no runtime among the packages, which Kaggle's image lacks."""
    lines = []
    named = {normalise_name(split_name(package)) for package in flags.packages}
    for run in runs:
        there = [name for name in graphs.PACKAGES if [*(run / graphs.FOLDER).glob(f"*_{name}")]]
        if there and not any(named >= set(graphs.PACKAGES[name]) for name in there):
            packages = " ".join(graphs.PACKAGES[there[0]])
            lines.append(
                f"bundle: warning: {run.name} has an export for {', '.join(there)}; without its packages "
                f"torch predicts: add --wheels --packages {packages}"
            )
    return lines


def find_weights(named: tuple[str, ...], runs: list[Path]) -> dict[str, Files]:
    """The files of --weights and of the runs' extractors, by the bundle's folder; a line where they are not
    here.

    Args:
        named: files, folders, or hub ids that were downloaded before.
    """
    from earshot.extractors import hf
    from earshot.features import for_run
    from earshot.training.run import Run

    ids = {name: hf.WEIGHTS.find_cached(name) for name in named if not Path(name).expanduser().exists()}
    paths = check_sources("--weights", tuple(name for name in named if not ids.get(name)))
    chosen: list[Part] = [(path.name, "", [*walk_files(path)]) for path in paths]
    for name, folder in ids.items():
        if folder:
            if Path(name).name in [path.name for path in paths]:
                raise UserError(f"--weights: two have the name {Path(name).name}: rename the folder")
            patterns = hf.WEIGHTS.files  # of networks that other extractors take, too
            cached = {file for pattern in patterns for file in folder.glob(pattern)}
            cached |= set(hf.WEIGHTS.list_weights(folder))
            chosen.append((*_split_name(name), _list_cached(sorted(cached))))
    for path in runs:
        run = Run.open(path)
        if not run.config["record"]["features"]["weights"]:
            continue
        name = str(run.config.get("weights") or run.config["record"]["features"]["extractor"])
        files = for_run.find_weights_files(run, [*named, *map(str, filter(None, ids.values()))])
        if not files:
            print(
                f"bundle: warning: the weights of {path.name} ({name}) are not here: attach a dataset with "
                "them to the notebook"
            )
        elif not any(_holds(part, files) for part in chosen):
            base, owner = _split_name(name)
            chosen.append((files[0].name if len(files) == 1 else base, owner, _list_cached(files)))
    return _name_parts(chosen)


def _name_parts(chosen: list[Part]) -> dict[str, Files]:
    """Files by the bundle's folder: where two have one name, with their owners before it, by which hub ids
    find them; weights of runs are found by content.

    Args:
        chosen: files and folders that the user named have no owner, and keep their names.
    """
    parts: dict[str, Files] = {}
    names = [name for name, _, _ in chosen]
    for name, owner, files in sorted(chosen, key=lambda each: bool(each[1])):
        whole = f"{owner}-{name}" if owner and names.count(name) > 1 else name
        end = Path(name).suffix if [inner for _, inner in files] == [""] else ""  # of a file
        free, number = whole, 2
        while f"weights/{free}" in parts:
            free, number = f"{whole.removesuffix(end)}-{number}{end}", number + 1
        parts[f"weights/{free}"] = files
    return parts


def _split_name(name: str) -> tuple[str, str]:
    """The last part of a hub id or path, and the one before it: its owner's."""
    path = Path(name)
    return path.name, path.parent.name or "run"


def _holds(part: Part, files: list[Path]) -> bool:
    """Are all of the files in a part, by their names and contents?"""
    name, _, inside = part
    return all(
        any(
            Path(inner or name).name == file.name and filecmp.cmp(file, each, shallow=False)
            for each, inner in inside
        )
        for file in files
    )


def _list_cached(files: list[Path]) -> Files:
    """Files and their names; those of the hub's cache are links."""
    return [(file.resolve(), "" if len(files) == 1 else file.name) for file in files]


def download_wheels(folder: Path, packages: tuple[str, ...]) -> None:
    """Download the packages that Kaggle's image lacks, with their missing requirements, as wheels for its
    Python.

    Raises:
        UserError: torch is among them, pip finds no versions that fit the image's, or there is no network.
    """
    pinned = ROOT / "constraints-kaggle.txt"
    image = {
        normalise_name(name) for name in re.findall(r"^([^#\s]+?)\s*==", pinned.read_text(), re.MULTILINE)
    }
    named = {normalise_name(split_name(package)) for package in packages}
    if named & set(NEVER):
        raise UserError(
            f"--packages {', '.join(sorted(named & set(NEVER)))}: Kaggle's own is built for its driver, and "
            "stays"
        )
    folder.mkdir(parents=True)
    print(f"bundle: wheels of {', '.join(packages)} (pip)", flush=True)
    # First only resolve versions: packages that the image has need no gigabytes of download.
    dry_run = "--dry-run --quiet --ignore-installed --report -".split()
    limits = ["--target", str(folder), "-c", str(pinned), *TARGET]
    report = json.loads(run_pip("install", *dry_run, *limits, *packages))
    chosen = {
        normalise_name(item["metadata"]["name"]): item["metadata"]["version"] for item in report["install"]
    }
    lacking = [
        f"{name}=={version}"
        for name, version in chosen.items()
        if name in named or name not in image | {*NEVER, *THERE} and not name.startswith(("nvidia-", "cuda-"))
    ]
    run_pip("download", "--quiet", "--no-deps", "--dest", str(folder), *TARGET, *lacking)
    write_text(folder / "requirements.txt", "".join(f"{line}\n" for line in sorted(lacking)))
    print(f"bundle: wheels, {', '.join(sorted(lacking))}")


def run_pip(*arguments: str) -> str:
    """The output of pip; UserError with its last error."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines() or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        reason = errors[-1].removeprefix("ERROR: ")[:240]
        raise UserError(f"--wheels: pip {arguments[0]} fails: {reason}; without a network, remove --wheels")
    return done.stdout


def split_name(package: str) -> str:
    """The name in a requirement as pip takes it, without version and extras."""
    return re.split(r"[\s<>=!~\[;@]", package)[0]


def normalise_name(name: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files; `sha256sum -c SHA256SUMS` verifies them."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name not in (METADATA, SUMS)]
    write_text(folder / SUMS, "".join(f"{hash_file(folder / name)}  {name}\n" for name in names))


def make_title(slug: str) -> str:
    """A title from which Kaggle makes this slug."""
    return slug.replace("-", " ").capitalize()


def read_owner(out: Path) -> str:
    """The owner in the metadata of an earlier upload of this bundle, else a placeholder."""
    try:
        return str(json.loads((out / METADATA).read_text())["id"]).split("/")[0]
    except (OSError, ValueError, KeyError, TypeError):
        return OWNER
