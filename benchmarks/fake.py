"""Peak memory of a computation that is never done: its tensors have shapes and types, and no values."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Adds up the storages that are alive after every operation; `peak` is the most bytes they ever took at
    once.

    What operations take inside themselves (a convolution's workspace) is not seen, nor an allocator's
    rounding. A number that is asked of a tensor is 1 unless there are `values`.
    """

    def __init__(self, values: bool = False):
        super().__init__()
        self.values = values
        self.now = self.peak = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not self.values and func is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype is torch.bool else 1.0 if args[0].is_floating_point() else 1
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self.note(leaf.untyped_storage())
        return found

    def note(self, storage: Any) -> None:
        """Count a storage from now until it goes."""
        if id(storage) not in self.known:
            self.known[id(storage)] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, id(storage))

    def _gone(self, number: int) -> None:
        self.now -= self.known.pop(number)


def without_values(network: nn.Module) -> nn.Module:
    """The network itself, its parameters and buffers replaced by ones without values; call it in
    FakeTensorMode."""
    made: dict[int, Tensor] = {}  # a tensor that stands in two places stays one
    for module in network.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None and id(tensor) not in made:
                    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
                    made[id(tensor)] = (
                        nn.Parameter(empty, tensor.requires_grad)
                        if isinstance(tensor, nn.Parameter)
                        else empty
                    )
                own[name] = None if tensor is None else made[id(tensor)]
    return network


def peaks(networks: list[nn.Module], work: Callable[..., Iterator[None]], values: bool = False) -> list[int]:
    """Bytes taken at the worst moment of each stage of some work, the networks included.

    Args:
        work: called with the networks; it yields after each stage.
        values: compute it all after all, for a network that looks at its numbers.
    """
    found, fast = [], torch.backends.mha.get_fastpath_enabled()
    if values:
        with Live(values=True) as live:
            for tensor in (t for network in networks for t in (*network.parameters(), *network.buffers())):
                live.note(tensor.untyped_storage())
            for _ in work(*networks):
                found.append(live.peak)
                live.peak = live.now
        return found
    torch.backends.mha.set_fastpath_enabled(False)  # nn.TransformerEncoder's own kernel wants values
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
            for _ in work(*map(without_values, networks)):
                found.append(live.peak)
                live.peak = live.now
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return found
