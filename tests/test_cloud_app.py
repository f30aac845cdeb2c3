"""cloud/modal_app.py with Modal's real package: flags, settings, calls on this machine, no token.

What needs an account (image, GPU, volume, preemption, secrets) is not tested.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from cloud_app import PATH, SAVES, Volume, cloud, load
from conftest import ROOT

modal = pytest.importorskip("modal", reason="no modal here (pip install -r requirements-cloud.txt)")
RUN = cloud.run


@pytest.fixture(autouse=True)
def without_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No account."""
    for name in [name for name in os.environ if name.startswith("MODAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))


def call_modal(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "modal", "run", str(PATH), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_app_has_the_flags_of_the_guide() -> None:
    done = call_modal("--help")
    assert done.returncode == 0, done.stderr
    guide = (ROOT / "docs" / "cloud.md").read_text(encoding="utf-8")
    for flag in ("command", "commands", "upload", "gpu", "cpu", "memory", "hours", "retries", "secret"):
        assert f"--{flag} " in done.stdout and f"`--{flag}`" in guide, flag


def test_without_a_token_there_is_one_line() -> None:
    done = call_modal("--command", "train.py")
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout
    assert done.stderr.startswith("Error: Token missing") and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("words, code", [("train.py --help", 0), ("train.py --nope", 2), ("doctor.py", None)])
def test_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, code: int | None) -> None:
    for name, value in {"KIT": ROOT, "STORE": tmp_path, "volume": Volume()}.items():
        monkeypatch.setattr(cloud, name, value)
    # what the doctor finds is this machine's
    assert cloud.run.local(words.split()) in ((0, 2) if code is None else (code,))
    assert cloud.volume.calls == ["reload", "commit"]


def test_settings_reach_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    original, given = modal.App.function, {}
    monkeypatch.setattr(modal.App, "function", lambda app, **kw: given.update(kw) or original(app, **kw))
    settings = load().SETTINGS
    assert {key: given[key] for key in ("cpu", "memory", "timeout")} == {
        key: settings[key] for key in ("cpu", "memory", "timeout")
    }
    assert given["retries"].max_retries == settings["retries"] and given["single_use_containers"]
    assert list(given["volumes"]) == ["/store"]
    # no secret that an account may lack, no GPU that a flag could not remove; the file itself is sent
    assert not given.keys() & {"gpu", "secrets", "include_source"}


class Run:
    """Stands for the app's function and for its calls: writes down the options and returns exit codes."""

    def __init__(self, *codes: int | Exception):
        self.codes, self.options, self.commands = list(codes), {}, []

    def with_options(self, **options: object) -> Run:
        RUN.with_options(**options)  # Modal's own checks
        self.options = options
        return self

    def spawn(self, words: list[str]) -> Run:
        self.commands.append(words)
        return self

    def get(self) -> int:
        code = self.codes.pop(0)
        if isinstance(code, Exception):
            raise code
        return code


def test_the_commands_are_called_with_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Run(0)
    monkeypatch.setattr(cloud, "run", fake)
    cloud.main(command="train.py --lr 1e-3", gpu="T4", hours=2.0, secret="kaggle")
    assert fake.commands == [["train.py", "--lr", "1e-3"]]
    assert (fake.options["gpu"], fake.options["timeout"]) == ("T4", 7200)
    assert fake.options["retries"].max_retries == 5 and len(fake.options["secrets"]) == 1
    (tmp_path / "commands.txt").write_text("train.py --name a\ntrain.py --name b\ntrain.py --name c\n")
    for codes, worst in (((0, 2, 0), 2), ((RuntimeError("exit code 75"), 0, 0), 1)):
        fake.codes, fake.commands = list(codes), []
        with pytest.raises(SystemExit) as left:
            cloud.main(commands=str(tmp_path / "commands.txt"), gpu="none")
        assert left.value.code == worst and len(fake.commands) == 3 and not fake.codes
    assert "gpu" not in fake.options and "secrets" not in fake.options


@pytest.mark.parametrize("name, method", [("comp", "put_directory"), ("comp.zip", "put_file")])
def test_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: str) -> None:
    batch = MagicMock()
    monkeypatch.setattr(cloud, "volume", batch)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "comp").symlink_to("elsewhere")
    (tmp_path / "comp.zip").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    cloud.main(upload=name)
    batch.batch_upload.assert_called_once_with(force=True)
    put = batch.batch_upload.return_value.__enter__.return_value
    getattr(put, method).assert_called_once_with(tmp_path / name, f"/data/{name}")


def test_the_file_is_imported_alone_as_in_a_container(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    shutil.copy(PATH, tmp_path / "root")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import modal_app; print(modal_app.app.name, list(modal_app.app.registered_functions))",
        ],
        cwd=tmp_path / "root",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "earshot ['run']\n", done.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({}, "nothing to do"),
        ({"command": "app.py"}, "must begin with one of"),
        ({"command": "train.py", "hours": 30.0}, "at most 24 hours"),
        ({"upload": "no/such/folder"}, "no such folder"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    arguments: dict, words: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as left:
        cloud.main(**arguments)
    assert left.value.code == 2 and words in capsys.readouterr().err


def test_modals_own_simulated_preemption(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SAVES)
    code = (
        "import sys, pathlib; sys.path[:0] = sys.argv[1:]; from cloud_app import Volume, cloud\n"
        "from modal.exception import simulate_preemption\n"
        "simulate_preemption(3); here = pathlib.Path()\n"
        "cloud.supervise(['train.py'], Volume(), here, here)\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tests"), str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGTERM)), done.stderr
    assert done.returncode != 0 and "Simulated preemption" in done.stderr
