"""EfficientAT's network, which the extractor `efficientat` runs and the head `efficientat` fine-tunes.

MobileNetV3 distilled from transformers on AudioSet (Schmid et al., ICASSP 2023): torchvision's
`mobilenet_v3_large` with one input channel and sigmoid squeeze-and-excitation gates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import MobileNetV3, mobilenet_v3_large
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from . import HeadError, register
from .head import Head, LoadNetwork

NETWORKS = ("mn04", "mn05", "mn10", "mn20", "mn30", "mn40", "mn40_ext")
CLASSES = 527  # of AudioSet
SHORTEST = 32  # bands or frames: the network halves both axes five times


def get_width(network: str) -> float:
    """The width multiplier in a published name: mn04 -> 0.4, mn40_ext -> 4.0."""
    return int(network[2:4]) / 10


def count_channels(network: str) -> int:
    """Channels of the last feature map: six times MobileNetV3's last block of 160 x width, in steps of 8."""
    return 6 * max(8, int(160 * get_width(network) + 4) // 8 * 8)


def build_network(network: str) -> MobileNetV3:
    """The network of a published name, with random weights: AudioSet logits of (B, 1, 128, T)."""
    model = mobilenet_v3_large(width_mult=get_width(network), num_classes=CLASSES)
    old = model.features[0][0]
    model.features[0][0] = nn.Conv2d(
        1, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False
    )
    for layer in model.modules():
        if isinstance(layer, SqueezeExcitation):
            layer.scale_activation = nn.Sigmoid()
    return model


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under torchvision's names and shapes."""
    return {_rename_key(key): _reshape_gate(key, value) for key, value in state.items()}


def _rename_key(key: str) -> str:
    key = key.replace("conc_se_layers.0.", "")
    return key.replace("classifier.2.", "classifier.0.").replace("classifier.5.", "classifier.3.")


def _reshape_gate(key: str, value: Tensor) -> Tensor:
    # squeeze-and-excitation as 1x1 convolutions, which torchvision has in place of linear maps
    linear = "conc_se_layers" in key and key.endswith("weight")
    return value[:, :, None, None] if linear else value


class FoldedConvolution(nn.Sequential):
    """A convolution, its batch normalisation and activation; one convolution where the statistics are fixed.

    Parameters and gradients are those of the three layers; a step takes four fifths of the time on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, F, T) -> (B, channels, F, T)."""
        convolution, norm, *rest = self
        if norm.training:
            return super().forward(x)
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        x = F.conv2d(
            x,
            convolution.weight * scale[:, None, None, None],
            norm.bias - norm.running_mean * scale,
            convolution.stride,
            convolution.padding,
            groups=convolution.groups,
        )
        for layer in rest:
            x = layer(x)
        return x


def _fold_convolutions(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Conv2dNormActivation):
            setattr(module, name, FoldedConvolution(*child))
        else:
            _fold_convolutions(child)


@register(
    "efficientat",
    kinds=("spectrogram",),
    about="EfficientAT, a MobileNet fine-tuned end to end from its AudioSet weights",
    needs={"rate": 32000, "bands": 128, "hop": 0.01, "bank": "efficientat"},
)
class EfficientAT(Head):
    """The published network with a new last layer, all of it trained.

    The statistics of its batch normalisation stay those of AudioSet: those of a few hundred clips in small,
    mixed batches are worse. The mask is ignored: the network was trained on clips with silence in them. The
    published weights expect their own spectrogram (the extractor `efficientat`, view `spectrogram`); without
    weights any spectrogram of one channel will do.

    Args:
        input_shape: (1, F, T).
        num_classes: width of the logits.
        network: mn04, mn05, mn10, mn20, mn30, mn40 or mn40_ext: the width, see the extractor `efficientat`.
        weights: published: the network's own, which are downloaded or attached; or a file or folder of them;
            null: random weights.
        dropout: rate before the last layer.
        backbone_lr: factor of the learning rate for all layers but the new one.
        lr_decay: further factor for each block towards the input.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        network: str = "mn04",
        weights: str | None = None,
        dropout: float = 0.2,
        backbone_lr: float = 0.25,
        lr_decay: float = 1.0,
    ) -> None:
        super().__init__()
        if input_shape[0] != 1 or min(input_shape[1:]) < SHORTEST:
            raise HeadError(
                f"efficientat: takes spectrograms of one channel, at least {SHORTEST} bands and {SHORTEST} "
                f"frames, not {'x'.join(map(str, input_shape))}: extract the view spectrogram (--extractor "
                "efficientat --views spectrogram), or longer windows (--seconds)"
            )
        if network not in NETWORKS:
            raise HeadError(f"efficientat: option network is one of {', '.join(NETWORKS)}, not {network!r}")
        if not (weights is None or isinstance(weights, str) and weights):
            raise HeadError(
                f"efficientat: option weights is null, published, or a file or folder, not {weights!r}"
            )
        if not (math.isfinite(backbone_lr) and backbone_lr >= 0 and 0 < lr_decay <= 1):
            raise HeadError(
                f"efficientat: option backbone_lr is a number from 0 and lr_decay one above 0, up to 1, not "
                f"{backbone_lr:g} and {lr_decay:g}"
            )
        self.network_name, self.weights = network, weights
        self.backbone_lr, self.lr_decay = backbone_lr, lr_decay
        self.network = build_network(network)
        _fold_convolutions(self.network)
        self.network.classifier[2] = nn.Dropout(dropout)
        self.network.classifier[3] = nn.Linear(self.network.classifier[3].in_features, num_classes)

    def load_pretrained(self, load: LoadNetwork) -> None:
        """Load all layers but the last; HeadError where the weights are of another width."""
        if self.weights is None:
            return
        name = self.network_name if self.weights == "published" else self.weights
        state = load("efficientat", name).state_dict()
        last, mine = "classifier.3.", self.network.state_dict()
        state |= {key: value for key, value in mine.items() if key.startswith(last)}
        if any(state[key].shape != value.shape for key, value in mine.items()):
            channels = len(state["features.16.0.weight"])
            fitting = next(known for known in NETWORKS if count_channels(known) == channels)
            raise HeadError(
                f"efficientat: the weights {name} are not of {self.network_name}: set --head.network "
                f"{fitting}"
            )
        self.network.load_state_dict(state)

    def scale_lr(self, parameter: str) -> float:
        """See `Head.scale_lr`: the new layer is trained fastest, the first blocks slowest."""
        part, number = parameter.split(".")[1:3]
        if part == "classifier":
            return 1.0 if number == "3" else self.backbone_lr
        return self.backbone_lr * self.lr_decay ** (len(self.network.features) - int(number))

    def train(self, mode: bool = True) -> EfficientAT:
        """Training mode, in which batch normalisation keeps its statistics where they are pretrained."""
        super().train(mode)
        if self.weights is not None:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, 1, F, T); the mask is ignored."""
        x = self.network.features[0](x)
        # On a CPU channels-last trains 1.6 times as fast; not the first convolution: oneDNN 3.10's backward
        # pass of a single channel is wrong there.
        x = self.network.features[1:](x.contiguous(memory_format=torch.channels_last))
        return self.network.classifier(x.mean(dim=(2, 3)))
