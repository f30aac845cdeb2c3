"""Pretrained networks of transformers, from a local folder or the hub's cache, checked and loaded as
safetensors, or as plain data where only pickles are published. No code of a folder is ever run."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earshot.core import file_content, kaggle_paths
from earshot.core.errors import UserError, raise_if_temporary
from earshot.core.files import LARGEST_JSON
from earshot.extractors import base

if TYPE_CHECKING:
    import torch

HUB_ID = r"\w[\w.-]*/\w[\w.-]*"
SAFE, PICKLED = "*.safetensors", "pytorch_model*.bin"
INDEX = {SAFE: "model.safetensors.index.json", PICKLED: "pytorch_model.bin.index.json"}
# what is downloaded of these: repositories often hold copies of other precisions and for other libraries
PUBLISHED = {
    SAFE: ["model.safetensors", "model-*-of-*.safetensors"],
    PICKLED: ["pytorch_model.bin", "pytorch_model-*-of-*.bin", INDEX[PICKLED]],
}
PART = r"(model|pytorch_model)-\d{5}-of-(\d{5})\.(safetensors|bin)"
PLAIN = r"\w[\w.-]{0,150}"  # a name of a part beside its index
LARGEST = 10**7  # of a folder's settings: what they size is made before it can be checked
DEEPEST = 50  # lists and objects within one another
MOST_LAYERS = 1000
MOST_TABLES = 10**8  # numbers that a network computes from its settings, such as positions
IMPLEMENTATIONS = (None, "eager", "sdpa")  # of attention; others may be code from the hub


@dataclass(frozen=True)
class Pretrained:
    """One extractor's kind of network; user errors are a UserError in one line."""

    extractor: str
    """The extractor's name: the first word of every message."""
    kind: str
    """`model_type` in config.json."""
    network: str
    """The class of transformers."""
    others: str
    """The extractors to take instead."""
    default: str = ""
    """The default hub id."""
    flag: str = "--weights"
    """What names the weights."""

    files: tuple[str, ...] = (
        "config.json",
        "preprocessor_config.json",
        SAFE,
        "*.safetensors.index.json",
    )
    """Patterns of the files that define a network: they enter the fingerprint, and are downloaded (of the
    weights, those in `PUBLISHED`)."""

    def find_network(self, kind: str | None) -> str | None:
        """The class of transformers for a `model_type`, None for one that this extractor does not take."""
        return self.network if kind == self.kind else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every `model_type` that it takes."""
        return (self.kind,)

    @property
    def wanted(self) -> str:
        """What `kinds` are, in a few words."""
        return ", ".join(self.kinds)

    @property
    def ways_out(self) -> str:
        """What to do if the weights cannot be loaded."""
        return (
            "go online once, or give --weights FOLDER (config.json and model.safetensors, for example an "
            f"attached Kaggle dataset), or take another extractor (--extractor {self.others})"
        )

    def find_files(self, weights: str) -> list[Path]:
        """The local files that define the network, without importing torch.

        Returns:
            config, preprocessor config and safetensors of a folder or of the hub's cache; [] if not cached
            yet.
        Raises:
            UserError: `weights` looks like a path and does not exist, or holds no usable model.
        """
        folder = self.find_folder(weights)
        if folder is None:
            return []
        patterns = self.files if any(folder.glob(SAFE)) else (*self.files, PICKLED)
        return sorted({path for pattern in patterns for path in folder.glob(pattern)})

    def get_folder(self, weights: str) -> Path:
        """The local folder of the weights, downloaded from the hub if needed."""
        folder = self.find_folder(weights)
        if folder is not None:
            return folder
        os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")  # read when huggingface_hub is first imported
        from huggingface_hub import snapshot_download

        try:
            patterns = [pattern for pattern in self.files if pattern != SAFE] + PUBLISHED[SAFE]
            folder = Path(snapshot_download(weights, allow_patterns=patterns, etag_timeout=5))
            if not any(folder.glob(SAFE)):  # older models are published as pickles only
                snapshot_download(weights, allow_patterns=PUBLISHED[PICKLED], etag_timeout=5)
        except (
            Exception
        ) as error:  # offline, unknown, gated, disk full: each library version has its own exceptions
            text = f"{type(error).__name__} {error}"
            offline = "Connect" in text or "LocalEntryNotFound" in text or "OfflineMode" in text
            reason = "no connection" if offline else " ".join(str(error).split())[:80] or type(error).__name__
            found = [f"{path} ({kind})" for path, kind in kaggle_paths.find_networks(self.kinds).items()]
            attached = ", ".join(found[:4]) + (", ..." if found[4:] else "")
            raise UserError(
                f"{self.extractor}: {weights} is not cached and cannot be downloaded ({reason}): "
                f"{f'attached are {attached}: choose one with {self.flag}; or ' if attached else ''}"
                f"{self.ways_out}"
            ) from None
        return self.check_folder(folder)

    def find_folder(self, weights: str) -> Path | None:
        """The folder of weights that are here: a path, in the hub's cache or attached; None for a hub id that
        isn't."""
        path = base.find_local(weights)
        if path is not None:
            if path.is_file():
                raise UserError(
                    f"{self.extractor}: {self.flag} {weights} is a file: give the folder that has "
                    "config.json in it"
                )
            nested = [path, *sorted(found.parent for found in path.glob("*/config.json"))]
            return self.check_folder(
                next((folder for folder in nested if (folder / "config.json").exists()), path)
            )
        if not re.fullmatch(HUB_ID, weights):
            raise UserError(
                f"{self.extractor}: {self.flag} {weights}: no such folder, and not a hub id (owner/name)"
            )
        return self.find_cached(weights) or kaggle_paths.find_pretrained_folder(
            self.kinds, weights, weights == self.default
        )

    def find_cached(self, weights: str) -> Path | None:
        """The folder of a hub id in the hub's cache, if all of it is there."""
        from huggingface_hub import try_to_load_from_cache

        if not re.fullmatch(HUB_ID, weights):
            return None
        config = try_to_load_from_cache(weights, "config.json")
        folder = Path(config).parent if isinstance(config, str) else None
        # a download that was interrupted leaves the config without the weights
        return folder if folder and self.list_weights(folder) and not self.find_missing(folder) else None

    def check_folder(self, folder: Path) -> Path:
        """The folder if it holds this kind of network as safetensors, else UserError with what is missing."""
        if not (folder / "config.json").exists():
            raise UserError(
                f"{self.extractor}: {folder} has no config.json, so no model in it: {self.ways_out}"
            )
        file_content.check_content(folder / "config.json")
        kind = self.read_json(folder / "config.json").get("model_type")
        if not isinstance(kind, str | None) or self.find_network(kind) is None:
            raise UserError(
                f"{self.extractor}: {folder} holds a model of type {str(kind)[:60]}, not {self.wanted}: "
                f"{self.ways_out}"
            )
        if (folder / "adapter_config.json").exists():  # it names a network elsewhere, which peft would load
            raise UserError(
                f"{self.extractor}: {folder} holds an adapter (adapter_config.json): merge it into the "
                "network (merge_and_unload) and save that"
            )
        if not self.list_weights(folder):
            raise UserError(
                f"{self.extractor}: {folder} has no model.safetensors: save it there (save_pretrained does), "
                f"or {self.ways_out}"
            )
        missing = self.find_missing(folder)
        if missing:
            raise UserError(
                f"{self.extractor}: {folder} lacks {missing[0]}, a part of the weights: {self.ways_out}"
            )
        for path in self.list_weights(folder):
            file_content.check_content(path)
        return folder

    @staticmethod
    def list_weights(folder: Path) -> list[Path]:
        """The files of a folder's weights: safetensors, else pickles."""
        return sorted(folder.glob(SAFE)) or sorted(folder.glob(PICKLED))

    def find_missing(self, folder: Path) -> list[str]:
        """The parts of the weights that are not there: an index names them, or the names of other parts tell
        their number. UserError for an index with names of other places."""
        files = self.list_weights(folder)
        kind = PICKLED if files and files[0].suffix == ".bin" else SAFE
        index = folder / INDEX[kind]
        named = self.read_json(index).get("weight_map") if index.is_file() else None
        names = set(map(str, named.values())) if isinstance(named, dict) else set()
        for name in names:
            if not re.fullmatch(PLAIN, name) or not fnmatch(name, kind):
                raise UserError(
                    f"{self.extractor}: {index} names {name[:60]!r}, which is no {kind} beside it: "
                    f"{self.ways_out}"
                )
        if not any((folder / whole).is_file() for whole in ("model.safetensors", "pytorch_model.bin")):
            for match in (re.fullmatch(PART, path.name) for path in files):
                count = int(match[2]) if match else 0
                names |= {f"{match[1]}-{n:05}-of-{match[2]}.{match[3]}" for n in range(1, count + 1) if match}
        return sorted(name for name in names if not (folder / name).is_file())

    def read_json(self, path: Path) -> dict:
        """A JSON object from a file; UserError if it isn't one."""
        try:
            if path.stat().st_size > LARGEST_JSON:
                raise ValueError(f"larger than {LARGEST_JSON >> 20} MB")
            content = json.loads(path.read_text(encoding="utf-8"))
            list_values(content)
        except (OSError, ValueError, RecursionError) as error:
            raise_if_temporary(path, error)
            raise UserError(
                f"{self.extractor}: {path} is not readable as JSON ({' '.join(str(error).split())[:80]})"
            ) from None
        return content if isinstance(content, dict) else {}

    def load(self, folder: Path) -> torch.nn.Module:
        """The network from a folder, quietly, in fp32; UserError where tensors are missing or do not fit."""
        made_by, config = self.check_size(folder)
        with self.explain(folder, "weights"):
            import torch

            safe = any(folder.glob(SAFE))
            network, report = made_by.from_pretrained(
                str(folder) if safe else None,
                config=config,
                state_dict=None if safe else self._read_pickles(folder),
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **{"dtype" if hasattr(config, "dtype") else "torch_dtype": torch.float32},  # before 4.56
            )
        # what replaces masked frames in pretraining is no part of the network that predicts
        lacking = sorted(key for key in report["missing_keys"] if not key.endswith("masked_spec_embed"))
        if lacking:
            raise UserError(
                f"{self.extractor}: the weights in {folder} lack {len(lacking)} of the network's tensors "
                f"(first: {lacking[0]}), so they are not a complete {made_by.__name__}: {self.ways_out}"
            )
        return network

    def check_size(self, folder: Path) -> tuple[Any, Any]:
        """The network's class and config of transformers, from a folder.

        Raises:
            UserError: config.json describes no network, or a far larger one than the weights' files hold.
        """
        path = folder / "config.json"
        self.check_numbers(path)
        name = self.find_network(self.read_json(path).get("model_type")) or self.network
        with self.explain(folder, "weights"):
            import transformers

            made_by = getattr(transformers, name)
            config = made_by.config_class.from_pretrained(str(folder), local_files_only=True)
            config.transformers_weights = None  # it may name other files than those that were checked
            _check_size(made_by, config, sum(path.stat().st_size for path in self.list_weights(folder)))
        return made_by, config

    @contextlib.contextmanager
    def explain(self, folder: Path, what: str) -> Iterator[None]:
        """UserError for whatever transformers raises over what a folder holds; nothing is printed."""
        with silence_transformers():
            try:
                yield
            except Exception as error:  # OSError, ValueError, RuntimeError, SafetensorError, ...
                raise_if_temporary(folder, error)
                text = f"unknown value {error}" if isinstance(error, KeyError) else str(error)
                reason = " ".join(text.split())[:160]
                raise UserError(
                    f"{self.extractor}: the {what} in {folder} cannot be loaded ({reason}): {self.ways_out}"
                ) from None

    def check_numbers(self, path: Path) -> None:
        """UserError where a setting in a JSON file is impossible, or asks for code."""
        values = list_values(self.read_json(path))
        counts = Counter(key for key, _ in values if key.startswith("conv_"))  # an entry each is a layer
        for key, value in values:
            layers = any(part in key for part in ("layers", "depth", "conv_pos"))
            most = MOST_LAYERS if layers else LARGEST
            if counts[key] > MOST_LAYERS:
                raise UserError(f"{self.extractor}: {path}: {key} has more than {MOST_LAYERS} entries")
            if isinstance(value, (int, float)) and not abs(value) <= most:
                raise UserError(f"{self.extractor}: {path}: {key} is {str(value)[:20]}, at most {most:,}")
            if key.endswith("stride") and isinstance(value, (int, float)) and value < 1:
                raise UserError(f"{self.extractor}: {path}: {key} is {value}, at least 1")
            if key.endswith("_implementation") and value not in IMPLEMENTATIONS:
                raise UserError(
                    f"{self.extractor}: {path}: {key} names an implementation outside transformers, which is "
                    "never run: remove it"
                )

    def _read_pickles(self, folder: Path) -> dict[str, torch.Tensor]:
        from earshot.extractors import torch_weights

        return dict(pair for path in self.list_weights(folder) for pair in torch_weights.load(path).items())


def list_values(value: Any, key: str = "it", depth: int = 0) -> list[tuple[str, Any]]:
    """(key, value) of every number and text in JSON; ValueError where it is nested too deep."""
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        return [pair for name, inner in value.items() for pair in list_values(inner, str(name), depth + 1)]
    if isinstance(value, list):
        return [pair for inner in value for pair in list_values(inner, key, depth + 1)]
    return [(key, value)]


def _check_size(made_by: Any, config: Any, held: int) -> None:
    """ValueError where a network has far more numbers than the files of `held` bytes: transformers takes the
    memory first."""
    import torch
    from torch.overrides import TorchFunctionMode

    class WithSteps(TorchFunctionMode):
        """Real numbers of torch.linspace: transformers before 5 reads dropout rates from them."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            real = {"device": "cpu"} if function is torch.linspace else {}
            return function(*args, **{**(kwargs or {}), **real})

    with torch.device("meta"), WithSteps():
        network = made_by(config)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    tables = sum(buffer.numel() for buffer in network.buffers())
    if 2 * parameters > held + 2**20 or tables > MOST_TABLES:  # fp16 is the smallest kind that is published
        raise ValueError(
            f"its settings describe {parameters:,} parameters, but the files have {held:,} bytes"
        )


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """Without transformers' loading report and progress bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


class Extractor(base.Extractor):
    """An extractor whose network comes from the hub, or from a folder that save_pretrained made."""

    pretrained: Pretrained

    @classmethod
    def find_weights(cls, settings: Any, weights: str | None) -> list[Path]:
        """See `Pretrained.find_files`."""
        return cls.pretrained.find_files(weights or cls.pretrained.default)

    @classmethod
    def fetch(cls, settings: Any, weights: str | None) -> None:
        """See `Pretrained.get_folder`."""
        cls.pretrained.get_folder(weights or cls.pretrained.default)

    @classmethod
    def list_attached(cls) -> list[str]:
        """The attached folders of the networks that it takes."""
        return list(map(str, kaggle_paths.find_networks(cls.pretrained.kinds)))

    def prepare(self) -> None:
        """Load the network and hand it to `adopt`."""
        folder = self.pretrained.get_folder(self.weights or self.pretrained.default)
        self.read_front_end(folder)
        self.adopt(self.pretrained.load(folder))

    def read_front_end(self, folder: Path) -> None:
        """Read the network's input settings from a folder, where needed."""

    def adopt(self, network: torch.nn.Module) -> None:
        """Set sizes and `shapes` from the network's config."""
        raise NotImplementedError
