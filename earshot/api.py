"""The Python interface: `extract` features, `train` a head, `load` a run. The scripts call the same code.

    import earshot

    cache = earshot.extract("esc10", extractor="efficientat", weights="mn04.pt")
    run = earshot.train(cache, recipe="linear", epochs=20)
    run.predict("clip.wav")

docs/python.md is a guide.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from earshot.core import config
from earshot.core.errors import TemporaryError, UserError
from earshot.core.python_call import CallDeadline, TimeLimitReached, start_call
from earshot.features.cache import Cache

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from earshot.prediction.members import Member
    from earshot.training.oof import Oof

__all__ = [
    "Cache",
    "TemporaryError",
    "TimeLimitReached",
    "TrainedRun",
    "UserError",
    "extract",
    "load",
    "train",
]

StrPath = str | os.PathLike[str]


def extract(
    competition: StrPath | None = None,
    *,
    recipe: StrPath | None = None,
    extractor: str | None = None,
    weights: StrPath | None = None,
    for_run: StrPath | TrainedRun | None = None,
    verbose: bool = True,
    **settings: Any,
) -> Cache:
    """Turn a competition's audio into cached features, once; the same call again continues or does nothing.

    Args:
        competition: a folder or zip, or what to download: a Kaggle competition's slug, "datasets/owner/slug",
            "esc50". Without it: the only one in data/, else the attached one, else the built-in sample.
        recipe: a recipe's name, or a YAML file: the defaults of all settings.
        extractor: what turns audio into features, in place of the recipe's.
        weights: the extractor's weights: a file or folder, or a hub id.
        for_run: a saved run; only the clips to submit are extracted, with that run's settings.
        verbose: print progress, as get_features.py does.
        settings: the flags of get_features.py by their names, such as seconds=4, n_mels=64, max_hours=2.
    Returns:
        the finished cache: `folder`, `classes`, `shapes`, and the arrays by `split("train")`.
    Raises:
        UserError: a setting, clips or weights that cannot be used. TimeLimitReached: `max_hours` are over.
        TemporaryError: a drive or the network failed; the same call continues.
    """
    with start_call(verbose):
        from earshot.core import kaggle_paths
        from earshot.core.keywords import fill_from_keywords
        from earshot.features import defaults
        from earshot.features.make_cache import make_cache
        from earshot.features.settings import build_settings
        from earshot.kaggle import download
        from earshot.training.resume import open_run

        named = {"recipe": recipe, "extractor": extractor, "weights": weights, "for_run": for_run}
        if competition is None:
            place = defaults.choose_competition(os.fspath(settings.get("out", "data")))
        else:
            place = kaggle_paths.resolve_slug(os.fspath(competition))
        run = None if for_run is None else open_run(os.fspath(for_run))
        name = None if recipe is None else os.fspath(recipe)
        if name is None and extractor is None and run is None:
            name, extractor = defaults.choose_features(place, weights is not None)
        start = build_settings(name, extractor, run)
        given = {key: value for key, value in named.items() if value is not None} | settings
        flags = fill_from_keywords(start.groups, given, "earshot.extract", ("verbose",))
        deadline = CallDeadline(flags["machine"].max_hours)
        place = download.find_or_download(place, flags["competition"].out) or place
        folder = make_cache(place, start.recipe, start.extractor, run, flags, deadline, show_next=False)
        if folder is None:
            raise UserError(f"{place} has no clips to submit")
        return Cache(folder)


def train(
    features: Cache | StrPath | Sequence[Cache | StrPath] | None = None,
    *,
    recipe: StrPath | None = None,
    head: str | Mapping[str, Any] | None = None,
    name: str | None = None,
    verbose: bool = True,
    **settings: Any,
) -> TrainedRun:
    """Train a head fold by fold, write the submission; the same call again continues or does nothing.

    Args:
        features: a cache, or its folder; with recipe="auto" also several. Without it: the one that matches
            the recipe, else the one that was made last.
        recipe: a recipe's name, or a YAML file. Without it: the cache's, else "linear". "auto" trains many
            heads and blends the best.
        head: a head's name; or a dict of its options, such as {"dropout": 0.4}, with a "name" where it is not
            the recipe's head.
        name: the run's name in runs/; without it one is made from the settings.
        verbose: print progress, as train.py does.
        settings: the flags of train.py by their names, such as epochs=20, lr=1e-3, fold=[1, 2], fresh=True.
    Returns:
        the run.
    Raises:
        UserError: a setting or features that cannot be used. TimeLimitReached: `max_hours` are over.
        TemporaryError: a drive or the network failed; the same call continues.
        KeyboardInterrupt: after the state is saved; the same call continues.
    """
    explicit = ["--metric", str(settings["metric"])] if "metric" in settings else []
    with start_call(verbose):
        from earshot.search import train_run

        if recipe == "auto":
            if head is not None:
                raise UserError('earshot.train: recipe="auto" chooses the head itself: leave head out')
            flags_of_auto, machine = _fill_auto(features, name, settings)
            return load(train_run.run_bake_off(flags_of_auto, machine, time.monotonic(), explicit))
        from earshot.core.keywords import fill_from_keywords
        from earshot.features.find_cache import find_for_recipe
        from earshot.training import contest_metric

        if isinstance(features, Sequence) and not isinstance(features, str):
            raise UserError('earshot.train: several caches are for recipe="auto"; a run is trained on one')
        chosen = None if recipe is None else config.load_recipe(os.fspath(recipe))
        cache = features if isinstance(features, Cache) else None
        if cache is None:
            data = os.fspath(settings.get("data", "data"))
            attached = settings.get("continue_from")
            named_folder = None if features is None else os.fspath(features)  # type: ignore[arg-type]
            cache = Cache(named_folder or find_for_recipe(data, chosen, attached))
        options = {} if head is None else {"name": head} if isinstance(head, str) else dict(head)
        head_name = options.pop("name", None)
        chosen = chosen or config.default_recipe(cache.manifest.get("recipe"), head_name)
        metric, line = contest_metric.choose_default([cache], explicit)
        values = {"metric": metric, **chosen.training}
        groups = {
            "run": config.RunFlags(),
            "training": config.replace_defaults(
                config.TrainingFlags(), values, f"recipe {chosen.name}, training"
            ),
            "machine": config.TrainMachineFlags(),
        }
        named = {"recipe": recipe, "features": cache.folder, "head": head_name, "name": name}
        given = {key: value for key, value in named.items() if value is not None} | settings
        flags = fill_from_keywords(groups, given, "earshot.train", ("verbose",))
        as_text = {key: json.dumps(value, default=str) for key, value in options.items()}
        deadline = CallDeadline(flags["machine"].max_hours)
        return load(train_run.train_run(cache, chosen, flags, as_text, line, deadline).folder)


def _fill_auto(features: Any, name: str | None, settings: dict[str, Any]) -> tuple[Any, Any]:
    """The settings of a bake-off, and those of the machine."""
    from earshot.core.keywords import fill_from_keywords
    from earshot.search.flags import AutoFlags

    several = [features] if isinstance(features, (Cache, str, os.PathLike)) else list(features or ())
    folders = [one.folder if isinstance(one, Cache) else one for one in several]
    groups = {"auto": AutoFlags(), "machine": config.TrainMachineFlags()}
    given = {"features": folders, "name": name, **settings}
    filled = fill_from_keywords(groups, given, "earshot.train", ("verbose",))
    return filled["auto"], filled["machine"]


def load(run: StrPath | None = None, *, runs_folder: StrPath = "runs") -> TrainedRun:
    """Open a run or a kept blend.

    Args:
        run: its folder, or its name in `runs_folder`. Without it: the one that was finished last.
    Raises:
        UserError: no such run, or a damaged one.
    """
    from earshot.prediction.members import open_members

    return TrainedRun(open_members(() if run is None else (os.fspath(run),), os.fspath(runs_folder))[0])


class TrainedRun:
    """A run, or a kept blend of runs.

    Args:
        folder: where it lies. classes: the labels, in the order of the tables' columns.
        metric: what its best checkpoints, or the blend's weights, were chosen by.
    """

    def __init__(self, member: Member):
        if member.folder is None:
            raise ValueError("a blend that is not kept has no folder")
        self._member = member
        self.folder: Path = member.folder
        self.classes: list[str] = member.classes
        self.metric: str = member.metric

    def __repr__(self) -> str:
        return f"TrainedRun({self._member})"

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def multilabel(self) -> bool:
        """May a clip have several labels?"""
        return self._member.multilabel

    @property
    def scores(self) -> pd.DataFrame:
        """The scores, a column per metric.

        Row "last" is the last epoch out of fold: unbiased (of a blend, cross-fitted). Row "best" is the best
        epoch, chosen on the validation fold: optimistic. Row "test" is a labelled hold-out, if there is one.
        """
        import pandas as pd

        from earshot.report.results import load_results

        found = load_results(self.folder)
        rows = dict(found.extra.get("scores") or {"last": found.scores})
        rows |= {"test": found.extra["test"]} if "test" in found.extra else {}
        names = ("last", "best", "test")
        table = {
            row: {k: v for k, v in rows[row].items() if isinstance(v, float)} for row in names if row in rows
        }
        return pd.DataFrame.from_dict(table, orient="index")

    def oof(self, kind: Literal["last", "best"] = "last") -> pd.DataFrame:
        """The out-of-fold predictions: id, fold, label, then a column of probabilities per class.

        Args:
            kind: "last": of the last epoch, unbiased (of a blend, cross-fitted). "best": of the best epoch,
                chosen on the validation fold, optimistic.
        Raises:
            UserError: no fold is finished; "best" of a blend, which has none.
        """
        from earshot.report.results import load_results
        from earshot.training.oof import Oof

        if kind not in ("last", "best"):
            raise UserError(f'oof: kind is {kind!r}, but must be "last" or "best"')
        found: Oof = load_results(self.folder)
        if kind == "best":
            if self._member.run is None:
                raise UserError(
                    f"{self.folder} is a blend, whose out-of-fold predictions are cross-fitted: oof()"
                )
            found = Oof.read(self.folder / "oof.csv", self.classes, self.multilabel)
        columns = {"id": found.ids, "fold": found.folds, "label": self._format_labels(found.labels)}
        return self._build_table(columns, found.probabilities)

    def predict(
        self,
        files: StrPath | Sequence[StrPath],
        *,
        weights: StrPath | None = None,
        device: str = "auto",
        verbose: bool = True,
    ) -> pd.DataFrame:
        """Predict audio files.

        Args:
            files: a file or folder, or several.
            weights: the extractor's weights, where they moved.
            device: "auto", "cpu", "cuda", "cuda:1" ...
            verbose: print warnings, such as that a file is a training clip.
        Returns:
            a row per file: `file`, its name; `label`, the most likely class, or for multi-label runs all
            classes with a probability of at least 0.5; `problem`, why the file can't be read, else ""; then a
            column of probabilities per class. A file that can't be read has no label, and the class prior as
            its probabilities.
        Raises:
            UserError: no such file, no audio in a folder, a run that is not finished, missing weights.
        """
        with start_call(verbose):
            from earshot.core import device as devices
            from earshot.prediction import predict_runs

            paths = [files] if isinstance(files, (str, os.PathLike)) else list(files)
            found = predict_runs.predict_audio(
                self._member,
                [os.fspath(path) for path in paths],
                None if weights is None else os.fspath(weights),
                devices.choose(device),
                print,
            )
        from earshot.training.metrics import THRESHOLD

        values = found.probabilities
        labels = self._format_labels(values >= THRESHOLD if self.multilabel else values.argmax(1))
        problems = [found.reasons.get(id, "") for id in found.ids]
        labels = [None if problem else label for label, problem in zip(labels, problems, strict=True)]
        return self._build_table({"file": found.ids, "label": labels, "problem": problems}, values)

    def write_submission(
        self,
        out: StrPath = "submissions/submission.csv",
        *,
        features: Cache | StrPath | None = None,
        device: str = "auto",
        verbose: bool = True,
    ) -> pd.DataFrame:
        """Predict the competition's clips to submit, and write the validated submission.

        Args:
            features: the cache with the clips (default: the one that the run was trained on).
        Returns:
            the submission, as it is written.
        Raises:
            UserError: the cache is missing or another one's, has no clips to submit, or does not fit the
                sample submission.
        """
        with start_call(verbose):
            import pandas as pd

            from earshot.core import device as devices
            from earshot.core.files import check_output
            from earshot.prediction import predict_runs

            folder = features.folder if isinstance(features, Cache) else features
            check_output(os.fspath(out))
            where = None if folder is None else os.fspath(folder)
            if not predict_runs.predict_cache(self._member, where, Path(out), devices.choose(device)):
                raise UserError(f"{self.folder}: nothing to submit, there are no clips without labels")
            return pd.read_csv(out)

    def _format_labels(self, labels: np.ndarray) -> list[str | None]:
        """The labels of clips as text, from (clips,) class indices or (clips, classes) of 0 and 1."""
        if not self.multilabel:
            return [self.classes[index] for index in labels]
        from earshot.training.oof import join_labels

        numbers = {name: number for number, name in enumerate(self.classes)}
        return [join_labels(row.nonzero()[0].tolist(), self.classes, numbers) for row in labels]

    def _build_table(self, columns: Mapping[str, Any], probabilities: np.ndarray) -> pd.DataFrame:
        """These columns, and one per class; a class that has the name of another column becomes "class
        <name>", as in oof.csv."""
        import pandas as pd

        names = [f"class {name}" if name in columns else name for name in self.classes]
        return pd.concat([pd.DataFrame(columns), pd.DataFrame(probabilities, columns=names)], axis=1)
