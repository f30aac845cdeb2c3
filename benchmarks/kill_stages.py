"""The stages that are killed, and what each needs and makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

CLASSES, CLIPS = 3, {"train": 24, "subm": 14}  # of each class
TRAIN = [
    "--head",
    "audio_cnn",
    "--head.channels",
    "[8, 16]",
    "--head.blocks",
    "[1, 1]",
    "--head.dropout",
    "0.4",
    "--epochs",
    "3",
    "--folds",
    "2",
    "--batch-size",
    "24",
    "--mixup",
    "0.4",
    "--time-mask",
    "9",
    "--ema",
    "0.9",
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--name",
    "r",
]
LOGMEL = ["--extractor", "logmel", "--device", "cpu", "--workers", "2"]


@dataclass
class Stage:
    """A command, what it needs beforehand (made once, undisturbed), and the folders whose files have to come
    out the same."""

    name: str
    script: str
    args: list[str]
    before: list[tuple[str, list[str]]] = field(default_factory=list)
    made: tuple[str, ...] = ("data",)


def stages(data: Path) -> list[Stage]:
    """The stages, on a competition of tones."""
    extract = ["--competition", str(data), *LOGMEL, "--augment", "1"]
    train = [*TRAIN, "--save-every", "0"]
    runs = [("train.py", [*TRAIN, "--name", name, "--seed", seed]) for name, seed in (("a", "1"), ("b", "2"))]
    return [
        Stage("extract", "get_features.py", extract),
        Stage("unpack and extract", "get_features.py", ["--competition", f"{data}.zip", *LOGMEL]),
        Stage(
            "take an earlier cache",
            "get_features.py",
            [*extract, "--continue-from", "earlier"],
            [("get_features.py", [*extract, "--out", "earlier"])],
        ),
        Stage("train", "train.py", train, [("get_features.py", extract)], ("runs", "submissions")),
        Stage(
            "take an earlier run",
            "train.py",
            [*train, "--continue-from", "earlier"],
            [
                ("get_features.py", extract),
                ("train.py", [*TRAIN, "--runs-folder", "earlier", "--out", "earlier/submission.csv"]),
            ],
            ("runs", "submissions"),
        ),
        Stage(
            "predict",
            "predict.py",
            ["--runs", "a", "b", "--device", "cpu"],
            [("get_features.py", extract), *runs],
            ("runs", "submissions"),
        ),
    ]
