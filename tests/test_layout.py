"""How the code is laid out: which package may import which, no circles, few files beside the packages, none
too long. Each rule is first shown to notice what breaks it."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

# Lowest first; a package imports only those on lines above its own.
FLOORS = (
    ("core",),
    ("audio", "cluster", "competition"),
    ("extractors",),
    ("features",),
    ("training",),
    ("prediction",),
    ("kaggle", "report", "export"),
    ("search", "doctor", "app"),
    ("api",),  # a file
)
FLAT, LONGEST = 4, 400  # files beside the packages; lines of a file
SCRIPTS = {"get_features", "train", "predict", "doctor", "app"}


def modules(root: Path) -> dict[str, Path]:
    """The modules of earshot/ and models/ by name; a package has that of its folder."""
    found = {}
    for top in ("earshot", "models"):
        for path in sorted((root / top).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(root: Path) -> dict[str, set[str]]:
    """Each module's imports of ours, wherever they stand in the file, those for types alone too."""
    ours = modules(root)
    found = {}
    for name, path in ours.items():
        taken: set[str] = set()
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                taken |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    inside = f"{source}.{alias.name}"
                    taken.add(inside if inside in ours else source)
        found[name] = {one for one in taken if one in ours or one.split(".")[0] in SCRIPTS} - {name}
    return found


def upward(root: Path) -> list[str]:
    """The imports that run against the floors, a line each."""
    level = {package: number for number, floor in enumerate(FLOORS) for package in floor}
    wrong = []
    for name, taken in imports(root).items():
        for other in sorted(taken):
            here, there = name.split("."), other.split(".")
            if there[0] in SCRIPTS or here[0] == "models" and there[0] != "models":
                wrong.append(f"{name} imports {other}")
            elif here[0] == there[0] == "earshot" and len(here) > 1 and len(there) > 1:
                if here[1] != there[1] and level.get(there[1], 99) >= level.get(here[1], -1):
                    wrong.append(f"{name} imports {other}")
    return wrong


def circle(root: Path) -> list[str]:
    """A circle of imports between files, [] where there is none."""
    try:
        TopologicalSorter(imports(root)).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def flat(root: Path) -> list[str]:
    """The files that lie in earshot/ itself."""
    return sorted(path.name for path in (root / "earshot").iterdir() if path.is_file())


def long_files(root: Path) -> list[str]:
    """The Python files with too many lines."""
    folders = ("earshot", "models", "tests", "benchmarks", "cloud")
    paths = [*root.glob("*.py"), *(path for folder in folders for path in (root / folder).rglob("*.py"))]
    counted = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return sorted(f"{path.relative_to(root)}: {n} lines" for path, n in counted.items() if n > LONGEST)


def written(root: Path, files: dict[str, str]) -> Path:
    """A project of these files."""
    for name, text in {"earshot/__init__.py": "", "models/__init__.py": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    "file, text, allowed",
    [
        ("earshot/features/a.py", "from earshot.core import b", True),
        ("earshot/core/a.py", "from earshot.features import b", False),
        ("earshot/core/a.py", "def f():\n    from earshot.features.b import c", False),
        ("earshot/core/a.py", "if TYPE_CHECKING:\n    import earshot.features.b", False),
        ("earshot/core/a.py", "from ..features.b import c", False),
        ("earshot/audio/a.py", "from earshot.competition import b", False),  # of one line
        ("earshot/features/a.py", "import models.b", True),
        ("models/a.py", "from earshot.core import b", False),
        ("models/a.py", "from . import b", True),
        ("earshot/app/a.py", "import train", False),
        ("earshot/unknown/a.py", "from earshot.app import b", False),
        ("earshot/api.py", "from earshot.app import b", True),
        ("earshot/app/a.py", "from earshot.api import b", False),
    ],
)
def test_an_upward_import_is_noticed(tmp_path: Path, file: str, text: str, allowed: bool) -> None:
    others = {f"earshot/{p}/b.py": "" for p in ("core", "features", "competition", "app")}
    root = written(tmp_path, {**others, "models/b.py": "", "earshot/api.py": "", file: text})
    assert (upward(root) == []) == allowed, upward(root)


@pytest.mark.parametrize("back", ["from earshot.core import a", "def f():\n    import earshot.core.a"])
def test_a_circle_is_noticed(tmp_path: Path, back: str) -> None:
    root = written(tmp_path, {"earshot/core/a.py": "from earshot.core.b import x", "earshot/core/b.py": back})
    assert set(circle(root)) == {"earshot.core.a", "earshot.core.b"}
    (root / "earshot/core/b.py").write_text("")
    assert circle(root) == []


def test_flat_and_long_files_are_noticed(tmp_path: Path) -> None:
    root = written(tmp_path, {f"earshot/{n}.py": "" for n in "abcd"} | {"earshot/core/a.py": "\n" * 401})
    assert len(flat(root)) > FLAT and long_files(root) == ["earshot/core/a.py: 401 lines"]


def test_no_import_runs_upward() -> None:
    assert upward(ROOT) == []


def test_no_circle() -> None:
    assert circle(ROOT) == []


def test_few_files_beside_the_packages_and_none_too_long() -> None:
    assert len(flat(ROOT)) <= FLAT, flat(ROOT)
    assert long_files(ROOT) == []


def test_every_package_has_a_floor() -> None:
    packages = {path.parent.name for path in (ROOT / "earshot").glob("*/__init__.py")}
    assert packages == {package for floor in FLOORS[:-1] for package in floor}
