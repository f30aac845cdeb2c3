"""AST, the Audio Spectrogram Transformer (Gong et al., 2021), as part of a head fine-tuned end to end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import HeadError, register
from .head import Head, LoadNetwork

if TYPE_CHECKING:
    from transformers import ASTModel, PreTrainedModel

WAYS_OUT = (
    "go online once, or give --head.weights FOLDER (config.json and model.safetensors, for example an "
    "attached Kaggle dataset), or take another head on frozen features (--head linear)"
)
# the config's values that fix the tensors' shapes, and their options; patches and strides are AST's own
SIZES = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "intermediate",
    "num_mel_bins": "",
    "patch_size": "",
    "frequency_stride": "",
    "time_stride": "",
}


# Of the published weights: the extractor `fbank` has them.
NEEDS = {"rate": 16000, "bands": 128, "hop": 0.01, "bank": "kaldi"}


def build_ast(
    head: str,
    input_shape: tuple[int, int, int],
    hidden_size: int,
    layers: int,
    heads: int,
    intermediate: int,
    gradient_checkpointing: bool,
) -> ASTModel:
    """A randomly initialised AST for a view of one channel, with the view's time grid.

    Args:
        head: the head's name, for messages.
        input_shape: (1, F, T), both at least 16, a patch.
        hidden_size, layers, heads, intermediate: 768, 12, 12 and 3072 in the published network.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
    """
    channels, bins, frames = input_shape
    if channels != 1 or min(bins, frames) < 16:
        raise HeadError(
            f"{head}: AST takes spectrograms of one channel, at least 16 bands and 16 frames, not "
            f"{tuple(input_shape)}: extract the view fbank (--extractor fbank)"
        )
    if min(hidden_size, layers, heads, intermediate) < 1 or hidden_size % heads:
        raise HeadError(
            f"{head}: AST's sizes are whole numbers from 1 and its heads divide its hidden size, "
            f"not {hidden_size} by {heads}"
        )
    from transformers import ASTConfig, ASTModel

    config = ASTConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        num_mel_bins=bins,
        max_length=frames,
    )
    network = ASTModel(config)
    if gradient_checkpointing:
        checkpoint_activations(network)
    return network


def checkpoint_activations(network: PreTrainedModel) -> None:
    """Make a network of transformers recompute activations in the backward pass."""
    if hasattr(network, "activation_checkpointing_enable"):  # the name since transformers 5
        network.activation_checkpointing_enable({"use_reentrant": False})
    else:
        network.gradient_checkpointing_enable({"use_reentrant": False})


def compute_embedding(network: ASTModel, x: Tensor) -> Tensor:
    """AST's embedding, the mean of its two special tokens: (B, hidden_size) of x (B, 1, F, T)."""
    return network(x[:, 0].transpose(1, 2)).pooler_output


def load_ast(head: str, network: ASTModel, weights: str) -> None:
    """Copy pretrained weights into an AST; its position embeddings are cut to the network's frames.

    The first columns are kept, so a frame has the same position as in a full input.

    Args:
        head: the head's name, for messages.
        network: from `build_ast`.
        weights: a folder that save_pretrained made, or a hub id.
    Raises:
        HeadError: the weights cannot be loaded, are not a complete AST, or have other sizes.
    """
    pretrained = _load(head, _find_folder(head, str(weights)))
    mine, theirs = network.config, pretrained.config
    for key, option in SIZES.items():
        have, want = getattr(theirs, key), getattr(mine, key)
        if have != want:
            way = (
                f"set its option {option} to {have}"
                if option
                else "extract with --extractor fbank, or take other weights"
            )
            raise HeadError(f"{head}: the weights {weights} have {key} {have}, the head {want}: {way}")
    if theirs.max_length < mine.max_length:
        raise HeadError(
            f"{head}: the weights {weights} take {theirs.max_length} frames, the view has {mine.max_length}: "
            f"extract with --max-length {theirs.max_length} --seconds {theirs.max_length / 100:g}"
        )
    state, name = pretrained.state_dict(), "embeddings.position_embeddings"
    rows = (mine.num_mel_bins - mine.patch_size) // mine.frequency_stride + 1
    columns = (mine.max_length - mine.patch_size) // mine.time_stride + 1
    special, grid = state[name][:, :2], state[name][:, 2:].unflatten(1, (rows, -1))
    state[name] = torch.cat([special, grid[:, :, :columns].flatten(1, 2)], dim=1)
    network.load_state_dict(state)


def _find_folder(head: str, weights: str) -> Path:
    """The local folder of the weights, downloaded from the hub if needed."""
    path = Path(weights).expanduser()
    if path.is_dir():
        configs = [path / "config.json", *sorted(path.glob("*/config.json"))]
        return next((config.parent for config in configs if config.exists()), path)
    if path.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", weights):
        raise HeadError(
            f"{head}: --head.weights {weights}: no such folder, and no hub id (owner/name) either"
        )
    from huggingface_hub import snapshot_download

    reason = ""
    for here in (True, False):
        try:
            folder = Path(
                snapshot_download(
                    weights,
                    allow_patterns=["config.json", "*.safetensors"],
                    etag_timeout=5,
                    local_files_only=here,
                )
            )
        except (
            Exception
        ) as error:  # offline, unknown, gated, disk full: each library version has its own exceptions
            reason = "no connection" if "Connect" in f"{type(error).__name__} {error}" else str(error)
            reason = " ".join(reason.split())[:80] or type(error).__name__
            continue
        # an interrupted download leaves the config without the weights
        if not here or any(folder.glob("*.safetensors")):
            return folder
    raise HeadError(
        f"{head}: the weights {weights} are not here and the hub doesn't give them ({reason}): {WAYS_OUT}"
    )


def _load(head: str, folder: Path) -> ASTModel:
    """ASTModel from a folder of safetensors, quietly."""
    from transformers import ASTModel
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        network, report = ASTModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises OSError, ValueError, RuntimeError, SafetensorError, ...
        reason = " ".join(str(error).split())[:160]
        raise HeadError(f"{head}: the weights in {folder} cannot be loaded ({reason}): {WAYS_OUT}") from None
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise HeadError(
            f"{head}: the weights in {folder} lack {len(lacking)} of the network's tensors (first: "
            f"{lacking[0]}), so they are not a complete AST: {WAYS_OUT}"
        )
    return network


@register(
    "ast",
    kinds=("spectrogram",),
    about="AST itself, fine-tuned end to end from its AudioSet weights",
    needs=NEEDS,
)
class AST(Head):
    """AST, then LayerNorm and one linear layer on its embedding, as transformers' ASTForAudioClassification
    has it.

    The mask is ignored: AST was pretrained on windows with silence in them. The pretrained weights expect
    Kaldi's filter bank (the extractor `fbank`); without weights any spectrogram of one channel will do.
    86,187,264 parameters without the last two layers.

    Args:
        input_shape: (1, F, T); (1, 128, 1024) for the published weights, or fewer frames.
        num_classes: width of the logits.
        weights: a folder that save_pretrained made, or a hub id; null: random weights.
        hidden_size: width of AST's tokens.
        layers: number of AST's blocks.
        heads: attention heads of a block.
        intermediate: width of a block's MLP.
        freeze: the lowest layers that are not trained; above 0 neither are patch and position embeddings.
        gradient_checkpointing: recompute activations: a third more time, a fraction of the memory.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        weights: str | None = None,
        hidden_size: int = 768,
        layers: int = 12,
        heads: int = 12,
        intermediate: int = 3072,
        freeze: int = 0,
        gradient_checkpointing: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= freeze <= layers:
            raise HeadError(f"ast: option freeze is a number of layers from 0 to {layers}, not {freeze}")
        self.weights = weights
        self.ast = build_ast(
            "ast", input_shape, hidden_size, layers, heads, intermediate, gradient_checkpointing
        )
        self.norm = nn.LayerNorm(hidden_size, eps=self.ast.config.layer_norm_eps)
        self.fc = nn.Linear(hidden_size, num_classes)
        if freeze:
            # transformers 4 and early 5 kept the layers in an encoder of their own
            stack = self.ast.layers if hasattr(self.ast, "layers") else self.ast.encoder.layer
            for part in (self.ast.embeddings, *stack[:freeze]):
                part.requires_grad_(False)

    def load_pretrained(self, load: LoadNetwork) -> None:
        """Load AST's weights where the option `weights` names them; HeadError if they cannot be loaded
        or don't fit."""
        if self.weights is not None:
            load_ast("ast", self.ast, self.weights)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, 1, F, T); the mask is ignored."""
        return self.fc(self.norm(compute_embedding(self.ast, x)))
