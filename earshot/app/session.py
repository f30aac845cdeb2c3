"""What the page and the API share: checks of uploads, and recent predictions."""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from earshot.app.upload_limits import UploadLimits
from earshot.prediction.predictor import Prediction, Predictor
from earshot.prediction.seen_clips import SeenClips

REMEMBERED = 4  # predictions, with their samples


class Session:
    """A predictor with upload limits; `name` is the run's or the blend's."""

    def __init__(self, predictor: Predictor, limits: UploadLimits, name: str):
        self.predictor, self.limits, self.name = predictor, limits, name
        self.seen = SeenClips(predictor.whole)
        self._recent: OrderedDict[str, Prediction] = OrderedDict()

    def predict(self, path: Path | str) -> Prediction:
        """The prediction for a file, computed once; BadAudio where the file is refused or can't be read."""
        key = str(path)
        with self.predictor.lock:
            if key not in self._recent:
                self.limits.check(path)
                self._recent[key] = self.predictor.predict_file(path)
            self._recent.move_to_end(key)
            while len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)
            return self._recent[key]

    def forget(self, path: Path | str) -> None:
        """Drop the prediction for a path that another file may take."""
        self._recent.pop(str(path), None)

    def predict_json(self, path: Path | str, top: int, name: str) -> dict[str, Any]:
        """The API's reply: the `top` likeliest classes of the clip and of each window, and a warning for a
        training clip.

        Args:
            name: the upload's file name, "" where it is not known.
        Raises:
            BadAudio: the file is refused or can't be read.
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
        return [{"class": self.predictor.classes[i], "probability": round(float(row[i]), 6)} for i in order]
