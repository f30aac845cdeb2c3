"""Every stage killed (SIGKILL) at random moments and started again until it is done, compared with a run that
nothing disturbed.

    python benchmarks/kill.py                     # 50 kills a stage, into benchmarks/RESULTS.md
    python benchmarks/kill.py --kills 5 --stage train --no-results
    python benchmarks/kill.py --drops 20          # instead: the audio folder is moved away and back

Half of the kills come at a random time, half right before a random change on the disk (a file opened for
writing, a rename, a removal), because that is where half-finished work would show. Stages are forked from a
process that has imported everything, which makes an attempt cheap; every eighth is a process of its own. The
data are synthesised.
"""

from __future__ import annotations

import os

# before numpy: a fork must have no threads
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import importlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import victim

sys.path.insert(0, str(victim.ROOT / "tests"))
sys.path.insert(0, str(victim.ROOT))

import common
from kill_stages import CLASSES, CLIPS, Stage, stages

from earshot.features import shards

# they tell what happened when
TIMES = ("training_log.txt", "metrics.csv", ".index.json", ".verified.json", ".lock", "ledger.csv")
FRESH = 8  # every so-manieth attempt is a new process
# what one kill may cost: the clips of the shard at work and of the one decoded ahead; a training step
SHARD, STEPS = 64, 1


@dataclass
class Outcome:
    """What a stage's kills did."""

    kills: int = 0
    on_change: int = 0
    series: int = 0
    repeated: int = 0
    faults: list[str] = field(default_factory=list)


PRELOADED = (
    "pandas",
    "sklearn.metrics",
    "sklearn.model_selection",
    "soundfile",
    "tyro",
    "models",
    "earshot.training.predict",
    "earshot.competition.load",
    "earshot.features.resume",
    "earshot.features.plan",
    "earshot.prediction.submission",
    "earshot.extractors.logmel",
)


def attempt(
    stage: Stage, folder: Path, kill_at: int = 0, after: float | None = None, fresh: bool = False
) -> int:
    """Run a stage's command in a folder; its exit code, -9 where it was killed.

    Args:
        kill_at: die before this change on the disk. after: or be killed after so many seconds.
        fresh: as a new process, else as a fork of this one.
    """
    trace = folder.with_name(folder.name + ".trace")
    if fresh:
        command = [
            sys.executable,
            str(victim.ROOT / "benchmarks" / "victim.py"),
            str(trace),
            str(kill_at),
            stage.script,
            *stage.args,
        ]
        with open(folder.with_name("log"), "wb") as log:
            pid = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log).pid
    else:
        pid = os.fork()
        if not pid:
            _child(stage.script, stage.args, folder, trace, kill_at)
    if after is not None:
        time.sleep(after)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _child(script: str, args: list[str], folder: Path, trace: Path | None, kill_at: int = 0) -> None:
    code = 1
    try:
        os.chdir(folder)
        log = os.open(folder.with_name("log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        if trace is not None:
            victim.install(trace, folder, kill_at)
        victim.run(script, args)
        code = 0
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def contents(folder: Path, made: tuple[str, ...]) -> dict[str, bytes]:
    """Relative name -> bytes of all that a stage made, less the times in it."""
    found = {}
    for path in sorted(p for name in made for p in (folder / name).rglob("*")):
        timed = path.name in TIMES or path.name.startswith("events.out.tfevents.")
        if path.is_file() and not timed and "unpacked" not in path.parts:
            found[path.relative_to(folder).as_posix()] = _timeless(path)
    return found


def _timeless(path: Path) -> bytes:
    if path.name == "report.html":  # its head has the date and the time of training
        return re.sub(rb'(?m)^<p class="facts">.*\n', b"", path.read_bytes())
    if path.name != "state.json":
        return path.read_bytes()
    state = json.loads(path.read_text())
    state.pop("checksum")
    state["progress"]["history"] = [
        {k: v for k, v in row.items() if k != "seconds"} for row in state["progress"]["history"]
    ]
    return json.dumps(state).encode()


def work(folder: Path) -> Counter:
    """How often each clip was decoded and each step trained, from a folder's trace."""
    trace = folder.with_name(folder.name + ".trace")
    lines = trace.read_text().splitlines() if trace.exists() else []
    return Counter(line for line in lines if not line.startswith("change "))


def kill(stage: Stage, scratch: Path, kills: int, seed: int) -> Outcome:
    """Kill a stage so many times, in as many series as that takes; each series ends with a finished stage
    that is compared."""
    rng, outcome = random.Random(f"{stage.name} {seed}"), Outcome()
    ready, calm = scratch / "ready", scratch / "calm"
    ready.mkdir(parents=True)
    for script, args in stage.before:
        _must(_plain(script, args, ready), scratch, f"{stage.name}: preparing with {script}")
    shutil.copytree(ready, calm, symlinks=True)
    _must(attempt(stage, calm), scratch, stage.name)
    expected, once = contents(calm, stage.made), work(calm)
    changes = sum(
        line.startswith("change ") for line in calm.with_name("calm.trace").read_text().splitlines()
    )
    shutil.copytree(ready, scratch / "timed", symlinks=True)
    began = time.perf_counter()
    _must(attempt(stage, scratch / "timed"), scratch, stage.name)
    seconds, tries = time.perf_counter() - began, 0
    while outcome.kills < kills and not outcome.faults:
        folder = scratch / f"series{outcome.series}"
        shutil.copytree(ready, folder, symlinks=True)
        killed = 0
        while True:
            tries += 1
            done, fresh, left = sum(work(folder).values()), tries % FRESH == 0, _left(folder, stage)
            if outcome.kills + killed >= kills:
                code = attempt(stage, folder)
            elif rng.random() < 0.5:
                code = attempt(stage, folder, kill_at=rng.randint(1, max(2, changes // 2)), fresh=fresh)
                outcome.on_change += code == -signal.SIGKILL
            else:
                code = attempt(stage, folder, after=rng.uniform(0.02, seconds) + 3 * fresh, fresh=fresh)
            made = sum(work(folder).values()) - done
            if left is not None and made > left:
                outcome.faults.append(
                    f"{folder}: {made} clips decoded where the unfinished shards have {left}"
                )
            if code != -signal.SIGKILL:
                _must(code, scratch, stage.name)
                break
            killed += 1
        outcome.faults += _faults(folder, stage, expected, once, killed)
        outcome.repeated += _repeats(folder, once)
        outcome.kills += killed
        outcome.series += 1
        if not outcome.faults:
            shutil.rmtree(folder)
            folder.with_name(folder.name + ".trace").unlink()
    return outcome


def _plain(script: str, args: list[str], folder: Path) -> int:
    pid = os.fork()
    if not pid:
        _child(script, args, folder, None)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _must(code: int, scratch: Path, what: str) -> None:
    if code:
        raise SystemExit(f"error: {what} left with {code}:\n{(scratch / 'log').read_text()[-2000:]}")


def _repeats(folder: Path, once: Counter) -> int:
    """Clips decoded and steps trained more often than in the undisturbed run."""
    return sum((work(folder) - once).values())


def _left(folder: Path, stage: Stage) -> int | None:
    """The clips of the shards that are not finished, copies too: no attempt may decode more; None of stages
    that decode none."""
    if stage.script != "get_features.py":
        return None
    manifests = [json.loads(path.read_text()) for path in (folder / "data").rglob("manifest.json")]
    if any(manifest["complete"] for manifest in manifests):
        return 0
    counts = {split: CLASSES * count for split, count in CLIPS.items()}
    counts |= {"augmented": counts["train"]} if "--augment" in stage.args else {}
    sizes = {
        f"{split}-{first // shards.SHARD:05d}": min(shards.SHARD, count - first)
        for split, count in counts.items()
        for first in range(0, count, shards.SHARD)
    }
    return sum(sizes.values()) - sum(sizes[path.stem] for path in (folder / "data").rglob("shards/*.json"))


def _faults(folder: Path, stage: Stage, expected: dict[str, bytes], once: Counter, killed: int) -> list[str]:
    found = contents(folder, stage.made)
    faults = []
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            both = name in expected and name in found
            how = "differs" if both else "is stray" if name in found else "is missing"
            faults.append(f"{folder}: {name} {how}")
    faults += [
        f"{folder}: {p.relative_to(folder)} is a stray temporary"
        for name in stage.made
        for p in (folder / name).rglob("*")
        if p.suffix in (".tmp", ".new", ".old", ".partial", ".damaged") or p.name == "shards"
    ]
    repeated, limit = _repeats(folder, once), killed * (STEPS if stage.script == "train.py" else SHARD)
    if repeated > limit:
        faults.append(
            f"{folder}: {repeated} clips or steps done again after {killed} kills, at most {limit} would do"
        )
    return faults


def dropped(scratch: Path, flags: argparse.Namespace) -> bool:
    """The mode that takes the audio away instead of killing; was there a fault?"""
    import drop
    from conftest import make_competition

    def start(args: list[str], folder: Path) -> int:
        pid = os.fork()
        if not pid:
            _child("get_features.py", args, folder, None)
        return pid

    data = drop.prepare(make_competition(scratch / "tones", drop.CLASSES, seconds=0.5, **drop.CLIPS))
    found = drop.drop(
        data, scratch, flags.drops, flags.seed, start, lambda folder: contents(folder, ("data",))
    )
    print(
        f"drops: {found.drops}, {found.stopped} of them stopped the extraction of 400 clips, "
        f"{len(found.faults)} faults",
        *found.faults[:20],
        sep="\n  ",
    )
    if not flags.no_results and not found.faults:
        common.keep_rows(
            "Drives that drop survived",
            [
                f"`python benchmarks/kill.py --drops {flags.drops} --seed {flags.seed}` on "
                f"{common.machine()}: all audio of 400 clips is moved",
                "away at a random moment of their extraction and back up to a second later, or after the "
                "stage has ended; the same",
                "command again until it is done, all files compared byte by byte with an undisturbed run.",
            ],
            "| drops | stopped the stage (exit code 75) | clips lost, differences, strays |",
            {"extract": f"| {found.drops} | {found.stopped} | {len(found.faults)} |"},
        )
    if not flags.folder and not found.faults:
        shutil.rmtree(scratch)
    return bool(found.faults)


def main() -> None:
    """Parse, kill, report; exit code 1 at the first difference."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="kills a stage")
    parser.add_argument("--stage", action="append", help="only this one (repeatable)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="where to work, kept afterwards (default: a temporary folder)"
    )
    parser.add_argument("--no-results", action="store_true", help="leave benchmarks/RESULTS.md as it is")
    parser.add_argument(
        "--drops", type=int, help="move the audio folder away and back so often while features are extracted"
    )
    flags = parser.parse_args()
    from conftest import make_competition

    # Imported once, here, for all forks; nothing is computed in this process.
    for name in PRELOADED:
        importlib.import_module(name)

    scratch = (flags.folder or Path(tempfile.mkdtemp(prefix="kill-"))).resolve()
    if flags.drops:
        sys.exit(dropped(scratch, flags))
    data = make_competition(scratch / "tones", CLASSES, seconds=0.5, **CLIPS)
    with zipfile.ZipFile(f"{data}.zip", "w") as archive:
        for path in sorted(p for p in data.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(data))
    rows, failed = {}, False
    for stage in stages(data):
        if flags.stage and stage.name not in flags.stage:
            continue
        began = time.perf_counter()
        found = kill(stage, scratch / stage.name.replace(" ", "-"), flags.kills, flags.seed)
        unit = "steps" if stage.script == "train.py" else "clips"
        print(
            f"{stage.name}: {found.kills} kills ({found.on_change} right before a change on the disk), "
            f"{found.series} finished and compared, {len(found.faults)} faults, {found.repeated} {unit} done "
            f"again, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        for fault in found.faults[:20]:
            print(f"  {fault}")
        failed |= bool(found.faults)
        rows[f"`{stage.name}`"] = (
            f"| `{stage.name}` | {found.kills} | {found.on_change} | {found.series} | {len(found.faults)} | "
            f"{found.repeated} {unit} |"
        )
    if not flags.no_results and not failed:
        common.keep_rows(
            "Kills survived",
            [
                f"`python benchmarks/kill.py --kills {flags.kills} --seed {flags.seed}` on "
                f"{common.machine()}: SIGKILL at random moments,",
                "the same command again until it is done, all files compared byte by byte with an "
                "undisturbed run (less times),",
                "strays looked for.",
                f"A kill may cost at most {SHARD} decoded clips (the shard at work and the one decoded "
                f"ahead) or {STEPS} training step",
                "(`--save-every 0`); more would be a fault.",
            ],
            "| stage | kills | right before a change on the disk | finished and compared | differences, "
            "strays | done again |",
            rows,
        )
    if not flags.folder and not failed:
        shutil.rmtree(scratch)
    sys.exit(failed)


if __name__ == "__main__":
    main()
