"""EfficientAT: MobileNetV3 distilled from transformers on AudioSet (Schmid et al., ICASSP 2023), frozen.

Views: `pooled` (C, 1, 1) = global mean of the last feature map, `frames` (C, 4, T') = that map, one column
per 0.32 s, `blocks` (C', 1, 1) = global means of the map that each block projects and of the last map (lower
layers know more of sounds unlike AudioSet's: Schmid et al., EUSIPCO 2023), `spectrogram` (1, 128, T) = the
network's input, for the head `efficientat`, which fine-tunes it.
The network is that of models/efficientat.py. The published weights are release files of
github.com/fschmid56/EfficientAT (MIT licence). Only mn04's checksum is known here: the others are checked
strictly by names and shapes, and read as plain data.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from earshot.core import kaggle_paths
from earshot.core.errors import Refused, UserError, raise_if_temporary
from earshot.extractors import base, mel
from earshot.extractors.base import RECORDED_WHERE_CHANGED

if TYPE_CHECKING:
    import torch

URL = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"
FILES = {
    "mn04": "mn04_as_mAP_432.pt",
    "mn05": "mn05_as_mAP_443.pt",
    "mn10": "mn10_as_mAP_471.pt",
    "mn20": "mn20_as_mAP_478.pt",
    "mn30": "mn30_as_mAP_482.pt",
    "mn40": "mn40_as_mAP_484.pt",
    "mn40_ext": "mn40_as_ext_mAP_487.pt",
}
SHA256 = {"mn04_as_mAP_432.pt": "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c"}
TIMEOUT = 20  # seconds without a byte
LARGEST = 400 << 20  # bytes of a file of weights; mn40_ext has 280 MB

N_FFT, WIN, HOP, BINS, FMAX = 1024, 800, 320, 128, 15000.0
STRIDE2 = 5  # the network halves both axes so often
SPECTRA = 2  # at a time on a CPU, by its caches: 1.6 ms each against 4.1 with 16


@dataclass(frozen=True)
class Settings:
    """EfficientAT: a MobileNet distilled on AudioSet"""

    COMMON: ClassVar = ("network", "views")
    network: Literal["mn04", "mn05", "mn10", "mn20", "mn30", "mn40", "mn40_ext"] = "mn04"
    """the network, by width: mn04 has 1 M parameters and AudioSet mAP .432, mn10 4.9 M and .471, mn40_ext
    68 M and .487"""
    views: tuple[str, ...] = field(default=("pooled", "frames", "blocks"), metadata=RECORDED_WHERE_CHANGED)
    """views to keep: pooled (one vector), frames (the last feature map), blocks (one vector of all layers,
    for sounds unlike AudioSet's), spectrogram (the network's input, for the head efficientat)"""

    @property
    def needs_network(self) -> bool:
        """Is a view chosen that the network computes?"""
        return self.views != ("spectrogram",)


class Extractor(base.Extractor):
    """See `base.Extractor`; UserError for weights that are missing or do not fit."""

    views = {"pooled": "vector", "frames": "grid", "blocks": "vector", "spectrogram": "spectrogram"}
    rate = 32000
    half = True
    at_once = 8

    @classmethod
    def find_weights(cls, settings: Settings, weights: str | None) -> list[Path]:
        """The weights' file: as given, in the given folder, the cached download, or attached.

        Returns:
            [file], or [] if it is not downloaded yet.
        Raises:
            UserError: `weights` does not exist or has no such file, or none are needed.
        """
        if not settings.needs_network:
            if weights is not None:
                raise UserError(
                    "efficientat: the view spectrogram needs no weights: leave --weights out here, and give "
                    "them to train.py by --head.weights"
                )
            return []
        if weights is None:
            cached = _find_hub_folder() / _get_file_name(settings)
            there = cached if cached.is_file() else kaggle_paths.find_by_name(cached.name)
            return [there] if there else []
        path = base.find_local(weights)
        if path is None:
            raise UserError(
                f"efficientat: --weights {weights}: no such file or folder (without --weights they are "
                "downloaded)"
            )
        if path.is_file():
            return [path]
        name = _get_file_name(settings)
        found = [file for file in (path / name, *sorted(path.glob(f"*/{name}"))) if file.is_file()]
        if not found:
            raise UserError(
                f"efficientat: {name} is not in {weights}: put it there, or give the file itself by --weights"
            )
        return found[:1]

    @classmethod
    def list_attached(cls) -> list[str]:
        """The attached files of weights that are not larger than any of this family."""
        found = kaggle_paths.find_files(".pt", ".pth", ".safetensors")
        return [str(file) for file in found if file.stat().st_size <= LARGEST]

    @classmethod
    def fetch(cls, settings: Settings, weights: str | None) -> None:
        """Download the weights from the release page if they are not here.

        Raises:
            UserError: the download fails, or is not the published file.
        """
        if cls.find_weights(settings, weights) or not settings.needs_network:
            return
        name = _get_file_name(settings)
        target = _find_hub_folder() / name
        partial = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(URL + name, timeout=TIMEOUT) as reply:
                with tempfile.NamedTemporaryFile(
                    dir=target.parent, prefix=name, suffix=".part", delete=False
                ) as file:
                    partial = Path(file.name)
                    shutil.copyfileobj(reply, file)
                    file.flush()
                    os.fsync(file.fileno())
            if name not in SHA256:
                print(
                    f"efficientat: no checksum of {name} is known here: its names and shapes are checked, "
                    "and its content enters the cache's fingerprint"
                )
            if name in SHA256 and _compute_sha256(partial) != SHA256[name]:
                raise UserError(
                    f"efficientat: {URL}{name} is not the published file (other SHA-256): try again later"
                )
            os.replace(partial, target)
        except OSError as error:
            reason = " ".join(str(error).split())[:80]
            raise UserError(
                f"efficientat: {name} is not in {target.parent}, and {URL}{name} can't be downloaded "
                f"({reason}): go online once, or give --weights FOLDER with it (for example an attached "
                "Kaggle dataset), or take another extractor"
            ) from None
        finally:
            if partial is not None:
                partial.unlink(missing_ok=True)

    def prepare(self) -> None:
        """Load the network; its shapes follow from its width."""
        import torch

        from models.efficientat import count_channels

        settings, window = self.settings, self.window
        wanted = type(self).rate
        if self.rate != wanted:
            raise UserError(
                f"efficientat: the network takes {wanted} Hz, not {self.rate} Hz: leave out --rate"
            )
        if self.samples <= N_FFT:
            raise UserError(
                f"efficientat: a window of {window.seconds:g} s is too short: set --seconds 0.1 or more"
            )
        self.features = None
        if settings.needs_network:
            self.fetch(settings, self.weights)
            network = load(self.find_weights(settings, self.weights)[0], settings.network)
            # depthwise convolutions are faster with channels last: 0.20 s against 0.28 s a batch of
            # 32 on 2 CPU cores
            self.features = fuse_batchnorm(network.features).to(
                self.device, memory_format=torch.channels_last
            )
            self.exportable = "compute_layers" if "blocks" in self.views else "features"
        layers: Any = self.features or ()
        widths = [layer.block[-1][0].in_channels for layer in layers if hasattr(layer, "block")]
        frames, rows = 1 + (self.samples - 1) // HOP, BINS
        spectrogram = (1, rows, frames)
        for _ in range(STRIDE2):
            frames, rows = (frames + 1) // 2, (rows + 1) // 2
        channels = count_channels(settings.network)
        shapes = {
            "pooled": (channels, 1, 1),
            "frames": (channels, rows, frames),
            "blocks": (channels + sum(widths), 1, 1),
            "spectrogram": spectrogram,
        }
        self.map_shape = shapes["frames"]
        self.shapes = {view: shapes[view] for view in self.views}
        self.taper = mel.build_hann(WIN, False, self.device)
        bank = mel.build_mel_bank(BINS, self.rate, N_FFT, 0.0, FMAX, "kaldi")
        self.bank = torch.from_numpy(bank.T.copy()).to(self.device)

    @classmethod
    def describe(cls, settings: Settings, rate: int) -> dict[str, Any]:
        """See `base.Extractor.describe`; of the view `spectrogram`."""
        return {"rate": rate, "bands": BINS, "hop": HOP / rate, "bank": "efficientat"}

    @property
    def band(self) -> tuple[float, float]:
        """See `base.Extractor.band`."""
        return 0.0, FMAX

    def compute_spectrogram(self, waves: torch.Tensor) -> torch.Tensor:
        """The network's input, as published for evaluation.

        Pre-emphasis x[t+1] - 0.97 x[t]; centred STFT of 1024 points, 800-sample symmetric Hann window, hop
        320; power; 128 Kaldi mel bands from 0 to 15 kHz; (log(x + 1e-5) + 4.5) / 5.

        Args:
            waves: (B, samples) float32 at 32 kHz.
        Returns:
            (B, 1, 128, 1 + (samples - 1) // 320).
        """
        import torch

        with mel.disable_autocast(waves):
            emphasised = waves[:, 1:] - 0.97 * waves[:, :-1]
            spectrum = torch.stft(emphasised, N_FFT, HOP, WIN, self.taper, center=True, return_complex=True)
            power = spectrum.real.square() + spectrum.imag.square()
            return (((self.bank @ power + 1e-5).log() + 4.5) / 5)[:, None]

    def compute_layers(self, images: torch.Tensor) -> torch.Tensor:
        """(B, values) of images (B, 1, 128, T): the last feature map, then the mean of the map that each
        block projects."""
        import torch

        x, means = images, []
        for layer in cast(Any, self.features):
            if not hasattr(layer, "use_res_connect"):
                x = layer(x)
                continue
            wide = layer.block[:-1](x)
            means.append(wide.float().mean(dim=(2, 3)))
            projected = layer.block[-1](wide)
            x = projected + x if layer.use_res_connect else projected
        return torch.cat([x.float().flatten(1), *means], 1)

    def forward(self, waves: torch.Tensor, lengths: list[float]) -> dict[str, torch.Tensor]:
        """Views of a batch of windows; see `base.Extractor.forward`."""
        import torch

        parts = waves.split(SPECTRA) if waves.device.type == "cpu" else [waves]
        images = torch.cat([self.compute_spectrogram(part) for part in parts]).contiguous(
            memory_format=torch.channels_last
        )
        views = {"spectrogram": images}
        if self.features is not None:
            means: list[torch.Tensor] = []
            if "blocks" in self.views:
                values, shape = self.compute_layers(images), self.map_shape
                # the network's own memory layout, in which means are summed in the same order
                maps = values[:, : math.prod(shape)].unflatten(1, shape)
                maps = maps.contiguous(memory_format=torch.channels_last)
                means = [values[:, math.prod(shape) :, None, None]]
            else:
                maps = self.features(images).float()
            pooled = maps.mean(dim=(2, 3), keepdim=True)
            views |= {"pooled": pooled, "frames": maps, "blocks": torch.cat([*means, pooled], 1)}
        return {view: views[view] for view in self.views}


def fuse_batchnorm(network: torch.nn.Module) -> torch.nn.Module:
    """A network in evaluation mode with each batch norm folded into the convolution before it; the same
    function."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for block in [module for module in network.modules() if isinstance(module, torch.nn.Sequential)]:
        for index in range(len(block) - 1):
            if isinstance(block[index], torch.nn.Conv2d) and isinstance(
                block[index + 1], torch.nn.BatchNorm2d
            ):
                block[index] = fuse_conv_bn_eval(block[index], block[index + 1])
                block[index + 1] = torch.nn.Identity()
    return network


def load_network(weights: str) -> torch.nn.Module:
    """See `extractors.load_network`; `weights` is also a published network's name."""
    if weights in FILES:
        settings = Settings(network=cast(Any, weights))
        Extractor.fetch(settings, None)
        return load(Extractor.find_weights(settings, None)[0], weights)
    place = base.find_local(weights)
    files = [place] if place and place.is_file() else []
    if place and not files:
        files = [file for name in FILES.values() for file in (place / name, *place.glob(f"*/{name}"))]
        files = [file for file in files if file.is_file()]
    if len(files) != 1:
        found = ", ".join(file.name for file in files)
        problem = f"has several of them ({found}): name one" if files else "no such file"
        raise UserError(
            f"efficientat: the weights {weights}: {problem}; published (--head.weights published) are "
            f"{', '.join(FILES)}"
        )
    return load(files[0], None)


def load(file: Path, network: str | None) -> torch.nn.Module:
    """The network with the published weights, all keys matched, in evaluation mode.

    Args:
        file: a state dict as published, or as safetensors; read as plain data.
        network: a key of `FILES`; None: that of the file's width.
    Raises:
        UserError: the file is not such a state dict, or has another width.
    """
    import torch

    from earshot.extractors import torch_weights
    from models.efficientat import build_network, convert_state, count_channels

    try:
        state = torch_weights.load(file)
    except (Refused, OSError) as error:
        raise_if_temporary(file, error)
        raise UserError(
            f"efficientat: {file} is not a weights file that can be read safely ({error}): download it again"
        ) from None
    last = state.get("features.16.0.weight") if isinstance(state, dict) else None
    if not isinstance(last, torch.Tensor):
        raise UserError(
            f"efficientat: {file} holds no EfficientAT network: expected a file like "
            f"{FILES[network or 'mn04']}"
        )
    fitting = [name for name in FILES if count_channels(name) == len(last)]
    if network not in fitting and (network or not fitting):
        hint = f"add --network {fitting[0]}" if fitting else "none of the published networks has that"
        wanted = f", {network} has {count_channels(network)}" if network else ""
        raise UserError(f"efficientat: {file} has {len(last)} channels{wanted}: {hint}")
    network = network or fitting[0]
    model = build_network(network)
    try:
        model.load_state_dict(convert_state(state), strict=True)
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"efficientat: {file} does not fit {network} ({reason})") from None
    return model.eval().requires_grad_(False)


def _get_file_name(settings: Settings) -> str:
    """The published file's name; UserError for an unknown network."""
    if settings.network not in FILES:
        raise UserError(f"efficientat: --network {settings.network}: choose from {', '.join(FILES)}")
    return FILES[settings.network]


def _find_hub_folder() -> Path:
    """torch.hub's folder of checkpoints, found without importing torch."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return Path(os.environ.get("TORCH_HOME", default)).expanduser() / "hub" / "checkpoints"


def _compute_sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
