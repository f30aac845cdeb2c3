"""AST, the Audio Spectrogram Transformer pretrained on AudioSet (Gong et al., 2021), frozen, through transformers.

Views: `pooled` (768, 1, 1), `frames` (768, 1, T) = mean over the frequency patches, `tokens` (768, F, T) on request;
the default network has T 101 and F 12. Everything about its size is read from its config.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Iterator

from earshot.errors import UserError
from earshot.extractors import base, frontend

if TYPE_CHECKING:
    import torch

RATE: int | None = 16000
PAD = "silence"  # the network was trained on zero-padded clips
SECONDS: float | None = 10.24  # 1024 frames of 10 ms
LIMIT = 10.24
DEFAULT_WEIGHTS: str | None = "MIT/ast-finetuned-audioset-10-10-0.4593"

VIEWS = ("pooled", "frames", "tokens")
FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
WAYS_OUT = (
    "go online once, or give --weights FOLDER (config.json and model.safetensors, for example an attached Kaggle "
    "dataset), or take another extractor (--extractor efficientat or logmel)"
)


@dataclass(frozen=True)
class Settings:
    """What to keep of AST's output."""

    views: tuple[str, ...] = ("pooled", "frames")
    """Any of pooled (one vector), frames (one per 100 ms) and tokens (every patch: 12 times as large)."""


def weights_files(settings: Settings, weights: str | None) -> list[Path]:
    """The local files that define the network, without importing torch.

    Returns:
        config, preprocessor config and safetensors of a folder or of the hub's cache; [] if not cached yet.
    Raises:
        UserError: `weights` looks like a path and does not exist, or holds no usable model.
    """
    folder = _local(weights or DEFAULT_WEIGHTS)
    if folder is None:
        return []
    return sorted({path for pattern in FILES for path in folder.glob(pattern)})


def fetch(settings: Settings, weights: str | None) -> None:
    """Make the weights available locally, from the hub if need be; UserError where they cannot be had."""
    _folder(weights or DEFAULT_WEIGHTS)


class Extractor(base.Extractor):
    """See `base.Extractor`; UserError for weights that are missing or do not fit."""

    def __init__(
        self,
        settings: Settings,
        window: base.Window,
        device: str = "cpu",
        weights: str | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__(settings, window, device, weights, precision)
        wrong = [view for view in settings.views if view not in VIEWS]
        if wrong or not settings.views:
            raise UserError(f"ast: --views {' '.join(wrong) or '(none)'}: choose from {', '.join(VIEWS)}")
        folder = _folder(weights or DEFAULT_WEIGHTS)
        saved = folder / "preprocessor_config.json"
        front = _json(saved) if saved.exists() else {}
        normalised = front.get("do_normalize", True)
        self.mean = float(front.get("mean", -4.2677393)) if normalised else 0.0
        self.std = float(front.get("std", 4.5689974)) if normalised else 0.5
        if self.rate != front.get("sampling_rate", RATE):
            raise UserError(f"ast: hears {front.get('sampling_rate', RATE)} Hz, not {self.rate} Hz: leave out --rate")
        self._build(_load(folder))

    def _build(self, network: torch.nn.Module) -> None:
        """Adopt a network: window, grid of patches and shapes follow from its config."""
        config = network.config
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.bins, self.max_length = config.num_mel_bins, config.max_length
        hears = self.max_length * (self.rate // 100) / self.rate
        if self.window.seconds > hears + 0.005:
            raise UserError(
                f"ast: a window of {self.window.seconds:g} s is more than the {hears:g} s that these weights hear: "
                f"set --seconds {hears:g} or less"
            )
        self.span = hears  # shorter windows are padded to it
        patch = config.patch_size
        rows = (self.bins - patch) // config.frequency_stride + 1
        columns = (self.max_length - patch) // config.time_stride + 1
        self.grid = (rows, columns)
        sizes = {"pooled": (1, 1), "frames": (1, columns), "tokens": self.grid}
        self.shapes = {view: (config.hidden_size, *sizes[view]) for view in self.settings.views}

    def forward(self, waves: torch.Tensor, lengths: list[float]) -> dict[str, torch.Tensor]:
        """Views of a batch of windows; see `base.Extractor.forward`."""
        real = lengths if self.window.pad == "silence" else None  # a repeated clip is real to its end
        front = (self.max_length, self.bins, self.mean, self.std, self.rate)
        output = self.network(frontend.ast_input(waves, real, *front))
        # two special tokens, then the patches with frequency as the slow index
        grid = output.last_hidden_state[:, 2:].float().unflatten(1, self.grid).permute(0, 3, 1, 2)
        views = {
            "pooled": output.pooler_output.float()[:, :, None, None],
            "frames": grid.mean(dim=2, keepdim=True),
            "tokens": grid,
        }
        return {view: views[view] for view in self.settings.views}


def _load(folder: Path) -> torch.nn.Module:
    """ASTModel from a folder, quietly; UserError where keys are missing or shapes differ."""
    with _quiet_transformers():
        from transformers import ASTModel

        try:
            network, report = ASTModel.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # transformers raises OSError, ValueError, RuntimeError, SafetensorError, ...
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"ast: the weights in {folder} cannot be loaded ({reason}): {WAYS_OUT}") from None
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise UserError(
            f"ast: the weights in {folder} lack {len(lacking)} of the network's tensors (the first: {lacking[0]}), "
            f"so they are no complete AST: {WAYS_OUT}"
        )
    return network


def _folder(weights: str) -> Path:
    """The local folder of the weights, downloaded from the hub where it is not here yet."""
    folder = _local(weights)
    if folder is not None:
        return folder
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")  # read when huggingface_hub is first imported
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(weights, allow_patterns=FILES, etag_timeout=5))
    except Exception as error:  # offline, unknown, gated, disk full: each library version has its own exceptions
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise UserError(f"ast: {weights} is neither here nor to be had from the hub ({reason}): {WAYS_OUT}") from None
    return _checked(folder)


def _local(weights: str) -> Path | None:
    """The folder of weights that are here, as a path or in the hub's cache; None for a hub id that is not cached."""
    path = base.local(weights)
    if path is not None:
        if path.is_file():
            raise UserError(f"ast: --weights {weights} is a file: give the folder that has config.json in it")
        nested = [path, *sorted(found.parent for found in path.glob("*/config.json"))]
        return _checked(next((folder for folder in nested if (folder / "config.json").exists()), path))
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", weights):
        raise UserError(f"ast: --weights {weights}: no such folder, and no hub id (owner/name) either")
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(weights, "config.json")
    folder = Path(config).parent if isinstance(config, str) else None
    # a download that was interrupted leaves the config without the weights
    return folder if folder is not None and any(folder.glob("*.safetensors")) else None


def _checked(folder: Path) -> Path:
    """The folder if it holds an AST as safetensors, else a UserError that says what it lacks."""
    if not (folder / "config.json").exists():
        raise UserError(f"ast: {folder} has no config.json, so no model in it: {WAYS_OUT}")
    kind = _json(folder / "config.json").get("model_type")
    if kind != "audio-spectrogram-transformer":
        raise UserError(f"ast: {folder} holds a model of type {kind}, not audio-spectrogram-transformer: {WAYS_OUT}")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        why = "only pickled weights (*.bin), which can run code" if pickled else "no model.safetensors"
        raise UserError(f"ast: {folder} has {why}: save it as safetensors (save_pretrained does), or {WAYS_OUT}")
    return folder


def _json(path: Path) -> dict:
    """A JSON object from a file; UserError where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"ast: {path} is no readable JSON ({' '.join(str(error).split())[:80]})") from None
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without transformers' loading report and progress bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
