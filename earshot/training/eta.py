"""What the rest of a long stage will take, told once, from what its first steps took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from earshot.core.deadline import LONG, clock
from earshot.core.disk_space import human

if TYPE_CHECKING:
    from earshot.core.deadline import Deadline

MEASURED = 2.0  # seconds of training before an estimate is worth something


class Paced:
    """A deadline that watches a fold's first steps go by and then says what the rest will take."""

    def __init__(self, deadline: Deadline, fitter: Any, folds_left: int, log: Callable[[str], None]):
        self.deadline, self.fitter, self.folds_left, self.log = deadline, fitter, folds_left, log
        self.began: tuple[float, int] | None = None
        self.said = False

    def _steps(self) -> int:
        return self.fitter.progress.epoch * self.fitter.steps + self.fitter.progress.step

    def passed(self) -> bool:
        """Is the time used up? Asked after every step."""
        if not self.said:
            now, done = time.perf_counter(), self._steps()
            if self.began is None:
                self.began = now, done  # the first step warms up
            elif now - self.began[0] >= MEASURED and done > self.began[1]:
                self.said = True
                self._say((now - self.began[0]) / (done - self.began[1]), done)
        return self.deadline.passed()

    def _say(self, each: float, done: int) -> None:
        epochs = self.fitter.settings.epochs
        left = ((1 + self.folds_left) * epochs * self.fitter.steps - done) * each
        weights = 4 * sum(p.numel() for p in self.fitter.head.parameters())
        if left >= LONG:
            more = f" and {self.folds_left} more folds" if self.folds_left else ""
            self.log(
                f"{self.fitter.fold.title}  estimate, from the first steps: about {clock(left)} for it{more} "
                f"({epochs} epochs of {self.fitter.steps} steps, {1000 * each:.0f} ms each); a fold leaves "
                f"{human(2 * weights)} on the disk"
            )
