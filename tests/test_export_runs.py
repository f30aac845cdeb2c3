"""Exports of runs: predictions are those of torch; what does not fit is one line, and torch predicts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import EFFICIENTAT, ROOT, make_competition, read_csv, refused, script
from test_export import needs, runtimes

import get_features
import predict
import train
from earshot.app import saliency
from earshot.core import graphs
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.export import __main__ as export
from earshot.export import compare
from earshot.features.cache import Cache
from earshot.kaggle import bundle
from earshot.kaggle.flags import BundleFlags
from earshot.prediction import exported, members, predict_runs
from earshot.prediction.predictor import Predictor
from earshot.training import dataset
from earshot.training.predict import predict_run
from earshot.training.run import Run

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason="pip install -r requirements-onnx.txt")

pytestmark = pytest.mark.slow
CPU = Device("cpu", "fp32", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs cnn (two shifts) and lin on windows of half a second, each exported to what is installed."""
    folder, before = tmp_path_factory.mktemp("export"), os.getcwd()
    os.chdir(folder)
    try:
        data = make_competition(folder / "tones", train=12, subm=3, seconds=1.3)
        ids = [row["fname"] for row in read_csv(data / "sample_submission.csv")]
        lines = ["fname,tone0,tone1,tone2", *(f"{id},0.3,0.3,0.4" for id in ids)]
        (data / "sample_submission.csv").write_text("\n".join(lines) + "\n")
        cpu = ["--device", "cpu"]
        extract = ["--extractor", "logmel", "--n-mels", "16", "--seconds", "0.5"]
        get_features.main(["--competition", "tones", *extract, *cpu])
        options = ["--head.channels", "8,12", "--head.blocks", "1,1", "--tta", "2"]
        train.main(
            ["--recipe", "small_cnn", *options, "--epochs", "3", "--folds", "2", "--name", "cnn", *cpu]
        )
        train.main(["--recipe", "linear", "--epochs", "20", "--folds", "2", "--name", "lin", *cpu])
        for runtime in graphs.PACKAGES:
            if not graphs.find_missing_package(runtime):
                export.main(["cnn", "--to", runtime])
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil."""
    shutil.copytree(made, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return Path("runs/cnn/export")


def read_probabilities(path: str) -> np.ndarray:
    """(clips, classes) of a submission."""
    return np.array([[float(value) for value in list(row.values())[1:]] for row in read_csv(Path(path))])


def predict_audio(name: str) -> tuple[np.ndarray, str]:
    """(clips, classes) of the competition's clips from their audio, and the lines that were printed."""
    lines: list[str] = []
    whole = members.open_members((name,), "runs")[0]
    found = predict_runs.predict_audio(whole, ["tones/audio_test"], None, CPU, lines.append)
    return found.probabilities, "\n".join(lines)


@runtimes
def test_predictions_are_those_of_torch_and_say_so(work: Path, runtime: str) -> None:
    needs(runtime)
    for other in graphs.PACKAGES:
        if other != runtime:
            shutil.rmtree(work / f"best_{other}", ignore_errors=True)
    line = f"runs/cnn: {runtime} predicts, by runs/cnn/export/best_{runtime}"
    files = sorted(map(str, Path("tones/audio_test").iterdir()))
    shown = script("predict.py", "--runs", "cnn", *files, cwd=Path.cwd())
    assert line in shown.stderr and runtime not in shown.stdout
    assert sum(text[0] != " " for text in shown.stdout.splitlines()) == len(files)
    cached = ("predict.py", "--runs", "cnn", "--out")
    assert line in script(*cached, "graph.csv", cwd=Path.cwd()).stdout
    found, said = predict_audio("cnn")
    assert line in said
    shutil.rmtree(work)
    assert runtime not in script(*cached, "torch.csv", cwd=Path.cwd()).stdout
    wanted, said = predict_audio("cnn")
    assert not said and np.abs(wanted - found).max() <= 1e-4
    assert np.abs(read_probabilities("torch.csv") - read_probabilities("graph.csv")).max() <= 1e-4


def test_a_clips_windows_are_pooled_as_torch_pools_them(work: Path) -> None:
    run, cache = Run.open(Path("runs/cnn")), Cache(Path("data/tones/logmel"))
    rows = dataset.load_rows(cache, "subm", "mel", CPU)
    assert len(rows) > len(rows.ids), "several windows a clip"
    heads = exported.open_heads(run, "best", CPU, lambda line: None)
    for pool in ("mean", "probability", "max", "top3"):
        run.config["record"]["training"]["pool"] = pool
        wanted = predict_run(run, rows, CPU)
        assert np.abs(predict_run(run, rows, CPU, exported=heads) - wanted).max() <= 1e-4


@runtimes
def test_hidden_clips_by_the_export(work: Path, runtime: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the extraction as from the cache, with a padded window."""
    needs(runtime)
    for other in graphs.PACKAGES:
        if other != runtime:
            shutil.rmtree(work / f"best_{other}", ignore_errors=True)
    audio = Path("tones/audio_test")
    last = sorted(audio.iterdir())[-1]
    soundfile.write(last, soundfile.read(last)[0][:4000], 16000)  # a quarter of a second
    cpu = ["--runs", "cnn", "--device", "cpu"]
    predict.main([*cpu, "--hidden", "--competition", "tones", "--out", "early.csv"])
    line = f"runs/cnn: {runtime} predicts, by runs/cnn/export/best_{runtime}"
    assert capsys.readouterr().out.count(line) == 1, "once, beside the extraction"
    features = ["--features", "data/tones/logmel_subm"]
    predict.main([*cpu, *features, "--out", "late.csv"])
    assert line in capsys.readouterr().out
    assert Path("early.csv").read_bytes() == Path("late.csv").read_bytes()
    shutil.rmtree(work)
    predict.main([*cpu, *features, "--out", "torch.csv"])
    assert np.abs(read_probabilities("torch.csv") - read_probabilities("late.csv")).max() <= 1e-4


def test_the_page_predicts_by_the_export_and_explains_by_torch(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = sorted(Path("tones/audio_test").iterdir())[0]
    whole = members.open_members(("cnn",), "runs")[0]
    predictor = Predictor(whole, CPU)
    assert "predicts, by runs/cnn/export/best_" in capsys.readouterr().out
    found = predictor.predict_file(clip)
    assert predictor.get_checkpoint_kind(predictor.runs[0]) == "best"
    assert saliency.explain(predictor, predictor.runs[0], found, 0, 0).values.size
    shutil.rmtree(work)
    wanted = Predictor(whole, CPU).predict_file(clip)
    assert np.abs(wanted.probabilities - found.probabilities).max() <= 1e-4
    assert np.abs(wanted.windows - found.windows).max() <= 1e-4


def test_torch_predicts_where_the_export_does_not_fit(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    shutil.rmtree(work / "best_openvino", ignore_errors=True)
    run = Run.open(Path("runs/cnn"))

    def open_lines() -> str:
        lines.clear()
        assert exported.open_heads(run, "best", CPU, lines.append) is None
        assert lines[-1] == "runs/cnn: torch predicts" and len(lines) == 2
        return lines[0]

    lin = Run.open(Path("runs/lin"))
    assert exported.open_heads(lin, "best", CPU, lines.append) is None and not lines, "there is none"
    assert exported.open_heads(run, "last", CPU, lines.append) is None
    assert lines == [
        "warning: runs/cnn/export/best_onnx is not used: here the last checkpoints predict: export the blend "
        "(--name keeps it), too: python -m earshot.export BLEND --to onnx",
        "runs/cnn: torch predicts",
    ]
    lines.clear()
    assert exported.open_heads(run, "best", Device("cuda:0", "fp16", ""), lines.append) is None and not lines
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "onnxruntime", None)
        assert open_lines() == (
            "warning: runs/cnn/export/best_onnx is not used: onnxruntime is not installed: pip install -r "
            "requirements-onnx.txt"
        )
    graph = work / "best_onnx" / "heads.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])
    assert "heads.onnx is damaged (its checksum differs): export the run again: python -m" in open_lines()
    done = script("predict.py", "--runs", "cnn", "--out", "one.csv", cwd=Path.cwd())
    assert "warning: " in done.stdout and "torch predicts" in done.stdout and not done.stderr
    graph.write_bytes(whole)
    assert exported.open_heads(run, "best", CPU, lines.append) is not None
    shutil.rmtree("runs/cnn/fold_1")
    cpu = ["--device", "cpu", "--features", "data/tones/logmel"]
    options = ["--head.channels", "8,12", "--head.blocks", "1,1", "--tta", "2"]
    train.main(["--recipe", "small_cnn", *options, "--epochs", "3", "--folds", "2", "--name", "cnn", *cpu])
    assert exported.open_heads(run, "best", CPU, lines.append), "the same weights again"
    command = [*options, "--epochs", "3", "--folds", "2", "--seed", "5", "--name", "other", *cpu]
    train.main(["--recipe", "small_cnn", *command])
    shutil.copytree("runs/cnn/export", "runs/other/export")
    run = Run.open(Path("runs/other"))
    lines.clear()
    assert exported.open_heads(run, "best", CPU, lines.append) is None
    assert "the run was trained since: export the run again: python -m earshot.export runs/other" in lines[0]


def test_a_refused_export_leaves_nothing(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "CLOSE", -1.0)
    before = (work / "best_onnx" / "export.json").read_bytes()
    with pytest.raises(UserError, match="runs/cnn: the head audio_cnn: the graph differs"):
        export.main(["cnn", "--to", "onnx"])
    assert (work / "best_onnx" / "export.json").read_bytes() == before, "the earlier one stays"
    with pytest.raises(UserError, match="runs/lin: the head linear: the graph differs"):
        export.main(["lin", "--to", "onnx"])
    assert [path.name for path in Path("runs/lin/export").iterdir()] == [".lock"]


def test_the_command(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "earshot.export", "cmm", "--to", "onnx"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert refused(done).startswith("error: no run named cmm; runs: cnn, lin")
    with pytest.raises(UserError, match="export which run"):
        export.main([])
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "openvino", None)
        with pytest.raises(UserError, match="openvino is not installed: pip install"):
            export.main(["cnn", "--to", "openvino"])


def test_a_blend_predicts_by_its_members_exports(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(work)
    blend = ["--runs", "cnn", "lin", "--blend", "pool", "--name", "both", "--no-report"]
    predict.main([*blend, "--out", "torch.csv", "--device", "cpu"])
    export.main(["both", "--to", "onnx"])
    assert "export: runs/" in capsys.readouterr().out
    used = members.open_members(("both",), "runs")[0].list_checkpoints()
    assert used and all(kind == "last" for _, kind in used)
    assert all((run.folder / "export" / "last_onnx" / "heads.onnx").is_file() for run, _ in used)
    found, said = predict_audio("both")
    assert said.count("onnx predicts, by runs/") == len(used)
    for run, _ in used:
        shutil.rmtree(run.folder / "export")
    assert np.abs(predict_audio("both")[0] - found).max() <= 1e-4


@runtimes
def test_the_extractors_network_is_exported_too(
    work: Path, runtime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needs(runtime)
    if not EFFICIENTAT.is_file():
        pytest.skip("needs the shared weights")
    cpu = ["--device", "cpu"]
    made = ["--extractor", "efficientat", "--weights", str(EFFICIENTAT), "--seconds", "1"]
    get_features.main(["--competition", "tones", *made, *cpu])
    cache = ["--features", "data/tones/efficientat"]
    train.main(["--recipe", "linear", *cache, "--epochs", "20", "--folds", "2", "--name", "mn", *cpu])
    wanted = predict_audio("mn")[0]
    export.main(["mn", "--to", runtime])
    assert "extractor: 6 windows of noise: probabilities " in capsys.readouterr().out
    found, said = predict_audio("mn")
    line = f"runs/mn: {runtime} computes efficientat's network, by runs/mn/export/best_{runtime}"
    assert line in said and np.abs(wanted - found).max() <= 1e-4
    get_features.main(["--for-run", "mn", "--competition", "tones", "--out", "hidden", *cpu])
    assert line in capsys.readouterr().out

    folder = Path(f"runs/mn/export/best_{runtime}")
    graph = folder / graphs.list_files("extractor", runtime)[-1]
    graph.write_bytes(graph.read_bytes()[:-1])
    get_features.main(["--for-run", "mn", "--competition", "tones", "--out", "torch", *cpu])
    said = capsys.readouterr().out
    assert f"warning: {graph} is damaged (its checksum differs): torch computes the network" in said
    assert line not in said and (Path("torch") / "tones" / "efficientat_subm" / "subm.pkl").is_file()
    with pytest.raises(UserError, match="efficientat_subm has no clips of the split train"):
        export.main(["mn", "--to", runtime, "--features", "torch/tones/efficientat_subm"])


def test_the_bundle_carries_the_export(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(work / "best_openvino", ignore_errors=True)
    bundle.make(BundleFlags(runs=("cnn",), out="kit"))
    assert (Path("kit") / "runs" / "cnn" / "export" / "best_onnx" / "heads.onnx").is_file()
    assert (Path("kit") / "code" / "requirements-openvino.txt").is_file()
    assert "cnn has an export for onnx; without its packages torch predicts" in capsys.readouterr().out
    flags = BundleFlags(packages=("onnx", "onnxruntime"))
    assert bundle.list_lacking_runtimes([Path("runs/cnn")], flags) == []
