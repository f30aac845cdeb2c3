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
from earshot.core import cli, config, deadline, help_pages
from earshot.core.config import TrainingFlags, WindowFlags, list_recipes
from earshot.core.errors import UserError
from earshot.core.settings import to_flag


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
        (["--epochs", "many"], ["--epochs 'many': must be a whole number"]),
        (["--lr", "fast"], ["--lr 'fast': must be a number"]),
        (["--lr"], ["--lr"]),
        (["--schedule", "cubic"], ["--schedule", "cubic", "onecycle"]),
        (["--epoch", "3"], ["unknown flag --epoch: did you mean --epochs?"]),
        (["--batchsize=3"], ["--batchsize: did you mean --batch-size?"]),
        (["--zzzz", "3"], ["unknown flag --zzzz", "--help"]),
        (["stray"], ["unexpected argument stray", "--help"]),
        (["/a/b.wav"], ["unexpected argument /a/b.wav"]),
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


def show_help(name: str, flag: str, folder: Path) -> str:
    """A script's page; it imports nothing heavy and leaves nothing behind."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *([] if name.startswith("-m") else [str(ROOT / name)]), flag],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}
    assert "earshot" in imported and not imported & HEAVY, imported & HEAVY
    assert list(folder.iterdir()) == []
    return done.stdout


@pytest.mark.parametrize("name", GROUPS)
def test_help_shows_the_common_flags_and_help_all_every_one(name, tmp_path):
    short, whole = (show_help(name, flag, tmp_path) for flag in ("--help", "--help-all"))
    shown, everything = (set(re.findall(r"^  (--[\w-]+)", page, re.MULTILINE)) for page in (short, whole))
    for field in (field for group in GROUPS[name] for field in dataclasses.fields(group)):
        assert to_flag(field.name) in everything, field.name
    assert 10 <= len(shown) <= 25 and shown < everything, sorted(shown)
    assert short.splitlines()[-1] == f"--help-all shows {len(everything - shown)} more flags."
    assert "default: None" not in whole and "{None}" not in whole
    for line in whole.splitlines():
        assert line.count("default:") <= 1, line


def test_the_help_names_the_extractor_that_runs(tmp_path):
    page = show_help("get_features.py", "--help", tmp_path)
    assert "(default: ast)" in next(line for line in page.splitlines() if "--extractor" in line)
    named = show_help("get_features.py", "--help", tmp_path)
    assert "logmel" not in re.sub(r"\(default: [^)]*\)", "", named).split("--extractor")[1].split("--")[0]


@pytest.mark.parametrize("name", ["doctor.py", "app.py"])
def test_small_scripts_show_all(name, tmp_path):
    short, whole = (show_help(name, flag, tmp_path) for flag in ("--help", "--help-all"))
    assert short == whole and "--help-all" not in short and "--runs-folder" in short


def test_flags_as_data():
    import train

    flags = {flag.names[0]: flag for flag in help_pages.list_flags(train.list_groups())}
    assert len(flags) == sum(len(dataclasses.fields(group)) for group in GROUPS["train.py"])
    assert all(flag.help and flag.about and "default:" not in flag.help for flag in flags.values())
    lr = flags["--lr"]
    assert (lr.group, lr.metavar, lr.default, lr.common) == ("training", "FLOAT", "0.001", True)
    assert flags["--report"].names == ("--report", "--no-report") and flags["--fold"].metavar == "INT ..."
    assert flags["--fold"].default == "all" and flags["--fresh"].metavar == ""
    assert flags["--optimizer"].metavar == "{adamw,adam,sgd,sam}" and not flags["--optimizer"].common


@pytest.mark.parametrize(
    "module", ["kaggle", "kaggle.notebook", "kaggle.packages", "report", "report.ledger"]
)
def test_modules_have_help_and_refuse_unknown_flags(module, tmp_path):
    def call(flag: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", f"earshot.{module}", flag],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    done = call("--help")
    assert done.returncode == 0 and f"earshot.{module}" in done.stdout and done.stderr == ""
    assert "--nosuch" in refused(call("--nosuch"))
    assert list(tmp_path.iterdir()) == []


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
    assert "unknown flag --epohcs: did you mean --epochs?" in said("train.py", "--epohcs", "1")
    assert "train.py" in said("predict.py")
    script(
        "get_features.py", "--competition", "tones", "--extractor", "logmel", "--workers", "1", cwd=tmp_path
    )
    assert recipes in said("train.py", "--recipe", "nope")
    assert "the heads are ast, attentive, audio_cnn, " in said("train.py", "--head", "nope")
    assert "did you mean --epochs?" in said("train.py", "--epoch", "1")
    assert "its options are" in said("train.py", "--head.depth", "1")
    expected = "recipe ast_linear expects ast features (vector), data/tones/logmel has logmel features"
    assert expected in said("train.py", "--recipe", "ast_linear")
    mine = tmp_path / "mine.yaml"
    mine.write_text("traning: {epochs: 2}")
    assert "unknown section traning (did you mean training?)" in said("train.py", "--recipe", mine)
    for name in ("/nope.wav", "nope.wav"):
        assert f"no file or run {name}; " in said("predict.py", "--runs", name).replace("run named", "run")
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
