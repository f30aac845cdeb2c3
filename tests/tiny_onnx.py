"""Tiny networks of torch and their ONNX files, with the inputs and outputs of published ones."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Frames(nn.Module):
    """(B, samples) -> (B, D, T), a convolution of stride 160; `order` permutes the output."""

    def __init__(self, size: int = 24, order: tuple[int, ...] = (0, 1, 2)):
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 16, 320, 160), nn.Conv1d(16, size, 3, padding=1)
        self.order = order

    def forward(self, waves: Tensor) -> Tensor:
        waves = waves if waves.ndim == 3 else waves[:, None]
        return self.second(self.first(waves).relu()).permute(self.order)


class Pooled(Frames):
    """(B, samples) -> (B, D)."""

    def forward(self, waves: Tensor) -> Tensor:
        return super().forward(waves).mean(2)


class Spectrum(nn.Module):
    """(B, samples) -> (B, D, F, T): log power of an STFT, and a convolution over it."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(1, 8, 3, 4)

    def forward(self, waves: Tensor) -> Tensor:
        window = torch.hann_window(256)
        spectrum = torch.stft(waves, 256, 160, window=window, center=False, return_complex=False)
        return self.second((spectrum.square().sum(-1) + 1e-4).log()[:, None])


class Perch(nn.Module):
    """The outputs of Perch v2, small inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.label = Frames(1536), nn.Linear(1536, 100)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        frames = self.inner(waves)
        places = nn.functional.avg_pool1d(frames, 15)[:, :, :64].unflatten(2, (16, 4)).permute(0, 2, 3, 1)
        pooled = frames.mean(2)
        return pooled, places, frames[:, :128].transpose(1, 2), self.label(pooled)


def export(
    network: nn.Module,
    path: Path,
    samples: int,
    outputs: tuple[str, ...] = ("embedding",),
    fixed: tuple[str, ...] = (),
    shape: tuple[int, ...] | None = None,
    name: str = "inputs",
) -> nn.Module:
    """Write a network as ONNX; returns it, in evaluation mode.

    Args:
        fixed: axes of the input of one size: "batch", "samples".
        shape: of the example in place of (1, samples).
    Raises:
        pytest.skip: onnx or onnxruntime is not installed.
    """
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="pip install -r requirements-onnx.txt")
    network.eval()
    example = torch.zeros(shape or (1, samples))
    moving = {0: "batch", example.ndim - 1: "samples"}
    axes: dict[str, Any] = {name: {axis: label for axis, label in moving.items() if label not in fixed}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            str(path),
            input_names=[name],
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    return network


def export_stand_ins(folder: Path) -> None:
    """Networks with the names, inputs and outputs of those that the recipes perch and birdnet name."""
    outputs = ("embedding", "spatial_embedding", "spectrogram", "label")
    export(seeded(Perch), folder / "perch_v2_no_dft.onnx", 160000, outputs, ("samples",))
    backbone = seeded(Pooled, 1024)
    export(backbone, folder / "birdnet_backbone.onnx", 144000, fixed=("batch", "samples"), name="input")


def seeded(kind: type[nn.Module], *arguments: Any) -> nn.Module:
    """A network with weights of seed 0."""
    torch.manual_seed(0)
    return kind(*arguments)
