"""Which device is chosen and what it is called: a CPU, GPUs of any capability, what cannot be used."""

from __future__ import annotations

import pytest
import torch

from earshot.core import device
from earshot.core.errors import UserError


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there are two GPUs of a capability; tensors stay on the CPU."""

    def pretend(capability: tuple[int, int], failing: str | None = None) -> None:
        ones = torch.ones

        def made(*shape, device):
            assert device.startswith("cuda:")
            if failing:
                raise RuntimeError(failing)
            return ones(*shape)

        for name, value in {
            "is_available": True,
            "device_count": 2,
            "get_device_name": "Tesla X",
            "is_bf16_supported": True,
            "get_arch_list": ["sm_75", "sm_90"],
            "get_device_capability": capability,
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
        monkeypatch.setattr(torch, "ones", made)

    return pretend


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("auto", "cpu"):
        found = device.choose(name)
        assert (found.name, found.precision) == ("cpu", "fp32") and found.about.startswith("CPU, ")
    assert device.choose("cpu", "bf16").precision == "bf16"
    with pytest.raises(UserError, match="unknown device mps: use auto, cpu, cuda or cuda:N"):
        device.choose("mps")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(UserError, match=f"--device {name}: torch sees no GPU here.*--device cpu"):
            device.choose(name)


@pytest.mark.parametrize(
    "capability, precision",
    [
        ((6, 0), "fp32"),
        ((7, 0), "fp16"),
        ((7, 5), "fp16"),
        ((8, 0), "bf16"),
        ((12, 0), "bf16"),
    ],
)
def test_precision_is_the_hardwares(gpu, capability, precision):
    gpu(capability)
    assert [device.choose(name).name for name in ("auto", "cuda", "cuda:1")] == ["cuda:0", "cuda:0", "cuda:1"]
    found = device.choose()
    assert (
        found.precision == precision
        and found.about == f"Tesla X, sm_{capability[0]}{capability[1]}, {precision}"
    )
    assert device.choose("cuda", "fp32").precision == "fp32" and device.choose("cpu").name == "cpu"
    for name in ("cuda:2", "cuda:x", "cuda:"):
        with pytest.raises(UserError, match=f"--device {name}: there are 2 GPUs, counted from cuda:0"):
            device.choose(name)


def test_a_gpu_without_kernels_is_refused(gpu):
    gpu(
        (6, 0),
        failing="CUDA error: no kernel image is available for execution on the device\nCompile with ...",
    )
    with pytest.raises(UserError) as caught:
        device.choose()
    line = str(caught.value)
    assert "\n" not in line
    for part in ("Tesla X (sm_60)", "sm_75 sm_90", "no kernel image", "T4", "--device cpu"):
        assert part in line


def test_out_of_memory_is_recognised():
    assert device.is_out_of_memory(torch.cuda.OutOfMemoryError("x")) and device.is_out_of_memory(
        RuntimeError("CUDA Out of Memory.")
    )
    assert not device.is_out_of_memory(RuntimeError("shapes differ"))


def test_with_a_cluster_cuda_names_nodes_and_cpu_this_machine_too() -> None:
    for given, alone, beside in (("auto", "auto", "auto"), ("cpu", "cpu", "cpu"), ("cuda", "cuda", "auto")):
        assert device.name_local(given, None) == alone
        assert device.name_local(given, "auto") == device.name_local(given, object()) == beside
