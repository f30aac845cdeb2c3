"""Does a head take windows of another length than it was built for? Asked before training on crops begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from earshot.core.device import out_of_memory
from earshot.core.errors import UserError
from earshot.training import augment


def check(head: nn.Module, x: Tensor, mask: Tensor | None, share: float, autocast: Any) -> None:
    """Raise UserError where a head takes whole windows only.

    Args:
        x, mask: a batch, (B, D, F, T) and (B, T) or None.
        share: of the window that is left.
    """
    x, mask = augment.warp_time(x, mask, 0.0, share, np.random.default_rng(0))
    try:
        with torch.inference_mode(), autocast:
            head.eval()(x, mask)
    except (RuntimeError, ValueError, AssertionError) as error:  # timm asserts
        if out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--crop-share {share:g}: this head takes windows of one length only ({reason}): leave "
            "--crop-share out, or choose another head"
        ) from None
