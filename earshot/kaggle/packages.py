"""Packages of requirements.txt: finds missing and other versions, and installs missing ones on Kaggle.

    python -m earshot.kaggle.packages     installs what is missing (never torch): attached wheels, else PyPI

Nothing but the standard library is imported, as this runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from earshot.core import kaggle_paths
from earshot.core.errors import UserError

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
# where this code lies in a bundle: its checksums, and the list of the packages that it has as wheels
BUNDLE = REQUIREMENTS.parents[1]
SUMS, LIST = BUNDLE / "SHA256SUMS", BUNDLE / "wheels" / "requirements.txt"
# pictures, up- and downloads: not needed for features, training and submissions
OPTIONAL = ("matplotlib", "kaggle", "six")
# Kaggle's own are built for its driver: others may not run there
IMAGE = ("torch", "torchaudio", "torchvision")


def read_requirements(path: Path = REQUIREMENTS) -> list[Any]:
    """The requirements of the scripts, parsed by `packaging`; those below the line "# tests" are left out, as
    is what is no requirement."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement

    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    lines = lines[: lines.index("# tests")] if "# tests" in lines else lines
    requirements = []
    for line in lines:
        with contextlib.suppress(ValueError):  # InvalidRequirement: empty, a comment, an option of pip
            requirements.append(Requirement(re.split(r"(?:^|\s)#", line)[0].strip()))
    return requirements


def find_version(name: str) -> str | None:
    """The installed version of a package, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def find_missing_packages() -> list[Any]:
    """The requirements of the scripts that are not installed."""
    return [requirement for requirement in read_requirements() if find_version(requirement.name) is None]


def find_missing_extras() -> list[Any]:
    """The further packages that the bundle of this code was made with (--packages) and that are not
    installed. Lists in other attached folders are not read: they could name any package."""
    if not (SUMS.is_file() and LIST.is_file()):
        return []
    own = {requirement.name for requirement in read_requirements()}
    return [
        one
        for one in read_requirements(LIST)
        if one.name not in own
        and one.name not in IMAGE
        and not one.url
        and (one.marker is None or one.marker.evaluate())
        and find_version(one.name) is None
    ]


def find_unfit() -> list[tuple[Any, str]]:
    """The requirements with another version installed, and that version."""
    pairs = []
    for requirement in read_requirements():
        installed = find_version(requirement.name)
        if installed is not None and not requirement.specifier.contains(installed, prereleases=True):
            pairs.append((requirement, installed))
    return pairs


def find_wheels() -> list[Path]:
    """The attached folders that hold wheels."""
    folders = kaggle_paths.list_folders()
    return [folder.path for folder in folders if any(name.endswith(".whl") for name in folder.names)]


def install() -> list[str]:
    """Install missing packages; returns the lines to print.

    Raises:
        UserError: torch is missing, or neither wheels nor PyPI have the others.
    """
    return [_install_required(), *_install_extras()]


def _install_required() -> str:
    lacking = [requirement.name for requirement in find_missing_packages()]
    if not lacking:
        return f"packages: all {len(read_requirements())} are installed"
    names = ", ".join(lacking)
    for name in IMAGE[::2]:
        if name in lacking:
            raise UserError(
                f"{name} is not installed: on Kaggle choose the Python image in the notebook's settings, "
                f"else pip install -r {REQUIREMENTS}"
            )
    sources = [("from PyPI", ["--retries", "1", "--timeout", "10"])]
    attached = []
    for folder in find_wheels():
        attached += ["--find-links", str(folder)]
    if attached:
        sources.insert(0, ("from attached wheels", ["--no-index", *attached]))
    for source, options in sources:
        reason = _run_pip(*options, *map(str, find_missing_packages()))
        if not reason:
            return f"packages: installed {names} ({source})"
    if set(lacking) <= set(OPTIONAL):
        return f"packages: {names} cannot be installed ({reason}): pictures, downloads and uploads do without"
    raise UserError(
        f"{names} cannot be installed ({reason}): switch internet on in the notebook's settings, or attach a "
        "bundle that was made with --wheels"
    )


def _install_extras() -> list[str]:
    """Install them from the bundle alone, whatever PyPI has under their names."""
    lacking = find_missing_extras()
    if not lacking:
        return []
    names = ", ".join(requirement.name for requirement in lacking)
    reason = _run_pip("--no-index", "--find-links", str(LIST.parent), *map(str, lacking))
    if reason:
        return [f"warning: packages: {names} of the bundle cannot be installed ({reason})"]
    return [f"packages: installed {names} (from the bundle's wheels)"]


def _run_pip(*arguments: str) -> str:
    """Install packages; returns why that fails, "" if it does not."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *arguments], capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines() or ["pip failed"]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors[0] if errors else lines[-1]).removeprefix("ERROR: ")[:120]


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        sys.exit(print(__doc__))
    try:
        if sys.argv[1:]:
            raise UserError(
                f"unexpected argument {sys.argv[1]}: python -m earshot.kaggle.packages has no flags"
            )
        print(*install(), sep="\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
