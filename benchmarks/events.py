"""Two competitions made of ESC-10's clips, each run as a user types it, from audio to a checked submission ->
RESULTS.md.

    python benchmarks/events.py --data ESC10 --weights mn04_as_mAP_432.pt [--quick]

`events`: recordings of 30 s, two or three clips of different classes in noise, any number of labels a
recording. `soundscapes`: clips of 5 s to learn from, recordings of a minute with a row every 5 s. What is
to be submitted is made of the clips of fold 5 alone, each training recording of the clips of one other fold,
which is its fold. Its solution lies outside the competition's folder, and is looked at when the submission is
written. Background and levels are drawn: see `background` and `Clips.draw`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import RESULTS, ROOT, keep_rows, machine, timed

sys.path.insert(0, str(ROOT))

from earshot.audio.load import AudioSettings, read  # noqa: E402 -- after the path is known

RATE = 32000
NOISE = 0.01  # root mean square of the background
LEVELS = (0.0, 15.0)  # dB of an event above the background, drawn evenly
TRIM = 40.0  # dB: what is softer at a clip's ends is no event
HEARD = 1.0  # seconds of an event, or half of a shorter one, within a stretch that make it a label there
HEADER = (
    "| `get_features.py` ..., `train.py` ... | folds: macro-F1, mAP, ROC AUC | submission: macro-F1, "
    "mAP, ROC AUC | seconds |"
)
ABOUT = [
    "`python benchmarks/events.py --data ESC10 --weights mn04_as_mAP_432.pt`: EfficientAT mn04. Out-of-fold "
    "scores are of the final",
    "epoch; the submission (the folds' best epochs, by macro-F1) is scored against its hidden solution, made "
    "of fold 5's clips, which",
    "nothing was trained or chosen on. F1 counts predictions with a probability of 0.5 or more. For the "
    "soundscapes the folds are of the",
    "clean clips that are learnt from, so their scores are no forecast. 48 recordings, or 288 stretches, are "
    "submitted: a lead of a",
    "hundredth is luck. Seconds (features + training): on one thread beside much other work.",
]
LINEAR = ["--recipe", "linear", "--lr", "0.1"]
CUT = ["--seconds", "5", "--hop", "2.5"]
SEVERAL = ["--task", "multilabel"]
# in noise, and two at once, as out there
MIXED = [*SEVERAL, "--augment", "4", "--noise", "0", "--bc-mix", "0.5"]
ROWS = {  # competition -> flags of get_features.py and of train.py
    "events": [
        (CUT, LINEAR),
        (CUT, [*LINEAR, "--pool", "max"]),
        (CUT, [*LINEAR, "--pool", "top3"]),
        (CUT, [*LINEAR, "--pool", "probability"]),
        (CUT, [*LINEAR, "--pool", "max", "--windows", "3"]),
        (CUT, [*LINEAR, "--pool", "max", "--loss", "focal"]),
        (["--seconds", "30"], LINEAR),
    ],
    "soundscapes": [
        ([], ["--recipe", "linear"]),
        (SEVERAL, LINEAR),
        (MIXED, LINEAR),
        (MIXED, ["--recipe", "mlp"]),
    ],
}


class Clips:
    """The events of one fold, cut free of the silence around them."""

    def __init__(self, data: Path, fold: int):
        with open(next((data / "meta").glob("*.csv")), newline="") as file:
            self.rows = [row for row in csv.DictReader(file) if int(row["fold"]) == fold]
        self.paths = [data / "audio" / row["filename"] for row in self.rows]
        self.labels = [row["category"] for row in self.rows]
        self.waves = [read(path, RATE, AudioSettings(trim=TRIM))[0] for path in self.paths]

    def draw(
        self, wave: np.ndarray, count: int, random: np.random.Generator
    ) -> list[tuple[str, float, float]]:
        """Add so many events of different classes to a wave, in place; the label, start and end in seconds of
        each."""
        found: list[tuple[str, float, float]] = []
        for index in random.permutation(len(self.waves)):
            event, label = self.waves[index], self.labels[index]
            if len(found) == count or label in {name for name, _, _ in found}:
                continue
            event = event[: len(wave)]
            first = int(random.integers(0, len(wave) - len(event) + 1))
            level = NOISE * 10 ** (random.uniform(*LEVELS) / 20) / np.sqrt(np.mean(np.square(event)) + 1e-12)
            wave[first : first + len(event)] += level * event
            found.append((label, first / RATE, (first + len(event)) / RATE))
        return found


def background(seconds: float, random: np.random.Generator) -> np.ndarray:
    """Noise whose power falls with frequency, as fast as is drawn (between white and brown), its level rising
    and falling by 3 dB."""
    n = int(seconds * RATE)
    spectrum = np.fft.rfft(random.standard_normal(n))
    spectrum[1:] *= np.arange(1, len(spectrum)) ** -random.uniform(0.2, 0.8)
    spectrum[: int(30 * seconds)] = 0  # inaudible below 30 Hz, where most of the power would be
    wave = np.fft.irfft(spectrum, n)
    swell = 10 ** (
        3 / 20 * np.sin(2 * np.pi * (np.arange(n) / RATE / random.uniform(5, 20) + random.uniform()))
    )
    return (NOISE * wave / wave.std() * swell).astype(np.float32)


def write_wave(path: Path, wave: np.ndarray) -> None:
    """A recording as FLAC, turned down where it would clip."""
    import soundfile

    soundfile.write(path, wave / max(1.0, float(np.abs(wave).max()) / 0.99), RATE, subtype="PCM_16")


def write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    """A csv."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def make_events(
    folder: Path, folds: dict[int, Clips], count: int, seconds: float = 30.0
) -> dict[str, set[str]]:
    """The competition of several labels a recording, so many a fold; id -> labels of what is to be
    submitted."""
    classes = sorted(set(folds[5].labels))
    rows, solution = [], {}
    for part in ("audio_train", "audio_test"):
        (folder / part).mkdir(parents=True)
    for fold, clips in folds.items():
        for number in range(count):
            random = np.random.default_rng([fold, number])
            wave = background(seconds, random)
            said = {label for label, _, _ in clips.draw(wave, int(random.integers(2, 4)), random)}
            name = f"{fold if fold < 5 else 'x'}{number:04d}.flac"
            write_wave(folder / ("audio_test" if fold == 5 else "audio_train") / name, wave)
            if fold == 5:
                solution[name] = said
            else:
                rows.append([name, ",".join(sorted(said)), fold])
    write_csv(folder / "train.csv", ["fname", "labels", "fold"], rows)
    write_csv(
        folder / "sample_submission.csv",
        ["fname", *classes],
        [[name, *[0] * len(classes)] for name in solution],
    )
    return solution


def make_soundscapes(
    folder: Path, folds: dict[int, Clips], count: int, seconds: float = 60.0, step: int = 5
) -> dict[str, set[str]]:
    """The competition of short clips and so many long recordings; id -> labels of each of their stretches."""
    classes = sorted(set(folds[5].labels))
    for part in ("train_audio", "test_soundscapes"):
        (folder / part).mkdir(parents=True)
    rows, solution = [], {}
    for fold in (fold for fold in folds if fold < 5):
        for path, label in zip(folds[fold].paths, folds[fold].labels, strict=True):
            (folder / "train_audio" / path.name).write_bytes(path.read_bytes())
            rows.append([path.name, label, fold])
    for number in range(count):
        random = np.random.default_rng([0, number])
        wave = background(seconds, random)
        events = folds[5].draw(wave, int(random.integers(3, 1 + min(7, len(classes)))), random)
        write_wave(folder / "test_soundscapes" / f"soundscape_{number:03d}.flac", wave)
        for end in range(step, int(seconds) + 1, step):
            inside = {label: min(end, last) - max(end - step, first) for label, first, last in events}
            present = {
                label for label, first, last in events if inside[label] >= min(HEARD, (last - first) / 2)
            }
            solution[f"soundscape_{number:03d}_{end}"] = present
    write_csv(folder / "train.csv", ["filename", "primary_label", "fold"], rows)
    write_csv(
        folder / "sample_submission.csv", ["row_id", *classes], [[id, *[0] * len(classes)] for id in solution]
    )
    return solution


def score(submission: Path, solution: dict[str, set[str]]) -> tuple[float, float, float]:
    """Macro-F1 at a half, mean average precision and ROC AUC of a submission, by scikit-learn, over the
    classes that occur."""
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    with open(submission, newline="") as file:
        header, *rows = list(csv.reader(file))
    if [row[0] for row in rows] != list(solution):
        raise SystemExit(f"{submission}: other ids than were asked, or in another order")
    p = np.array([[float(cell) for cell in row[1:]] for row in rows])
    truth = np.array([[label in solution[row[0]] for label in header[1:]] for row in rows]).astype(int)
    p, truth = p[:, truth.any(0)], truth[:, truth.any(0)]
    return (
        f1_score(truth, p >= 0.5, average="macro", zero_division=0),
        average_precision_score(truth, p, average="macro"),
        roc_auc_score(truth, p, average="macro"),
    )


def main() -> None:
    """Make the competitions, run the rows one after the other; the table is written after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of ESC-10 (ESC layout)")
    parser.add_argument("--weights", type=Path, help="mn04_as_mAP_432.pt; without, --quick")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--quick", action="store_true", help="few recordings, log-mel, one row each: does it run?"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args()
    if not (flags.weights or flags.quick):
        parser.error("--weights mn04_as_mAP_432.pt, or --quick")
    folds = {fold: Clips(flags.data, fold) for fold in range(1, 6)}
    extractor = (
        ["--extractor", "logmel"]
        if flags.quick
        else ["--extractor", "efficientat", "--weights", str(flags.weights.resolve())]
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in flags.only:
            make, count = (make_events, 48) if name == "events" else (make_soundscapes, 24)
            solution = make(Path(scratch) / name, folds, 3 if flags.quick else count)
            seconds: dict[str, float] = {}
            for number, (cut, training) in enumerate(ROWS[name][:1] if flags.quick else ROWS[name]):
                cache = "-".join(["cache", *(word.strip("-") for word in cut)])
                if cache not in seconds:
                    seconds[cache] = timed(
                        "get_features.py",
                        ["--competition", name, *extractor, *cut, "--cache", cache],
                        Path(scratch),
                    )
                took = timed(
                    "train.py",
                    [*training, "--features", f"data/{name}/{cache}", "--name", f"{name}-{number}"],
                    Path(scratch),
                )
                run = Path(scratch) / "runs" / f"{name}-{number}"
                oof = json.loads((run / "scores.json").read_text())["last"]
                inside = "  ".join(
                    f"{oof[key]:.4f}" if key in oof else "-"
                    for key in ("f1_macro", "map_macro", "roc_auc_macro")
                )
                hidden = "  ".join(
                    f"{value:.4f}"
                    for value in score(Path(scratch) / "submissions" / "submission.csv", solution)
                )
                key = f"{name}: `{' '.join(cut) or 'windows of 5 s'}`"
                row = (
                    f"| {key} | `{' '.join(training)}` | {inside} | {hidden} | {seconds[cache]:.0f} + "
                    f"{took:.0f} |"
                )
                print(row, flush=True)
                keep(row, flags.out)


def keep(row: str, out: Path) -> None:
    """Put a row into RESULTS.md; a row's first two cells are its name."""
    first, second, *rest = row.removeprefix("| ").split(" | ")
    keep_rows(
        f"Events and soundscapes made of ESC-10, on {machine()}",
        ABOUT,
        HEADER,
        {f"{first}, {second}": f"| {first}, {second} | {' | '.join(rest)}"},
        out,
    )


if __name__ == "__main__":
    main()
