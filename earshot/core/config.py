"""Settings: the dataclasses whose fields are the flags; `earshot.core.recipes` has the YAML that sets their
defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from earshot.core.errors import UserError
from earshot.core.fingerprint import RECORDED_WHERE_CHANGED, formerly
from earshot.core.recipes import Recipe, default_recipe, list_recipes, load_recipe  # noqa: F401 -- as config.load_recipe
from earshot.core.settings import Bounds, check_bounds, replace_defaults  # noqa: F401 -- as config.replace_defaults

Metric = Literal[
    "f1_macro",
    "f1_micro",
    "f1_weighted",
    "accuracy",
    "balanced_accuracy",
    "roc_auc_macro",
    "roc_auc_micro",
    "log_loss",
    "map_at_3",
    "map_macro",
    "lwlrap",
]


@dataclass(frozen=True)
class CompetitionFlags:
    """what to classify"""

    COMMON: ClassVar = (
        "competition",
        "recipe",
        "extractor",
        "weights",
        "cache",
        "out",
        "holdout",
        "train_csv",
        "label_column",
    )
    competition: str | None = None
    """folder or zip of a competition; or what to download: a Kaggle competition's SLUG, datasets/OWNER/SLUG,
    esc50; default: the only one in --out, else the built-in sample competition"""
    recipe: str | None = None
    """recipes/NAME.yaml or a YAML file: sets the defaults of the flags below"""
    extractor: str | None = None
    """what turns audio into features (default: the recipe's)"""
    weights: str | None = None
    """the network's weights: a local file or folder, or a hub id"""
    for_run: str | None = None
    """a saved run: only the clips to submit, by that run's settings, as a code competition's notebook needs
    them; those that --max-hours leaves unheard get the class prior's answer"""
    cache: str | None = None
    """name of the cache folder (default: the recipe's, else the extractor's name)"""
    out: str = "data"
    """where the caches go: OUT/<competition>/<cache>/"""
    task: Literal["auto", "single", "multilabel"] = "auto"
    """has a clip one label or several (in a cell, or by 0/1 columns); auto: as the csv looks"""
    holdout: str | None = None
    """labelled clips to set aside as test: a fraction (0.2) or one of the data's folds (5); default: none"""
    train_csv: tuple[str, ...] = ()
    """the csv of the training clips, where it is not found by itself; may be given several times"""
    extra_csv: tuple[str, ...] = ()
    """FILE:WEIGHT, a noisier csv whose clips are trained on with this weight, never validated; may be given
    several times"""
    id_column: str | None = None
    """its column of file names, where it is not found by itself"""
    label_column: str | None = None
    """its column of labels, where it is not found by itself"""
    label_pattern: str | None = None
    """regular expression whose first group is the label, where file names hold it: '_([A-Z]+)_\\d+\\.wav$'"""
    label_map: tuple[str, ...] = ()
    """OLD=NEW renames a label, OLD= leaves its clips out, NAME keeps it, others=NEW renames the rest"""
    group_column: str | None = None
    """the csv's column of sources, whose clips stay on one side of a fold (default: one that plainly is);
    none: no groups"""
    group_pattern: str | None = None
    """regular expression whose first group is the clip's source, where file names hold it"""
    noise_class: str | None = None
    """a class cut from the recordings of folders called _so_ (default: they are left out)"""
    audio_folder: str | None = None
    """which folder to read, where the same clips lie in several (default: of the highest sampling rate)"""


@dataclass(frozen=True)
class WindowFlags:
    """windows: how clips are cut and filled"""

    COMMON: ClassVar = ("seconds", "hop")
    seconds: Annotated[float | None, Bounds(0.01, 3600)] = None
    """length of a window (default: the network's own, else chosen from the training clips)"""
    hop: Annotated[float | None, Bounds(0.01, 3600)] = None
    """seconds from one window to the next in long clips (default: one window)"""
    pad: Literal["wrap", "silence"] | None = None
    """short clips are filled by repeating them, or with silence (default: the network's habit, else wrap)"""
    max_windows: Annotated[int | None, Bounds(1)] = None
    """keep only the first N windows of a long clip (default: all)"""


@dataclass(frozen=True)
class AugmentFlags:
    """augmented copies of the training clips, made once and cached beside them; the other splits have none"""

    COMMON: ClassVar = ("augment",)
    augment: Annotated[int, Bounds(0, 1000)] = 0
    """copies of every training clip, each changed by all that follows, drawn anew; 0: none"""
    speed: Annotated[float, Bounds(1, 4)] = 1.25
    """play it slower or faster by up to this factor, the pitch follows; 1 is off"""
    stretch: Annotated[float, Bounds(1, 4)] = 1.0
    """the same with the pitch kept, some 30 times the work of --speed; 1 is off"""
    pitch: Annotated[float, Bounds(0, 24)] = 0.0
    """move the pitch by up to so many semitones, the tempo kept, as much work as --stretch; 0 is off"""
    shift: Annotated[float, Bounds(0, 1)] = 0.5
    """roll it by up to this share of its length either way"""
    noise: Annotated[float | None, Bounds(-60, 120)] = None
    """add white noise at a signal-to-noise ratio between this many dB and 20 dB more (default: none)"""
    bc_mix: Annotated[float, Bounds(0, 1)] = field(default=0.0, metadata=formerly("between"))
    """probability that a clip of another class is mixed in, and its label (between-class learning)"""
    augment_gain: Annotated[float, Bounds(0, 60)] = 6.0
    """make it louder or softer by up to so many dB"""
    augment_seed: Annotated[int, Bounds(0)] = 0
    """of everything random in the copies"""


@dataclass(frozen=True)
class ExtractionFlags:
    """this machine"""

    COMMON: ClassVar = ("device", "workers", "max_hours", "fresh", "continue_from")
    device: str = "auto"
    """auto (all GPUs, else the CPU), cpu, cuda:1, or several with a process each: cuda:0,cuda:1 or cpu,cpu"""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """auto: bf16 from capability 8.0, fp16 on 7.x; for ast on a CPU bf16 where it is faster; else fp32"""
    batch_size: Annotated[int, Bounds(1)] = 16
    """windows per forward pass; halved by itself when memory runs out"""
    workers: Annotated[int, Bounds(0)] = 0
    """threads that decode (default: the cores)"""
    pictures: Annotated[int | None, Bounds(0)] = None
    """draw mel spectrograms, Spectrogram/<class>/<clip>.png: of so many clips of each class, without a number
    of all"""
    pictures_out: str | None = None
    """where Spectrogram/ goes (default: the cache's folder)"""
    max_hours: Annotated[float | None, Bounds(0)] = None
    """stop cleanly at a safe point after so many hours; the same command continues"""
    fresh: bool = False
    """throw this cache away and start over"""
    continue_from: str | None = None
    """folder of earlier outputs to pick up, read-only (default: what is attached under /kaggle/input)"""


@dataclass(frozen=True)
class RunFlags:
    """which features, which head"""

    COMMON: ClassVar = ("recipe", "features", "name", "head", "fold", "tune", "pseudo", "out")
    recipe: str | None = None
    """recipes/NAME.yaml or a YAML file (default: the one that the cache was made with, else linear; for
    another --head neutral settings)"""
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
    tune: Annotated[int, Bounds(0, 100000)] = 0
    """search the settings first, by so many trials (Optuna); what it finds is then trained as usual"""
    pseudo: str | None = None
    """learn also from the clips to submit: a finished run on the same folds, whose answers (each fold's
    model's own) are soft labels"""
    pseudo_weight: Annotated[float, Bounds(0, 1)] = 0.5
    """how much such a clip counts beside a labelled one: an epoch draws this share of them"""
    out: str = "submissions/submission.csv"
    """where the submission goes"""
    data: str = "data"
    """where the caches are looked for"""
    runs_folder: str = "runs"
    """where the run goes"""


@dataclass(frozen=True)
class TrainingFlags:
    """training (every one is a key of a recipe's `training` section)"""

    COMMON: ClassVar = ("epochs", "batch_size", "lr", "metric", "folds", "seed", "seeds")
    epochs: Annotated[int, Bounds(1)] = 30
    """passes over the training rows"""
    batch_size: Annotated[int, Bounds(1)] = 32
    """rows per optimiser step; memory running out splits it, the effective size stays"""
    lr: Annotated[float, Bounds(0)] = 1e-3
    """learning rate (the peak, for onecycle and cosine)"""
    optimizer: Literal["adamw", "adam", "sgd", "sam"] = "adamw"
    """sgd is Nesterov's, momentum 0.9; sam is sharpness-aware AdamW: two passes a step"""
    rho: Annotated[float, Bounds(0)] = 0.05
    """radius of sam"""
    weight_decay: Annotated[float, Bounds(0)] = 0.01
    """decoupled in adamw, an L2 term in adam and sgd"""
    schedule: Literal["onecycle", "cosine", "step", "constant"] = "cosine"
    """how the learning rate moves: onecycle and cosine by step, step by epoch"""
    warmup: Annotated[float, Bounds(0, 1)] = 0.1
    """share of the steps that rises (onecycle, cosine)"""
    step_epochs: Annotated[int, Bounds(1)] = 5
    """epochs between two drops (step)"""
    step_gamma: Annotated[float, Bounds(0)] = 0.1
    """factor of a drop (step)"""
    label_smoothing: Annotated[float, Bounds(0, 1)] = 0.0
    """share of the target that is spread over all classes"""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class counts by the inverse of its frequency in the training folds"""
    mixup: Annotated[float, Bounds(0)] = 0.0
    """alpha of the Beta distribution that mixes two rows; 0 is off"""
    mixup_probability: Annotated[float, Bounds(0, 1)] = 1.0
    """share of the batches (pairs different: of the rows) that are mixed"""
    mixup_pairs: Literal["any", "different"] = "any"
    """any two rows, one weight a batch (mixup); or two of different classes, a weight a pair (between-class,
    alpha 1)"""
    mixup_domain: Literal["linear", "power"] = "linear"
    """mix the features as they are, or the powers under a log-mel in dB: two sounds at once"""
    time_mask: Annotated[int, Bounds(0)] = 0
    """longest time mask in frames; 0 is off"""
    frequency_mask: Annotated[int, Bounds(0)] = 0
    """longest frequency mask in bins; 0 is off"""
    num_masks: Annotated[int, Bounds(0)] = field(default=1, metadata=formerly("masks"))
    """masks of either kind per row"""
    time_shift: Annotated[float, Bounds(0, 1)] = 0.0
    """roll a row in time by up to this share of the window, either way"""
    time_stretch: Annotated[float, Bounds(0, 4)] = 0.0
    """read a row slower or faster by a factor of up to 1 + this"""
    crop_share: Annotated[float, Bounds(0.01, 1)] = field(default=1.0, metadata=formerly("crop"))
    """train on a random part of this share of the window; the whole window is predicted"""
    frequency_shift: Annotated[float, Bounds(0)] = 0.0
    """move the spectrum by up to so many bins either way"""
    gain: Annotated[float, Bounds(0)] = 0.0
    """add up to so many units (dB on a dB log-mel) either way"""
    clip_grad: Annotated[float, Bounds(0)] = 0.0
    """largest gradient norm; 0 is off"""
    ema: Annotated[float, Bounds(0, 0.999999)] = 0.0
    """decay a step of the weights' moving average, which is what predicts; 0 is off, 0.99 to 0.9999 is
    usual"""
    windows: Annotated[int | None, Bounds(1)] = field(default=None, metadata=RECORDED_WHERE_CHANGED)
    """windows of a clip that an epoch trains on, drawn anew each time, so that long clips do not outweigh
    short ones (default: all)"""
    pool: Literal["mean", "probability", "max", "top3"] = field(
        default="mean", metadata=RECORDED_WHERE_CHANGED
    )
    """a clip's prediction from those of its windows: the mean of the logits (one label a clip: the geometric
    mean of the probabilities), the mean of the probabilities, each class's largest logit, or the mean of its
    three largest"""
    loss: Literal["entropy", "focal"] = field(default="entropy", metadata=RECORDED_WHERE_CHANGED)
    """cross-entropy (binary where clips have several labels), or focal: the same, times (1 - p)^2 of the
    right answer's probability p"""
    snapshots: Annotated[int, Bounds(0)] = field(default=0, metadata=RECORDED_WHERE_CHANGED)
    """predict by the mean of the weights after each of the last so many epochs; 0 is off"""
    tta: Annotated[int, Bounds(1, 100)] = 1
    """predict by the mean over so many circular shifts in time (the scores of single epochs do without)"""
    metric: Metric = "f1_macro"
    """chooses the best checkpoint (default: the contest's own where the cache knows it); map_at_3 is for one
    label a clip, map_macro and lwlrap are for several"""
    folds: Annotated[int | None, Bounds(2)] = None
    """make K grouped stratified folds (default: the data's own, else 5)"""
    seed: Annotated[int, Bounds(0)] = 0
    """of everything random"""
    seeds: Annotated[int, Bounds(1, 100)] = field(default=1, metadata=RECORDED_WHERE_CHANGED)
    """train every fold with so many seeds, from --seed on, and predict by their mean"""
    refit: bool = field(default=False, metadata=RECORDED_WHERE_CHANGED)
    """after the folds train on all labelled clips, a model a seed: they predict the submission, by their
    final epoch"""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """auto: bf16 from capability 8.0, fp16 on 7.x, fp32 elsewhere; on a CPU what a trial of the head finds
    clearly faster"""


@dataclass(frozen=True)
class TrainMachineFlags:
    """this machine"""

    COMMON: ClassVar = ("device", "max_hours", "report", "fresh", "continue_from")
    device: str = "auto"
    """auto (all GPUs, else the CPU), cpu, cuda:1, or several with a process each: cuda:0,cuda:1 or cpu,cpu"""
    max_hours: Annotated[float | None, Bounds(0)] = None
    """stop cleanly at a safe point after so many hours; the same command continues"""
    memory: Annotated[float | None, Bounds(0)] = None
    """GB that a split's features may take to be kept at hand, on the GPU or here; larger ones are read from
    the disk as they are needed, with the same result (default: a quarter of what is free)"""
    save_every: Annotated[float, Bounds(0)] = 10.0
    """minutes between checkpoints inside a long epoch; 0: after every step"""
    report: bool = True
    """draw the pictures and report.html at the end; --no-report leaves them to python -m earshot.report"""
    wandb: bool = False
    """track with Weights & Biases, too (pip install wandb; WANDB_MODE=offline keeps it on this machine)"""
    fresh: bool = False
    """throw this run away and start over"""
    continue_from: str | None = None
    """folder of earlier outputs to pick up, read-only (default: what is attached under /kaggle/input)"""


@dataclass(frozen=True)
class PredictFlags:
    """what predicts what"""

    COMMON: ClassVar = ("runs", "blend", "name", "features", "audio", "out", "top", "device")
    runs: tuple[str, ...] = ()
    """folders (or names in runs/) of runs and kept blends whose predictions are blended"""
    blend: Literal["mean", "auto", "greedy", "simplex"] = "mean"
    """mean: of the runs' best checkpoints, nothing fitted; greedy (selection with replacement) and simplex
    (least log loss) fit weights, and class factors or thresholds, to the out-of-fold predictions of the final
    epochs, which then predict; auto chooses"""
    name: str | None = None
    """keep the blend as runs/NAME, which --runs opens again (a mean is then of the final epochs, too)"""
    report: bool = True
    """draw the kept blend's pictures and report.html; --no-report leaves them to python -m earshot.report"""
    features: str | None = None
    """cache with the clips to submit (default: the one each run was trained on)"""
    audio: str | None = None
    """a file or folder of new audio to predict instead of the competition's clips"""
    weights: str | None = None
    """the extractor's weights, for --audio, where they moved"""
    runs_folder: str = "runs"
    """where runs are looked for by name"""
    out: str | None = None
    """where the predictions go (default: submissions/submission.csv, with --audio
    submissions/predictions.csv)"""
    top: Annotated[int, Bounds(1)] = 3
    """classes shown per loose file"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""


def check(settings: Any) -> None:
    """Raise UserError for a number outside its bounds, NaN included, or settings that do nothing together."""
    if isinstance(settings, TrainingFlags) and not settings.mixup and settings.mixup_pairs == "different":
        raise UserError("--mixup-pairs different mixes nothing without --mixup: add --mixup 1")
    if isinstance(settings, TrainingFlags) and settings.snapshots and settings.ema:
        raise UserError("--snapshots and --ema are two ways to average the weights: leave one out")
    check_bounds(settings)
