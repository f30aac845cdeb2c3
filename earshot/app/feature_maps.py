"""Feature maps: the output of every layer of a head and of its extractor for one window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from earshot.prediction.predictor import Prediction, Predictor
from earshot.training.run import Run

ROWS, COLUMNS = 96, 384  # of a map at most; neighbouring cells are averaged
MOST = 300  # maps
# layers that work on the last axis
ON_LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention, nn.GRU, nn.LSTM)


@dataclass(frozen=True)
class FeatureMap:
    """One layer's output as an image.

    Args:
        name: the layer's, with dots for nested layers. shape: of the output, without the batch.
        values: (rows, columns) the mean over channels where the output has frequency and time, else channels
            x time.
    """

    name: str
    shape: tuple[int, ...]
    values: np.ndarray


def compute_maps(
    predictor: Predictor, run: Run, model: str, prediction: Prediction, window: int
) -> dict[str, list[FeatureMap]]:
    """The maps of one window by their owner: the head of the named model, and the extractor's networks.

    A head with a single linear layer and a scikit-learn head have none.
    """
    pipeline = predictor.get_pipeline(run)
    decoded = prediction.inputs[pipeline.key]
    window = min(window, len(decoded.features.start) - 1)
    head = dict(predictor.load_heads(run, predictor.get_checkpoint_kind(run)))[model]
    rows = predictor.build_rows(run, decoded.features, pooled=False)
    x, mask = rows.load_batch(np.array([window]))
    maps = {f"the head ({head.config['name']}, {model})": compute_head_maps(head, x, mask)}
    piece = cut_window(
        decoded.wave,
        decoded.features.start[window] - decoded.offset,
        decoded.features.length[window],
        pipeline.extractor.rate,
    )
    for name, module in vars(pipeline.extractor).items():
        if isinstance(module, nn.Module):
            kind = run.config["record"]["features"]["extractor"]
            maps[f"the extractor ({kind})"] = capture_layers(
                module, lambda: pipeline.extractor.extract([piece], [0.0], 1), name + "."
            )
    return {whose: found for whose, found in maps.items() if found}


def cut_window(wave: np.ndarray, start: float, length: float, rate: int) -> np.ndarray:
    """A window's audio without padding: (samples,) from `start`, `length` seconds long."""
    first = max(0, round(float(start) * rate))
    return np.array(wave[first : first + max(1, round(float(length) * rate))])


@torch.inference_mode()
def compute_head_maps(head: nn.Module, x: Tensor, mask: Tensor | None) -> list[FeatureMap]:
    """A head's maps for x (1, D, F, T): those of its `forward_features`, else those of every layer."""
    named = head.forward_features(x, mask)
    if named:
        found = [_to_map(name, value, False) for name, value in named.items()]
        return [one for one in found if one is not None]
    return capture_layers(head, lambda: head(x, mask))


def capture_layers(module: nn.Module, call: Callable[[], Any], prefix: str = "") -> list[FeatureMap]:
    """The outputs of a module's layers during a call, in the order of computation.

    Outputs with 4 axes are (batch, channels, frequency, time), with 3 axes (batch, channels, time), unless
    they come from a layer that works on the last axis. A layer without parameters after it, such as an
    activation, is assumed to keep the order of axes.
    """
    found: dict[str, FeatureMap | None] = {}
    last = [False]

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) and output else output
            if (
                not isinstance(output, Tensor)
                or output.ndim not in (3, 4)
                or len(output) != 1
                or len(found) >= MOST
            ):
                return
            if any(True for _ in layer.parameters(recurse=False)):
                last[0] = isinstance(layer, ON_LAST) and not type(layer).__name__.endswith("2d")
            again = sum(key.partition(" ")[0] == name for key in found)
            key = f"{name} ({again + 1})" if again else name
            found[key] = _to_map(key, output, last[0])

        return hook

    handles = [
        layer.register_forward_hook(watch(prefix + name)) for name, layer in module.named_modules() if name
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return [one for one in found.values() if one is not None]


def _to_map(name: str, output: Tensor, channels_last: bool) -> FeatureMap | None:
    """None for an output that is no image: one number per channel."""
    value = torch.nan_to_num(output.detach()[0].float()).cpu()
    shape = tuple(value.shape)
    if value.ndim == 3:
        value = value.mean(2).T if channels_last else value.mean(0)
        if value.numel() < 2:
            return None
    else:
        value = value.T if channels_last else value
        if min(value.shape) < 2:
            return None
    return FeatureMap(name, shape, _downsample(_downsample(value.numpy(), ROWS, 0), COLUMNS, 1))


def _downsample(values: np.ndarray, most: int, axis: int) -> np.ndarray:
    """At most `most` cells along an axis: means of neighbouring cells."""
    length = values.shape[axis]
    if length <= most:
        return values
    edges = np.linspace(0, length, most + 1).astype(int)
    sums = np.add.reduceat(values, edges[:-1], axis)
    counts = np.diff(edges).reshape((-1, 1) if axis == 0 else (1, -1))
    return sums / counts


def group_layers(maps: list[FeatureMap]) -> dict[str, list[FeatureMap]]:
    """Maps by layer: by the first part of the names that differs.

    A layer's own map comes first. Without one, the map of its last sub-layer takes its place.
    """
    parts = [one.name.split(".") for one in maps]
    common = 0
    while all(len(p) > common + 1 for p in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    found: dict[str, list[FeatureMap]] = {}
    for one, names in zip(maps, parts, strict=True):
        found.setdefault(".".join(names[: common + 1]), []).append(one)
    for name, inside in found.items():
        main = next((one for one in inside if one.name == name), inside[-1])
        inside.remove(main)
        inside.insert(0, main)
    return found
