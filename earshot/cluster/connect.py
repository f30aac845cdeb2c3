"""A connection to a Ray cluster: its nodes, what they compute on, and worker pools on them."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from earshot.cluster.head import is_there
from earshot.cluster.local import ROOT, start_local_nodes
from earshot.cluster.pool import PATIENCE, POLL, RayPool, shorten
from earshot.cluster.probe import Probe, check_alike, check_versions, probe
from earshot.core.config import ClusterFlags
from earshot.core.device import Device
from earshot.core.errors import TemporaryError, UserError

DEVICES = ("auto", "cpu", "cuda")


@contextlib.contextmanager
def connect(flags: ClusterFlags) -> Iterator[Cluster]:
    """The cluster that --cluster names, until the block ends; a local one ends with it.

    Raises:
        UserError: Ray is not installed, or there is no such cluster. TemporaryError: it does not respond.
    """
    address = str(flags.cluster)
    if address not in ("auto", "local"):
        _check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {}
        if address == "local":
            count = flags.cluster_workers or 2
            cpus = flags.cpus_per_worker or max(1, len(os.sched_getaffinity(0)) // count)
            options = stack.enter_context(start_local_nodes(_import_ray, count, cpus))
        else:
            _import_ray()
            # to nodes that do not see this folder
            options = {
                "address": address,
                "runtime_env": {"py_modules": [str(ROOT / "earshot"), str(ROOT / "models")]},
            }
            host = address.partition(":")[0]
            if host.startswith("127."):  # several nodes on this machine: it is the head's
                options["_node_ip_address"] = host
        ray = _import_ray()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=None, **options)
        except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            fix = "start one with `ray start --head`, or rehearse with --cluster local"
            if isinstance(error, ray.exceptions.AuthenticationError):
                fix = "set RAY_AUTH_TOKEN as on the cluster's nodes"
            elif address not in ("auto", "local"):  # something listens there
                fix = f"is this machine one of its nodes? `ray start --address {address}` makes it one"
            raise UserError(f"--cluster {address}: cannot connect ({shorten(error, 200)}): {fix}") from None
        finally:
            for number, handler in handlers.items():  # Ray takes SIGTERM
                with contextlib.suppress(ValueError):  # in a thread, where it took none
                    signal.signal(number, handler)
        stack.callback(_disconnect, ray, ray.get_runtime_context().gcs_address)
        stack.enter_context(_silence())
        yield Cluster(ray, flags)


def _disconnect(ray: Any, head: str) -> None:
    """Disconnect from the cluster; not from a lost head, for which Ray waits until it ends this process."""
    if is_there(head):
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise UserError where nothing listens at an address: Ray tries for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise UserError(
            f"--cluster {address}: it is auto, local, or HOST:PORT of the cluster's head, on one of its nodes"
        )
    try:
        socket.create_connection((host, int(port)), 10).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--cluster {address}: nothing listens there ({error}): start a head with `ray start --head`, or "
            "rehearse with --cluster local"
        ) from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Within the block Ray does not print the log of a lost node, for which it has no option."""
    from ray._private import worker

    name = "print_to_stdstream"
    before = getattr(worker, name, None)
    setattr(worker, name, lambda *data, **options: None)
    try:
        yield
    finally:
        setattr(worker, name, before)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("--cluster needs Ray: pip install -r requirements-cluster.txt") from None
    return ray


class Cluster:
    """A connected cluster.

    Args:
        ray: the module.
    """

    def __init__(self, ray: Any, flags: ClusterFlags):
        self.ray, self.flags = ray, flags
        self.resources: dict[str, float] = {}
        self.threads = 1
        self.nodes: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}  # nodes that did not respond, and why
        self.expected: Probe  # a node that `find_devices` has compared with the others
        self.found: dict[tuple[str, str], tuple[list[Device], Probe]] = {}

    def find_devices(self, name: str, precision: str) -> list[Device]:
        """The device of each worker: all are alike, since other kinds compute other bits. The nodes are
        probed once: later, workers may take all of them.

        Args:
            name: "auto", "cpu" or "cuda". precision: as `device.choose` takes it.
        Raises:
            UserError: nodes of several kinds, or with other versions. TemporaryError: no free slot.
        """
        if (name, precision) in self.found:
            devices, self.expected = self.found[name, precision]
            return devices
        self.choose_nodes(name)
        found = self.probe_nodes(precision)
        for address, reason in self.left_out.items():
            print(f"warning: node {address} {reason}: left out", flush=True)
        for check in (check_versions, check_alike):
            wrong = check(found)
            if wrong:
                raise UserError(wrong)
        self.expected = found[0]
        slots = sum(map(self.count_slots, self.nodes))
        devices = [found[0].device] * min(slots, self.flags.cluster_workers or slots)
        self.found[name, precision] = (devices, self.expected)
        return devices

    def describe(self, devices: Sequence[Device], threads: int | None = None) -> str:
        """The workers as text for the log."""
        count, kind, threads = len(devices), devices[0], threads or self.threads
        nodes = f"cluster of {len(self.nodes)} node{'s' if len(self.nodes) > 1 else ''}"
        workers = f"{nodes}, {count} worker{'s' if count > 1 else ''}"
        if kind.name == "cpu":
            precision = "" if kind.precision == "fp32" else f", {kind.precision}"
            return f"{workers} of {threads} CPU thread{'s' if threads > 1 else ''}{precision}"
        return f"{workers}, a GPU each: {kind.about}"

    def count_per_node(self, workers: int) -> int:
        """How many of the workers a node has, at most."""
        return min(workers, max(map(self.count_slots, self.nodes)))

    def choose_nodes(self, name: str) -> None:
        """Find the nodes to use, and what each worker takes of them.

        Args:
            name: "auto", "cpu" or "cuda".
        Raises:
            UserError: there are none, or nodes of two kinds.
        """
        if name not in DEVICES:
            raise UserError(f"--device {name}: with --cluster it is auto, cpu or cuda")
        nodes = [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        gpus = [node for node in nodes if node["Resources"].get("GPU", 0) >= 1]
        if name == "auto" and gpus and len(gpus) < len(nodes):
            raise UserError(
                f"{len(gpus)} of {len(nodes)} nodes of the cluster have GPUs, and their features and scores "
                "differ in the last digits: choose some with --device cuda or --device cpu"
            )
        use_gpus = bool(gpus) and name != "cpu"
        self.nodes, self.left_out = (gpus if use_gpus else nodes), {}
        if name == "cuda" and not gpus or not self.nodes:
            raise UserError(f"the cluster has no node with {'GPUs' if name == 'cuda' else 'CPUs'}")
        fair = min(
            self._count_cpus(node) // (node["Resources"]["GPU"] if use_gpus else 1) for node in self.nodes
        )
        self.threads = int(self.flags.cpus_per_worker or max(1, fair))
        self.resources = {"num_cpus": self.threads, "num_gpus": int(use_gpus)}
        if not any(map(self.count_slots, self.nodes)):
            most = max(map(self._count_cpus, self.nodes))
            raise UserError(
                f"--cpus-per-worker {self.threads}: the nodes of the cluster have {most} CPUs at most"
            )

    def _count_cpus(self, node: dict[str, Any]) -> int:
        return int(node["Resources"]["CPU"])

    def count_slots(self, node: dict[str, Any]) -> int:
        """How many workers a node has room for."""
        count = self._count_cpus(node) // self.threads
        return min(count, int(node["Resources"]["GPU"])) if self.resources["num_gpus"] else count

    def probe_nodes(self, precision: str) -> list[Probe]:
        """What each node has; those that do not respond in a minute are `left_out`."""
        nodes = [node for node in self.nodes if self.count_slots(node)]
        # named: Ray hides no GPU from a worker without one, and "auto" would take it
        name = "cuda" if self.resources["num_gpus"] else "cpu"
        found = self.call_on(nodes, probe, name, precision, self.threads)
        seen = [(node, one) for node, one in zip(nodes, found, strict=True) if one is not None]
        self.nodes = [node for node, _ in seen]
        if not seen:
            reasons = "; ".join(f"node {address} {reason}" for address, reason in self.left_out.items())
            raise TemporaryError(f"no node of the cluster is free: {reasons[:400]}; see `ray status`")
        return [one._replace(node=node["NodeManagerAddress"]) for node, one in seen]

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns on one of the nodes."""
        (found,) = self.call_on(self.nodes[:1], function, *arguments)
        if found is None:
            address = self.nodes[0]["NodeManagerAddress"]
            raise TemporaryError(f"node {address} {self.left_out[address]}")
        return found

    def call_on(
        self, nodes: Sequence[dict[str, Any]], function: Callable[..., Any], *arguments: Any
    ) -> list[Any]:
        """What a function returns on each node; None for one that does not respond in a minute or is lost:
        `left_out` has the reason."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = self.ray.remote(**self.resources, max_retries=0, max_calls=0)(_call)
        loads = pickle.dumps((function, arguments))
        calls = [
            remote.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(loads)
            for node in nodes
        ]
        began, waiting = time.monotonic(), list(calls)
        while waiting and time.monotonic() - began < PATIENCE:
            # in short steps, between which signals are handled
            _, waiting = self.ray.wait(waiting, num_returns=len(waiting), timeout=POLL)
        found: list[Any] = []
        for node, call in zip(nodes, calls, strict=True):
            address, result, error = node["NodeManagerAddress"], None, None
            if call in waiting:
                self.ray.cancel(call)
                self.left_out[address] = f"has had no free slot for {PATIENCE:.0f} s"
            else:
                try:
                    result, error = self.ray.get(call)
                except self.ray.exceptions.RayTaskError as failed:
                    reason = str(failed).strip().splitlines()[-1]
                    raise UserError(f"node {address} cannot run Earshot: {reason}") from None
                except self.ray.exceptions.RayError as lost:
                    self.left_out[address] = f"was lost ({shorten(lost, 200)})"
            if error is not None:
                kind = UserError if isinstance(error, UserError) else TemporaryError
                raise kind(f"node {address}: {error}")
            found.append(result)
        return found

    def open_pool(
        self,
        devices: Sequence[Device],
        work: Callable[..., Any],
        arguments: tuple,
        threads: int | None = None,
    ) -> RayPool:
        """A worker for each device.

        Args:
            work, arguments: as `WorkerPool` takes them. threads: of each worker, by default its CPUs.
        """
        return RayPool(
            self.ray,
            len(devices),
            self.resources,
            devices[0],
            self.expected,
            work,
            arguments,
            threads or self.threads,
        )


def _call(loads: bytes) -> tuple[Any, BaseException | None]:
    """A function's result, or its error, which Ray would wrap."""
    try:
        function, arguments = pickle.loads(loads)
        return function(*arguments), None
    except (UserError, OSError) as error:
        return None, error
