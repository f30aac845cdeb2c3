"""Packages of requirements.txt: finds missing and other versions, and installs missing ones on Kaggle.

    python -m earshot.kaggle.packages     installs what is missing (never torch): attached wheels, else PyPI

Nothing but the standard library is imported, as this runs before anything is installed.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from earshot.core import kaggle_paths
from earshot.core.errors import UserError

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
LIST = "requirements.txt"  # beside wheels: the packages that `earshot.kaggle bundle` put there
# pictures, up- and downloads: not needed for features, training and submissions
OPTIONAL = ("matplotlib", "kaggle", "six")
# Kaggle's own are built for its driver: others may not run there
IMAGE = ("torch", "torchaudio", "torchvision")


def read_requirements(path: Path = REQUIREMENTS) -> list[Any]:
    """The requirements of the scripts, parsed by `packaging`; those below the line "# tests" are left out."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement

    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = lines[: lines.index("# tests")] if "# tests" in lines else lines
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def find_version(name: str) -> str | None:
    """The installed version of a package, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def find_missing_packages() -> list[Any]:
    """The requirements that are not installed, and what else the attached wheels were bundled for."""
    own = read_requirements()
    names = {requirement.name for requirement in own}
    for folder in find_wheels():
        if (folder / LIST).is_file():
            bundled = read_requirements(folder / LIST)
            own += [one for one in bundled if one.name not in names and not one.url]
    return [requirement for requirement in own if find_version(requirement.name) is None]


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
    lacking = [requirement.name for requirement in find_missing_packages()]
    if not lacking:
        return [f"packages: all {len(read_requirements())} are installed"]
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
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for source, options in sources:
        command = [*pip, *options, *map(str, find_missing_packages())]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return [f"packages: installed {names} ({source})"]
        lines = done.stderr.strip().splitlines() or ["pip failed"]
        errors = [line for line in lines if line.startswith("ERROR")]
        reason = (errors[0] if errors else lines[-1]).removeprefix("ERROR: ")[:120]
    if set(lacking) <= set(OPTIONAL):
        return [
            f"packages: {names} cannot be installed ({reason}): pictures, downloads and uploads do without"
        ]
    raise UserError(
        f"{names} cannot be installed ({reason}): switch internet on in the notebook's settings, or attach a "
        "bundle that was made with --wheels"
    )


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
