"""doctor.py without --data: GPUs that are not here are faked, the rest is real."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from conftest import make_competition, script, tone

from earshot.core import device, disk_space, kaggle_paths, worker_pool
from earshot.core.errors import UserError
from earshot.doctor import environment, gpu, machine
from earshot.kaggle import packages

NO_KERNEL = (
    "CUDA error: no kernel image is available for execution on the device\nCompile with TORCH_USE_CUDA_DSA"
)
IMAGE = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


def cards(monkeypatch, *names: tuple[str, tuple[int, int]], archs: list[str], busy: int = -1) -> None:
    """Fake GPUs by name and capability: a kernel runs where the build has kernels for it."""

    def ones(*shape, device):
        major, minor = names[int(device.partition(":")[2])][1]
        if not gpu.has_kernels_for((major, minor), archs):
            raise RuntimeError(NO_KERNEL)
        return torch.zeros(*shape)

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: len(names),
        "get_device_name": lambda i: names[i][0],
        "get_device_capability": lambda i: names[i][1],
        "get_arch_list": lambda: archs,
        "mem_get_info": lambda i: ((2 if i == busy else 15) << 30, 16 << 30),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "ones", ones)


def lines(found) -> list[str]:
    return [str(one) for one in found]


def test_a_p100_under_a_build_without_its_kernels(monkeypatch) -> None:
    """Named with a fix; nothing falls back to the CPU unless told to."""
    cards(monkeypatch, ("Tesla P100-PCIE-16GB", (6, 0)), archs=IMAGE)
    said = lines(gpu.check_gpus())
    assert len(said) == 1 and said[0].startswith("stop: GPU 0: Tesla P100-PCIE-16GB (sm_60)")
    assert all(
        word in said[0]
        for word in ("sm_70 sm_75", "no kernel image", "GPU T4 x2", "constraints-p100.txt", "--device cpu")
    )
    assert "\n" not in said[0]
    with pytest.raises(UserError, match="sm_60"):
        worker_pool.choose("auto")
    assert device.choose("cpu").name == "cpu"
    cards(monkeypatch, ("Tesla P100-PCIE-16GB", (6, 0)), archs=["sm_50", "sm_60", "sm_70"])
    assert lines(gpu.check_gpus())[1] == "ok: device: cuda:0, precision fp32"


def test_two_t4_one_of_them_busy(monkeypatch) -> None:
    cards(monkeypatch, ("Tesla T4", (7, 5)), ("Tesla T4", (7, 5)), archs=IMAGE, busy=1)
    said = lines(gpu.check_gpus())
    assert said[0] == "ok: GPU 0: Tesla T4, sm_75, fp16, a kernel ran, 16.1 GB of 17.2 GB free"
    assert said[1].startswith("warning: GPU 1: Tesla T4") and "another process" in said[1]
    assert said[2] == "ok: device: cuda:0,cuda:1".replace(",", ", ") + ", a process each, precision fp16"


def test_capability_against_the_builds_list() -> None:
    assert (
        gpu.has_kernels_for((7, 5), ["sm_70"])
        and gpu.has_kernels_for((8, 6), ["sm_80"])
        and gpu.has_kernels_for((9, 0), ["sm_90a"])
    )
    assert (
        not gpu.has_kernels_for((6, 0), IMAGE)
        and not gpu.has_kernels_for((8, 0), ["sm_86"])
        and not gpu.has_kernels_for((10, 0), ["sm_90", "compute_90"])
    )
    assert gpu.has_kernels_for((12, 0), ["sm_120"]) and gpu.has_kernels_for((10, 0), ["sm_75", "sm_100"])


def test_a_gpu_that_torch_cannot_use(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "version").write_text("NVRM")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "DRIVER", str(tmp_path / "version"))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built for CPUs only" in lines(gpu.check_gpus())[0]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert lines(gpu.check_gpus())[0].startswith("warning") and "driver too old" in " ".join(
        lines(gpu.check_gpus())[0].split()
    )
    monkeypatch.setattr(gpu, "DRIVER", str(tmp_path / "none"))
    monkeypatch.setenv("EARSHOT_ATTACHED", str(tmp_path / "none"))
    assert lines(gpu.check_gpus())[0].startswith("ok: no GPU")


def test_companions_of_another_release_or_cuda(monkeypatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.10.0+cu128")
    have = {"torchvision": "0.25.0+cu128", "torchaudio": "2.10.0+cu128"}
    monkeypatch.setattr(gpu, "find_version", lambda name: have[name])
    broken: dict[str, Exception] = {}

    def load(name: str):
        if name in broken:
            raise broken[name]

    monkeypatch.setattr(gpu, "importlib", SimpleNamespace(import_module=load))
    assert lines(gpu.check_libraries())[0].startswith("ok: torch 2.10.0+cu128")
    have["torchaudio"] = "2.11.0"
    broken["torchaudio"] = RuntimeError(
        "Detected that PyTorch and TorchAudio were compiled\nwith different CUDA versions"
    )
    broken["torchvision"] = RuntimeError("operator torchvision::nms does not exist")
    said = lines(gpu.check_libraries())
    assert said[0].startswith("stop: torchvision 0.25.0+cu128 cannot be imported") and "nms" in said[0]
    assert (
        said[1].startswith("warning: torchaudio 2.11.0 cannot")
        and "pip uninstall torchaudio" in said[1]
        and "\n" not in said[1]
    )
    broken.clear()
    have |= {"torchaudio": "2.10.0+cu126", "torchvision": "0.26.0"}
    said = lines(gpu.check_libraries())
    assert "another release" in said[0] and "another CUDA" in said[1]


@pytest.mark.parametrize("error", ["OSError('Could not load it')", "ImportError('undefined symbol')"])
def test_a_companion_that_does_not_load_is_one_line(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """As torchaudio 2.11.1 beside torch 2.11.0: transformers imports it wherever it is installed."""
    package = tmp_path / "packages" / "torchaudio"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"raise {error}\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    flags = ("--competition", tones, "--extractor", "logmel", "--workers", "1", "--device", "cpu")
    done = script("get_features.py", *flags, cwd=tmp_path, ok=None)
    assert done.returncode == 75 and done.stderr.count("\n") == 1
    assert "error: torchaudio does not load beside the torch that is installed" in done.stderr


def test_audio_of_every_suffix(tmp_path: Path) -> None:
    """One damaged file proves nothing; a suffix of which none decodes stops."""
    soundfile.write(tmp_path / "a.wav", tone(0, 0), 16000)
    soundfile.write(tmp_path / "b.flac", tone(0, 0), 16000)
    (tmp_path / "0.flac").write_bytes(b"fLaC")
    (tmp_path / "c.mp3").write_bytes(b"no music")
    found = environment._pick_examples(kaggle_paths.walk(tmp_path))
    said = [str(environment.check_decoders(suffix, files)) for suffix, files in found.items()]
    assert [line.split(" (")[0] for line in said] == [
        "ok: audio: .flac decodes",
        "stop: audio: none of 1 .mp3 files decodes",
        "ok: audio: .wav decodes",
    ]
    assert "b.flac" in said[0] and "1.0 s, 16000 Hz" in said[2] and "install ffmpeg" in said[1]


def test_packages(monkeypatch, tmp_path: Path) -> None:
    """Missing and unfit ones are named; missing ones come from attached wheels without an index, torch
    never."""
    have = {"tyro": None, "numpy": "1.26.4", "kaggle": None}
    monkeypatch.setattr(
        packages, "find_version", lambda name: have.get(name, "2.7.5" if name.startswith("torch") else "99")
    )
    said = lines(machine.check_code())
    assert any(line.startswith("stop: packages: tyro, kaggle missing") for line in said)
    assert any("numpy 1.26.4 (wanted: >=2.0)" in line for line in said)
    wheels = tmp_path / "datasets" / "someone" / "kit" / "wheels"
    wheels.mkdir(parents=True)
    (wheels / "tyro-0.9-py3-none-any.whl").write_bytes(b"")
    monkeypatch.setenv("EARSHOT_ATTACHED", str(tmp_path))
    asked: list[list[str]] = []
    monkeypatch.setattr(
        packages.subprocess,
        "run",
        lambda command, **_: asked.append(command) or SimpleNamespace(returncode=0, stderr=""),
    )
    assert packages.install() == ["packages: installed tyro, kaggle (from attached wheels)"]
    assert (
        "--no-index" in asked[0] and str(wheels) in asked[0] and not any("torch" in part for part in asked[0])
    )
    have["torch"] = None
    with pytest.raises(UserError, match="torch is not installed.*Python image"):
        packages.install()


def test_packages_that_a_bundle_was_made_with(monkeypatch, tmp_path: Path) -> None:
    """Installed from its own wheels only, never required; a list in any other folder names nothing."""
    have = {"onnxruntime": None, "evil": None, "old": None}
    monkeypatch.setattr(packages, "find_version", lambda name: have.get(name, "99"))
    wheels = tmp_path / "kit" / "wheels"
    wheels.mkdir(parents=True)
    (wheels / "evil-1-py3-none-any.whl").write_bytes(b"")
    listed = (
        "-r other.txt\nonnxruntime==1.20.0  # note\nold==1; python_version < '3'\n\xff\n--index-url x\n"
        "evil @ https://evil.test/a.zip\ntyro==0.9\ntorch==1.0\nnumpy  # note\n"
    )
    (wheels / "requirements.txt").write_text(listed, encoding="latin-1")
    asked: list[list[str]] = []
    code = [1]
    monkeypatch.setattr(
        packages.subprocess,
        "run",
        lambda command, **_: asked.append(command) or SimpleNamespace(returncode=code[0], stderr="ERROR: no"),
    )
    monkeypatch.setenv("EARSHOT_ATTACHED", str(tmp_path))
    (tmp_path / "kit" / "SHA256SUMS").write_text("")
    count = len(packages.read_requirements())
    assert packages.install() == [f"packages: all {count} are installed"] and not asked, "untrusted"
    assert not any("evil" in line or "onnxruntime" in line for line in lines(machine.check_code()))

    monkeypatch.setattr(packages, "SUMS", tmp_path / "kit" / "SHA256SUMS")
    monkeypatch.setattr(packages, "LIST", wheels / "requirements.txt")
    assert packages.install()[1:] == [
        "warning: packages: onnxruntime of the bundle cannot be installed (no)"
    ], "and never from PyPI"
    code[0] = 0
    assert packages.install()[1:] == ["packages: installed onnxruntime (from the bundle's wheels)"]
    for command in asked:
        options = command[command.index("--no-index") :]
        assert options == ["--no-index", "--find-links", str(wheels), "onnxruntime==1.20.0"]
    said = lines(machine.check_code())
    assert "warning: packages: onnxruntime of the bundle not installed" in "\n".join(said)
    assert not any(line.startswith("stop") for line in said)
    (tmp_path / "kit" / "SHA256SUMS").unlink()
    assert packages.find_missing_extras() == []


def test_attached_onnx_files_and_their_package(monkeypatch, tmp_path: Path) -> None:
    kaggle_paths._walk_once.cache_clear()
    monkeypatch.setenv("EARSHOT_ATTACHED", str(tmp_path / "input"))
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "input" / "kit" / "runs" / "a"
    run.mkdir(parents=True)
    (tmp_path / "input" / "kit" / "encoder.onnx").write_bytes(b"x")
    made = {"extractor": "onnx", "weights": "0" * 16}
    opened = SimpleNamespace(config={"weights": "w.onnx", "record": {"features": made}}, folder=run)
    monkeypatch.setattr(environment.training_resume, "list_attached_runs", lambda: [run])
    monkeypatch.setattr(environment.Run, "open", lambda folder: opened)
    monkeypatch.setattr(environment.for_run, "find_weights_files", lambda run: [run.folder])
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    named = f"ok: weights: for --extractor onnx --weights {tmp_path / 'input' / 'kit' / 'encoder.onnx'}"
    install = "onnx and onnxruntime missing: pip install -r requirements-onnx.txt"
    assert lines(environment.check_encoders()) == [
        f"{named}; {install}",
        f"warning: weights: {run} needs ONNX Runtime for new audio: {install}",
    ]
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: name)
    assert lines(environment.check_encoders()) == [named]


def test_room_on_kaggle(monkeypatch, tmp_path: Path) -> None:
    """What Kaggle keeps of the working folder counts, not the disk under it."""
    monkeypatch.setenv("EARSHOT_WORKING", str(tmp_path))
    monkeypatch.setattr(kaggle_paths, "KEPT", 1000_000)
    (tmp_path / "old").write_bytes(bytes(900_000))
    with pytest.raises(UserError, match="Kaggle keeps"):
        disk_space.check_space(tmp_path / "runs" / "a", 200_000, 200_000)
    assert "0 MB free" in disk_space.check_space(tmp_path / "runs" / "a", 50_000, 50_000)
    assert "warning: disk: 1 MB of the 1 MB" in str(next(environment.check_disk(tmp_path)))
    assert kaggle_paths.get_quota_left(tmp_path.parent) is None
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setattr(environment, "compute_age", lambda: 11.5 * 3600)
    assert str(next(environment.check_session())).startswith("warning: session: 0.5 of 12 hours")
    monkeypatch.setattr(environment, "compute_age", lambda: 3600.0)
    assert "--max-hours 10.5" in str(next(environment.check_session()))


def test_the_doctor_as_a_user_runs_it(tmp_path: Path, monkeypatch) -> None:
    """A competition without weights or network stops, exit code 2; every line is one of the three kinds;
    nothing is written."""
    make_competition(tmp_path / "data" / "tones", train=4, subm=1)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    done = script("doctor.py", cwd=tmp_path, ok=2)
    said = done.stdout.splitlines()
    assert said[0] == "doctor: this machine" and not done.stderr.strip()
    assert (
        all(line.startswith(("ok: ", "warning: ", "stop: ")) for line in said[1:-1])
        and " 1 stop, " in f" {said[-1]}"
    )
    stops = [line for line in said if line.startswith("stop: ")]
    assert (
        len(stops) == 1
        and stops[0].startswith("stop: weights: neither ast's nor efficientat's")
        and "from_scratch" in stops[0]
    )
    assert any(line.startswith("ok: competition: data/tones (the only one in data/)") for line in said)
    assert "ok: internet: no" in done.stdout and {path.name for path in tmp_path.iterdir()} == {"data"}


def test_the_age_of_the_machine() -> None:
    assert 0 < environment.compute_age() <= float(
        Path("/proc/uptime").read_text().split()[0]
    ) + 1 and os.path.exists("/proc/1/stat")
