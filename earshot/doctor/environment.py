"""Checks of what is here or attached (competition, weights, caches, runs) and of disk, memory, time and
network."""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from earshot import extractors
from earshot.audio import load as audio_load
from earshot.core import kaggle_paths
from earshot.core.disk_space import format_bytes
from earshot.core.errors import UserError
from earshot.core.kaggle_paths import EXAMPLES
from earshot.doctor.findings import Finding, report_ok, stop, warn
from earshot.features import cache, defaults, for_run, resume
from earshot.training import resume as training_resume
from earshot.training.run import CONFIG, Run

SITE = "https://www.kaggle.com"
PATIENCE = 3.0  # seconds to wait for the network
MANY = 200_000  # audio files beyond which reading the table of clips takes too long here
SESSION = 12 * 3600  # seconds of a session on Kaggle with a CPU or GPUs
TPU_SESSION = 9 * 3600
ROOM, KEPT_LOW = 5e9, 4e9  # bytes free on the disk, and left of what Kaggle keeps, below which we warn
MEMORY_LOW = 4e9


def check_competition(out: str = "data") -> Iterator[Finding]:
    """The competition that get_features.py would use, its layout, and whether its audio decodes."""
    try:
        path, where = defaults.find_competition(out)
        if path is None:
            yield report_ok(
                f"competition: none {where}, the built-in sample is used; give yours with --competition"
            )
            return
        folders = kaggle_paths.walk(path)
        lines = [check_decoders(suffix, files) for suffix, files in _pick_examples(folders).items()]
        if not lines:
            yield stop(
                f"competition: {path} ({where}) has no audio: attach the competition's data, or give its "
                "folder with --competition"
            )
            return
        notes: list[str] = []
        if sum(folder.audio for folder in folders) <= MANY:
            from earshot.competition.load import load

            notes = load(path, out=out).notes
        layout = f", {'; '.join(notes[:4])}" if notes else ""
        yield report_ok(f"competition: {path} ({where}){layout}")
        for note in notes:
            if note.startswith("warning:"):
                yield warn(f"competition: {note.partition(': ')[2]}")
        yield from lines
    except UserError as error:
        yield stop(f"competition: {error}")


def _pick_examples(folders: list[kaggle_paths.Folder]) -> dict[str, list[Path]]:
    examples: dict[str, list[Path]] = {}
    for folder in folders:
        for suffix, files in folder.examples.items():
            examples[suffix] = [*examples.get(suffix, []), *files][:EXAMPLES]
    return dict(sorted(examples.items()))


def check_decoders(suffix: str, files: list[Path]) -> Finding:
    """Check that a file of this suffix decodes: the smallest first, then others, as one may be damaged."""
    first_error = ""
    for path in sorted(files, key=lambda path: (path.stat().st_size, path)):
        try:
            wave, rate, *_ = audio_load.read(path, None, audio_load.AudioSettings())
        except audio_load.BadAudio as error:
            first_error = first_error or f"{path.name}: {error}"
            continue
        return report_ok(f"audio: {suffix} decodes ({path.name}, {len(wave) / rate:.1f} s, {rate} Hz)")
    return stop(
        f"audio: none of {len(files)} {suffix} files decodes ({first_error}): install ffmpeg, or convert "
        "them to flac"
    )


def check_weights(internet: Internet) -> Iterator[Finding]:
    """Where the pretrained weights are; offline, a competition needs those of AST or EfficientAT here."""
    here, absent = [], []
    for name in ("ast", "efficientat", "encodec"):
        module = extractors.load_module(name)
        try:
            files = module.Extractor.find_weights(module.Settings(), None)
        except UserError as error:
            yield stop(f"weights: {error}")
            return
        if files:
            here.append(f"{name} in {files[0].parent}")
        else:
            absent.append(name)
    if here:
        yield report_ok(f"weights: {'; '.join(here)}")
    yield from check_encoders()
    if absent[:2] != ["ast", "efficientat"]:
        return
    if internet.is_online():
        yield report_ok("weights: ast and efficientat are not here yet, and will be downloaded")
        return
    level = stop if defaults.find_competition("data")[0] else warn
    yield level(
        "weights: neither ast's nor efficientat's are here, and there is no internet: attach them "
        "(config.json and model.safetensors; mn04_as_mAP_432.pt), or use --recipe from_scratch, which needs "
        "none"
    )


def check_encoders() -> Iterator[Finding]:
    """The attached encoders of `hf` and `onnx`, and the runs whose extractor's weights or packages are not
    here."""
    from earshot.extractors import ast, encodec, hf, onnx, onnx_file

    others = {*ast.WEIGHTS.kinds, *encodec.WEIGHTS.kinds}
    found = kaggle_paths.find_networks(set(hf.WEIGHTS.kinds) - others)
    if found:
        names = [f"--weights {path} ({kind})" for path, kind in found.items()]
        yield report_ok(f"weights: for --extractor hf {', '.join(names[:4])}{', ...' if names[4:] else ''}")
    lacking = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    install = f"{' and '.join(lacking)} missing: pip install -r {onnx_file.REQUIREMENTS}"
    files = [f"--weights {path}" for path in onnx.Extractor.list_attached()]
    if files:
        more = f"; {install}" if lacking else ""
        listed = f"{', '.join(files[:4])}{', ...' if files[4:] else ''}"
        yield report_ok(f"weights: for --extractor onnx {listed}{more}")
    here: dict[tuple, bool] = {}  # of each content once: files are read whole
    for folder in [*_list_runs("runs"), *training_resume.list_attached_runs()]:
        try:
            run = Run.open(folder)
            made = run.config["record"]["features"]
            key = made["extractor"], made["weights"]
            if lacking and made["extractor"] == "onnx":
                yield warn(f"weights: {folder} needs ONNX Runtime for new audio: {install}")
            if key not in here:
                here[key] = not made["weights"] or bool(for_run.find_weights_files(run))
            if not here[key]:
                name = run.config.get("weights") or made["extractor"]
                yield warn(
                    f"weights: {folder} needs {name} for new audio, which is not here: attach it, or give "
                    "its place with --weights"
                )
        except (UserError, KeyError, TypeError):
            continue  # a damaged run is not the weights' matter


def _list_runs(runs: str) -> list[Path]:
    return [path.parent for path in sorted(Path(runs).glob(f"*/{CONFIG}"))]


def list_outputs(data: str = "data", runs: str = "runs") -> Iterator[Finding]:
    """The caches and runs of this session, and attached ones."""
    for what, mine, theirs in (
        ("caches", cache.find_folders(data), resume.find_caches(None)),
        ("runs", _list_runs(runs), training_resume.list_attached_runs()),
    ):
        there = [*map(str, mine), *(f"{path} (attached)" for path in theirs)]
        names = f" ({', '.join(there[:4])}{', ...' if len(there) > 4 else ''})"
        yield report_ok(f"{what}: {len(there)}{names}" if there else f"{what}: none yet")


def check_disk(folder: Path = Path(".")) -> Iterator[Finding]:
    """Check that outputs can be written here, and how much space is left."""
    place = folder.absolute()
    if not os.access(place, os.W_OK):
        yield stop(
            f"disk: {place} is not writable: change to a folder that is, on Kaggle: %cd "
            f"{kaggle_paths.WORKING}"
        )
        return
    free, quota = shutil.disk_usage(place).free, kaggle_paths.get_quota_left(place)
    if quota is not None:
        taken, whole = format_bytes(kaggle_paths.KEPT - quota), format_bytes(kaggle_paths.KEPT)
        text = (
            f"disk: {taken} of the {whole} that Kaggle keeps of {kaggle_paths.get_working_folder()} are used"
        )
        tight = quota < KEPT_LOW
        hint = "remove old caches and runs, or write features below /tmp (--out)"
    else:
        text, tight = f"disk: {format_bytes(free)} free in {place}", free < ROOM
        hint = "free some; get_features.py and train.py print what they need before they start"
    yield warn(f"{text}: {hint}") if tight else report_ok(text)


def check_memory() -> Iterator[Finding]:
    """How much memory is free, and how many cores there are."""
    import torch

    from earshot.core.memory import get_free

    have, cores = get_free(torch.device("cpu")), len(os.sched_getaffinity(0))
    text = f"memory: {format_bytes(have)} free, {cores} cores"
    hint = "stop other processes, or use --memory 1 and a small --batch-size"
    yield warn(f"{text}: {hint}") if have < MEMORY_LOW else report_ok(text)


def check_session() -> Iterator[Finding]:
    """The time left of a session on Kaggle; nothing elsewhere."""
    if "KAGGLE_KERNEL_RUN_TYPE" not in os.environ:
        return
    whole = TPU_SESSION if "TPU_NAME" in os.environ or "TPU_ACCELERATOR_TYPE" in os.environ else SESSION
    left = (whole - compute_age()) / 3600
    text = f"session: {left:.1f} of {whole // 3600} hours left, counted from the start of this machine"
    if left < 1:
        yield warn(f"{text}: save now (Save Version), a new session continues from there")
    else:
        yield report_ok(f"{text}; --max-hours {max(left - 0.5, 0.5):.1f} stops in time")


def compute_age() -> float:
    """Seconds since the first process of this machine or container started."""
    start = int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text().split()[0]) - start


class Internet(threading.Thread):
    """Checks in the background whether Kaggle's site can be reached."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.reached = False
        self.start()

    def run(self) -> None:
        try:
            urllib.request.urlopen(SITE, timeout=PATIENCE).close()
            self.reached = True
        except urllib.error.HTTPError:
            self.reached = True  # an error from the site comes from the site
        except (OSError, ValueError):
            pass

    def is_online(self) -> bool:
        """Was the site reached? No, if that takes longer than `PATIENCE`."""
        self.join(PATIENCE)
        return self.reached

    def check_internet(self) -> list[Finding]:
        """A line on the result."""
        text = "yes" if self.is_online() else "no; attach what is not here (weights, wheels)"
        return [report_ok(f"internet: {text}")]
