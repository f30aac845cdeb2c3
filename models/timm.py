"""Any image network of the timm library on a view taken as an image of D channels."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import HeadError, register
from .head import Head, LoadNetwork
from .maps import Input

SHORTEST = 32  # pixels: what the usual networks' strides come to; a shorter axis is enlarged to it
# beyond them a single pass takes minutes and gigabytes: raw audio, 32 rows of the same samples
PIXELS = 2**21


@register(
    "timm",
    kinds=("spectrogram", "sequence", "grid", "vector", "waveform"),
    about="any image network of timm (option backbone) on the spectrogram as an image, pretrained or not",
)
class Timm(Head):
    """Standardise, enlarge what is too small for an image network, a timm network with its own pooling and
    classifier.

    A network gets the view as it is, with axes under 32 enlarged to 32. Networks that can't take that size,
    or only one image size (many transformers), get the view resized to theirs; both bilinearly. timm's
    networks take no mask: padding is zero after standardising, the training set's mean, and counts in their
    pooling.

    Args:
        input_shape: (D, F, T); D becomes the network's input channels.
        num_classes: width of the logits.
        backbone: timm's name of a network (`timm.list_models()`), with or without a tag of weights.
        weights: null: random; "timm": timm's own for the backbone; or a local file or folder of weights, or a
            hub id. The first convolution is adapted to D channels.
        dropout: rate before the network's classifier, if it supports that.
        drop_path: rate of stochastic depth, if the network supports it.
        standardise: per channel and frequency, with the training set's mean and deviation (`adapt`); padding
            becomes zero.
    Raises:
        HeadError: there is no such backbone, or it cannot take the view.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        backbone: str = "resnet18d",
        weights: str | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, str) or not timm.is_model(backbone):
            close = difflib.get_close_matches(str(backbone).split(".")[0], timm.list_models(), 5)
            hint = (
                f"close are {', '.join(close)}"
                if close
                else "python -c 'import timm; print(timm.list_models())' lists them"
            )
            raise HeadError(f"timm: there is no backbone {backbone!r}: {hint}")
        if not (weights is None or isinstance(weights, str) and weights):
            raise HeadError(
                f"timm: option weights is null, timm, a file, a folder or a hub id, not {weights!r}"
            )
        self.backbone, self.weights = backbone, weights
        self.input = Input(input_shape, standardise)
        self.arguments: dict[str, Any] = {"in_chans": input_shape[0], "num_classes": num_classes}
        rates = {"drop_rate": dropout, "drop_path_rate": drop_path}
        self.arguments |= {name: rate for name, rate in rates.items() if rate}
        self.net = self._create()
        self.size = self._fit(input_shape, num_classes)

    def _create(self) -> nn.Module:
        try:
            return timm.create_model(self.backbone, **self.arguments)
        except (TypeError, AssertionError, RuntimeError) as error:
            options = ", ".join(self.arguments)
            raise HeadError(
                f"timm: {self.backbone} cannot be built with {options}: {_format_error(error)}; choose "
                "another "
                "backbone, or leave dropout or drop_path out"
            ) from None

    def _fit(self, input_shape: tuple[int, int, int], num_classes: int) -> tuple[int, int]:
        """The image size (F, T) that the network takes: the view's, enlarged where short, else its
        own."""
        own = self.net.pretrained_cfg
        sizes = [tuple(own["input_size"][1:])]
        if not own.get("fixed_input_size"):
            rows, columns = (max(SHORTEST, length) for length in input_shape[1:])
            if rows * columns > PIXELS:
                raise HeadError(
                    f"timm: a view of {'x'.join(map(str, input_shape))} would be an image of "
                    f"{rows}x{columns}, too large: extract spectrograms (--extractor logmel) or shorter "
                    "windows, or choose another head"
                )
            sizes.insert(0, (rows, columns))
        self.eval()
        for size in sizes:
            try:
                with torch.no_grad():
                    logits = self.net(torch.zeros(1, input_shape[0], *size))
            except (RuntimeError, ValueError, AssertionError, IndexError) as error:
                reason = _format_error(error)
                continue
            if tuple(logits.shape) != (1, num_classes):
                raise HeadError(f"timm: {self.backbone} does not classify images: choose another backbone")
            self.train()
            return size
        raise HeadError(
            f"timm: {self.backbone} cannot take a view of {'x'.join(map(str, input_shape))}: {reason}; "
            "choose another backbone or view"
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        x = self.input(x, mask)
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        return self.net(x)

    def adapt(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Take mean and deviation of each channel and frequency from the real frames of the training set."""
        self.input.fit(batches)

    def _build_pretrained_state(self, overlay: dict[str, Any]) -> dict[str, Tensor]:
        """The state of the pretrained network; KeyError if weights are missing, of which timm only warns."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = self._create().state_dict()
            torch.manual_seed(0)
            twin = timm.create_model(
                self.backbone, **self.arguments, pretrained=True, pretrained_cfg_overlay=overlay
            )
        last = twin.pretrained_cfg.get("classifier") or ()
        last = (last,) if isinstance(last, str) else tuple(last)
        same = [
            name
            for name, weight in twin.named_parameters()
            if weight.ndim > 1 and not name.startswith(last) and torch.equal(weight, fresh[name])
        ]
        if same:
            raise KeyError(f"{len(same)} layers stay at random, {same[0]} for one")
        return twin.state_dict()

    def load_pretrained(self, load: LoadNetwork) -> None:
        """Load the weights that option `weights` names; nothing where it is None.

        Raises:
            HeadError: they cannot be loaded, or don't fit the backbone.
        """
        if self.weights is None:
            return
        path = Path(self.weights).expanduser()
        overlay: dict[str, Any] = {}
        if path.is_dir():
            overlay = {"source": "local-dir", "file": str(path)}
        elif path.is_file():
            overlay = {"source": "", "file": str(path), "custom_load": False}
        elif self.weights != "timm":
            overlay = {
                "source": "hf-hub",
                "hf_hub_id": self.weights.removeprefix("hf-hub:"),
                "hf_hub_filename": None,
            }
        try:
            if path.suffix in (".safetensors", ".pth", ".pt", ".bin") and not path.is_file():
                raise FileNotFoundError("no such file")
            self.net.load_state_dict(self._build_pretrained_state(overlay))
        except Exception as error:  # timm, the hub, the network and the file each fail in ways of their own
            raise HeadError(
                f"timm: no weights {self.weights!r} for {self.backbone} ({_format_error(error)}): go online "
                "once, "
                "name a local safetensors file by --head.weights, or leave the weights out"
            ) from None


def _format_error(error: Exception) -> str:
    # The first sentence alone: the hub and torch add pages of advice.
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split()).split(". ")[0]
    return f"{type(error).__name__}: {text[:200].rstrip(' .:')}" if text else type(error).__name__
