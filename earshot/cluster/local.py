"""A cluster of several nodes on this machine, to rehearse with: it ends with the command."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from earshot.cluster.head import is_there
from earshot.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# Parts of Ray that look at logs and demand several times a second, and whose work nobody wants here.
UNUSED = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
STORE = 128 << 20  # bytes of each node's object store
# Lost nodes are noticed sooner than by Ray's defaults, which are for large clusters.
NOTICE = {
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
    "RAY_health_check_timeout_ms": "3000",
}


@contextlib.contextmanager
def start_local_nodes(import_ray: Callable[[], Any], count: int, cpus: int) -> Iterator[dict[str, Any]]:
    """A head without CPUs and some nodes; what `ray.init` needs to connect.

    Args:
        cpus: of each node.
    """
    if "RAY_AUTH_MODE" not in os.environ:  # Ray listens on all interfaces
        if "ray" in sys.modules:
            raise UserError("--cluster local has to start before ray is imported: start Python anew")
        # kept: ray reads them once
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    with contextlib.ExitStack() as stack:
        # Of its own: in Ray's usual folder the newest cluster becomes the one that --cluster auto means.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        stack.enter_context(_set_variables({**NOTICE, "RAY_TMPDIR": folder, "PYTHONPATH": paths}))
        import_ray()
        from ray.cluster_utils import Cluster

        head, store = "127.0.0.2", {"object_store_memory": STORE, "num_gpus": 0}
        nodes = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "node_ip_address": head, **UNUSED, **store},
        )
        stack.callback(_shut_down, nodes)
        for number in range(count):
            nodes.add_node(num_cpus=cpus, node_ip_address=f"127.0.0.{3 + number}", **store)
        yield {"address": nodes.address, "_node_ip_address": head}


def _shut_down(nodes: Any) -> None:
    """End the nodes; without Ray's own way where the head is lost, for which that waits."""
    if is_there(nodes.address):
        nodes.shutdown()
        return
    for node in nodes.list_all_nodes():
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


@contextlib.contextmanager
def _set_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Within the block these environment variables are set."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
