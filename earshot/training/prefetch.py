"""Reading batches of large caches from the disk in a thread, while the head trains on the previous batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor


def make_loader(
    names: Sequence[str], fetch: Callable[[str, np.ndarray], Tensor], device: torch.device
) -> Callable[[np.ndarray], Callable[[], dict[str, Tensor]]]:
    """A function for the thread that reads the views of a batch and sends them to a GPU on a separate stream.

    It returns a function for the main thread that waits for the views and returns them.

    Args:
        names: of the views on disk. fetch: reads rows of a view from the disk.
        device: the device to send them to.
    """
    if device.type != "cuda":

        def load(which: np.ndarray) -> Callable[[], dict[str, Tensor]]:
            found = {name: fetch(name, which) for name in names}
            found = {name: x.float() if x.is_floating_point() else x for name, x in found.items()}
            return lambda: found

        return load
    aside = torch.cuda.Stream(device)

    def send(which: np.ndarray) -> Callable[[], dict[str, Tensor]]:
        with torch.cuda.stream(aside):
            # Pinned memory is reused once the copy that was recorded on its stream is done.
            found = {name: fetch(name, which).pin_memory().to(device, non_blocking=True) for name in names}
            sent = aside.record_event()

        def arrived() -> dict[str, Tensor]:
            now = torch.cuda.current_stream(device)
            now.wait_event(sent)
            for x in found.values():
                x.record_stream(now)
            return found

        return arrived

    return send


def read_ahead(
    batches: Sequence[np.ndarray], load: Callable[[np.ndarray], Callable[[], dict[str, Tensor]]]
) -> Iterator[dict[str, Tensor]]:
    """The views of batch after batch; a thread reads the next batch while one is used.

    Args:
        batches: row numbers. load: from `make_loader`.
    """
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(load, batches[0])
        for number in range(len(batches)):
            arrived = coming.result()
            if number + 1 < len(batches):
                coming = pool.submit(load, batches[number + 1])
            yield arrived()
