"""Prediction of new recordings with stages side by side, against the same stages one after the other.

    python benchmarks/overlap.py --runs lin cnn

Each run, and their mean where there are several, predicts the same recordings in turn, by both ways in new
processes: as `predict.py --audio` does, and as it did before (a file is decoded when the extractor wants
it, heads run when all features are made, and each run of a blend extracts for itself). Recordings are
noise in the format of the run's training files. Predictions have to be the same, bit for bit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, keep_rows, machine

sys.path.insert(0, str(ROOT))


def predict_in_turn(whole: Any, files: list[Path], device: Any) -> np.ndarray:
    """Probabilities (files, classes), each stage after the one before."""
    from earshot.features.decode_ahead import decode, split_bites
    from earshot.prediction import new_audio
    from earshot.training import predict
    from earshot.training.dataset import WindowDataset

    ids = [path.name for path in files]

    def predict_clips(run: Any, kind: str) -> np.ndarray:
        extractor, audio = new_audio.build_extractor(run, None, device)
        clip, made = [], []
        index = 0
        for bite in split_bites(decode(str(path), extractor.rate, audio, True) for path in files):
            made += extractor.extract([one.wave for one in bite], [one.offset for one in bite], 16)
            for features in made[index:]:
                clip += [index] * len(features.start)
                index += 1
        split, view = new_audio.build_split(run, ids, clip, made, extractor), run.config["record"]["view"]
        rows = WindowDataset(split, view, whole.classes, extractor.span, device.name)
        return predict.predict_with_windows(run, rows, device, kind)[0]

    return whole.predict(predict_clips)


def predict_once(way: str, runs: list[str], folder: Path, out: Path) -> None:
    """Predict in this process, and save the probabilities and the seconds without imports."""
    import torch  # noqa: F401 -- imported before the time begins

    from earshot.core import device
    from earshot.prediction import members, predict_runs

    inside = members.open_members(tuple(runs), "runs")
    whole, at = members.mean_blend(inside), device.choose("cpu")
    files = sorted(folder.iterdir())
    began = time.perf_counter()
    if way == "in turn":
        found = predict_in_turn(whole, files, at)
    else:
        found = predict_runs.predict_audio(whole, [str(folder)], None, at, print).probabilities
    np.savez(out, found=found, seconds=time.perf_counter() - began)


def main() -> None:
    """Write recordings, predict them by both ways, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="put the rows into RESULTS.md")
    parser.add_argument("--once", nargs=3, metavar=("WAY", "FOLDER", "OUT"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.once:
        predict_once(flags.once[0], flags.runs, Path(flags.once[1]), Path(flags.once[2]))
        return
    from earshot.prediction import dry_run, members

    first = members.open_members((flags.runs[0],), "runs")[0].list_runs()[0]
    suffix, rate = dry_run.find_file_kind(first)
    rows = {}
    with tempfile.TemporaryDirectory(prefix="overlap-") as name:
        folder = Path(name) / "audio"
        folder.mkdir()
        dry_run.write_noise(folder, flags.seconds, suffix, rate, flags.files)
        several = [flags.runs] if len(flags.runs) > 1 else []
        for runs in [*([run] for run in flags.runs), *several]:
            seconds: dict[str, list[float]] = {"in turn": [], "side by side": []}
            found = {}
            for _ in range(flags.repeats):
                for way in seconds:
                    out = Path(name) / "found.npz"
                    again = ["--once", way, str(folder), str(out)]
                    subprocess.run([sys.executable, __file__, "--runs", *runs, *again], check=True)
                    with np.load(out) as made:
                        seconds[way].append(float(made["seconds"]))
                        found[way] = made["found"]
            if not np.array_equal(found["in turn"], found["side by side"]):
                raise SystemExit(f"{runs}: the two ways predict differently")
            before, after = (float(np.median(seconds[way])) for way in ("in turn", "side by side"))
            label = " + ".join(Path(run).name for run in runs)
            cells = [label, f"{before:.1f} s", f"{after:.1f} s", f"{before / after:.2f}"]
            rows[label] = "| " + " | ".join(cells) + " |"
            print(rows[label], flush=True)
    if flags.keep:
        about = [
            f"`benchmarks/overlap.py`: {flags.files} recordings of {flags.seconds:g} s, {suffix[1:]}, "
            f"median of {flags.repeats}, imports left out. {machine()}."
        ]
        header = "| runs | stages in turn | side by side | ratio |"
        keep_rows("Stages side by side", about, header, rows)


if __name__ == "__main__":
    main()
