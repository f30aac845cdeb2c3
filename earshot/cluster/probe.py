"""What a node of a cluster has: device, versions, code."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from earshot.core import device
from earshot.core.device import Device
from earshot.core.errors import UserError

# those that results depend on; a node may lack an optional one, but not have another version
OPTIONAL = ("onnxruntime", "openvino")
PACKAGES = (
    *("torch", "torchvision", "transformers", "timm", "numpy", "scipy", "scikit-learn"),
    *("soundfile", "soxr", "librosa", "ray", *OPTIONAL),
)


class Probe(NamedTuple):
    """A node as `probe` saw it; `node` is its address, `kind` what its bits depend on."""

    device: Device
    kind: str
    versions: dict[str, str]
    code: str
    node: str = ""


def probe(name: str, precision: str, threads: int) -> Probe:
    """What this machine has.

    Args:
        name, precision: as `device.choose` takes them.
    Raises:
        UserError: a device that cannot be used.
    """
    import torch

    torch.set_num_threads(threads)
    found = device.choose(name, precision)
    kind = found.about
    if found.name == "cpu":
        kind = " ".join(filter(None, (_find_cpu_maker(), torch.backends.cpu.get_cpu_capability())))
    return Probe(found, f"{platform.machine()} {kind}", list_versions(), hash_code())


def _find_cpu_maker() -> str:
    """Who made the CPU, on which MKL's kernels depend; "" where the system does not say."""
    with suppress(OSError):
        found = re.search(r"^vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return found[1] if found else ""
    return ""


def list_versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def hash_code() -> str:
    """12 hex digits of the source files of Earshot and its models."""
    digest = hashlib.sha256()
    for package in ("earshot", "models"):  # Ray puts each into a folder of its own
        found = find_spec(package)
        folder = Path(str(found and found.origin)).parent
        for path in sorted(folder.rglob("*.py")):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def check_alike(found: Sequence[Probe]) -> str | None:
    """Why nodes cannot work together: other devices or precisions compute other bits. None where they can."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for one in found:
        kinds.setdefault((one.kind, one.device.precision), []).append(one.node)
    if len(kinds) == 1:
        return None
    seen = "; ".join(f"{kind}, {precision}: {', '.join(nodes)}" for (kind, precision), nodes in kinds.items())
    return (
        f"the nodes of the cluster are of {len(kinds)} kinds, whose features and scores differ in the last "
        f"digits ({seen}): start the cluster with nodes of one kind"
    )


def check_versions(found: Sequence[Probe]) -> str | None:
    """Which versions of a node differ from this machine's, and what to do; None where all are the same."""
    here, code = list_versions(), hash_code()
    for one in found:
        package = _find_other_version(one.versions, here)
        if package:
            there, own = one.versions.get(package, "none"), here.get(package, "none")
            return f"node {one.node} has {package} {there}, this machine {own}: install the same on all nodes"
        if one.code != code:
            return f"node {one.node} has another version of Earshot's code: update it there"
    return None


def _find_other_version(one: dict[str, str], other: dict[str, str]) -> str | None:
    """The first package whose versions differ."""
    for package in one | other:
        if one.get(package) != other.get(package) and not (
            package in OPTIONAL and None in (one.get(package), other.get(package))
        ):
            return package
    return None


def check_node(expected: Probe, threads: int, name: str) -> None:
    """Raise UserError where this node, called `name`, is not like those that were compared: it was busy then,
    or has joined the cluster since."""
    found = probe(expected.device.name, expected.device.precision, threads)
    package = _find_other_version(found.versions, expected.versions)
    if package or (found.kind, found.code) != (expected.kind, expected.code):
        raise UserError(
            f"{name} has another device, other versions of packages or other code than the nodes that were "
            "compared: `doctor.py --cluster` shows which"
        )
