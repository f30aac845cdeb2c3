"""The command line: flags over defaults, errors in one line, and the scripts' own help and refusals."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_competition, refused, script

from earshot import extractors
from earshot.audio.load import AudioSettings
from earshot.core import cli, config, deadline
from earshot.core.config import TrainingFlags, WindowFlags, list_recipes
from earshot.core.errors import UserError


def parsed(*argv: str, free: str | None = "head"):
    filled, options = cli.parse(
        {"training": TrainingFlags(epochs=9), "run": config.RunFlags()}, list(argv), "about", free=free
    )
    return filled["training"], filled["run"], options


def test_flags_over_defaults():
    training, run, options = parsed(
        "--lr", "1e-2", "--schedule=step", "--folds", "4", "--fold", "1", "3", "--batch-size", "8"
    )
    assert training == TrainingFlags(epochs=9, lr=0.01, schedule="step", folds=4, batch_size=8)
    assert run == config.RunFlags(fold=(1, 3)) and options == {}
    filled, _ = cli.parse(
        {"predict": config.PredictFlags()}, ["--runs", "a", "b", "--top", "2"], "", positional="files"
    )
    assert filled["predict"].runs == ("a", "b") and filled["files"] == ()
    filled, _ = cli.parse(
        {"predict": config.PredictFlags()}, ["x.wav", "y.wav", "--top", "2"], "", positional="files"
    )
    assert filled["files"] == ("x.wav", "y.wav") and filled["predict"].top == 2


def test_free_flags_are_collected():
    *_, options = parsed(
        "--head.dropout", "0.3", "--lr", "1", "--head.stem-kernel=5", "--head.hidden", "[8, 4]"
    )
    assert options == {"dropout": "0.3", "stem_kernel": "5", "hidden": "[8, 4]"}
    for argv, free in (
        (["--head.dropout", "1"], None),
        (["--head.dropout"], "head"),
        (["--tail.dropout", "1"], "head"),
    ):
        with pytest.raises(UserError, match="unknown flag --(head|tail).dropout"):
            parsed(*argv, free=free)


@pytest.mark.parametrize(
    "argv, parts",
    [
        (["--epochs", "many"], ["--epochs", "many"]),
        (["--lr"], ["--lr"]),
        (["--schedule", "cubic"], ["--schedule", "cubic", "onecycle"]),
        (["--epoch", "3"], ["unknown flag --epoch: did you mean --epochs?"]),
        (["--batchsize=3"], ["--batchsize: did you mean --batch-size?"]),
        (["--zzzz", "3"], ["unknown flag --zzzz", "--help"]),
        (["stray"], ["unknown flag stray"]),
    ],
)
def test_wrong_flags_get_one_line(argv, parts):
    with pytest.raises(UserError) as caught:
        parsed(*argv)
    line = str(caught.value)
    assert (
        "\n" not in line and all(part in line for part in parts) and not re.search("[\u2500-\u257f]", line)
    ), line


def test_early_flags():
    argv = ["x", "--recipe", "a", "--features=b=c", "--recipe", "d", "--recipes", "e", "--data"]
    early, rest = cli.parse_early(argv, ("recipe", "features", "data", "name"))
    assert early == {"recipe": "d", "features": "b=c", "data": None, "name": None}
    assert rest == ["x", "--recipes", "e", "--recipe", "d", "--features", "b=c", "--data"]


def test_flags_that_are_repeated_or_have_no_value():
    argv = ["--train-csv", "a", "b", "--pictures", "--lr", "1", "--train-csv=c"]
    _, rest = cli.parse_early(argv, repeated=["train-csv"], bare={"pictures": "0"})
    assert sorted(rest) == sorted(["--lr", "1", "--train-csv", "a", "b", "c", "--pictures", "0"])
    assert rest[rest.index("--train-csv") + 1 :][:3] == ["a", "b", "c"]
    assert cli.parse_early(["--pictures", "7"], bare={"pictures": "0"})[1] == ["--pictures", "7"]


def test_former_flags_warn(capsys):
    training, *_ = parsed("--masks", "3", "--crop=0.5")
    assert (training.num_masks, training.crop_share) == (3, 0.5)
    assert capsys.readouterr().out.splitlines() == [
        "warning: --masks is now --num-masks; the next release drops the old name",
        "warning: --crop is now --crop-share; the next release drops the old name",
    ]
    with pytest.raises(UserError, match="--crop-share 2.0: has to be 0.01 to 1"):
        parsed("--crop", "2")


def test_deadline(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now[0])
    never, half = deadline.Deadline(None), deadline.Deadline(0.5)
    for seconds, over in ((0, False), (1799, False), (1, True), (1e6, True)):
        now[0] += seconds
        assert (never.is_over(), half.is_over()) == (False, over)
    assert deadline.Deadline(0).is_over()
    monkeypatch.setattr(
        sys, "argv", [str(Path.cwd() / "train.py"), "--name", "my run", "--fresh", "--max-hours", "0.5"]
    )
    with pytest.raises(SystemExit) as caught:
        half.leave()
    said = capsys.readouterr().out
    assert caught.value.code == 0 and "--max-hours 0.5;" in said
    assert said.rstrip().endswith("continue with: python train.py --name 'my run' --max-hours 0.5"), (
        "without --fresh"
    )


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00"), (59.6, "1:00"), (291, "4:51"), (3599.6, "1:00:00"), (3723, "1:02:03")]
)
def test_clock(seconds, text):
    assert deadline.format_clock(seconds) == text


# --- the scripts

HEAVY = {
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "librosa",
    "sklearn",
    "pandas",
    "timm",
    "models",
}
GROUPS = {
    "get_features.py": [
        config.CompetitionFlags,
        WindowFlags,
        AudioSettings,
        config.AugmentFlags,
        config.ExtractionFlags,
    ],
    "train.py": [config.RunFlags, TrainingFlags, config.TrainMachineFlags],
    "predict.py": [config.PredictFlags],
}


@pytest.mark.parametrize("name", GROUPS)
def test_help_names_every_flag_and_imports_nothing_heavy(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / name), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    for field in (field for group in GROUPS[name] for field in dataclasses.fields(group)):
        assert "--" + field.name.replace("_", "-") in done.stdout, field.name
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}
    assert {"tyro", "earshot"} <= imported and not imported & HEAVY, imported & HEAVY
    assert list(tmp_path.iterdir()) == [], "asking for help leaves nothing behind"


def test_unknown_names_get_one_line_that_lists_the_choices(tmp_path):
    make_competition(tmp_path / "tones", train=4, subm=1, seconds=0.3)
    recipes = ", ".join(list_recipes())

    def said(name: str, *args: str) -> str:
        return refused(script(name, *args, cwd=tmp_path, ok=None))

    assert recipes in said("get_features.py", "--competition", "tones", "--recipe", "nope")
    assert ", ".join(extractors.list_names()) in said(
        "get_features.py", "--competition", "tones", "--extractor", "nope"
    )
    assert "no cache in data/" in said("train.py", "--recipe", "linear")
    assert "train.py" in said("predict.py")
    script(
        "get_features.py", "--competition", "tones", "--extractor", "logmel", "--workers", "1", cwd=tmp_path
    )
    assert recipes in said("train.py", "--recipe", "nope")
    assert "the heads are ast, audio_cnn, " in said("train.py", "--head", "nope")
    assert "did you mean --epochs?" in said("train.py", "--epoch", "1")
    assert "its options are" in said("train.py", "--head.depth", "1")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("extractor", ["logmel", "waveform"])
@pytest.mark.parametrize("rate", ["0", "-5"])
def test_a_rate_of_nothing_is_refused(extractor: str, rate: str) -> None:
    with pytest.raises(UserError, match="--rate .* has to be 100 to 768000"):
        cli.parse({"settings": extractors.load_module(extractor).Settings()}, ["--rate", rate], "about")


@pytest.mark.parametrize(
    "flag, value",
    [
        ("--batch-size", "0"),
        ("--lr", "-1"),
        ("--lr", "nan"),
        ("--warmup", "2"),
        ("--mixup", "-1"),
        ("--step-epochs", "0"),
        ("--epochs", "0"),
        ("--label-smoothing", "1.5"),
        ("--folds", "1"),
        ("--gain", "inf"),
        ("--time-shift", "2"),
        ("--seed", "-3"),
    ],
)
def test_numbers_out_of_bounds_are_named(flag: str, value: str) -> None:
    with pytest.raises(UserError) as error:
        cli.parse({"training": config.TrainingFlags()}, [flag, value], "about")
    assert str(error.value).startswith(f"{flag} ") and "has to be" in str(error.value)
