"""What a report's page shows: its head, the score it leads with, counts, and a phone in light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as reference
from test_report import made_up

from earshot.report import confusion, results, style
from earshot.report.make import write_report as make_report
from earshot.training.oof import Oof


def test_the_head_of_the_page(tmp_path: Path) -> None:
    """Date, command, time and device as training_log.txt and metrics.csv have them, and the spread."""
    made_up(tmp_path / "r", ["a", "b"], 12)
    log = "started 2026-01-02 03:04 UTC  python train.py --name r\nfolds: 3 folds; device: CPU, 2 threads\n"
    (tmp_path / "r" / "training_log.txt").write_text(f"{log}started 2027-01-01 00:00 UTC\n")
    text = make_report(tmp_path / "r").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith('<p class="facts">')]
    assert all(
        part in line
        for part in (
            "started 2026-01-02 03:04 UTC",
            "trained for 13.5 s",
            "CPU, 2 threads",
            "<code>python train.py --name r</code>",
        )
    )
    found = results.load_results(tmp_path / "r")
    spread = np.std(
        [reference.f1_score(found.labels[m], found.predicted[m], average="macro") for m in by_fold(found)]
    )
    assert f"<b>{found.scores['f1_macro']:.4f} <small>± {spread:.4f}</small></b>" in text
    assert "macro-F1, ± std over 3 folds" in text


def by_fold(found: results.Results) -> list[np.ndarray]:
    return [found.folds == number for number in np.unique(found.folds)]


def test_multilabel_leads_with_a_score_without_threshold(tmp_path: Path) -> None:
    made_up(tmp_path / "r", ["a", "b", "c"], 30, several=True)
    found = results.load_results(tmp_path / "r")
    mean_ap = reference.average_precision_score(found.labels, found.probabilities, average="macro")
    text = make_report(tmp_path / "r").read_text()
    tiles = re.findall(r"<b>([\d.]+) <small>.*?</small></b><span>(.*?)</span>", text)
    assert tiles[0] == (f"{mean_ap:.4f}", "mAP, ± std over 3 folds")
    assert "macro-F1 (threshold 0.5)" in dict(map(reversed, tiles))
    assert text.index("<th>map_macro</th>") < text.index("<th>f1_macro</th>")


def test_counts_in_the_confusion_matrix(tmp_path: Path) -> None:
    """Seven of forty are 7 in the cell and 17.5% in the table: nothing is rounded twice."""
    made_up(tmp_path / "r", ["a", "b"], 80)
    truth = np.arange(80) % 2
    predicted = np.where((truth == 1) | (np.arange(80) < 14), 1, 0)
    Oof(
        np.array([f"{i:03d}.wav" for i in range(80)]),
        np.arange(80) % 3,
        truth,
        np.eye(2)[predicted],
        ["a", "b"],
    ).write(tmp_path / "r" / "oof_last.csv")
    with style.apply_style():
        axes = confusion.draw(results.load_results(tmp_path / "r"))["confusion"].axes[0]
    assert [text.get_text() for text in axes.texts] == ["33", "7", "", "40"]
    text = make_report(tmp_path / "r").read_text()
    assert "<td>a</td><td>b</td><td>7</td><td>17.5%</td>" in text and ">33</text>" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(tmp_path: Path, chromium: object, scheme: str) -> None:
    """Nothing but the boxes of tables and wide pictures scrolls sideways, and every text can be read."""
    made_up(tmp_path / "r", [f"class_number_{index}" for index in range(10)], 80)
    path = make_report(tmp_path / "r")
    page = chromium.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    try:
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator(".wide table").first.evaluate("e => e.offsetWidth > e.parentElement.offsetWidth")
        assert page.locator(".hint").first.is_visible()
        sizes = page.locator("svg text").evaluate_all(
            "all => all.map(e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a || 99)"
        )
        assert len(sizes) > 100 and min(sizes) > 6.5, min(sizes)
        ink, paper = (
            sum(map(int, re.findall(r"\d+", page.evaluate(f"getComputedStyle({where}).{what}"))[:3]))
            for where, what in (
                ("document.querySelector('svg text')", "fill"),
                ("document.body", "backgroundColor"),
            )
        )
        assert (ink < 150 and paper > 700) if scheme == "light" else (ink > 600 and paper < 150)
    finally:
        page.close()


@pytest.mark.parametrize("count", [5, 10, 17, 41, 200])
def test_no_colour_twice(count: int) -> None:
    assert len(set(style.choose_colours(count))) == count
