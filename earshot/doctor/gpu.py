"""Checks of the GPUs: a kernel runs on each, torch, torchvision and torchaudio match, and the precision."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from earshot.core import device, kaggle_paths, worker_pool
from earshot.core.disk_space import format_bytes
from earshot.core.errors import UserError
from earshot.doctor.findings import Finding, report_ok, stop, warn
from earshot.kaggle.packages import find_version

DRIVER = "/proc/driver/nvidia/version"
BUSY = 0.8  # share of a GPU's memory that should be free


def check_gpus() -> Iterator[Finding]:
    """A line per GPU, and one for the device that the scripts will use."""
    import torch

    if not torch.cuda.is_available():
        yield _explain_no_gpu(torch)
        return
    for index in range(torch.cuda.device_count()):
        yield _check_gpu(torch, index)
    try:
        chosen = worker_pool.choose()
    except UserError:
        return  # reported above
    names = ", ".join(device.name for device in chosen) + (", a process each" if len(chosen) > 1 else "")
    yield report_ok(f"device: {names}, precision {chosen[0].precision}")


def _explain_no_gpu(torch: Any) -> Finding:
    cpu = "everything runs on the CPU"
    if os.path.exists(DRIVER) and torch.version.cuda is None:
        return warn(
            f"there is a GPU, but this torch ({torch.__version__}) is built for CPUs only, so {cpu}: "
            "install torch with CUDA"
        )
    if os.path.exists(DRIVER):
        return warn(
            f"there is a GPU, but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it, so "
            f"{cpu}: is the driver too old for that CUDA, or CUDA_VISIBLE_DEVICES empty?"
        )
    if kaggle_paths.get_input_root():
        return warn(f"no GPU, {cpu}: choose the accelerator GPU T4 x2 in the notebook's settings")
    return report_ok(f"no GPU, {cpu}, fp32 unless a trial finds bf16 faster")


def _check_gpu(torch: Any, index: int) -> Finding:
    try:
        chosen = device.choose(f"cuda:{index}")
    except UserError as error:
        return stop(f"GPU {index}: {error}")
    major, minor = torch.cuda.get_device_capability(index)
    free, total = torch.cuda.mem_get_info(index)
    text = f"GPU {index}: {chosen.about}, a kernel ran, {format_bytes(free)} of {format_bytes(total)} free"
    if not has_kernels_for((major, minor), torch.cuda.get_arch_list()):
        return warn(
            f"{text}; this torch is not built for sm_{major}{minor} "
            f"({' '.join(torch.cuda.get_arch_list())}): each kernel is compiled when first used; install a "
            "torch that is"
        )
    if free < BUSY * total:
        return warn(f"{text}: another process uses the rest: stop it, or restart the session")
    return report_ok(text)


def has_kernels_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Does a build have kernels for a GPU: of its capability, or of the same major and a lower minor one?"""
    builds = [re.fullmatch(r"sm_(\d+)(\d)[af]?", name) for name in architectures]
    return any(int(build[1]) == capability[0] and int(build[2]) <= capability[1] for build in builds if build)


def check_libraries() -> Iterator[Finding]:
    """Check that torchvision and torchaudio match torch's release and CUDA, by importing them."""
    import torch

    major, minor = map(int, torch.__version__.split(".")[:2])
    cuda = torch.version.cuda or "none"
    fit, versions = True, [f"torch {torch.__version__} (CUDA {cuda})"]
    for name, release, needed in (
        ("torchvision", f"0.{minor + 15}", True),
        ("torchaudio", f"{major}.{minor}", False),
    ):
        have = find_version(name)
        if have is None:
            if needed:
                yield stop(f"torchvision is missing, efficientat and timm need it: install {release}")
                fit = False
            continue
        versions.append(f"{name} {have}")
        finding = _check_library(torch, name, have, release, needed)
        if finding:
            yield finding
            fit = False
    if fit:
        yield report_ok(", ".join(versions) + ", imported together")


def _check_library(torch: Any, name: str, have: str, release: str, needed: bool) -> Finding | None:
    fix = f"install {name} {release} of CUDA {torch.version.cuda or 'none'}"
    if not needed:
        fix += ", or pip uninstall torchaudio: it is not needed for features or training"
    try:
        importlib.import_module(name)
    except Exception as error:  # RuntimeError, OSError, ImportError: whatever a mismatch raises first
        reason = " ".join((str(error) or type(error).__name__).split())[:120]
        text = f"{name} {have} cannot be imported beside torch {torch.__version__} ({reason}): {fix}"
        return stop(text) if needed else warn(text)
    if not have.startswith(f"{release}."):
        return warn(f"{name} {have} belongs to another release than torch {torch.__version__}: {fix}")
    tags = [text.partition("+")[2] for text in (torch.__version__, have)]
    if all(tags) and tags[0] != tags[1]:
        return warn(f"{name} {have} is built for another CUDA than torch {torch.__version__}: {fix}")
    return None
