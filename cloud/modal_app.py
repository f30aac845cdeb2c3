"""Earshot's scripts in Modal's cloud. A volume keeps data, runs and submissions; docs/cloud.md is the guide.

modal run --detach cloud/modal_app.py --command "train.py --recipe mlp --max-hours 22"
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

try:
    import modal
except ImportError:  # only the functions that do not need it can be used then
    modal = None

ROOT = (
    Path(__file__).resolve().parents[1]
)  # not the code in a container, where Modal puts this file elsewhere
KIT, STORE = Path("/kit"), Path("/store")  # in a container: the code, the volume
SCRIPTS = ("get_features.py", "train.py", "predict.py", "doctor.py")
FOLDERS, FILES = ("earshot", "models", "recipes"), (*SCRIPTS, "requirements.txt")  # what goes to the cloud
COMMIT_EVERY = 300.0  # seconds
GRACE = 20.0  # seconds to save in: Modal kills a preempted container after 30, and the commit needs some
NAME = "earshot"  # of the app and of the volume
# What the flags of `main` override. Modal bills what is used, but at least cpu and memory.
SETTINGS: dict[str, Any] = {
    "gpu": "L4",  # 24 GB; every recipe fits 16 GB
    "cpu": 8.0,
    "memory": 16 << 10,  # MiB
    "timeout": 24 * 3600,  # seconds, of each attempt; Modal allows no more
    "retries": 5,
}


def refuse(text: str) -> NoReturn:
    """Print a user error in one line and exit with code 2."""
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def split_command(text: str) -> list[str]:
    """A script of Earshot and its arguments, with or without "python" before them."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        refuse(f"--command {text}: {error}")
    words = words[1:] if words[:1] in (["python"], ["python3"]) else words
    if not words or words[0] not in SCRIPTS:
        refuse(f"--command {text}: must begin with one of {', '.join(SCRIPTS)}")
    return words


def list_commands(command: str, file: str) -> list[list[str]]:
    """The command, and those of a file with one in each line; several must train runs of different names.

    They run at the same time, and a volume keeps only what was written last.
    """
    texts = [command] if command else []
    if file:
        try:
            lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            refuse(f"--commands {file}: {error}")
        texts += [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    commands = [split_command(text) for text in texts]
    names = [find_name(words) if words[0] == "train.py" else None for words in commands]
    for words, name in zip(commands, names, strict=True):
        if len(commands) > 1 and (name is None or names.count(name) > 1):
            refuse(f"{shlex.join(words)}: commands that run together must be train.py with its own --name")
    return commands


def find_name(words: list[str]) -> str | None:
    """The value of --name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--name", nargs="?")
    return parser.parse_known_args(words)[0].name


def choose_options(
    gpu: str, cpu: float, memory: int, hours: float, retries: int, secret: str
) -> dict[str, Any]:
    """The arguments of Modal's `with_options`: retries as a number, secrets as names."""
    longest = SETTINGS["timeout"] / 3600
    if not 0 < hours <= longest:
        refuse(f"--hours {hours:g}: a call in Modal's cloud lasts at most {longest:g} hours")
    if cpu <= 0 or memory <= 0 or retries < 0:
        refuse(f"--cpu {cpu:g} --memory {memory} --retries {retries}: must be positive (retries may be 0)")
    seconds = round(3600 * hours)
    options: dict[str, Any] = {"cpu": cpu, "memory": memory, "timeout": seconds, "retries": retries}
    if gpu.lower() not in ("", "none", "cpu"):
        options["gpu"] = gpu
    secrets = [name.strip() for name in secret.split(",") if name.strip()]
    return options | ({"secrets": secrets} if secrets else {})


def supervise(
    command: list[str],
    volume: Any,
    kit: Path,
    store: Path,
    commit_every: float = COMMIT_EVERY,
    grace: float = GRACE,
) -> int:
    """Run a script, commit the volume every few minutes and at the end, and stop the script if this process
    is stopped.

    Args:
        command: the script and its arguments.
        volume: has `reload` and `commit`.
        kit: the folder of the scripts.
        store: the folder to run in, of the volume.
        commit_every: seconds.
        grace: seconds that the script has to save in.
    Returns:
        The exit code: 0, or 2 for a user error, which a retry would only repeat.
    Raises:
        RuntimeError: any other exit code, so that Modal tries again: the same command continues.
    """
    volume.reload()  # to see what other containers wrote; not later, as it fails while files are open
    # In a session of its own: a Ctrl-C in a terminal would reach the script before the SIGTERM below, and its
    # second signal stops it without saving.
    arguments = [sys.executable, str(kit / command[0]), *command[1:]]
    script = subprocess.Popen(arguments, cwd=store, start_new_session=True)
    try:
        code = wait(script, volume, commit_every)
    except BaseException:  # a preemption is a KeyboardInterrupt, a cancelled call an InputCancellation
        stop(script, grace)
        raise
    finally:
        volume.commit()
    if code not in (0, 2):
        raise RuntimeError(f"{command[0]} ended with exit code {code}; the same command continues")
    return code


def wait(script: subprocess.Popen, volume: Any, commit_every: float) -> int:
    """Wait for a script's exit code and commit the volume every few seconds."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return script.wait(commit_every)
        try:
            volume.commit()
        except Exception as error:  # the next one, or the last one, commits these files, too
            print(f"warning: the volume was not committed: {error}", flush=True)


def stop(script: subprocess.Popen, grace: float) -> None:
    """Send a script SIGTERM, on which it saves and exits; kill what is left of it after `grace` seconds."""
    print("stopping: the script saves and exits", flush=True)
    script.terminate()
    try:
        script.wait(grace)
    except subprocess.TimeoutExpired:
        print(f"warning: the script did not end in {grace:g} s: killed; its last save counts", flush=True)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)  # its worker processes, too


def upload_data(volume: Any, path: str) -> None:
    """Upload a folder or a zip to data/ of the volume; files that are there already are sent only where their
    content differs."""
    source = Path(os.path.abspath(Path(path).expanduser()))  # links keep their name
    if not source.exists():
        refuse(f"--upload {path}: there is no such folder or file")
    target = f"data/{source.name}"
    print(f"upload: {source} to {target} of the volume {NAME}", flush=True)
    with volume.batch_upload(force=True) as batch:
        (batch.put_directory if source.is_dir() else batch.put_file)(source, f"/{target}")


def report(words: list[str], call: Any) -> int:
    """Wait for a call, print how it ended, and return its exit code; 1 if all retries failed."""
    try:
        code = call.get()
    except Exception as error:
        print(f"error: {shlex.join(words)}: {error}", file=sys.stderr)
        return 1
    print(f"exit code {code}: {shlex.join(words)}", flush=True)
    return code


if modal is not None:
    image = (
        modal.Image.debian_slim("3.12")
        .apt_install("ffmpeg", "libsndfile1")
        .uv_pip_install(requirements=[str(ROOT / "requirements.txt")])
        # downloaded weights are kept on the volume
        .env({"XDG_CACHE_HOME": str(STORE / ".cache")})
    )
    for item in FOLDERS:
        image = image.add_local_dir(ROOT / item, str(KIT / item), ignore=["**/__pycache__"])
    for item in FILES:
        image = image.add_local_file(ROOT / item, str(KIT / item))
    app = modal.App(NAME)
    volume = modal.Volume.from_name(NAME, create_if_missing=True, version=2)

    def convert(options: dict[str, Any]) -> dict[str, Any]:
        """Numbers of retries and names of secrets as Modal's objects."""
        retries = modal.Retries(max_retries=options["retries"], backoff_coefficient=1.0, initial_delay=10.0)
        secrets = [modal.Secret.from_name(name) for name in options.get("secrets", ())]
        return {**options, "retries": retries, **({"secrets": secrets} if secrets else {})}

    # No GPU here, as an option cannot remove one: `main` adds it.
    @app.function(
        image=image,
        volumes={str(STORE): volume},
        single_use_containers=True,  # the volume's files are never open when the next command begins
        **convert({key: value for key, value in SETTINGS.items() if key != "gpu"}),
    )
    def run(command: list[str]) -> int:
        """Run a script in a container beside the volume."""
        return supervise(command, volume, KIT, STORE)

    @app.local_entrypoint()
    def main(
        command: str = "",
        commands: str = "",
        upload: str = "",
        gpu: str = SETTINGS["gpu"],
        cpu: float = SETTINGS["cpu"],
        memory: int = SETTINGS["memory"],
        hours: float = SETTINGS["timeout"] / 3600,
        retries: int = SETTINGS["retries"],
        secret: str = "",
    ) -> None:
        """Upload data, then run one command, or those of a file at the same time, each in its container."""
        chosen = list_commands(command, commands)
        options = choose_options(gpu, cpu, memory, hours, retries, secret)
        if not chosen and not upload:
            refuse('nothing to do: give --upload FOLDER or --command "train.py ..." (docs/cloud.md)')
        if upload:
            upload_data(volume, upload)
        chosen_run = run.with_options(**convert(options))
        # Modal itself retries calls that are spawned, also after this terminal is gone
        calls = [chosen_run.spawn(words) for words in chosen]
        code = max(map(report, chosen, calls), default=0)
        if code:
            sys.exit(code)


if __name__ == "__main__":
    if modal is None:
        refuse("Modal is not installed: pip install -r requirements-cloud.txt")
    refuse("start it with Modal's command: modal run cloud/modal_app.py --help")
