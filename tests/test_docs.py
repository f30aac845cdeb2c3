"""README.md and docs/*.md: every command and every piece of code in them is run, or says why it is not.

Before a block of ```bash or ```python a page may have one of these comments:

    <!-- not run: REASON -->          nobody runs it here: it needs a Kaggle account, a GPU, hours
    <!-- run by: tests/test_X.py -->  another test runs it
    <!-- needs: esc10 -->             real clips and weights, which not every machine has

Every page starts where docs/index.md ends: with the cache data/sample/logmel and a run of `svm`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import EFFICIENTAT, ROOT, SHARED

from earshot.core import recipes

PAGES = sorted((ROOT / "docs").glob("*.md"))
ALL = [ROOT / "README.md", *PAGES]
TOOLS = ("app.py", "doctor.py", "get_features.py", "predict.py", "train.py", "earshot", "models", "recipes")
TOOLS += ("notebooks", "benchmarks", "requirements.txt")
BLOCK = re.compile(r"(?:^ *<!-- ([^\n]*) -->\n)?^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
ORDERS = ("not run: ", "run by: ", "needs: esc10")


@dataclass
class Block:
    """A block of code and the comment before it ("" without)."""

    order: str
    language: str
    code: str


def list_blocks(page: Path) -> list[Block]:
    """The blocks that are code, in the order of the page."""
    found = [
        Block(order or "", language, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE))
        for order, indent, language, code in BLOCK.findall(page.read_text(encoding="utf-8"))
    ]
    return [block for block in found if block.language in ("bash", "sh", "python")]


def list_runnable(page: Path) -> list[Block]:
    """What this file runs: each block of commands, and the page's Python as one script, for its blocks share
    variables."""
    found = [b for b in list_blocks(page) if not b.order.startswith(("not run: ", "run by: "))]
    python = [block for block in found if block.language == "python"]
    commands = [block for block in found if block.language != "python"]
    if python:
        order = next((block.order for block in python if block.order), "")
        commands.append(Block(order, "python", "\n\n".join(block.code for block in python)))
    return commands


def run_block(folder: Path, block: Block) -> str:
    """What a block prints, run in a folder; it must end with exit code 0."""
    if block.language == "python":
        (folder / "page.py").write_text(block.code, encoding="utf-8")
        command = [sys.executable, "page.py"]
    else:
        command = ["bash", "-euo", "pipefail", "-c", block.code]
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": tools, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, (block.code, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def make_project(folder: Path) -> Path:
    """A folder with the scripts, as a fresh clone has them."""
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(ROOT / name)
    return folder


def add_real_data(folder: Path) -> None:
    """data/esc10 and EfficientAT's weights; skips where they are not at hand."""
    if not (SHARED / "esc10" / "meta").is_dir() or not EFFICIENTAT.is_file():
        pytest.skip(f"ESC-10 and EfficientAT's weights are not at {SHARED}")
    (folder / "data" / "esc10").mkdir(parents=True)
    for part in ("audio", "meta"):
        (folder / "data" / "esc10" / part).symlink_to(SHARED / "esc10" / part)
    (folder / EFFICIENTAT.name).symlink_to(EFFICIENTAT)
    shutil.copy(next((SHARED / "esc10" / "audio").iterdir()), folder / "clip.wav")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after the commands of docs/index.md."""
    folder = make_project(tmp_path_factory.mktemp("docs") / "project")
    for block in list_runnable(ROOT / "docs" / "index.md"):
        run_block(folder, block)
    return folder


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.stem)
def test_each_block_is_run_or_says_why_not(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(BLOCK.findall(text)), "a block that is not closed"
    for block in list_blocks(page):
        assert block.order.startswith(ORDERS) or not block.order, block
        kind, _, value = block.order.partition(": ")
        if kind == "not run":
            assert len(value) > 10, f"a reason: {block}"
        elif kind == "run by":
            assert page.name in (ROOT / value).read_text(encoding="utf-8"), block
    for language in {language for _, _, language, _ in BLOCK.findall(text)}:
        assert language in ("bash", "sh", "python", "text", "yaml", "bibtex"), language


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.stem != "index" and list_runnable(page)],
    ids=lambda page: page.stem,
)
def test_the_commands_work(page: Path, begun: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(begun, folder, symlinks=True)
    blocks = list_runnable(page)
    if any(block.order == "needs: esc10" for block in blocks):
        add_real_data(folder)
    for block in blocks:
        run_block(folder, block)


@pytest.mark.slow
def test_the_readme_quickstart_prints_what_it_shows(tmp_path: Path) -> None:
    folder = make_project(tmp_path / "project")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"## Quickstart\n.*?```text\n(.*?)```", text, re.DOTALL)[1]
    printed = [
        squash(line)
        for block in list_runnable(ROOT / "README.md")
        if block.order == ""
        for line in run_block(folder, block).splitlines()
    ]
    for line in shown.splitlines():
        start, _, end = line.partition(" ...")
        start, end = squash(start), squash(end)
        assert any(one.startswith(start) and one.endswith(end) for one in printed), (line, printed)
    assert (folder / "submissions" / "submission.csv").is_file()


def squash(line: str) -> str:
    """A line without its numbers: scores and seconds differ from one machine to the next."""
    return re.sub(r"\b[0-9a-f]{8}\b|\d+(\.\d+)?", "N", line).strip()


@pytest.mark.slow
def test_the_readme_python_works(tmp_path: Path) -> None:
    folder = make_project(tmp_path / "project")
    add_real_data(folder)
    for block in list_runnable(ROOT / "README.md"):
        if block.order == "needs: esc10":
            run_block(folder, block)


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    words = re.sub(r"```.*?```|<!--.*?-->|[|`*#>-]", " ", text, flags=re.DOTALL).split()
    assert len(words) <= 1400
    assert "@@" not in text
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (ROOT / target).exists(), target


def test_the_page_of_commands_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "docs/write_cli.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_flags_and_recipes_in_the_guides_exist() -> None:
    known = set(re.findall(r"--[a-z][a-z0-9-]+", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")))
    known |= {"--help", "--help-all", "--data", "--only", "--input", "--classes", "--option", "--data-binary"}
    known |= {
        "--encoders",
        "--strict",
        "--kills",
        "--drops",
        "--clip",
        "--n-fft",
        "--check",
        "--logdir",
        "--detach",
        "--force",
    }  # of other programs
    app = (ROOT / "cloud" / "modal_app.py").read_text(encoding="utf-8")
    known |= {f"--{name}" for name in re.findall(r"^ {8}(\w+): (?:str|int|float) = ", app, re.MULTILINE)}
    names = set(recipes.list_recipes()) | {"auto", "NAME", "tiny_cnn", "mlp"}
    for page in ALL:
        if page.stem in ("cli", "results"):
            continue
        text = re.sub(r".*(ray start|srun|#SBATCH|hostname) .*", "", page.read_text(encoding="utf-8"))
        unknown = set(re.findall(r"(?<![\w<!-])--[a-z][a-z0-9-]+", text)) - known
        assert not unknown, (page.name, unknown)
        assert not set(re.findall(r"--recipe (\w+)", text)) - names, page.name


def test_the_reading_list_is_what_it_claims() -> None:
    page = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
    files = re.findall(r"^\| `([\w/]+\.py)` \|", page, re.MULTILINE)
    lines = sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in files)
    claimed = int(re.search(r"about ([\d,]+) lines", page)[1].replace(",", ""))
    assert abs(lines - claimed) <= 0.1 * claimed, lines


def test_the_site_builds_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="no mkdocs-material here: make docs installs it")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)="(https?:|//)', html)
        assert not loaded, page
