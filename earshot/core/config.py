"""Settings: dataclasses whose fields are the flags; recipes (`earshot.core.recipes`) set their defaults."""

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
    """the data, and what extracts its features"""

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
    """folder or zip of a competition; or a download: a Kaggle competition's SLUG, datasets/OWNER/SLUG, esc50
    (default: the only one in --out, else the built-in sample competition)"""
    recipe: str | None = None
    """recipes/NAME.yaml or a YAML file: sets the defaults of the flags below (default: itmo2025_tokens; for
    the sample competition: sample)"""
    extractor: str | None = None
    """what turns audio into features (default: the recipe's)"""
    weights: str | None = None
    """the extractor's weights: a local file or folder, or a hub id"""
    for_run: str | None = None
    """a saved run: extract only the clips to submit, with that run's settings, as a code competition's
    notebook needs them; clips skipped by --max-hours are filled with class priors"""
    cache: str | None = None
    """name of the cache folder (default: the recipe's, else the extractor's name)"""
    out: str = "data"
    """where caches go: OUT/<competition>/<cache>/"""
    task: Literal["auto", "single", "multilabel"] = "auto"
    """one label per clip, or several (in one cell, or as 0/1 columns); auto: what the csv looks like"""
    holdout: str | None = None
    """labelled clips to hold out as a test set: a fraction (0.2) or one of the data's folds (5)"""
    train_csv: tuple[str, ...] = ()
    """the csv of the training clips, if it isn't found; may be repeated"""
    extra_csv: tuple[str, ...] = ()
    """FILE:WEIGHT, a csv with noisy labels: its clips are trained on with this weight and never validated on;
    may be repeated"""
    id_column: str | None = None
    """the csv's column of file names, if it isn't found"""
    label_column: str | None = None
    """the csv's column of labels, if it isn't found"""
    label_pattern: str | None = None
    """regular expression for labels in file names; its first group is the label: '_([A-Z]+)_\\d+\\.wav$'"""
    label_map: tuple[str, ...] = ()
    """OLD=NEW renames a label, OLD= drops its clips, NAME keeps it, others=NEW renames the rest"""
    group_column: str | None = None
    """the csv's column of groups, such as speakers or recordings: a group is never split across folds; none:
    no groups (default: an obvious one)"""
    group_pattern: str | None = None
    """regular expression for groups in file names; its first group is the clip's group"""
    noise_class: str | None = None
    """name of an extra class cut from the recordings in folders named _like_this_ (default: they are left
    out)"""
    audio_folder: str | None = None
    """which folder to read if several hold the same clips (default: the one with the highest sampling
    rate)"""


@dataclass(frozen=True)
class WindowFlags:
    """how clips are cut into windows and padded"""

    COMMON: ClassVar = ("seconds", "hop")
    seconds: Annotated[float | None, Bounds(0.01, 3600)] = None
    """length of a window (default: the extractor's, else chosen from the training clips)"""
    hop: Annotated[float | None, Bounds(0.01, 3600)] = None
    """seconds from one window to the next in long clips (default: one window)"""
    pad: Literal["wrap", "silence"] | None = None
    """fill short clips by repeating them, or with silence (default: the extractor's default, else wrap)"""
    max_windows: Annotated[int | None, Bounds(1)] = None
    """keep only the first N windows of a long clip (default: all)"""


@dataclass(frozen=True)
class AugmentFlags:
    """augmented copies of the training clips, made once and cached; other splits have none"""

    COMMON: ClassVar = ("augment",)
    augment: Annotated[int, Bounds(0, 1000)] = 0
    """copies of each training clip, each with its own random draw of the changes below; 0: none"""
    speed: Annotated[float, Bounds(1, 4)] = 1.25
    """play slower or faster by up to this factor, which also moves the pitch; 1: off"""
    stretch: Annotated[float, Bounds(1, 4)] = 1.0
    """stretch time by up to this factor and keep the pitch, some 30 times the work of --speed; 1: off"""
    pitch: Annotated[float, Bounds(0, 24)] = 0.0
    """shift the pitch by up to this many semitones and keep the tempo, as much work as --stretch; 0: off"""
    shift: Annotated[float, Bounds(0, 1)] = 0.5
    """roll in time by up to this share of the clip's length, either way"""
    noise: Annotated[float | None, Bounds(-60, 120)] = None
    """add white noise at a signal-to-noise ratio from this many dB to 20 dB more (default: none)"""
    bc_mix: Annotated[float, Bounds(0, 1)] = field(default=0.0, metadata=formerly("between"))
    """probability of mixing in a clip of another class, with its label (between-class learning)"""
    augment_gain: Annotated[float, Bounds(0, 60)] = 6.0
    """make louder or softer by up to this many dB"""
    augment_seed: Annotated[int, Bounds(0)] = 0
    """random seed of the copies"""


@dataclass(frozen=True)
class ClusterFlags:
    """where to run on several machines"""

    cluster: str | None = None
    """run on a Ray cluster: HOST:PORT of its head, auto (the one that this machine belongs to), or local (a
    rehearsal on this machine with 2 nodes)"""
    cluster_workers: Annotated[int, Bounds(0)] = 0
    """workers on the cluster, at most; with local also its nodes; 0: as many as there is room for"""
    cpus_per_worker: Annotated[int, Bounds(0)] = 0
    """CPUs, and threads, of each worker on the cluster; 0: those of a node, shared among its GPUs"""


@dataclass(frozen=True)
class ExtractionFlags(ClusterFlags):
    """devices, time and where to continue"""

    COMMON: ClassVar = ("device", "workers", "max_hours", "fresh", "continue_from")
    device: str = "auto"
    """auto (all GPUs, else the CPU), cpu, cuda:1, or several, one process each: cuda:0,cuda:1 or cpu,cpu"""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """auto: bf16 from compute capability 8.0, fp16 on 7.x, bf16 for ast on CPUs where it is faster, else
    fp32"""
    batch_size: Annotated[int, Bounds(1)] = 16
    """windows per forward pass; halved automatically when memory runs out"""
    workers: Annotated[int, Bounds(0)] = 0
    """decoding threads; 0: one per core"""
    pictures: Annotated[int | None, Bounds(0)] = None
    """draw mel spectrograms as Spectrogram/<class>/<clip>.png for this many clips per class; without a
    number: for all"""
    pictures_out: str | None = None
    """folder for Spectrogram/ (default: the cache's folder)"""
    max_hours: Annotated[float | None, Bounds(0)] = None
    """stop cleanly at a safe point after this many hours; the same command continues"""
    fresh: bool = False
    """delete this cache and start over"""
    continue_from: str | None = None
    """folder of earlier outputs to pick up, read-only (default: what is attached under /kaggle/input)"""


@dataclass(frozen=True)
class RunFlags:
    """the features, the head and where results go"""

    COMMON: ClassVar = ("recipe", "features", "name", "head", "fold", "tune", "pseudo", "out")
    recipe: str | None = None
    """recipes/NAME.yaml or a YAML file; auto tries many (default: the cache's recipe, else linear; for
    another --head neutral settings)"""
    features: str | None = None
    """the cache folder to train on (default: the one that matches the recipe, else the one finished last)"""
    name: str | None = None
    """name of the run (default: <recipe>-<hash of the settings>)"""
    head: str | None = None
    """the head, as `python -m models` lists them; --head.OPTION VALUE sets an option of it"""
    view: str | None = None
    """the cache's view to train on (default: the one that suits the head best)"""
    fold: tuple[int, ...] = ()
    """train only these folds (the data's own numbers, else 0 ... K-1) (default: all)"""
    tune: Annotated[int, Bounds(0, 100000)] = 0
    """first search the settings with this many Optuna trials, then train the best; 0: no search"""
    pseudo: str | None = None
    """also train on the clips to submit, with pseudo-labels (soft) of this finished run on the same folds;
    each fold uses only the run's model of that fold"""
    pseudo_weight: Annotated[float, Bounds(0, 1)] = 0.5
    """weight of a pseudo-labelled clip: the share of them that an epoch draws"""
    out: str = "submissions/submission.csv"
    """where the submission goes"""
    data: str = "data"
    """folder of the caches"""
    runs_folder: str = "runs"
    """folder of the runs"""


@dataclass(frozen=True)
class TrainingFlags:
    """how to train: each flag is also a key of a recipe's `training` section"""

    COMMON: ClassVar = ("epochs", "batch_size", "lr", "metric", "folds", "seed", "seeds")
    epochs: Annotated[int, Bounds(1)] = 30
    """passes over the training rows"""
    batch_size: Annotated[int, Bounds(1)] = 32
    """rows per optimiser step; split when memory runs out, with the same effective size"""
    lr: Annotated[float, Bounds(0)] = 1e-3
    """learning rate (the peak, for onecycle and cosine)"""
    optimizer: Literal["adamw", "adam", "sgd", "sam"] = "adamw"
    """sgd: Nesterov, momentum 0.9; sam: sharpness-aware AdamW, two passes per step"""
    rho: Annotated[float, Bounds(0)] = 0.05
    """radius of sam"""
    weight_decay: Annotated[float, Bounds(0)] = 0.01
    """decoupled for adamw, an L2 term for adam and sgd"""
    schedule: Literal["onecycle", "cosine", "step", "constant"] = "cosine"
    """of the learning rate: onecycle and cosine change per step, step per epoch"""
    warmup: Annotated[float, Bounds(0, 1)] = 0.1
    """share of the steps in which the learning rate rises (onecycle, cosine)"""
    step_epochs: Annotated[int, Bounds(1)] = 5
    """epochs between two drops (step)"""
    step_gamma: Annotated[float, Bounds(0)] = 0.1
    """factor of a drop (step)"""
    label_smoothing: Annotated[float, Bounds(0, 1)] = 0.0
    """share of the target spread over all classes"""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weight classes by their inverse frequency in the training folds"""
    mixup: Annotated[float, Bounds(0)] = 0.0
    """alpha of the Beta distribution for mixing two rows; 0: off"""
    mixup_probability: Annotated[float, Bounds(0, 1)] = 1.0
    """share of batches that are mixed (--mixup-pairs different: of rows)"""
    mixup_pairs: Literal["any", "different"] = "any"
    """any: any two rows, one weight per batch (mixup); different: two classes, one weight per pair
    (between-class, alpha 1)"""
    mixup_domain: Literal["linear", "power"] = "linear"
    """linear: mix the features; power: mix the powers behind a log-mel in dB, as two sounds at once"""
    time_mask: Annotated[int, Bounds(0)] = 0
    """longest time mask in frames; 0: off"""
    frequency_mask: Annotated[int, Bounds(0)] = 0
    """longest frequency mask in bins; 0: off"""
    num_masks: Annotated[int, Bounds(0)] = field(default=1, metadata=formerly("masks"))
    """masks of each kind per row"""
    time_shift: Annotated[float, Bounds(0, 1)] = 0.0
    """roll rows in time by up to this share of the window, either way"""
    time_stretch: Annotated[float, Bounds(0, 4)] = 0.0
    """stretch rows in time by a factor of up to 1 + this"""
    crop_share: Annotated[float, Bounds(0.01, 1)] = field(default=1.0, metadata=formerly("crop"))
    """train on random crops of this share of the window; predictions use the whole window"""
    frequency_shift: Annotated[float, Bounds(0)] = 0.0
    """shift the spectrum by up to this many bins, either way"""
    gain: Annotated[float, Bounds(0)] = 0.0
    """add up to this many units (dB on a dB log-mel), either way"""
    clip_grad: Annotated[float, Bounds(0)] = 0.0
    """largest gradient norm; 0: off"""
    ema: Annotated[float, Bounds(0, 0.999999)] = 0.0
    """decay per step of the weights' moving average, which then predicts; usual: 0.99 to 0.9999; 0: off"""
    windows: Annotated[int | None, Bounds(1)] = field(default=None, metadata=RECORDED_WHERE_CHANGED)
    """windows per clip and epoch, drawn at random, so that long clips don't outweigh short ones (default:
    all)"""
    pool: Literal["mean", "probability", "max", "top3"] = field(
        default="mean", metadata=RECORDED_WHERE_CHANGED
    )
    """how windows become a clip's prediction: mean of the logits (for one label per clip the geometric mean
    of probabilities), mean of the probabilities, each class's largest logit, or mean of its three largest"""
    loss: Literal["entropy", "focal"] = field(default="entropy", metadata=RECORDED_WHERE_CHANGED)
    """cross-entropy (binary if clips may have several labels), or focal: cross-entropy times (1 - p)^2, with
    p the probability of the true label"""
    snapshots: Annotated[int, Bounds(0)] = field(default=0, metadata=RECORDED_WHERE_CHANGED)
    """average the weights of the last N epochs; 0: off"""
    tta: Annotated[int, Bounds(1, 100)] = 1
    """test-time augmentation: predict with the mean over this many circular shifts in time (not used for
    epoch scores)"""
    metric: Metric = "f1_macro"
    """chooses the best checkpoint; map_at_3 is for one label per clip, map_macro and lwlrap are for several
    (default: the competition's, if known, else f1_macro)"""
    folds: Annotated[int | None, Bounds(2)] = None
    """number of grouped stratified folds (default: the data's own folds, else 5)"""
    seed: Annotated[int, Bounds(0)] = 0
    """random seed"""
    seeds: Annotated[int, Bounds(1, 100)] = field(default=1, metadata=RECORDED_WHERE_CHANGED)
    """train each fold with this many seeds, starting at --seed, and predict with their mean"""
    refit: bool = field(default=False, metadata=RECORDED_WHERE_CHANGED)
    """after the folds, train on all labelled clips, one model per seed; their last epoch predicts the
    submission"""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """auto: bf16 from compute capability 8.0, fp16 on 7.x, fp32 elsewhere; on a CPU whichever a short trial
    finds clearly faster"""


@dataclass(frozen=True)
class TrainMachineFlags(ClusterFlags):
    """devices, time, report and where to continue"""

    COMMON: ClassVar = ("device", "max_hours", "report", "fresh", "continue_from")
    device: str = "auto"
    """auto (all GPUs, else the CPU), cpu, cuda:1, or several, one process each: cuda:0,cuda:1 or cpu,cpu"""
    max_hours: Annotated[float | None, Bounds(0)] = None
    """stop cleanly at a safe point after this many hours; the same command continues"""
    memory: Annotated[float | None, Bounds(0)] = None
    """GB: a split whose features fit is kept in memory, of the GPU or the CPU; larger ones are read from
    disk, with the same result (default: a quarter of what is free)"""
    save_every: Annotated[float, Bounds(0)] = 10.0
    """minutes between checkpoints within a long epoch; 0: after every step"""
    report: bool = True
    """draw the plots and report.html at the end; python -m earshot.report does it later"""
    wandb: bool = False
    """also log to Weights & Biases (pip install wandb; WANDB_MODE=offline keeps logs on this machine)"""
    fresh: bool = False
    """delete this run and start over"""
    continue_from: str | None = None
    """folder of earlier outputs to pick up, read-only (default: what is attached under /kaggle/input)"""


@dataclass(frozen=True)
class PredictFlags(ClusterFlags):
    """which runs predict which clips"""

    COMMON: ClassVar = ("runs", "blend", "name", "features", "audio", "hidden", "out", "top", "device")
    runs: tuple[str, ...] = ()
    """runs and kept blends (folders, or names in runs/) to predict with; several are blended (default: the
    one finished last)"""
    blend: Literal["mean", "rank", "auto", "pool", "simplex", "greedy"] = "mean"
    """mean: of the runs' best checkpoints, nothing fitted; rank: the mean of the clips' ranks within each
    class, for metrics such as ROC AUC; pool: weights of lowest log loss for the geometric mean, shrunk
    towards equal ones, and class factors or thresholds, fitted to the out-of-fold predictions of the last
    epochs, which then predict; auto: this pool, or the best run alone where the pool is worse by more
    than a standard error; simplex, greedy: old names of pool"""
    name: str | None = None
    """keep the blend as runs/NAME for --runs (a mean then also uses the last epochs)"""
    report: bool = True
    """draw the kept blend's plots and report.html; python -m earshot.report does it later"""
    features: str | None = None
    """cache with the clips to submit (default: the one that each run was trained on)"""
    audio: str | None = None
    """a file or folder of new audio to predict instead of the competition's clips"""
    hidden: bool = False
    """a code competition's clips to submit (of the attached competition, or of --competition): extract them
    as each run needs them, and predict them meanwhile"""
    max_hours: Annotated[float | None, Bounds(0)] = None
    """time for --hidden's features; clips that it leaves no time for are filled with class priors"""
    weights: str | None = None
    """the extractor's weights for --audio and --hidden, if they have moved"""
    fit_stretches: str | None = None
    """fit how much neighbouring stretches count, on recordings mixed from this competition's training clips
    (folder, zip or slug), where rows are stretches of recordings; kept with each run"""
    smooth: bool = True
    """mix a stretch's probabilities with its neighbours', as fitted by --fit-stretches"""
    runs_folder: str = "runs"
    """folder of the runs"""
    out: str | None = None
    """where predictions go (default: submissions/submission.csv, with --audio
    submissions/predictions.csv)"""
    top: Annotated[int, Bounds(1)] = 3
    """classes shown per file"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ...; with --cluster: which nodes extract the features of --audio"""


@dataclass(frozen=True)
class DryRunFlags:
    """how long a code competition's hidden clips will take"""

    COMMON: ClassVar = ("dry_run", "files", "seconds", "cores", "budget")
    dry_run: bool = False
    """measure on this machine, predict nothing: the minutes by stage, do they fit, and what to leave out"""
    files: Annotated[int | None, Bounds(1)] = None
    """number of hidden recordings (default: those of --audio or --hidden, else 600)"""
    seconds: Annotated[float | None, Bounds(0.1, 43200)] = None
    """length of each (default: that of --audio's or --hidden's, else 60)"""
    cores: Annotated[int | None, Bounds(1)] = None
    """cores of the machine that will predict (default: as many as here)"""
    budget: str = "90m"
    """the time that is allowed: 90m, 1.5h, 5400s"""


def check(settings: Any) -> None:
    """Raise UserError for a number outside its bounds, NaN included, or for settings that contradict each
    other."""
    if isinstance(settings, TrainingFlags) and not settings.mixup and settings.mixup_pairs == "different":
        raise UserError("--mixup-pairs different mixes nothing without --mixup: add --mixup 1")
    if isinstance(settings, TrainingFlags) and settings.snapshots and settings.ema:
        raise UserError("--snapshots and --ema both average the weights: leave one out")
    check_bounds(settings)
