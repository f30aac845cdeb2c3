"""The scripts where there is no name for the user, no home, no terminal in UTF-8, no standard stream."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, make_competition, read_csv, script
from test_temporary import stopped

EXTRACT = ("--competition", "tones", "--extractor", "logmel", "--n-mels", "16", "--device", "cpu")
TRAIN = ("--head", "linear", "--epochs", "1", "--folds", "2", "--name", "r")
NOBODY = ("unshare", "--user", "--map-user=54321")  # a user without an entry in passwd, who owns the files


def ran(done: subprocess.CompletedProcess) -> str:
    """What a script printed that ended well."""
    assert done.returncode == 0 and "Traceback" not in done.stderr, (
        done.returncode,
        done.stdout,
        done.stderr,
    )
    return done.stdout


def run(here: Path, name: str, *args: str, prefix: tuple = (), shell: str = "", **environment: str):
    """A script as it runs in a bare container: with no variables but these."""
    command = [*prefix, sys.executable, str(ROOT / name), *args]
    if shell:
        command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
    return subprocess.run(
        command,
        cwd=here,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=300,
    )


@pytest.fixture
def here(tmp_path) -> Path:
    make_competition(tmp_path / "tones", train=6, subm=1, seconds=0.3)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("home", ["missing", "none", "read-only"])
def test_a_user_without_name_or_home(here, home):
    if not shutil.which("unshare") or subprocess.run([*NOBODY, "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here: no other user can be tried")
    environment = {"TMPDIR": str(here / "tmp")}
    (here / "tmp").mkdir()
    if home != "none":
        # Nothing can be made below /proc/self, whatever the rights.
        environment["HOME"] = "/proc/self/fdinfo" if home == "read-only" else "/nonexistent"
    # Copies of another pitch come from librosa, which numba compiles, for half a minute; matplotlib draws the
    # report.
    copies = ("--augment", "1", "--pitch", "2") if home == "missing" else ()
    ran(run(here, "get_features.py", *EXTRACT, *copies, prefix=NOBODY, **environment))
    ran(run(here, "train.py", *TRAIN, prefix=NOBODY, **environment))
    assert (here / "runs" / "r" / "confusion.png").is_file() and (
        here / "runs" / "r" / "report.html"
    ).is_file()
    assert len(read_csv(here / "submissions" / "submission.csv")) == 3
    said = run(here, "doctor.py", prefix=NOBODY, **environment).stdout
    assert "imported together" in said and "\n0 stops" in said and "Traceback" not in said
    assert not (here / "~").exists(), "a folder of that name means that nobody knew the home"


@pytest.mark.slow
def test_a_terminal_without_utf8(here):
    (here / "tones" / "train.csv").write_text(
        (here / "tones" / "train.csv").read_text().replace("tone0", "Vögel"), encoding="utf-8"
    )
    (here / "tones" / "sample_submission.csv").write_text(
        (here / "tones" / "sample_submission.csv").read_text().replace("tone0", "Vögel"), encoding="utf-8"
    )
    ran(run(here, "get_features.py", *EXTRACT, PYTHONIOENCODING="ascii"))
    said = ran(run(here, "train.py", *TRAIN, PYTHONIOENCODING="ascii"))
    assert "\\xb1" in said, "the sign of plus and minus, escaped"
    assert (here / "submissions" / "submission.csv").is_file()
    refused = run(here, "train.py", "--features", "Vögel", PYTHONIOENCODING="ascii")
    assert refused.returncode == 2 and "V\\xf6gel" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "<&-", ">&-", "2>&-"])
def test_closed_streams(here, closed):
    """Two processes, too, whose pipes must not become somebody's standard output."""
    ran(run(here, "get_features.py", *EXTRACT, "--device", "cpu,cpu", shell=closed))
    ran(run(here, "train.py", *TRAIN, shell=closed))
    assert len(read_csv(here / "submissions" / "submission.csv")) == 3
    assert (here / "data" / "tones" / "logmel" / "bad_audio.csv").read_text() == "split,id,reason\n"
    assert run(here, "get_features.py", "--competition", "nowhere", shell=closed).returncode == 2


def test_no_descriptor_left_is_said(tmp_path):
    """The soft limit is raised at the start; where the hard one is too low, too, no clip is blamed."""
    code = f"""
import sys, os, resource
sys.path.insert(0, {str(ROOT)!r})
import numpy, soundfile, soxr
from earshot.audio import load
from earshot.core import cli, process
def main(argv):
    load.read(argv[0], 16000, load.AudioSettings())
    held = []
    if argv[1:]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        try:
            while True:
                held.append(os.open(argv[0], os.O_RDONLY))
        except OSError:
            os.close(held.pop()) if argv[1] == "one" else None
    load.read("a.mp3" if argv[1:] == ["one"] else argv[0], 16000, load.AudioSettings())
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
cli.run(main)
"""
    for name in ("a.wav", "a.mp3"):
        soundfile.write(tmp_path / name, np.sin(np.arange(16000)).astype(np.float32), 16000)

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", code, "a.wav", *more],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512)),
        )

    assert run().stdout.strip() == "512"
    assert "a.wav: Too many open files" in stopped(run("all"))
    assert "Too many open files" in stopped(run("one")), "what silences mpg123 takes two"


@pytest.mark.parametrize("flag", ["--cache", "--competition", "--out"])
def test_what_will_not_get_better_is_not_called_temporary(tmp_path, flag):
    data = make_competition(tmp_path / "tones", train=4, subm=1, seconds=0.3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tones").write_text("a file in the way")
    value = tmp_path / "out" if flag == "--out" else "a" * 300
    args = {"--competition": data, "--extractor": "logmel", flag: value}
    done = script("get_features.py", *(x for pair in args.items() for x in pair), cwd=tmp_path, ok=2)
    assert "Traceback" not in done.stderr and "temporary" not in done.stderr


def test_no_memory_is_said(tmp_path):
    for raised in ("MemoryError()", 'RuntimeError("DefaultCPUAllocator: can\'t allocate memory")'):
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom earshot.core import cli\n"
            f"def main(argv): raise {raised}\ncli.run(main)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "not enough memory" in stopped(done)
