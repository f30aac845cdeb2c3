"""The registry of heads, and `python -m models`, which lists them and prints their layers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

import models

# --- registry
# ---------------------------------------------------------------------------------------------------------


def test_registry():
    names = models.list_heads()
    assert names == sorted(names) and {"audio_cnn", "linear", "mlp"} <= set(names)
    assert models.list_heads("audio_c*") == ["audio_cnn"] and models.list_heads("zzz*") == []
    assert models.get_kinds("linear")[0] == "vector" and models.get_kinds("audio_cnn")[0] == "spectrogram"
    assert models.get_options("mlp") == {"hidden": (512,), "dropout": 0.3}
    assert all(models.get_about(name) and "\n" not in models.get_about(name) for name in names)


def test_two_heads_of_one_name_are_refused():
    with pytest.raises(models.HeadError, match="two heads are called linear"):
        models.register("linear", kinds=("vector",), about="another")(type("Other", (), {}))
    assert models.build("linear", (3, 1, 1), 2).config["name"] == "linear"


def test_options_from_yaml_and_flags():
    head = models.build("mlp", [4, 1, 1], 3, hidden=[8, 6], dropout="1e-1")
    assert head.config["options"] == {"hidden": [8, 6], "dropout": 0.1}
    assert models.build("mlp", (4, 1, 1), 3, hidden=8).config["options"]["hidden"] == [8]


@pytest.mark.parametrize(
    "call, parts",
    [
        (("lineer", (3, 1, 1), 2, {}), ["no head called 'lineer'", "audio_cnn, ", "linear"]),
        (("__main__", (3, 1, 1), 2, {}), ["no head called"]),
        (("mlp", (3, 1, 1), 2, dict(hiden=3)), ["mlp has no option hiden", "hidden=(512,)", "dropout=0.3"]),
        (("mlp", (3, 1), 2, {}), ["D,F,T", "(3, 1)"]),
        (("mlp", (3, 0, 1), 2, {}), ["D,F,T"]),
        (("mlp", (3, 1, 1), 0, {}), ["number of classes"]),
        (("mlp", (3, 1, 1), 2, dict(dropout="lots")), ["dropout is a number", "'lots'"]),
        (("mlp", (3, 1, 1), 2, dict(dropout=None)), ["dropout is a number"]),
        (("mlp", (3, 1, 1), 2, dict(dropout=1.5)), ["mlp: ", "1.5"]),
        (("mlp", (3, 1, 1), 2, dict(hidden=(8, 0))), ["hidden", "(8, 0)"]),
        (("audio_cnn", (1, 9, 9), 2, dict(stem_kernel=2.5)), ["stem_kernel is a whole number"]),
        (("audio_cnn", (1, 9, 9), 2, dict(stem_kernel=4)), ["odd"]),
        (("audio_cnn", (1, 9, 9), 2, dict(blocks=(1, 1))), ["channels and blocks", "(1, 1)"]),
        (("audio_cnn", (1, 9, 9), 2, dict(pool="max")), ["mean or mean_max", "'max'"]),
        (("audio_cnn", (1, 9, 9), 2, dict(drop_path=1.0)), ["drop_path"]),
    ],
)
def test_errors_are_one_line(call, parts):
    name, shape, classes, options = call
    with pytest.raises(models.HeadError) as error:
        models.build(name, shape, classes, **options)
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in parts), text


def test_rebuild_names_what_a_config_lacks():
    with pytest.raises(models.HeadError, match="lacks input_shape"):
        models.rebuild({"name": "linear", "num_classes": 2})


# --- python -m models
# -------------------------------------------------------------------------------------------------


def command(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "models", *args], cwd=ROOT, capture_output=True, text=True, env={**os.environ}
    )


def test_help_is_instant_and_imports_no_torch():
    code = (
        "import sys, models.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    start = time.perf_counter()
    done = command("--help")
    assert done.returncode == 0 and "--recipe" in done.stdout
    assert time.perf_counter() - start < 2.0  # 0.1 s on an idle machine


def test_command_prints_the_layers():
    done = command("--head", "audio_cnn", "--classes", "50")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "parameters: 21,304,050"
    assert any("1,128,431" in line and "assumed" in line for line in lines)
    assert lines[0] == f"audio_cnn: {models.get_about('audio_cnn')}"
    assert lines[1].startswith("takes: spectrogram, sequence, ")
    assert any(re.fullmatch(r"  dropout +0.5 +rate before the last layer.", line) for line in lines)
    stem = next(line for line in lines if line.split()[1:2] == ["Conv2d"])
    assert "1, 64, 64, 216" in stem and stem.endswith("3,136")
    assert done.stderr == ""


@pytest.mark.parametrize("name", models.list_heads())
def test_every_option_of_a_head_has_a_meaning(name):
    texts = models.get_option_texts(name)
    assert list(texts) == list(models.get_options(name)) and all(texts.values()), texts


@pytest.fixture
def main(capsys):
    """`python -m models` in this process: exit code, lines of stdout, stderr."""
    from models.__main__ import main

    def call(*args: str) -> tuple[int, list[str], str]:
        try:
            code = main(list(args))
        except SystemExit as leave:
            code = leave.code
        out = capsys.readouterr()
        return code, out.out.splitlines(), out.err

    return call


RECIPE = """
about: a small net
features: {extractor: logmel}
head: {name: audio_cnn, view: mel, channels: [8, 16], blocks: [1, 1], dropout: 1e-1}
training: {epochs: 3}
"""


def test_recipe_and_own_parameters_add_up(main, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    code, lines, err = main(
        "--recipe", str(path), "--input", "1,64,250", "--classes", "7", "--option", "blocks=1,2"
    )
    assert (code, err) == (0, "") and lines[0] == "audio_cnn on 1,64,250, 7 classes"
    head = models.build("audio_cnn", (1, 64, 250), 7, channels=(8, 16), blocks=(1, 2))
    total = sum(p.numel() for p in head.parameters())
    assert lines[-1] == f"parameters: {total:,}"
    column = lines[2].index("parameters")
    assert sum(int(line[column:].replace(",", "") or 0) for line in lines[3:-1]) == total


def test_tied_weights_count_once():
    from models.__main__ import describe

    class Tied(torch.nn.Sequential):
        def forward(self, x, mask):
            return super().forward(x)

    head = Tied(torch.nn.Flatten(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    head[2].weight = head[1].weight
    head.config = {"name": "tied"}
    lines = describe(head, (4, 1, 1))
    assert lines[-1] == "parameters: 24"
    assert [line.split()[-1] for line in lines if "Linear" in line] == ["20", "4"]


def test_lists_heads_and_recipes(main, monkeypatch, tmp_path):
    (tmp_path / "small.yaml").write_text(RECIPE)
    (tmp_path / "torn.yaml").write_text("head: [")
    monkeypatch.setattr("models.__main__.RECIPES", tmp_path)
    code, lines, err = main()
    text = "\n".join(lines)
    assert (code, err) == (0, "")
    assert all(name in text and models.get_about(name) in text for name in models.list_heads())
    assert any(line.startswith("small") and line.endswith("a small net") for line in lines)
    assert any(line.startswith("torn") and "not YAML" in line for line in lines)
    assert main("--recipe", "small", "--input", "1,16,20")[0] == 0


@pytest.mark.parametrize(
    "args, part",
    [
        (("--head", "nope"), "the heads are ast, attentive, audio_cnn"),
        (("--head", "mpl"), "(did you mean mlp?)"),
        (("--recipe", "nope"), "choose one of small"),
        (("--head", "mlp", "--input", "1,2"), "--input takes three whole numbers"),
        (("--head", "mlp", "--input", "1,x,2"), "--input takes three whole numbers"),
        (("--head", "mlp", "--option", "hidden"), "key=value"),
        (("--head", "mlp", "--option", "depth=3"), "its options are hidden"),
        (("--head", "mlp", "--option", "num_classes=3"), "--classes"),
        (("--head", "mlp", "--classes", "many"), "--classes"),
        (("--head", "mlp", "--recipe", "small"), "not both"),
        (("--input", "1,2,3"), "--head"),
        (("--classes", "3"), "--head"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_command_errors_are_one_line(main, monkeypatch, tmp_path, args, part):
    (tmp_path / "small.yaml").write_text(RECIPE)
    monkeypatch.setattr("models.__main__.RECIPES", tmp_path)
    code, lines, err = main(*args)
    assert (code, lines) == (2, [])
    assert err.startswith("error: ") and err.count("\n") == 1 and part in err, err


@pytest.mark.parametrize("text", ["def (", "x = undefined"])
def test_a_head_that_cannot_be_imported_is_named_in_one_line(text, monkeypatch, tmp_path):
    (tmp_path / "broken_head.py").write_text(text)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    with pytest.raises(
        models.HeadError, match=r"models/broken_head.py cannot be imported \((Syntax|Name)Err"
    ):
        models.build("broken_head", (1, 8, 8), 2)


def test_what_the_module_names_is_there():
    assert all(hasattr(models, name) for name in models.__all__)


def test_a_reader_that_has_enough():
    """As `| head -1`: no traceback."""
    code = "import time; time.sleep(0.5); import runpy; runpy.run_module('models', run_name='__main__')"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_command_error_in_a_process():
    done = command("--head", "nope")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(
        "error: there is no head called 'nope'; the heads are ast, attentive, audio_cnn"
    )
    assert done.stderr.count("\n") == 1
