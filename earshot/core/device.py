"""Device and precision, chosen by launching a kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from earshot.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Device:
    """A device that has run a kernel: `name` for torch.device, and the precision that suits its hardware."""

    name: str
    precision: str  # fp32 | fp16 | bf16
    about: str
    # memory layout of a head's weights; always so on a GPU
    channels_last: bool = False


def name_local(device: str, cluster: object) -> str:
    """The --device of what this machine computes itself; with a cluster (not None) "cuda" is the nodes'."""
    return device if cluster is None or device == "cpu" else "auto"


def choose(name: str = "auto", precision: str = "auto") -> Device:
    """The device to compute on.

    Args:
        name: "auto" (the first GPU, else the CPU), "cpu", "cuda", "cuda:1".
        precision: "auto": bf16 from capability 8.0, fp16 on 7.x, fp32 below and on the CPU.
            torch.cuda.is_bf16_supported() is not used: it is also True where bf16 is only emulated.
    Raises:
        UserError: no such GPU, or one that this build of torch has no kernels for (a P100 under PyPI's
            wheels).
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        threads = torch.get_num_threads()
        about = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        return Device("cpu", "fp32" if precision == "auto" else precision, about)
    if not name.startswith("cuda"):
        raise UserError(f"unknown device {name}: use auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: torch sees no GPU here: switch one on in the notebook's settings, or use "
            "--device cpu"
        )
    index = int(name.partition(":")[2] or 0) if name.partition(":")[2].isdigit() or ":" not in name else -1
    if not 0 <= index < torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from cuda:0")
    title = torch.cuda.get_device_name(index)
    major, minor = torch.cuda.get_device_capability(index)
    try:
        square = torch.ones(8, 8, device=f"cuda:{index}")
        (square @ square).sum().item()
    except RuntimeError as error:
        built = " ".join(torch.cuda.get_arch_list())
        raise UserError(
            f"{title} (sm_{major}{minor}) cannot run this build of torch (made for {built}; "
            f"{str(error).splitlines()[0]}): pick GPU T4 x2 in the notebook's settings, install a torch "
            f"that has {'them (pip install -r constraints-p100.txt)' if major < 7 else 'them'}, or use "
            "--device cpu"
        ) from None
    if precision == "auto":
        precision = "bf16" if major >= 8 else "fp16" if major == 7 else "fp32"
    return Device(f"cuda:{index}", precision, f"{title}, sm_{major}{minor}, {precision}")


def is_out_of_memory(error: BaseException) -> bool:
    """Has the device run out of memory?"""
    import torch

    text = str(error).lower()
    of_cpu = "can't allocate memory" in text or "not enough memory" in text  # of torch's allocator
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in text or of_cpu


def get_autocast(device: Device) -> Any:
    """The mixed-precision context of a device; does nothing for fp32."""
    if device.precision == "fp32":
        return contextlib.nullcontext()
    import torch

    return torch.autocast(
        device.name.split(":")[0], {"fp16": torch.float16, "bf16": torch.bfloat16}[device.precision]
    )


@contextlib.contextmanager
def use_one_thread(when: bool) -> Iterator[None]:
    """Within this context torch uses one thread: for tiny heads two threads are slower, as they wait for each
    other at every operation."""
    with use_threads(1 if when else None):
        yield


@contextlib.contextmanager
def use_threads(count: int | None) -> Iterator[None]:
    """Within this context torch uses so many threads; None: as many as before."""
    import torch

    threads = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(threads)


def to_device(head: nn.Module, device: Device) -> Any:
    """Move a head to its device, with its weights in the device's layout (always channels-last on a GPU)."""
    import torch

    last = device.channels_last or device.name.startswith("cuda")
    return head.to(device.name).to(memory_format=torch.channels_last if last else torch.contiguous_format)
