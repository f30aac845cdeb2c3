"""What the page and the API share: an upload is checked, heard, and remembered for the questions that
follow."""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from earshot.app.upload_limits import UploadLimits
from earshot.prediction.predictor import Prediction, Predictor
from earshot.prediction.seen_clips import SeenClips

REMEMBERED = 4  # answers, with their samples


class Session:
    """A hearing with limits; `name` is the run's or the blend's."""

    def __init__(self, hearing: Predictor, limits: UploadLimits, name: str):
        self.hearing, self.limits, self.name = hearing, limits, name
        self.seen = SeenClips(hearing.whole)
        self._recent: OrderedDict[str, Prediction] = OrderedDict()

    def predict(self, path: Path | str) -> Prediction:
        """What a file is; BadAudio, in a line, where it is refused or cannot be heard."""
        key = str(path)
        with self.hearing.lock:
            if key not in self._recent:
                self.limits.check(path)
                self._recent[key] = self.hearing.predict_file(path)
            self._recent.move_to_end(key)
            while len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)
            return self._recent[key]

    def forget(self, path: Path | str) -> None:
        """Drop a file's answer: its name will be another file's."""
        self._recent.pop(str(path), None)

    def predict_json(self, path: Path | str, top: int, name: str) -> dict[str, Any]:
        """The API's reply: the `top` likeliest classes of the clip and of each of its windows, and a warning
        where it is a training clip; the same errors.

        Args:
            name: what the upload was called, "" where it was not said.
        """
        began = time.perf_counter()
        try:
            found = self.predict(path)
        finally:
            self.forget(path)
        windows = [
            {
                "start": round(float(start), 3),
                "length": round(float(length), 3),
                "classes": self.find_likeliest(row, top),
            }
            for start, length, row in zip(found.start, found.length, found.windows, strict=True)
        ]
        seen = self.seen.find(path, name)
        return {
            "run": self.name,
            "seconds": round(found.seconds, 3),
            "classes": self.find_likeliest(found.probabilities, top),
            "windows": windows,
            **({"warning": str(seen)} if seen else {}),
            "milliseconds": round(1000 * (time.perf_counter() - began), 1),
        }

    def find_likeliest(self, row: np.ndarray, top: int) -> list[dict[str, Any]]:
        """[{"class", "probability"}], the likeliest first."""
        order = np.argsort(-row, kind="stable")[:top]
        return [{"class": self.hearing.classes[i], "probability": round(float(row[i]), 6)} for i in order]
