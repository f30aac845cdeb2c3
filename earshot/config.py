"""Settings: the dataclasses whose fields are the flags, and the recipes (YAML) that set their defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from earshot.errors import UserError

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SECTIONS = ("about", "features", "head", "training")


@dataclass(frozen=True)
class CompetitionFlags:
    """what to classify"""

    competition: str | None = None
    """folder or zip of a competition; default: the only one in --out, else the built-in sample competition"""
    recipe: str | None = None
    """recipes/NAME.yaml or a YAML file: sets the defaults of the flags below"""
    extractor: str | None = None
    """what turns audio into features (default: the recipe's)"""
    weights: str | None = None
    """the network's weights: a local file or folder, or a hub id"""
    for_run: str | None = None
    """a saved run: only the clips to submit, by that run's settings, as a code competition's notebook needs them; those that
    --max-hours leaves unheard get the class prior's answer"""
    cache: str | None = None
    """name of the cache folder (default: the recipe's, else the extractor's name)"""
    out: str = "data"
    """where the caches go: OUT/<competition>/<cache>/"""
    task: Literal["auto", "single", "multilabel"] = "auto"
    """has a clip one label or several (in a cell, or by 0/1 columns); auto: as the csv looks"""
    holdout: str | None = None
    """labelled clips to set aside as test: a fraction (0.2) or one of the data's folds (5); default: none"""
    train_csv: str | None = None
    """the csv of the training clips, where it is not found by itself"""
    id_column: str | None = None
    """its column of file names, where it is not found by itself"""
    label_column: str | None = None
    """its column of labels, where it is not found by itself"""


@dataclass(frozen=True)
class WindowFlags:
    """windows: how clips are cut and filled"""

    seconds: float | None = None
    """length of a window (default: the network's own, else chosen from the training clips)"""
    hop: float | None = None
    """seconds from one window to the next in long clips (default: one window)"""
    pad: Literal["wrap", "silence"] | None = None
    """short clips are filled by repeating them, or with silence (default: the network's habit, else wrap)"""
    max_windows: int | None = None
    """keep only the first N windows of a long clip (default: all)"""


@dataclass(frozen=True)
class AugmentFlags:
    """augmented copies of the training clips, made once and cached beside them; the other splits have none"""

    augment: int = 0
    """copies of every training clip, each changed by all that follows, drawn anew; 0: none"""
    speed: float = 1.25
    """play it slower or faster by up to this factor, the pitch follows; 1 is off"""
    stretch: float = 1.0
    """the same with the pitch kept, some 30 times the work of --speed; 1 is off"""
    pitch: float = 0.0
    """move the pitch by up to so many semitones, the tempo kept, as much work as --stretch; 0 is off"""
    shift: float = 0.5
    """roll it by up to this share of its length either way"""
    noise: float | None = None
    """add white noise at a signal-to-noise ratio between this many dB and 20 dB more (default: none)"""
    between: float = 0.0
    """probability that a clip of another class is mixed in, and its label (between-class learning)"""
    augment_gain: float = 6.0
    """make it louder or softer by up to so many dB"""
    augment_seed: int = 0
    """of everything random in the copies"""


@dataclass(frozen=True)
class ExtractionFlags:
    """this machine"""

    device: str = "auto"
    """auto (all GPUs, else the CPU), cpu, cuda:1, or several with a process each: cuda:0,cuda:1 or cpu,cpu"""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """auto: bf16 from capability 8.0, fp16 on 7.x; for ast on a CPU bf16 where it is faster; else fp32"""
    batch_size: int = 16
    """windows per forward pass; halved by itself when memory runs out"""
    workers: int = 0
    """threads that decode (default: the cores)"""
    max_hours: float | None = None
    """stop cleanly at a safe point after so many hours; the same command continues"""
    fresh: bool = False
    """throw this cache away and start over"""
    continue_from: str | None = None
    """folder of earlier outputs to pick up, read-only (default: what is attached under /kaggle/input)"""


@dataclass(frozen=True)
class RunFlags:
    """which features, which head"""

    recipe: str | None = None
    """recipes/NAME.yaml or a YAML file (default: the one that the cache was made with, else linear)"""
    features: str | None = None
    """the cache folder to train on (default: the one that matches the recipe, else the only one)"""
    name: str | None = None
    """name of the run in --runs-folder (default: <recipe>-<hash of the settings>)"""
    head: str | None = None
    """the head (`python -m models` lists them); its own options are --head.OPTION VALUE"""
    view: str | None = None
    """which of the cache's views it gets (default: the first that the head prefers)"""
    fold: tuple[int, ...] = ()
    """train only these folds (the data's own numbers, else 0 ... K-1); default: all"""
    out: str = "submissions/submission.csv"
    """where the submission goes"""
    data: str = "data"
    """where the caches are looked for"""
    runs_folder: str = "runs"
    """where the run goes"""


@dataclass(frozen=True)
class TrainingFlags:
    """training (every one is a key of a recipe's `training` section)"""

    epochs: int = 30
    """passes over the training rows"""
    batch_size: int = 32
    """rows per optimiser step; memory running out splits it, the effective size stays"""
    lr: float = 1e-3
    """learning rate (the peak, for onecycle and cosine)"""
    optimizer: Literal["adamw", "adam", "sgd", "sam"] = "adamw"
    """sgd is Nesterov's, momentum 0.9; sam is sharpness-aware AdamW: two passes a step"""
    rho: float = 0.05
    """radius of sam"""
    weight_decay: float = 0.01
    """decoupled in adamw, an L2 term in adam and sgd"""
    schedule: Literal["onecycle", "cosine", "step", "constant"] = "cosine"
    """how the learning rate moves: onecycle and cosine by step, step by epoch"""
    warmup: float = 0.1
    """share of the steps that rises (onecycle, cosine)"""
    step_epochs: int = 5
    """epochs between two drops (step)"""
    step_gamma: float = 0.1
    """factor of a drop (step)"""
    label_smoothing: float = 0.0
    """share of the target that is spread over all classes"""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class counts by the inverse of its frequency in the training folds"""
    mixup: float = 0.0
    """alpha of the Beta distribution that mixes two rows; 0 is off"""
    mixup_probability: float = 1.0
    """share of the batches (pairs different: of the rows) that are mixed"""
    mixup_pairs: Literal["any", "different"] = "any"
    """any two rows, one weight a batch (mixup); or two of different classes, a weight a pair (between-class, alpha 1)"""
    mixup_domain: Literal["linear", "power"] = "linear"
    """mix the features as they are, or the powers under a log-mel in dB: two sounds at once"""
    time_mask: int = 0
    """longest time mask in frames; 0 is off"""
    frequency_mask: int = 0
    """longest frequency mask in bins; 0 is off"""
    masks: int = 1
    """masks of either kind per row"""
    time_shift: float = 0.0
    """roll a row in time by up to this share of the window, either way"""
    time_stretch: float = 0.0
    """read a row slower or faster by a factor of up to 1 + this"""
    crop: float = 1.0
    """train on a random part of this share of the window; the whole window is predicted"""
    frequency_shift: float = 0.0
    """move the spectrum by up to so many bins either way"""
    gain: float = 0.0
    """add up to so many units (dB on a dB log-mel) either way"""
    clip_grad: float = 0.0
    """largest gradient norm; 0 is off"""
    ema: float = 0.0
    """decay a step of the weights' moving average, which is what predicts; 0 is off, 0.99 to 0.9999 is usual"""
    tta: int = 1
    """predict by the mean over so many circular shifts in time (the scores of single epochs do without)"""
    metric: Literal["f1_macro", "f1_micro", "f1_weighted", "accuracy", "balanced_accuracy", "map_macro",
                    "lwlrap"] = "f1_macro"
    """chooses the best checkpoint; map_macro and lwlrap where clips have several labels"""
    folds: int | None = None
    """make K grouped stratified folds (default: the data's own, else 5)"""
    seed: int = 0
    """of everything random"""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """auto: bf16 from capability 8.0, fp16 on 7.x, fp32 elsewhere; on a CPU what a trial of the head finds clearly faster"""


@dataclass(frozen=True)
class TrainMachineFlags:
    """this machine"""

    device: str = "auto"
    """auto (all GPUs, else the CPU), cpu, cuda:1, or several with a process each: cuda:0,cuda:1 or cpu,cpu"""
    max_hours: float | None = None
    """stop cleanly at a safe point after so many hours; the same command continues"""
    memory: float | None = None
    """GB that a split's features may take to be kept at hand, on the GPU or here; larger ones are read from the disk as they are
    needed, with the same result (default: a quarter of what is free)"""
    save_every: float = 10.0
    """minutes between checkpoints inside a long epoch; 0: after every step"""
    fresh: bool = False
    """throw this run away and start over"""
    continue_from: str | None = None
    """folder of earlier outputs to pick up, read-only (default: what is attached under /kaggle/input)"""


@dataclass(frozen=True)
class PredictFlags:
    """what predicts what"""

    runs: tuple[str, ...] = ()
    """run folders (or names in runs/) whose predictions are blended"""
    blend: Literal["mean"] = "mean"
    """how: the mean of the runs' probabilities, each the mean of its folds"""
    features: str | None = None
    """cache with the clips to submit (default: the one each run was trained on)"""
    audio: str | None = None
    """a file or folder of new audio to predict instead of the competition's clips"""
    weights: str | None = None
    """the extractor's weights, for --audio, where they moved"""
    runs_folder: str = "runs"
    """where runs are looked for by name"""
    out: str | None = None
    """where the predictions go (default: submissions/submission.csv, with --audio submissions/predictions.csv)"""
    top: int = 3
    """classes shown per loose file"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""


# Smallest and largest sensible value; a float's own bounds are allowed.
BOUNDS = {
    "epochs": (1, None), "batch_size": (1, None), "workers": (0, None), "lr": (0, None), "weight_decay": (0, None),
    "warmup": (0, 1), "step_epochs": (1, None), "step_gamma": (0, None), "label_smoothing": (0, 1), "mixup": (0, None),
    "mixup_probability": (0, 1), "rho": (0, None), "time_stretch": (0, 4), "crop": (0.01, 1), "frequency_shift": (0, None),
    "ema": (0, 0.999999), "tta": (1, 100), "time_mask": (0, None), "frequency_mask": (0, None), "masks": (0, None), "time_shift": (0, 1),
    "gain": (0, None), "clip_grad": (0, None), "folds": (2, None), "seed": (0, None), "max_hours": (0, None), "save_every": (0, None),
    "memory": (0, None), "threshold": (-1, 1),
    "seconds": (0.01, 3600), "hop": (0.01, 3600), "max_windows": (1, None), "top": (1, None),
    "augment": (0, 1000), "speed": (1, 4), "stretch": (1, 4), "pitch": (0, 24), "shift": (0, 1), "noise": (-60, 120),
    "between": (0, 1), "augment_gain": (0, 60), "augment_seed": (0, None),
    "rate": (100, 768000), "power": (0.1, 10), "amin": (1e-30, 1), "trim": (0.1, 200), "top_db": (0.1, 200),
}


def check(settings: Any) -> None:
    """Raise UserError for a number outside its bounds, NaN included, or settings that do nothing together."""
    if isinstance(settings, TrainingFlags) and not settings.mixup and settings.mixup_pairs == "different":
        raise UserError("--mixup-pairs different mixes nothing without --mixup: add --mixup 1")
    for f in dataclasses.fields(settings):
        value, (low, high) = getattr(settings, f.name), BOUNDS.get(f.name, (None, None))
        if low is None or value is None:
            continue
        if not value >= low or high is not None and not value <= high or value == float("inf"):
            limits = f"at least {low}" if high is None else f"{low} to {high}"
            raise UserError(f"--{f.name.replace('_', '-')} {value}: has to be {limits}")


@dataclass
class Recipe:
    """A recipe's three sections, unknown keys and all; `name` is the file's stem."""

    name: str
    about: str = ""
    features: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def recipe_names() -> list[str]:
    """The recipes that come with the kit."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """Read recipes/NAME.yaml or the YAML file NAME.

    Raises:
        UserError: unknown recipe (lists them), damaged YAML, unknown section.
    """
    from earshot import plainyaml

    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"no recipe {name}: choose one of {', '.join(recipe_names())}, or name a YAML file")
    content = plainyaml.read(path) or {}
    if not isinstance(content, dict) or any(not isinstance(content.get(s) or {}, dict) for s in SECTIONS[1:]):
        raise UserError(f"{path}: a recipe has the sections {', '.join(SECTIONS)}, each with keys of its own")
    unknown = sorted(map(str, set(content) - set(SECTIONS)))
    if unknown:
        raise UserError(f"{path}: unknown section {unknown[0]}: a recipe has {', '.join(SECTIONS)}")
    return Recipe(path.stem, str(content.get("about") or ""), *(dict(content.get(s) or {}) for s in SECTIONS[1:]))


def with_defaults(settings: Any, values: dict[str, Any], where: str) -> Any:
    """A dataclass instance with the given fields replaced, types checked.

    Args:
        settings: an instance.
        values: key -> value out of a recipe or a saved configuration.
        where: for the message, e.g. "recipes/audio_cnn.yaml, features".
    Raises:
        UserError: unknown key, value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(settings)}
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"{where}: unknown key {key}: choose among {', '.join(fields)}")
    return dataclasses.replace(settings, **{k: _typed(k, v, str(fields[k].type), where) for k, v in values.items()})


def _typed(key: str, value: Any, kind: str, where: str) -> Any:
    """YAML writes 1e-3 as a string and 5 for 5.0; anything else must be of the field's own type."""
    options = [part.strip() for part in kind.split("|")]
    wrong = UserError(f"{where}: {key} is {value!r}, but must be {kind}")
    if value is None:
        if "None" in options:
            return None
        raise wrong
    if kind.startswith("tuple"):
        inner = kind.removeprefix("tuple[").split(",")[0]
        return tuple(_typed(key, v, inner, where) for v in (value if isinstance(value, (list, tuple)) else (value,)))
    if kind.startswith("Literal"):
        if f'"{value}"' not in kind and f"'{value}'" not in kind:
            raise wrong
        return str(value)
    if isinstance(value, bool):
        if "bool" in options:
            return value
        raise wrong
    if "float" in options:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise wrong from None
    if "int" in options and isinstance(value, int):
        return value
    if "str" in options and isinstance(value, (str, int, float)):
        return str(value)
    raise wrong
