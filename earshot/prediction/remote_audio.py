"""Features of new audio, extracted by the workers of a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from earshot.cluster import storage
from earshot.core import graphs, worker_pool
from earshot.core.deadline import Deadline, defer_signals
from earshot.core.device import Device
from earshot.features.shards import SHARD
from earshot.prediction import new_audio
from earshot.prediction.new_audio import Bite
from earshot.training.run import Run

if TYPE_CHECKING:
    from earshot.cluster.connect import Cluster
    from earshot.core.config import PredictFlags
    from earshot.core.worker_pool import WorkerPool

CHUNK = 8  # times 32 files, which a worker gets at once, at most


class Task(NamedTuple):
    """Files to extract, in order."""

    first: int
    """Index of the first of them."""
    files: list[Path]
    listed: frozenset[Path]
    """Those that existed when they were listed."""

    @property
    def name(self) -> str:
        """Its first and last file, for messages."""
        first, last = self.files[0].name, self.files[-1].name
        return f"file {first}" if first == last else f"files {first} to {last}"


class AudioWorker:
    """Extracts files on a node of a cluster, and sends their features.

    Args:
        run: whose extractor it is. weights: the extractor's, where they moved. views: those to send.
        seen: files and folders that the node has to see, each with what it is. threads: for decoding.
    Raises:
        UserError: the node does not see them, or weights are missing or different.
    """

    def __init__(
        self,
        device: Device,
        run: Run,
        weights: str | None,
        views: Collection[str],
        seen: Sequence[tuple[str, Path]],
        threads: int,
    ):
        for what, path in seen:
            storage.check_seen([path], what)
        self.views, self.threads = views, threads
        self.extractor, self.audio = new_audio.build_extractor(run, weights, device, print)
        empty = {view: self.extractor.make_empty(view) for view in views}
        self.about = self.extractor.span, empty

    def __call__(self, task: Task, report: Callable[[Bite], None], deadline: Any) -> bool:
        """Extract the files of a task; False if the time ran out before the last.

        Args:
            report: called with the features of some of them at a time.
        """
        bites = new_audio.extract_bites(
            task.files,
            self.extractor,
            self.audio,
            self.views,
            new_audio.BATCH,
            task.listed,
            task.first,
            self.threads,
        )
        with contextlib.closing(bites):
            for bite in bites:
                report(bite)
                if deadline.is_over() and bite.first + bite.size < task.first + len(task.files):
                    return False
        return True


class RemoteExtractor:
    """The extractors of all workers, in place of one of this process.

    Args:
        files: those to extract. listed: those of them that existed when they were listed.
    """

    def __init__(self, pool: WorkerPool, files: list[Path], listed: frozenset[Path], deadline: Deadline):
        self.pool, self.files, self.listed, self.deadline = pool, files, listed, deadline
        self.span, self._empty = pool.wait_until_ready()[0]

    def make_empty(self, view: str) -> np.ndarray:
        """See `Extractor.make_empty`."""
        return self._empty[view]

    def extract(self, add: Callable[[Bite], None]) -> None:
        """Extract the files; `add` is called with their features, in order."""
        waiting: dict[int, Bite] = {}
        done = 0

        def take(bite: Bite) -> None:
            nonlocal done
            if bite.first < done:  # a task of a worker that was lost is repeated
                return
            waiting[bite.first] = bite
            while done in waiting:
                following = waiting.pop(done)
                add(following)
                done += following.size

        if not self.pool.run(self._split(), take, self.deadline):
            self.deadline.leave()

    def _split(self) -> list[Task]:
        tasks = []
        for firsts in worker_pool.split_tasks(range(0, len(self.files), SHARD), self.pool.slots, CHUNK):
            files = self.files[firsts[0] : firsts[-1] + SHARD]
            tasks.append(Task(firsts[0], [*map(Path.absolute, files)], self._find_listed(files)))
        return tasks

    def _find_listed(self, files: list[Path]) -> frozenset[Path]:
        return frozenset(path.absolute() for path in files if path in self.listed)


class RemoteWorkers:
    """Workers of a cluster that can extract new audio.

    Args:
        devices: one for each worker.
    """

    def __init__(self, cluster: Cluster, devices: Sequence[Device]):
        self.cluster, self.devices = cluster, devices

    @contextlib.contextmanager
    def open(
        self,
        run: Run,
        weights: str | None,
        views: Collection[str],
        files: list[Path],
        listed: frozenset[Path],
    ) -> Iterator[RemoteExtractor]:
        """Within the block the workers have a run's extractor.

        Args:
            views: those that are needed. files, listed: see `RemoteExtractor`.
        """
        seen = [("audio", path.absolute()) for path in files if path in listed][:1]
        if any((run.folder / graphs.FOLDER).glob("*")):  # it may compute other last digits than torch
            seen.append(("export", (run.folder / graphs.FOLDER).absolute()))
        there = Run(run.folder.absolute())
        there.config = run.config
        devices = self.devices[: max(1, -(-len(files) // SHARD))]
        arguments = (there, weights, views, seen, self.cluster.threads)
        deadline = Deadline(None)
        with defer_signals():
            with contextlib.closing(self.cluster.open_pool(devices, AudioWorker, arguments)) as pool:
                yield RemoteExtractor(pool, files, listed, deadline)
        if deadline.is_over():  # by a signal that came when everything was extracted
            deadline.leave()


@contextlib.contextmanager
def connect_workers(flags: PredictFlags, report: Callable[[str], None]) -> Iterator[RemoteWorkers]:
    """Within the block the workers of --cluster are there; `report` is called with a line about them."""
    from earshot.cluster.connect import connect

    with connect(flags) as cluster:
        devices = cluster.find_devices(flags.device, "auto")
        report(f"device: {cluster.describe(devices)}; the heads predict on this machine")
        yield RemoteWorkers(cluster, devices)
