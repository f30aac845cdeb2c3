"""The main job on ESC-10's five official folds, as a user types it: scores, seconds and the commands -> a Markdown table.

    python benchmarks/esc10.py --data ESC10 --weights mn04_as_mAP_432.pt

Features and runs go to a scratch folder. Scores are pooled out-of-fold scores of the final epoch; in brackets the best epoch's,
which was chosen on the fold that it scores.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "linear": (["--extractor", "efficientat", "--weights", "WEIGHTS"], ["--recipe", "linear"]),
    "mlp": (["--extractor", "efficientat", "--weights", "WEIGHTS"], ["--recipe", "mlp"]),
    "small_cnn": (["--recipe", "small_cnn"], ["--recipe", "small_cnn"]),
}


def timed(script: str, args: list[str], cwd: Path) -> float:
    """Seconds that a script took, start-up included; its output passes through; stops with it where it fails."""
    began = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / script), *args], cwd=cwd, check=True)
    return time.perf_counter() - began


def run(name: str, data: Path, weights: Path | None, scratch: Path) -> str:
    """One row of the table."""
    extraction, training = CASES[name]
    asked = " ".join(["get_features.py --competition ESC10", *extraction]).replace("WEIGHTS", "mn04_as_mAP_432.pt")
    out = scratch / name
    if weights is None:
        extraction = [a for a in extraction if a not in ("--weights", "WEIGHTS")]
    extraction = [str(weights) if a == "WEIGHTS" else a for a in extraction]
    features = timed("get_features.py", ["--competition", str(data), *extraction, "--out", str(out)], scratch)
    cache = next(out.glob("*/*/manifest.json")).parent
    seconds = timed("train.py", [*training, "--features", str(cache), "--name", name], scratch)
    scores = json.loads((scratch / "runs" / name / "scores.json").read_text())
    last, best = scores["last"], scores["best"]
    return (f"| `{asked}`, `train.py {' '.join(training)}` | {last['accuracy']:.4f} ({best['accuracy']:.4f}) | "
            f"{last['f1_macro']:.4f} ({best['f1_macro']:.4f}) | {features:.0f} s | {seconds:.0f} s |")


def machine() -> str:
    """What the figures were measured on."""
    import os

    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores, kind = len(os.sched_getaffinity(0)), torch.backends.cpu.get_cpu_capability()
    return f"{cores} cores of {model} ({kind}), {gpu}, torch {torch.__version__}"


def main() -> None:
    """Run the cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of ESC-10 (ESC layout)")
    parser.add_argument("--weights", type=Path, help="mn04_as_mAP_432.pt; downloaded without it")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "RESULTS.md")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [run(name, flags.data.resolve(), flags.weights and flags.weights.resolve(), Path(scratch)) for name in flags.only]
    flags.out.write_text("\n".join([
        "# Measured", "",
        f"`python benchmarks/esc10.py --data ESC10 --weights mn04_as_mAP_432.pt` on {machine()}.", "",
        "ESC-10, five official folds, 400 clips pooled. Scores of the final epoch (nothing is chosen on the clips that are",
        "scored); in brackets those of the best epoch, chosen on the fold that it scores. Seconds are of the whole process,",
        "start-up included.", "",
        "| commands | accuracy | macro-F1 | features | training, 5 folds |", "|---|---|---|---|---|", *rows, ""]))
    print(flags.out.read_text())


if __name__ == "__main__":
    main()
