"""Checks of a Ray cluster: nodes, what they compute on, versions, and the folder that all should see."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from earshot.cluster.connect import Cluster, connect
from earshot.cluster.probe import Probe, check_alike, check_versions
from earshot.core.errors import UserError
from earshot.doctor.findings import Finding, report_ok, stop, warn
from earshot.doctor.flags import DataFlags
from earshot.doctor.machine import log_counts

SHOWN = ("python", "torch", "ray")


def check_cluster(flags: DataFlags, log: Callable[[str], None]) -> list[Finding]:
    """Connect, run the checks, print each line at once; returns the findings.

    Raises:
        UserError: there is no such cluster. TemporaryError: no node has a free slot.
    """
    began, findings = time.monotonic(), []
    with connect(flags) as cluster:
        for finding in _check(cluster, flags.device):
            findings.append(finding)
            log(" ".join(str(finding).split()))
    log_counts(findings, time.monotonic() - began, log)
    return findings


def _check(cluster: Cluster, device: str) -> Iterator[Finding]:
    try:
        cluster.choose_nodes(device)
    except UserError as error:
        yield stop(f"nodes: {error}")
        return
    everyone = [node for node in cluster.ray.nodes() if node["Alive"]]
    idle = [node["NodeManagerAddress"] for node in everyone if node not in cluster.nodes]
    if idle:
        yield report_ok(f"nodes where no worker runs: {', '.join(idle)}")
    found = cluster.probe_nodes("auto")
    for node, one in zip(cluster.nodes, found, strict=True):
        yield report_ok(_describe_node(cluster, node, one))
    for address, reason in cluster.left_out.items():
        yield warn(f"node {address} {reason}: no worker runs there")
    wrong = check_alike(found)
    yield stop(f"kinds: {wrong}") if wrong else report_ok(f"kinds: all nodes are {found[0].kind}")
    wrong = check_versions(found)
    shown = ", ".join(f"{name} {found[0].versions.get(name, 'none')}" for name in SHOWN)
    yield stop(f"versions: {wrong}") if wrong else report_ok(f"versions: the same here and there ({shown})")
    yield _check_folder(cluster)
    slots = sum(map(cluster.count_slots, cluster.nodes))
    yield report_ok(f"workers: {slots}, of {cluster.threads} CPU thread{'s' * (cluster.threads > 1)} each")


def _describe_node(cluster: Cluster, node: dict[str, Any], one: Probe) -> str:
    cpus, gpus = (int(node["Resources"].get(name, 0)) for name in ("CPU", "GPU"))
    device = f"{one.device.about}, a kernel ran" if gpus else f"{one.kind}, {one.device.precision}"
    has = f"{cpus} CPU{'s' * (cpus > 1)}" + (f", {gpus} GPU{'s' * (gpus > 1)}" if gpus else "")
    return f"node {one.node}: {has}, {device}"


def _check_folder(cluster: Cluster) -> Finding:
    """Do all nodes see this folder?"""
    here = os.getcwd()
    with tempfile.NamedTemporaryFile(prefix=".earshot-", suffix=".tmp", dir=here) as token:
        seen = cluster.call_on(cluster.nodes, os.path.exists, token.name)
    blind = [node["NodeManagerAddress"] for node, sees in zip(cluster.nodes, seen, strict=True) if not sees]
    if not blind:
        return report_ok(f"folder: all nodes see {here}")
    return warn(
        f"folder: not seen by {', '.join(blind)}: {here}: train.py needs it there, and get_features.py sends "
        "features over the network: mount it in the same place"
    )
