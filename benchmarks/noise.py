"""Every recipe on made-up features of the right shapes: what its training costs can be seen without its data
or weights."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT

sys.path.insert(0, str(ROOT))

import models
from earshot import extractors
from earshot.core import config, kinds
from earshot.extractors.base import Window
from earshot.training import estimators

CLASSES, SECONDS, RATE = 50, 5.0, 44100  # ESC-50's
AST = {"pooled": (768, 1, 1), "frames": (768, 1, 101), "tokens": (768, 12, 101)}  # of the published sizes
ENCODEC = {"latents": (128, 1, 75), "codes": (2, 1, 75)}  # a second of it, at 1.5 kbit/s
ONNX = {"perch": {"pooled": (1536, 1, 1)}, "birdnet": {"pooled": (1024, 1, 1)}}  # by cache


@dataclasses.dataclass
class Case:
    """A recipe's head, its options without weights, what it is fed, and how it is trained."""

    recipe: str
    head: str
    options: dict[str, Any]
    view: str
    shapes: dict[str, tuple[int, int, int]]
    training: config.TrainingFlags

    def build(self):
        """The head with random weights."""
        return models.build(self.head, self.shapes[self.view], CLASSES, **self.options)


def case(name: str, **changes: Any) -> Case:
    """A recipe as it would be trained on five-second clips of 50 classes; one without features gets AST's.

    Args:
        changes: of the head's options, for smaller sizes.
    """
    recipe = config.load_recipe(name)
    options = dict(recipe.head)
    head, view = options.pop("name"), options.pop("view", None)
    shapes = shapes_of(recipe.features or {"extractor": "ast"})
    by_view = {name: kinds.derive(name, shape) for name, shape in shapes.items()}
    view = view or kinds.choose(models.get_kinds(head), by_view)
    if "weights" in options:
        options["weights"] = None
    training = config.replace_defaults(config.TrainingFlags(), recipe.training, name)
    return Case(name, head, options | changes, view, shapes, training)


def shapes_of(features: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """(D, F, T) of each view that a recipe's `features` section makes of a five-second clip."""
    module = extractors.load_module(features["extractor"])
    if features["extractor"] == "ast":
        return AST
    if features["extractor"] == "onnx":
        return ONNX[features["cache"]]
    known = {f.name for f in dataclasses.fields(module.Settings)}
    settings = config.replace_defaults(
        module.Settings(), {k: v for k, v in features.items() if k in known}, "features"
    )
    seconds = features.get("seconds") or module.Extractor.seconds or SECONDS
    if features["extractor"] == "encodec":
        return {view: (d, f, round(seconds * t)) for view, (d, f, t) in ENCODEC.items()}
    rate = getattr(settings, "rate", module.Extractor.rate) or RATE
    window = Window(float(seconds), None, features.get("pad") or module.Extractor.pad, 1, int(rate))
    return module.Extractor(settings, window).shapes


def trained() -> list[str]:
    """The recipes whose heads are trained in steps; scikit-learn heads have none."""
    return [name for name in config.list_recipes() if not estimators.is_sklearn_head(case(name).build)]


def rows(case: Case, clips: int, device: str = "cpu"):
    """Noise in place of a training split: `Rows` of so many clips of one window each."""
    from earshot.training.dataset import WindowDataset

    rng = np.random.default_rng(0)
    split: dict[str, Any] = {
        "ids": np.array([f"{i}.wav" for i in range(clips)]),
        "clip": np.arange(clips, dtype=np.int32),
        "labels": np.array([f"class {i % CLASSES:02d}" for i in range(clips)]),
        "folds": np.arange(clips, dtype=np.int32) % 5,
        "groups": np.full(clips, ""),
        "length": np.full(clips, SECONDS, np.float32),
        "start": np.zeros(clips, np.float32),
    }
    for view, shape in case.shapes.items():
        size = (clips, *shape)
        split[view] = (
            rng.integers(0, 1024, size, dtype=np.int16)
            if view == "codes"
            else rng.standard_normal(size, dtype=np.float32).astype(np.float16)
        )
    head = case.build() if case.head == "causal_lm" else None  # the only one that learns from further views
    return WindowDataset(
        split,
        case.view,
        [f"class {i:02d}" for i in range(CLASSES)],
        SECONDS,
        device,
        {name: name for name in head.also} if head else {},
    )


def fitter(case: Case, folder: Path, device: Any, clips: int, **changes: Any):
    """The kit's own `Fitter` on noise: all clips are trained on, every fifth is predicted as well.

    Args:
        folder: an empty one, for its checkpoints.
        device: from `earshot.core.device.choose`.
        changes: of the training's settings.
    """
    from earshot.training.checkpoint import FoldFolder
    from earshot.training.progress import Fold
    from earshot.training.trainer import Trainer

    data = rows(case, clips, device.name)
    fold = Fold(0, 1, np.ones(clips, bool), np.arange(clips) % 5 == 0)
    settings = dataclasses.replace(case.training, **changes)
    return Trainer(case.build, data, fold, settings, CLASSES, FoldFolder(folder / "fold_0"), device)
