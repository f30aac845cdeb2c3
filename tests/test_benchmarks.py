"""The benchmarks' own reckoning: narrowed networks, paired differences, right answers, sections of RESULTS.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import models
from earshot.config import load_recipe


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import study

    return study


@pytest.mark.parametrize("width", [4, 8, 16, 100])
def test_narrow_networks_build(study, width):
    shapes = {"wave": (1, 1, 80000), "mel": (128, 1, 376), "encodec": (128, 1, 375)}
    sizes = []
    for case in study.cases().values():
        recipe = load_recipe(case.recipe)
        name, _ = recipe.head.pop("name"), recipe.head.pop("view")
        head = models.build(name, shapes[case.cache], 10, **{**recipe.head, **study.narrow(case.recipe, width), **case.head})
        sizes.append(sum(p.numel() for p in head.parameters()))
    assert max(sizes) < 37e6 / width  # most weights are of one layer's channels times another's
    assert study.narrow("esc50_hifigan", 1) == {}
    assert all({yes, no} <= set(study.cases()) for _, yes, no in study.QUESTIONS)


def test_difference_is_paired(study, tmp_path):
    def run(name: str, answers: str) -> Path:
        (tmp_path / name).mkdir()
        rows = [f"{i}.wav,1,{'ab'[i % 2]},{0.9 if answer == 'a' else 0.2},{0.1 if answer == 'a' else 0.8}"
                for i, answer in enumerate(answers)]
        (tmp_path / name / "oof_last.csv").write_text("\n".join(["id,fold,label,a,b", *rows]))
        return tmp_path / name

    yes, no = run("yes", "ababab"), run("no", "abbbaa")  # six are right, four are right
    gain, error = study.difference([yes], [no])
    each = np.array([0, 0, 1, 0, 0, 1])
    assert gain == pytest.approx(100 * each.mean()) and error == pytest.approx(100 * each.std(ddof=1) / np.sqrt(6))
    assert study.difference([yes, no], [no, yes]) == (0.0, 0.0)


def test_a_class_called_as_a_column_is_read_rightly(study, tmp_path):
    (tmp_path / "oof_last.csv").write_text("id,fold,label,a,class label\n1.wav,1,label,0.1,0.9\n2.wav,1,a,0.2,0.8\n")
    assert study.right(tmp_path) == {"1.wav": True, "2.wav": False}


def test_rows_of_results_are_replaced_and_an_older_header_is_no_row(study, tmp_path):
    from common import keep_rows

    path = tmp_path / "RESULTS.md"
    for section in ("One", "Two"):
        keep_rows(section, ["about"], "| head | score |", {"a": "| a | 1 |", "b": "| b | 2 |"}, path)
    keep_rows("One", ["newer"], "| head | seeds | score |", {"a": "| a | 5 | 3 |"}, path)
    one, two = path.read_text().split("## ")[1:]
    assert one.count("| head") == 1 and "newer" in one and "about" not in one
    assert "| a | 1 |" not in one and "| a | 5 | 3 |" in one and "| b | 2 |" in one and "| a | 1 |" in two
