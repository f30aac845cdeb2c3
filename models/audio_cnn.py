"""The ResNet-34 layout on spectrograms, as kode-mafia008/audio_cnn trained it on ESC-50, and its lighter
relatives."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from . import HeadError, register
from .common import Standardise, fit_window, pool_map, pool_mask, select_real_frames
from .head import Head


def _build_drop_path(rate: float) -> nn.Module:
    if not rate:
        return nn.Identity()
    from timm.layers import DropPath  # a second and more of imports, for an option that is mostly off

    return DropPath(rate)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, fig. 2; 1x1 projection where the shape
    changes)."""

    def __init__(
        self, inputs: int, outputs: int, size: tuple[int, int], stride: int, drop_path: float
    ) -> None:
        super().__init__()
        first = fit_window(size, 3, stride)
        second = fit_window(first.out, 3)
        self.out, self.stride = first.out, first.stride
        self.conv1 = nn.Conv2d(inputs, outputs, first.kernel, first.stride, first.padding, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, second.kernel, 1, second.padding, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.drop_path = _build_drop_path(drop_path)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if inputs != outputs or first.stride != (1, 1):
            conv = nn.Conv2d(inputs, outputs, 1, first.stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, maps: dict[str, Tensor] | None = None, name: str = "") -> Tensor:
        """(B, C, F, T) to (B, C', F', T'); notes its two maps in `maps` under `name`."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.drop_path(self.bn2(self.conv2(y))) + self.shortcut(x)
        if maps is not None:
            maps[f"{name}.conv"] = y.clone()  # the ReLU works in place
        y = self.relu(y)
        if maps is not None:
            maps[f"{name}.relu"] = y
        return y


@register(
    "audio_cnn",
    kinds=("spectrogram", "sequence", "grid", "vector", "waveform"),
    about="ResNet-34 layout on spectrograms (AudioCNN); smaller channels and blocks to train from scratch",
)
class AudioCNN(Head):
    """Stem, stages of basic blocks, global average pool, dropout, one linear layer.

    By default the published network: 21,304,050 parameters for (1, 128, 431) and 50 classes. The published
    code ran stages 3 and 4 inside the loop over stage 2 when training (indentation, since commit 57a8d52), so
    that it trained 3-1-6-3 blocks and three were never touched, then used all of them for inference. Here
    every stage runs, in order, in training and inference alike.

    Args:
        input_shape: (D, F, T).
        num_classes: width of the logits.
        channels: width of each stage; the stem has the first.
        blocks: blocks of each stage, as many numbers as `channels`; each stage but the first halves the map.
        stem_kernel: of the first convolution.
        stem_stride: of the first convolution.
        stem_time_stride: the stem's stride over time; 0: the same as over frequency.
        stem_pool: add a 3x3 max pool of stride 2 after the stem.
        dropout: rate before the last layer.
        pool: "mean" or "mean_max" over frequency and real frames.
        standardise: per channel and frequency, with the training set's mean and deviation (`adapt`); padding
            becomes zero.
        drop_path: probability of skipping the last block in training; it rises linearly from 0 at the first.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: tuple[int, ...] = (64, 128, 256, 512),
        blocks: tuple[int, ...] = (3, 4, 6, 3),
        stem_kernel: int = 7,
        stem_stride: int = 2,
        stem_time_stride: int = 0,
        stem_pool: bool = True,
        dropout: float = 0.5,
        pool: str = "mean",
        standardise: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if len(channels) != len(blocks) or not channels:
            raise HeadError(
                f"audio_cnn: channels and blocks are as long as each other, not {channels} and {blocks}"
            )
        if not all(isinstance(number, int) and number >= 1 for number in (*channels, *blocks)):
            raise HeadError(
                f"audio_cnn: channels and blocks are whole numbers from 1, not {channels} and {blocks}"
            )
        if pool not in ("mean", "mean_max"):
            raise HeadError(f"audio_cnn: option pool is mean or mean_max, not {pool!r}")
        if not 0.0 <= drop_path < 1.0:
            raise HeadError(f"audio_cnn: option drop_path is a probability below 1, not {drop_path!r}")
        depth, height, frames = input_shape
        self.pool = pool
        self.standardise = Standardise(depth * height) if standardise else None

        stem = fit_window((height, frames), stem_kernel, (stem_stride, stem_time_stride or stem_stride))
        size, self.time_stride = stem.out, stem.stride[1]
        conv = nn.Conv2d(depth, channels[0], stem.kernel, stem.stride, stem.padding, bias=False)
        layers = [conv, nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True)]
        if stem_pool:
            window = fit_window(size, 3, 2)
            layers.append(nn.MaxPool2d(window.kernel, window.stride, window.padding))
            size, self.time_stride = window.out, self.time_stride * window.stride[1]
        self.conv1 = nn.Sequential(*layers)

        # Module names are the published code's, so that its checkpoints load.
        rates = iter(drop_path * index / max(1, sum(blocks) - 1) for index in range(sum(blocks)))
        width = channels[0]
        self.stages = [f"layer{number}" for number in range(1, len(channels) + 1)]
        for stage, outputs, count in zip(self.stages, channels, blocks, strict=True):
            layer = nn.ModuleList()
            for index in range(count):
                stride = 2 if index == 0 and stage != "layer1" else 1
                block = BasicBlock(width, outputs, size, stride, next(rates))
                layer.append(block)
                width, size, self.time_stride = outputs, block.out, self.time_stride * block.stride[1]
            self.add_module(stage, layer)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width * (2 if pool == "mean_max" else 1), num_classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        return self.classify(self._compute_maps(x, mask), mask)

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The feature maps that `forward` computes, for whoever draws them.

        Args:
            x: (B, D, F, T).
            mask: (B, T), True where real; None: all are.
        Returns:
            (B, C, F', T') each, in order of computation: "conv1" (the stem), then for each stage
            "layerX.blockN.conv" (the sum before the last ReLU), "layerX.blockN.relu" and, at its end,
            "layerX".
        """
        maps: dict[str, Tensor] = {}
        self._compute_maps(x, mask, maps)
        return maps

    def classify(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of the last stage's map.

        Args:
            x: (B, C, F', T').
            mask: (B, T) of the view, not of the map.
        Returns:
            (B, num_classes).
        """
        mask = None if mask is None else pool_mask(mask, self.time_stride)
        return self.fc(self.dropout(pool_map(x, mask, self.pool)))

    def adapt(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Take mean and deviation of each channel and frequency from the real frames of the training set."""
        if self.standardise is not None:
            self.standardise.fit(select_real_frames(x, mask) for x, mask in batches)

    def _compute_maps(self, x: Tensor, mask: Tensor | None, maps: dict[str, Tensor] | None = None) -> Tensor:
        if self.standardise is not None:
            x = self.standardise(x)
            x = x if mask is None else x.masked_fill(~mask.bool()[:, None, None, :], 0.0)
        x = self.conv1(x)
        if maps is not None:
            maps["conv1"] = x
        for stage in self.stages:
            for index, block in enumerate(getattr(self, stage)):
                x = block(x, maps, f"{stage}.block{index}")
            if maps is not None:
                maps[stage] = x
        return x
