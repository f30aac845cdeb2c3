"""The table of encoders: what it names exists, and the page and the command show the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml
from conftest import ROOT

from earshot import extractors
from models import __main__ as command

ROWS = yaml.safe_load(command.ENCODERS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_what_the_table_names_exists(row: dict) -> None:
    flags = dict(re.findall(r"--(\w+) (\S+)", row["flags"]))
    assert set(row) == set(command.COLUMNS.values()) and row["good_for"] and row["get"]
    if "recipe" in flags:
        if "onnx" not in extractors.list_names():
            pytest.skip("the extractor onnx and its recipes are not here")
        recipe = yaml.safe_load((ROOT / "recipes" / f"{flags['recipe']}.yaml").read_text(encoding="utf-8"))
        assert recipe["features"]["rate"] == row["rate"]
        return
    module = extractors.load_module(flags["extractor"])
    if "weights" in flags:
        assert flags["extractor"] == "hf" and row["get"] == f"hub: {flags['weights']}"
    else:
        assert module.Extractor.rate == row["rate"]
    if "network" in flags:
        assert flags["network"] in get_args(get_type_hints(module.Settings)["network"])


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--encoders"]) == 0
    printed = capsys.readouterr().out
    assert all(row["flags"] in printed for row in ROWS) and "None" not in printed
    assert max(map(len, printed.splitlines())) <= 120, "in a terminal"
    for row in ROWS:
        assert all(str(row[key]) in " ".join(printed.split()) for key in row if row[key]), row
    for more in (["--head", "linear"], ["--classes", "50"]):
        assert command.main(["--encoders", *more]) == 2
        assert capsys.readouterr().err == "error: --encoders is a list: give it alone\n"


def test_the_page_has_the_same_table() -> None:
    header, *rows = command.list_encoders()
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join([row[0], f'`{row[1]}`', *row[2:]])} |" for row in rows]
    page = Path(ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in page, "write models/encoders.yaml's rows into docs/encoders.md"
