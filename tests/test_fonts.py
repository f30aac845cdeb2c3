"""Class names in any script: a font that has the characters, else numbers, and which is which."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, make_competition
from PIL import Image
from test_report import made_up

from earshot.app import ui
from earshot.audio import spectrogram
from earshot.core import fonts
from earshot.doctor import plots
from earshot.report import __main__ as command
from earshot.report import style

COVERED = "麻雀"  # by the font that is made here
NOWHERE = "\U00030000鳥"  # its first character is in no font that systems bring
CLASSES = ["$a_b^$", "_silence_", COVERED, NOWHERE]


def make_font(path: Path, characters: str) -> Path:
    """A font whose characters are filled squares."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((50, 0))
    for corner in ((50, 800), (950, 800), (950, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", *(f"c{ord(c):x}" for c in characters)]
    made = FontBuilder(1000)
    made.setupGlyphOrder(names)
    made.setupCharacterMap({ord(c): f"c{ord(c):x}" for c in characters})
    made.setupGlyf(dict.fromkeys(names, square))
    made.setupHorizontalMetrics(dict.fromkeys(names, (1000, 50)))
    made.setupHorizontalHeader(ascent=800, descent=-200)
    made.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    made.setupOS2(sTypoAscender=800, sTypoDescender=-200, usWinAscent=800, usWinDescent=200)
    made.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path)
    return path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends that the machine has just these fonts besides matplotlib's own."""

    def pretend(*found: fonts.Font) -> None:
        monkeypatch.setattr(fonts, "_known", {})
        monkeypatch.setattr(fonts, "_iterate_fonts", lambda: iter(found))

    pretend()
    return pretend


def run(folder: Path, *command: str) -> str:
    """What a script says, in a folder where the squares are installed; nothing may be left unsaid."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_DATA_HOME": str(folder / "share")}
    env |= {"MPLCONFIGDIR": str(folder / "mpl"), "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, encoding="utf-8", timeout=400
    )
    assert "Glyph" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("no installed font") == 1 and f"#4 is {NOWHERE}" in done.stdout, done.stdout
    assert f"is {COVERED}" not in done.stdout and "1 of 4 names" in done.stdout
    return done.stdout


@pytest.mark.slow
def test_every_picture_of_a_competition(tmp_path: Path) -> None:
    """As a user runs it: spectrograms, report and doctor name what they can, and number the rest."""
    make_font(tmp_path / "share" / "fonts" / "squares.ttf", COVERED + "カラス")
    data = make_competition(tmp_path / "birds", classes=4, train=4, subm=1)
    for name in ("train.csv", "sample_submission.csv"):
        text = (data / name).read_text()
        for kind, label in enumerate(CLASSES):
            text = text.replace(f"tone{kind}", label)
        (data / name).write_text(text, encoding="utf-8")
    small = ("--extractor", "logmel", "--n-mels", "16", "--device", "cpu", "--workers", "1")
    run(tmp_path, str(ROOT / "get_features.py"), "--competition", "birds", *small, "--pictures", "1")
    drawn = tmp_path / "data" / "birds" / "logmel" / "Spectrogram"
    assert (drawn / "class_numbers.tsv").read_text(encoding="utf-8") == f"number\tclass\n#4\t{NOWHERE}\n"
    assert len(list(drawn.glob("*/*.png"))) == 4
    run(tmp_path, str(ROOT / "train.py"), "--head", "linear", "--epochs", "1", "--folds", "2", "--name", "r")
    page = (tmp_path / "runs" / "r" / "report.html").read_text(encoding="utf-8")
    assert f"<td>#4</td><td>{NOWHERE}</td>" in page and f"</td><td>{COVERED}</td></tr>" not in page
    run(tmp_path, str(ROOT / "doctor.py"), "--data", "data/birds/logmel", "--out", "seen")
    report = (tmp_path / "seen" / "data_report.html").read_text(encoding="utf-8")
    assert f"<td>#4</td><td>{NOWHERE}</td>" in report and "<td>#3</td>" not in report


def solid(png: bytes) -> bool:
    """Is there a filled square, which no letter and no box is?"""
    dark = np.asarray(Image.open(io.BytesIO(png)).convert("L")) < 60
    return bool(np.lib.stride_tricks.sliding_window_view(dark, (8, 8)).all((2, 3)).any())


def test_a_font_that_has_the_characters_is_drawn_with(installed: Callable[..., None], tmp_path: Path) -> None:
    from matplotlib import font_manager

    path = make_font(tmp_path / "squares.ttf", COVERED)
    font_manager.fontManager.addfont(path)
    try:
        for found in ((), (fonts.Font(1, "Squares", str(path)),)):
            installed(*found)
            with style.apply_style(), warnings.catch_warnings():
                warnings.simplefilter("error")
                figure, at = style.make_axes(3, 2)
                at.set_xticks(range(2), style.shorten_names([COVERED, "owl"]))
                at.annotate(style.shorten(COVERED), (0.5, 0.5), family="monospace")
                assert solid(style.render_png(figure)) is bool(found)
            image = spectrogram.draw_picture(np.zeros((4, 8)), 1.0, 0, 8000, f"{COVERED} a")
            assert solid(spectrogram.encode_png(image.crop((0, 0, 300, 20)))) is bool(found)
    finally:
        font_manager.fontManager.ttflist = [
            entry for entry in font_manager.fontManager.ttflist if entry.fname != str(path)
        ]


@pytest.mark.parametrize("several", [False, True])
def test_a_report_without_a_font(
    installed: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    several: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["owl", "カラス", "麻雀", "🐦", "Étourneau", "$x_y$"]
    for name in ("r", "鳥"):
        made_up(tmp_path / "runs" / name, names, 40, several)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            command.main([name])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:")]
    assert len(lines) == 2 and "3 of 6 names" in lines[0]
    assert "(#2 is カラス, #3 is 麻雀, #4 is 🐦); runs/r/report.html has the names" in lines[0]
    text = (tmp_path / "runs" / "r" / "report.html").read_text(encoding="utf-8")
    for number, name in ((2, "カラス"), (3, "麻雀"), (4, "🐦")):
        assert f"<td>#{number}</td><td>{name}</td>" in text
    command.main(["runs/r", "runs/鳥"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:")]
    assert line.endswith("(#2 is 鳥); reports/comparison.html has the names")
    assert "<td>#2</td><td>鳥</td>" in (tmp_path / "reports" / "comparison.html").read_text(encoding="utf-8")


def test_names_and_numbers(installed: None) -> None:
    assert fonts.list_shown_names(["$a_b$", "麻", "no\u00a0break", "a\u200bb", "❤\ufe0f"]) == [
        "$a_b$",
        "#2",
        "no break",
        "ab",
        "❤",
    ]
    assert fonts.list_shown_names(["#2", "麻"]) == ["#1", "#2"], "a class may be called as a number is shown"
    assert fonts.build_legend(["#2", "麻"]) == [("#1", "#2"), ("#2", "麻")]
    assert fonts.list_shown_names(["#1", "麻"]) == ["#1", "#2"] and fonts.format_warning(["owl"], "") is None
    assert style.shorten("run 麻\n") == "run ? " and len(style.shorten("x" * 99)) == 24
    many = fonts.format_warning([chr(0x4E00 + index) for index in range(600)], "there")
    assert len(many) < 300 and "600 of 600" in many and "(600 in all)" in many


def test_the_page_names_its_numbers(installed: None) -> None:
    assert "In the picture #2 is 麻&lt;b&gt;." in ui._render_picture(b"", "a clip", ["owl", "麻<b>"])
    assert "In the picture" not in ui._render_picture(b"", "a clip", ["owl", "jay"])


def test_the_map_names_every_class() -> None:
    """matplotlib leaves a label out that begins with an underscore."""
    clips = SimpleNamespace(
        embedded=np.ones(8, bool),
        embeddings=np.random.default_rng(0).standard_normal((8, 3)),
        train=np.ones(8, bool),
        splits=np.array(["train"] * 8),
        targets=np.eye(2, dtype=int)[np.arange(8) % 2],
        cache=SimpleNamespace(classes=["_silence_", "$x$"]),
    )
    with style.apply_style():
        texts = plots._draw_map(clips).axes[0].get_legend().get_texts()
    assert [text.get_text().strip() for text in texts] == ["_silence_", "$x$"]
