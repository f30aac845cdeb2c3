"""Shards made on other machines, which may not see the folder of the cache."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earshot import extractors
from earshot.cluster import storage
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.core.files import hash_file, hash_value
from earshot.features.extract import Made, Task, Worker
from earshot.features.plan import Plan

if TYPE_CHECKING:
    from earshot.cluster.connect import Cluster
    from earshot.core.worker_pool import WorkerPool

FEW = 3  # clips whose content a node compares


@contextlib.contextmanager
def open_pool(cluster: Cluster, devices: Sequence[Device], arguments: tuple) -> Iterator[WorkerPool]:
    """Workers of a cluster, one for each device; `arguments` are a `Worker`'s behind the device."""
    with storage.hold_token(arguments[0].folder) as token:
        pool = cluster.open_pool(devices, RemoteWorker, (*arguments, token))
        with contextlib.closing(pool):
            yield pool


class RemoteWorker(Worker):
    """Makes shards on a node of a cluster: in the cache's folder, or where the node does not see that, in a
    temporary one, and sends their bytes.

    Args:
        token: what `storage.hold_token` put into the cache's folder.
    Raises:
        UserError: the node does not see the audio, or has other files than the driver.
    """

    def __init__(self, device: Device, plan: Plan, batch_size: int, workers: int, token: str):
        check_audio(plan)
        super().__init__(device, plan, batch_size, workers)
        check_weights(plan)  # now that they are downloaded
        self.scratch: Path | None = None
        if not storage.has_token(plan.folder, token):
            self.scratch = Path(tempfile.mkdtemp(prefix="earshot-"))
            self.plan = replace(plan, folder=self.scratch)
            (self.scratch / "shards").mkdir()

    def __call__(self, task: Task, report: Callable[[Made], None], deadline: Any) -> bool:
        """Make shards as `Worker` does."""
        scratch = self.scratch
        if scratch is None:
            return super().__call__(task, report, deadline)
        here = [replace(shard, path=scratch / "shards" / shard.path.name) for shard in task.shards]

        def send(made: Made) -> None:
            paths = [scratch / "shards" / f"{made.name}{suffix}" for suffix in (".pkl", ".json")]
            # the JSON file last: it makes the shard done
            report(made._replace(files=tuple((path.name, path.read_bytes()) for path in paths)))
            for path in paths:
                path.unlink()

        return super().__call__(task._replace(shards=here), send, deadline)

    def close(self) -> None:
        """Cancel the decoding of further clips, remove the temporary folder."""
        super().close()
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)


def check_audio(plan: Plan) -> None:
    """Raise UserError where this node does not see the clips, or where some of the training clips are other
    files than the driver's."""
    clips = plan.competition.clips
    storage.check_seen([path for path in clips.path if path][:1], "audio")
    known = [
        pair for pair in zip(clips[clips.split == "train"].path, plan.digests, strict=False) if all(pair)
    ]
    for path, digest in known[:: max(1, len(known) // FEW)][:FEW]:
        storage.check_seen([path], "audio")
        if hash_file(path) != digest:
            raise UserError(
                f"{socket.gethostname()} has another file as {path}: mount the same audio on every node"
            )


def check_weights(plan: Plan) -> None:
    """Raise UserError where this node has other weights of the extractor than the driver."""
    files = extractors.load_module(plan.extractor).Extractor.find_weights(plan.settings, plan.weights)
    found = hash_value([hash_file(path) for path in files])[:16] if files else None
    storage.check_weights(found, plan.record["weights"], plan.extractor)
