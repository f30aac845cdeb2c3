"""Modal's cloud, without its package: commands, options, and how a script is supervised."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cloud_app import PATH, SAVES, Volume, cloud
from conftest import ROOT

IGNORES = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open("worker", "w").write(str(worker.pid))
open("begun", "w").close()
time.sleep(60)
"""


def make_kit(folder: Path, script: str) -> Path:
    """A kit whose train.py is this script."""
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(script)
    return folder


def supervise(tmp_path: Path, script: str, volume: Volume, **options: float) -> int:
    kit = make_kit(tmp_path / "kit", script)
    return cloud.supervise(["train.py", "--x", "a b"], volume, kit, tmp_path, **options)


def interrupt(folder: Path, script: str, grace: float, number: int = signal.SIGINT) -> tuple[int, str]:
    """Supervise a script in a process that gets Ctrl-C, as Modal sends it, and return its exit code and
    output."""
    make_kit(folder / "kit", script)
    code = (
        "import sys, pathlib; sys.path[:0] = sys.argv[1:3]; from cloud_app import Volume, cloud\n"
        "here = pathlib.Path(); volume = Volume()\n"
        "volume.commit = lambda: print('commit', (here / 'saved').exists(), flush=True)\n"
        "cloud.supervise(['train.py'], volume, here / 'kit', here, grace=float(sys.argv[3]))\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tests"), str(ROOT), str(grace)]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for(folder / "begun")
    os.killpg(process.pid, number)  # to its whole group, as a terminal does
    output = process.communicate(timeout=60)[0]
    return process.returncode, output


def wait_for(path: Path) -> None:
    limit = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < limit, f"no {path}"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "text, words",
    [
        ("train.py --recipe mlp", ["train.py", "--recipe", "mlp"]),
        ("python predict.py --audio 'my clips'", ["predict.py", "--audio", "my clips"]),
        ("python3 doctor.py", ["doctor.py"]),
    ],
)
def test_commands_are_split(text: str, words: list[str]) -> None:
    assert cloud.split_command(text) == words


@pytest.mark.parametrize("text", ["", "rm -rf /", "python", "app.py", "/kit/train.py", "train.py 'open"])
def test_other_commands_are_refused(text: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        cloud.split_command(text)
    printed = capsys.readouterr().err
    assert left.value.code == 2 and printed.startswith("error: --command") and printed.count("\n") == 1


def test_several_commands_train_runs_of_different_names(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "commands.txt"
    file.write_text(
        "# two recipes\ntrain.py --recipe mlp --name a\n\npython train.py --recipe svm --name=b\n"
    )
    two = [["train.py", "--recipe", "mlp", "--name", "a"], ["train.py", "--recipe", "svm", "--name=b"]]
    assert cloud.list_commands("", str(file)) == two
    assert cloud.list_commands("get_features.py", "") == [["get_features.py"]]
    assert cloud.list_commands("", "") == []
    for command in ("train.py --name b", "train.py --name", "train.py", "get_features.py --name c"):
        with pytest.raises(SystemExit):
            cloud.list_commands(command, str(file))
        assert "with its own --name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cloud.list_commands("", str(tmp_path / "none.txt"))
    assert "none.txt" in capsys.readouterr().err


def test_options_of_a_call() -> None:
    settings = cloud.SETTINGS
    assert settings["timeout"] == 24 * 3600 and settings["retries"] > 0
    assert cloud.choose_options("L4", 4.0, 8192, 2.5, 1, "") == {
        "gpu": "L4",
        "cpu": 4.0,
        "memory": 8192,
        "timeout": 9000,
        "retries": 1,
    }
    assert "gpu" not in cloud.choose_options("none", 4.0, 8192, 24, 0, "")
    assert cloud.choose_options("T4", 4.0, 8192, 24, 0, "kaggle, wandb")["secrets"] == ["kaggle", "wandb"]
    for wrong in ({"hours": 25}, {"hours": 0}, {"cpu": 0}, {"memory": -1}, {"retries": -1}):
        with pytest.raises(SystemExit):
            cloud.choose_options(
                **{"gpu": "L4", "cpu": 4.0, "memory": 1, "hours": 1, "retries": 1, "secret": "", **wrong}
            )


@pytest.mark.parametrize("code", [0, 2, 1, 75, 143])
def test_exit_codes_and_the_last_commit(tmp_path: Path, code: int) -> None:
    script = f"import sys; open('made', 'w').write(repr(sys.argv[1:])); sys.exit({code})"
    volume = Volume()
    if code in (0, 2):
        assert supervise(tmp_path, script, volume) == code
    else:
        with pytest.raises(RuntimeError, match=f"exit code {code}.*continues"):
            supervise(tmp_path, script, volume)
    assert volume.calls == ["reload", "commit"]
    assert (tmp_path / "made").read_text() == "['--x', 'a b']"


def test_commits_while_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    volume = Volume(True, False)
    assert supervise(tmp_path, "import time; time.sleep(2)", volume, commit_every=0.3) == 0
    assert volume.calls[0] == "reload" and volume.calls.count("commit") >= 3
    printed = capsys.readouterr().out
    assert printed.count("warning: the volume was not committed: conflict") == 1


def test_a_last_commit_that_fails_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="conflict"):
        supervise(tmp_path, "", Volume(True))


def test_a_preemption_becomes_a_sigterm_and_a_commit(tmp_path: Path) -> None:
    code, output = interrupt(tmp_path, SAVES, 30)
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGTERM)), output
    assert code == -signal.SIGINT and "KeyboardInterrupt" in output, output
    assert "commit True" in output and "warning" not in output, output


def test_a_script_that_does_not_end_is_killed_with_its_workers(tmp_path: Path) -> None:
    code, output = interrupt(tmp_path, IGNORES, 0.5)
    assert code == -signal.SIGINT and "warning: the script did not end in 0.5 s" in output, output
    worker = Path("/proc") / (tmp_path / "worker").read_text()
    limit = time.monotonic() + 10
    while worker.exists() and "State:\tZ" not in (worker / "status").read_text():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_without_the_package_one_line_says_what_to_install() -> None:
    code = (
        f"import sys, runpy; sys.modules['modal'] = None; runpy.run_path({str(PATH)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: Modal is not installed: pip install -r requirements-cloud.txt\n"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that go to the cloud, and no others."""
    kit = tmp_path_factory.mktemp("cloud") / "kit"
    for name in cloud.FOLDERS:
        shutil.copytree(ROOT / name, kit / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in cloud.FILES:
        shutil.copy(ROOT / name, kit / name)
    return kit


@pytest.mark.parametrize("script", cloud.SCRIPTS)
def test_the_scripts_start_from_what_is_sent(kit: Path, tmp_path: Path, script: str) -> None:
    assert cloud.supervise([script, "--help"], Volume(), kit, tmp_path) == 0


@pytest.mark.slow
def test_a_run_continues_after_a_preemption(kit: Path, tmp_path: Path) -> None:
    """The real scripts, from what is sent to the cloud: the run's files are those of an undisturbed one."""
    sample = ["--competition", "sample", "--recipe", "small_cnn", "--device", "cpu"]
    cloud.supervise(["get_features.py", *sample], Volume(), kit, tmp_path)
    # in fp32: where bf16 is hardly faster, timing decides otherwise from run to run
    train = ["train.py", "--recipe", "small_cnn", "--epochs", "3", "--device", "cpu", "--precision", "fp32"]
    train.append("--name")
    code = (
        "import sys, pathlib; sys.path[:0] = sys.argv[1:3]; from cloud_app import Volume, cloud\n"
        "cloud.supervise(sys.argv[4:], Volume(), pathlib.Path(sys.argv[3]), pathlib.Path())\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tests"), str(ROOT), str(kit), *train, "stopped"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        limit = time.monotonic() + 200
        while "fold" not in (tmp_path / "log").read_text():
            assert time.monotonic() < limit and process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
    assert "stopped: what was finished is kept" in (tmp_path / "log").read_text()
    for name in ("stopped", "whole"):
        assert cloud.supervise([*train, name], Volume(), kit, tmp_path) == 0
    oof = [(tmp_path / "runs" / name / "oof_last.csv").read_bytes() for name in ("stopped", "whole")]
    assert oof[0] == oof[1]
