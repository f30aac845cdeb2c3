"""Any audio encoder as an ONNX file, frozen: Perch, BirdNET, your own exports.

`--weights` is the file. Its input is (batch, samples) or (batch, 1, samples) of any batch size or one, at
the sampling rate that `--rate` names, as the file does not. A file is tried under limits of memory and time
before it is loaded, see `onnx_probe`; weights in further files are refused.

Views, by the chosen output's shape: `pooled` (D, 1, 1), the output itself or its mean over time (and
frequency); `frames` (D, 1, T) of one that has time; `map` (D, F, T) of one that has frequency, too.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from earshot.core import graphs, kaggle_paths
from earshot.core.errors import UserError
from earshot.core.kinds import Kind
from earshot.core.settings import Bounds
from earshot.extractors import base, onnx_file, onnx_probe

if TYPE_CHECKING:
    import torch

PASS_SECONDS = 120  # that one pass may take: the trial's audio may have been harmless
CUDA = "CUDAExecutionProvider"
HUB = "https://huggingface.co/"
# files that recipes name -> where they are, and their licence
SOURCES = {
    "perch_v2_no_dft.onnx": f"{HUB}justinchuby/Perch-onnx (licence: Apache 2.0)",
    "birdnet_backbone.onnx": (
        f"{HUB}biodiversica/BirdNET-onnx-backbone (licence of BirdNET: CC BY-NC-SA 4.0, not for commercial "
        "use)"
    ),
}
NEEDED = "onnx: which encoder? Name it with --weights FILE.onnx, and its sampling rate with --rate HZ"


@dataclass(frozen=True)
class Settings:
    """any encoder as an ONNX file, named by --weights"""

    COMMON: ClassVar = ("rate", "output", "axes")
    rate: Annotated[int | None, Bounds(1000, 768000)] = None
    """the sampling rate that the network takes, in Hz; the file does not say it"""
    output: str | None = None
    """the output to keep, by name (default: the only one, or the one that is called an embedding)"""
    axes: str | None = None
    """what the output's axes are: B batch, D channels, F frequency, T time, for example BTD (default: found
    by a trial where the network takes windows of any length)"""
    views: tuple[str, ...] = ()
    """views to keep: pooled (one vector), frames (a vector per frame), map (per frequency and frame)
    (default: all that the output has)"""


class Extractor(base.Extractor):
    """See `base.Extractor`; UserError for a file that is missing, refused, or does not fit the settings."""

    views = {"pooled": "vector", "frames": "sequence", "map": "grid"}
    at_once = 4

    @classmethod
    def find_weights(cls, settings: Settings, weights: str | None) -> list[Path]:
        """[file]: as given, the only *.onnx of the given folder, or attached; [] where none is named.

        Raises:
            UserError: there is none, or several.
        """
        if not weights:
            return []
        path = base.find_local(weights)
        if path is None:
            source = SOURCES.get(Path(weights).name)
            hint = (
                f"get it from {source}, and put it at {Path(weights).expanduser().absolute()}"
                if source
                else "give the path of an ONNX file"
            )
            raise UserError(f"onnx: --weights {weights}: no such file: {hint}")
        if path.is_file():
            return [path]
        found = sorted({*path.glob("*.onnx"), *path.glob("*/*.onnx")})
        if len(found) != 1:
            listed = f"{len(found)} ONNX files ({', '.join(file.name for file in found[:5])})"
            raise UserError(
                f"onnx: --weights {weights} is a folder with {listed}: name the file"
                if found
                else f"onnx: the folder --weights {weights} has no ONNX file: give the path of one"
            )
        return [file for file in found if base.find_local(str(file))]

    @classmethod
    def fetch(cls, settings: Settings, weights: str | None) -> None:
        """Raise UserError: nothing is downloaded."""
        if not cls.find_weights(settings, weights):
            raise UserError(NEEDED)

    @classmethod
    def list_attached(cls) -> list[str]:
        """The attached ONNX files, but for the exports of runs."""
        found = kaggle_paths.find_files(".onnx")
        return [str(file) for file in found if not file.with_name(graphs.ABOUT).exists()]

    @classmethod
    def configure(cls, settings: Settings, weights: str | None) -> type[Extractor]:
        """The class with the window of this file, where it takes one length only."""
        cls.fetch(settings, weights)
        network = onnx_file.inspect(cls.find_weights(settings, weights)[0], None)
        if settings.rate is None:
            raise UserError(
                f"onnx: which sampling rate does {network.file} take? The file does not say it: set --rate "
                "HZ, for example --rate 32000"
            )
        seconds = network.samples and network.samples / settings.rate
        limits = {"seconds": seconds, "limit": seconds} if seconds else {}
        return type("Extractor", (cls,), {"__module__": cls.__module__, **limits})

    @classmethod
    def choose_views(cls, settings: Settings) -> dict[str, Kind]:
        """See `base.Extractor.choose_views`; all of them by default."""
        return super().choose_views(settings) if settings.views else dict(cls.views)

    def prepare(self) -> None:
        """Try the file, then load it."""
        self.fetch(self.settings, self.weights)
        path = self.find_weights(self.settings, self.weights)[0]
        network = onnx_file.inspect(path, self.samples)
        if network.samples not in (None, self.samples):
            raise UserError(
                f"onnx: {path.name} takes windows of {network.samples} samples, "
                f"{network.samples / self.rate:g} s at {self.rate} Hz, not {self.window.seconds:g} s: leave "
                "out --seconds, or set --rate to the network's"
            )
        self.path, self.network = path, network
        self.output = network.choose_output(self.settings.output)
        self.axes = network.find_axes(self.output, self.settings.axes)
        if (network.batch or 1) > 1 and not self.output.batch:
            raise UserError(
                f"onnx: the output {self.output} of {path.name} depends on the other windows of a batch: "
                "export it with a batch size of 1"
            )
        sizes = dict(zip(self.axes, self.output.shape or (), strict=True))
        deep, high, long = sizes["D"], sizes.get("F", 1), sizes.get("T", 1)
        made = {"pooled": (deep, 1, 1)}
        if high > 1:
            made["map"] = (deep, high, long)
        elif "T" in sizes:
            made["frames"] = (deep, 1, long)
        lacking = [view for view in self.settings.views if view not in made]
        if lacking:
            raise UserError(
                f"onnx: --views {' '.join(lacking)}: the output {self.output} gives {', '.join(made)} only"
            )
        self.views = {view: kind for view, kind in self.views.items() if view in made}
        self.shapes = {view: made[view] for view in self.views}
        self.not_finite, self.counting = 0, threading.Lock()
        if not self.output.silent:
            print(
                f"warning: onnx: {path.name} gives NaN or infinite numbers for silence: the features of "
                "silent windows will be zeros",
                flush=True,
            )
        self.session = self._open_session()
        # a CPU is no faster with several windows: 3.6 ms each against 4.2 in fours
        several = self.output.batch and "B" in self.axes and self.session.get_providers()[0] == CUDA
        self.rows = network.batch or (None if several else 1)

    def _open_session(self) -> Any:
        """An InferenceSession on the device; on the CPU, and a line about it, where its build has no CUDA."""
        import onnxruntime

        options = onnx_probe.build_options()
        _limit_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
        providers: list[Any] = ["CPUExecutionProvider"]
        on_gpu = self.device.startswith("cuda")
        if on_gpu and CUDA in onnxruntime.get_available_providers():
            if hasattr(onnxruntime, "preload_dlls"):
                onnxruntime.preload_dlls()  # torch's CUDA libraries
            index = self.device.partition(":")[2] or "0"
            providers.insert(0, (CUDA, {"device_id": index, "use_tf32": "0"}))
        elif on_gpu:
            options.intra_op_num_threads = 0  # all cores: passes run one after the other
        try:
            session = onnxruntime.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            raise self._describe(error) from None
        if on_gpu and session.get_providers()[0] != CUDA:
            print(
                f"onnx: {self.path.name} runs on the CPU: this ONNX Runtime has no CUDA (pip install "
                "onnxruntime-gpu in place of onnxruntime)",
                flush=True,
            )
        return session

    def forward(self, waves: torch.Tensor, lengths: list[float]) -> dict[str, torch.Tensor]:
        """Views of a batch of windows; see `base.Extractor.forward`."""
        import torch

        batch = waves.cpu().numpy()
        size = self.rows or len(batch)
        parts = [self._run(batch[first : first + size], size) for first in range(0, len(batch), size)]
        made = torch.from_numpy(np.concatenate(parts)).to(waves.device)
        pooled = made.mean(dim=(2, 3), keepdim=True)
        return {view: pooled if view == "pooled" else made for view in self.views}

    def _run(self, waves: np.ndarray, size: int) -> np.ndarray:
        """The output (B, D, F, T) of at most `size` windows (B, samples), in a batch of exactly that size."""
        import onnxruntime

        network = self.network
        fed = np.zeros((size, self.samples), onnx_probe.FLOATS[network.kind])
        fed[: len(waves)] = waves
        options = onnxruntime.RunOptions()
        options.log_severity_level = 4
        watch = threading.Timer(PASS_SECONDS, setattr, (options, "terminate", True))
        watch.daemon = True
        watch.start()
        try:
            inputs = {network.input: fed[:, None] if network.axes == 3 else fed}
            values = self.session.run([self.output.name], inputs, options)[0]
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            raise self._describe(error) from None
        finally:
            watch.cancel()
        shape = self.output.shape or ()
        if "B" in self.axes:
            shape = (size, *shape[1:])
        if values.shape != shape:
            raise UserError(f"onnx: {self.path.name} gives {values.shape} for some audio, not {shape}")
        sizes = dict(zip(self.axes, shape, strict=True))
        named = [axis for axis in self.axes if axis in "DFT"]
        values = values.reshape(size, *(sizes[axis] for axis in named))
        values = values.transpose(0, *(1 + named.index(axis) for axis in "DFT" if axis in named))
        values = values.reshape(size, *(sizes.get(axis, 1) for axis in "DFT"))
        values = values[: len(waves)].astype(np.float32)
        broken = ~np.isfinite(values).all((1, 2, 3))
        if broken.any():
            self._count_broken(int(broken.sum()))
            values[broken] = 0
        return values

    def _count_broken(self, count: int) -> None:
        """Count windows whose features are not finite; a line for the first, the tenth, the hundredth, ..."""
        with self.counting:
            before, self.not_finite = self.not_finite, self.not_finite + count
            if len(str(before)) < len(str(self.not_finite)) or not before:
                print(
                    f"warning: onnx: {self.path.name} gives NaN or infinite numbers, windows so far: "
                    f"{self.not_finite}; their features are zeros",
                    flush=True,
                )

    def _describe(self, error: Exception) -> Exception:
        """The error to raise for one of ONNX Runtime's."""
        if "terminate flag" in str(error):
            return UserError(f"onnx: {self.path.name}: a pass took longer than {PASS_SECONDS} s")
        if not onnx_probe.is_out_of_memory(error):
            return UserError(f"onnx: {self.path.name} fails: {onnx_probe.explain(error)}")
        if self.device.startswith("cuda"):
            return RuntimeError("out of memory on the GPU")  # which halves the batch
        return UserError(
            f"onnx: {self.path.name}: a pass takes more memory than there is: set a shorter --seconds"
        )


@functools.lru_cache(maxsize=1)
def _limit_memory() -> None:
    """Let ONNX Runtime take half of the free memory at most: what a pass takes may depend on the audio."""
    import onnxruntime as ort
    import torch

    from earshot.core import memory

    about = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    most = int(memory.get_free(torch.device("cpu"))) // 2
    ort.create_and_register_allocator(about, ort.OrtArenaCfg({"max_mem": most, "arena_extend_strategy": 1}))
