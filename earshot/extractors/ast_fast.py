"""AST's forward pass without unused work, from the weights of transformers' ASTModel.

Published in Gong et al., 2021. What differs from `ASTModel.forward`: the linear layers' weights are cast to
half precision once, not per pass; queries, keys and values are one product; of the last layer only the tokens
that are used; fewer time patches for shorter windows. Under autocast the products are in half precision
while the residual stream, layer norms and sums stay in fp32, as transformers' own pass has it on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# a layer's parts in transformers from 5.1 on, and in 5.0 and before
NAMES = {
    "query": ("attention.q_proj", "attention.attention.query"),
    "key": ("attention.k_proj", "attention.attention.key"),
    "value": ("attention.v_proj", "attention.attention.value"),
    "out": ("attention.o_proj", "attention.output.dense"),
    "up": ("mlp.fc1", "intermediate.dense"),
    "down": ("mlp.fc2", "output.dense"),
    "before": ("layernorm_before",) * 2,
    "after": ("layernorm_after",) * 2,
}


@dataclass
class Layer:
    """One transformer block: (weight, bias) of its products, and its two norms."""

    qkv: tuple[torch.Tensor, torch.Tensor | None]
    out: tuple[torch.Tensor, torch.Tensor | None]
    up: tuple[torch.Tensor, torch.Tensor | None]
    down: tuple[torch.Tensor, torch.Tensor | None]
    before: torch.nn.LayerNorm
    after: torch.nn.LayerNorm


class UnknownNetwork(Exception):
    """The network is built in a way that this file doesn't support: use its own forward pass."""


class Network:
    """The pass over an ASTModel in evaluation mode, whose weights it shares in fp32.

    Args:
        model: on its device.
        columns: number of time patches to compute, from the first.
    Raises:
        Unknown: modules are missing or of another kind; call the model itself then.
    """

    def __init__(self, model: torch.nn.Module, columns: int) -> None:
        import torch
        from transformers.activations import ACT2FN

        config = model.config
        self.model, self.columns, self.heads = model, columns, config.num_attention_heads
        self.rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        self.activation = ACT2FN[config.hidden_act]
        try:
            old = not hasattr(model, "layers")
            blocks = model.encoder.layer if old else model.layers
            self.blocks = [
                {part: block.get_submodule(names[old]) for part, names in NAMES.items()} for block in blocks
            ]
            self.norm, embeddings = model.layernorm, model.embeddings
            self.projection = embeddings.patch_embeddings.projection
            special = torch.cat([embeddings.cls_token, embeddings.distillation_token], dim=1)
            position = embeddings.position_embeddings
            grid = position[:, 2:].unflatten(1, (self.rows, -1))[:, :, :columns].flatten(1, 2)
            self.special, self.position = special + position[:, :2], grid.contiguous()
        except (AttributeError, RuntimeError) as error:
            raise UnknownNetwork(str(error)) from None
        linear = [
            block[part] for block in self.blocks for part in ("query", "key", "value", "out", "up", "down")
        ]
        norms = [self.norm, *(block[part] for block in self.blocks for part in ("before", "after"))]
        known = {name.split(".")[0] for name, _ in model.named_parameters()}
        if (
            not all(type(module) is torch.nn.Linear for module in linear)
            or not all(type(module) is torch.nn.LayerNorm for module in norms)
            or len(list(model.parameters()))
            != sum(len(list(m.parameters())) for m in (*linear, *norms, self.projection)) + 3
            or getattr(config, "head_dim", None) not in (None, config.hidden_size // self.heads)
        ):
            raise UnknownNetwork(f"parts that are new: {sorted(known)}")
        self._layers: dict[Any, list[Layer]] = {}

    def cast_layers(self, dtype: torch.dtype) -> list[Layer]:
        """The blocks with their products' weights in a dtype, cast on first use."""
        import torch

        if dtype not in self._layers:

            def cast(*modules: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
                weight = torch.cat([m.weight for m in modules]) if len(modules) > 1 else modules[0].weight
                if modules[0].bias is None:
                    return weight.to(dtype), None
                return weight.to(dtype), torch.cat([m.bias for m in modules]).to(dtype)

            self._layers[dtype] = [
                Layer(
                    cast(b["query"], b["key"], b["value"]),
                    cast(b["out"]),
                    cast(b["up"]),
                    cast(b["down"]),
                    b["before"],
                    b["after"],
                )
                for b in self.blocks
            ]
        return self._layers[dtype]

    def __call__(self, mel: torch.Tensor, dtype: torch.dtype, patches: bool = True) -> torch.Tensor:
        """The tokens after the last norm.

        Args:
            mel: (B, frames, bins), at least the frames that `columns` patches span; others are
                ignored.
            dtype: of the products: float32, bfloat16 or float16.
            patches: False computes the two special tokens of the last layer alone.
        Returns:
            (B, 2 + rows * columns, hidden) float32, or (B, 2, hidden) without patches; frequency is the slow
            index.
        """
        import torch

        with torch.autocast(mel.device.type, enabled=False):
            x = self._embed(mel, dtype)
            layers = self.cast_layers(dtype)
            for index, layer in enumerate(layers):
                x = self._apply_block(
                    x, layer, dtype, x.shape[1] if patches or index + 1 < len(layers) else 2
                )
            return self.norm(x)

    def _embed(self, mel: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        import torch

        conv = self.projection
        frames = (self.columns - 1) * conv.stride[1] + conv.kernel_size[1]
        image = mel[:, :frames].transpose(1, 2)[:, None].to(dtype)
        found = torch.nn.functional.conv2d(image, conv.weight.to(dtype), conv.bias.to(dtype), conv.stride)
        return torch.cat(
            [self.special.expand(mel.shape[0], -1, -1), found.flatten(2).transpose(1, 2) + self.position],
            dim=1,
        )

    def _apply_block(self, x: torch.Tensor, layer: Layer, dtype: torch.dtype, kept: int) -> torch.Tensor:
        """(B, tokens, hidden) -> the first `kept` tokens after the block; attention sees all of them."""
        from torch.nn import functional as F

        batch, tokens, hidden = x.shape
        normed = layer.before(x).to(dtype)
        if kept == tokens:
            q, k, v = (
                F.linear(normed, *layer.qkv).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            )
        else:
            weight, bias = layer.qkv
            q = F.linear(normed[:, :kept], weight[:hidden], None if bias is None else bias[:hidden])
            q = q.view(batch, kept, self.heads, -1).transpose(1, 2)
            k, v = (
                F.linear(normed, weight[hidden:], None if bias is None else bias[hidden:])
                .view(batch, tokens, 2, self.heads, -1)
                .permute(2, 0, 3, 1, 4)
            )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, kept, hidden)
        x = x[:, :kept] + F.linear(mixed, *layer.out)
        normed = layer.after(x).to(dtype)
        return x + F.linear(self.activation(F.linear(normed, *layer.up)), *layer.down)
