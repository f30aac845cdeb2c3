"""A causal language model of EnCodec codes that also classifies, after hadaev8/test_task_ESC50_study."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import HeadError, register
from .convnext1d import Block, zero_padding
from .head import Head

SMOOTHING = 0.1  # of the codes' targets, as published


@register(
    "causal_lm",
    kinds=("sequence", "grid", "spectrogram", "vector", "waveform"),
    about="causal 1-D ConvNeXt on EnCodec latents that also predicts the next codes (ESC-50 study)",
)
class CausalLM(Head):
    """Causal ConvNeXt blocks: each output predicts its frame's codes from the frames before it, the last
    output the class.

    By default the published network: 1,377,586 parameters for (128, 1, 375) and 50 classes. A frame of zeros
    goes before the clip, so that output t has seen the frames < t. Classes are read at the output after the
    last real frame. Outputs see 1 + blocks * (kernel - 1) frames back (385 of EnCodec's 75 a second: a clip
    of 5 s, not more).

    The published code has two faults. Its GroupNorm(1, C) takes statistics over the whole clip, which leaks
    future frames into each output: fixed here, each frame is normalised on its own (LayerNorm, the same
    number of parameters). And the codes of all codebooks are predicted in parallel from one output, although
    the finer codebooks depend on the coarser: kept, as it is the architecture.

    Args:
        input_shape: (D, F, T), read as D * F channels; a 1x1 convolution brings other numbers to `channels`.
        num_classes: width of the logits.
        channels: width of the blocks.
        blocks: number of blocks.
        kernel: size of the depthwise convolutions.
        dropout: rate for values and for whole channels, at the end of each block.
        lm_weight: weight of the codes' loss; 0: no language model, and no codes needed.
        codebooks: number of codebooks to predict, coarsest first.
        vocabulary: codes per codebook.
    """

    also = ("codes",)

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: int = 128,
        blocks: int = 8,
        kernel: int = 49,
        dropout: float = 0.05,
        lm_weight: float = 1.0,
        codebooks: int = 2,
        vocabulary: int = 1024,
    ) -> None:
        super().__init__()
        if min(channels, blocks, kernel, codebooks, vocabulary) < 1:
            raise HeadError(
                "causal_lm: channels, blocks, kernel, codebooks and vocabulary are at least 1, not "
                f"{channels}, {blocks}, {kernel}, {codebooks} and {vocabulary}"
            )
        if not 0.0 <= lm_weight < float("inf"):
            raise HeadError(f"causal_lm: option lm_weight is a number from 0, not {lm_weight}")
        width = input_shape[0] * input_shape[1]
        self.lm_weight, self.codebooks, self.vocabulary = lm_weight, codebooks, vocabulary
        self.project = nn.Conv1d(width, channels, 1) if width != channels else nn.Identity()
        self.blocks = nn.ModuleList(Block(channels, kernel, dropout, causal=True) for _ in range(blocks))
        self.fc = nn.Linear(channels, num_classes)
        if lm_weight:
            self.lm = nn.Conv1d(channels, codebooks * vocabulary, 1)
        else:
            self.also = ()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        return self._classify(self._compute_hidden(x, mask), mask)

    def forward_codes(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Predict the codes of every frame from the frames before it.

        Args:
            x: (B, D, F, T).
            mask: (B, T), True where real; None: all are.
        Returns:
            (B, vocabulary, codebooks, T) logits of the codes.
        """
        return self._predict_codes(self._compute_hidden(x, mask))

    def loss(self, batch: dict[str, Tensor | None], criterion: Callable[[Tensor], Tensor]) -> Tensor:
        """The classification loss plus `lm_weight` times the codes' loss, summed over codebooks and averaged
        over real frames.

        Args:
            batch: "x" (B, D, F, T), "mask" (B, T) or None, "codes" (B, n_q, 1, T) whole numbers.
            criterion: the classes' loss of (B, num_classes) logits.
        Returns:
            a scalar.
        Raises:
            HeadError: codes that do not fit x or the options.
        """
        x, mask = batch["x"], batch["mask"]
        hidden = self._compute_hidden(x, mask)
        total = criterion(self._classify(hidden, mask))
        if not self.lm_weight:
            return total
        targets = self._get_targets(batch["codes"], x)
        if mask is not None:
            targets = targets.masked_fill(~mask.bool()[:, None, :], -100)  # what cross_entropy leaves out
        # Every codebook has the same frames, so the sum of the codebooks' means is their number
        # times the mean of all.
        codes = F.cross_entropy(
            self._predict_codes(hidden), targets, ignore_index=-100, label_smoothing=SMOOTHING
        )
        return total + self.lm_weight * self.codebooks * codes

    def _compute_hidden(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, channels, T + 1): output t has seen the frames before t."""
        x = zero_padding(x.flatten(1, 2), None if mask is None else mask.bool())
        x = self.project(F.pad(x, (1, 0)))
        for block in self.blocks:
            x = block(x)
        return x

    def _classify(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return self.fc(hidden[:, :, -1])
        frames = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        after = (frames * mask.bool()).amax(1)  # the output after the last real frame
        return self.fc(hidden.gather(2, after[:, None, None].expand(-1, hidden.shape[1], 1))[:, :, 0])

    def _predict_codes(self, hidden: Tensor) -> Tensor:
        return self.lm(hidden[:, :, :-1]).unflatten(1, (self.codebooks, self.vocabulary)).transpose(1, 2)

    def _get_targets(self, codes: Tensor, x: Tensor) -> Tensor:
        """(B, codebooks, T) of the view (B, n_q, 1, T)."""
        if codes.is_floating_point() or codes.shape[2] != 1 or codes.shape[3] != x.shape[3]:
            raise HeadError(
                f"causal_lm: the codes are whole numbers of shape (n_q, 1, {x.shape[3]}), a frame for each "
                f"of the features', not {str(codes.dtype).removeprefix('torch.')} of "
                f"{tuple(codes.shape[1:])}: extract latents and codes together (--extractor encodec)"
            )
        if codes.shape[1] < self.codebooks:
            raise HeadError(
                f"causal_lm: {codes.shape[1]} codebooks in the features, {self.codebooks} to predict: "
                f"extract with a higher --bandwidth, or give --head.codebooks {codes.shape[1]}"
            )
        codes = codes[:, : self.codebooks, 0].long()
        low, high = (int(value) for value in codes.aminmax())
        if low < 0 or high >= self.vocabulary:
            raise HeadError(
                f"causal_lm: codes from {low} to {high}, but the vocabulary is {self.vocabulary}: give "
                f"--head.vocabulary {high + 1}, or extract the codes again"
            )
        return codes
