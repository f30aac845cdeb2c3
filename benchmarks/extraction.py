"""Extraction beside the usual loop over files, and beside decoding alone, on the same clips in one process,
on the CPU.

    python benchmarks/extraction.py --data ESC10 --weights mn04_as_mAP_432.pt     # into benchmarks/RESULTS.md
    python benchmarks/extraction.py --data ESC10 --ast-clips 4 --clips 80 --no-results
    python benchmarks/extraction.py --data ESC10 --only hf          # wav2vec 2.0 and Whisper alone

AST, wav2vec 2.0 and Whisper have their base models' size and random weights. The usual loop: librosa.load,
then feature extractor or spectrogram, then the network in fp32, a clip at a time, on all threads. Ours:
`extract.Worker`, which decodes, computes and writes the shards with their checksums, in the precision that a
user would get; neither counts its imports or the loading of weights. Rounds in turn, medians.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile
import torch
from common import ROOT, keep_rows, machine

sys.path.insert(0, str(ROOT))

from earshot import extractors
from earshot.audio.load import AudioSettings  # noqa: E402
from earshot.competition.load import load as load_competition
from earshot.core.config import WindowFlags  # noqa: E402
from earshot.core.device import Device, choose  # noqa: E402
from earshot.features import cache, decode_ahead, extract, plan
from earshot.features.precision import choose_precision
from earshot.features.shards import list_shards  # noqa: E402

NEVER: Any = type("Never", (), {"is_over": lambda self: False})()
HEADER = (
    "| extractor, clips | usual loop, ms a clip | ours, ms a clip | usual / ours | decoding alone, ms a clip "
    "| ours / decoding | least cosine of a clip: pooled, frames | in the network | precision |"
)
Features = dict[str, np.ndarray]


class Ours:
    """The kit's way to a competition's features."""

    def __init__(
        self,
        data: Path,
        out: Path,
        name: str,
        weights: str | None,
        clips: int,
        device: Device | None = None,
        batch: int = 16,
        cache: str | None = None,
        **settings: Any,
    ):
        module = extractors.load_module(name)
        found = load_competition(str(data), out=str(out))
        found.clips = found.clips[found.clips.split == "train"].head(clips).reset_index(drop=True)
        self.workers = torch.get_num_threads()
        cached = cache or "-".join([name, *settings])
        self.plan = plan.make_plan(
            found,
            out,
            name,
            module.Settings(**settings),
            AudioSettings(),
            WindowFlags(),
            weights,
            cached,
            None,
            self.workers,
        )
        self.paths = list(found.clips.path)
        (self.plan.folder / "shards").mkdir(parents=True)
        self.device = device or choose_precision(self.plan, [choose("cpu")], "auto")[0]
        self.worker = extract.Worker(self.device, self.plan, batch, self.workers)
        self.inside, self.lock = 0.0, threading.Lock()

    def watch(self, attribute: str) -> None:
        """Add up the seconds, of all threads, that a method of the extractor takes."""
        method = getattr(self.worker.extractor, attribute)

        def watched(*args: Any) -> Any:
            began = time.perf_counter()
            result = method(*args)
            with self.lock:
                self.inside += time.perf_counter() - began
            return result

        setattr(self.worker.extractor, attribute, watched)

    def features(self) -> Features:
        """Make every shard and write it."""
        self.worker(extract.Task(list_shards(self.plan), extract.NOBODY), lambda shard: None, NEVER)
        return {}

    def made(self) -> Features:
        """What the shards hold of each clip's first window: clips that are longer than a window become
        several."""
        shards = [cache.load(part.path) for part in list_shards(self.plan)]
        clips, first = np.unique(np.concatenate([shard["clip"] for shard in shards]), return_index=True)
        assert len(clips) == len(self.paths), "a clip is missing from the shards"
        views = self.worker.extractor.shapes
        return {
            view: np.concatenate([shard[view] for shard in shards])[first].astype(np.float32)
            for view in views
        }

    def decode(self) -> Features:
        """Decode and resample every clip, with as many threads as `features` decodes with."""
        rate = self.worker.extractor.rate
        with ThreadPoolExecutor(self.workers) as pool:
            for _ in pool.map(lambda path: decode_ahead.decode(path, rate, self.plan.audio), self.paths):
                pass
        return {}


def rounds(
    ways: dict[str, Callable[[], Features]], count: int
) -> tuple[dict[str, float], dict[str, Features]]:
    """Median seconds of each way, all in turn in every round, and what each returned last."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    last = {}
    for _ in range(count):
        for name, way in ways.items():
            began = time.perf_counter()
            last[name] = way()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}, last


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The least of the clips' cosines."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def clips_for_ast(data: Path, folder: Path, count: int, pairs: bool) -> Path:
    """A competition of a few of the clips, or of so many pairs of them, one after the other in a file."""
    files = sorted((data / "audio").iterdir())
    (folder / "audio").mkdir(parents=True)
    rows = [["fname", "label"]]
    for index in range(count):
        chosen = files[2 * index : 2 * index + 2] if pairs else files[2 * index : 2 * index + 1]
        waves, rates = zip(*map(soundfile.read, chosen), strict=True)
        rows.append([f"{index}.wav", f"class{index % 2}"])
        # No longer, or it would be two windows for us, of which the usual loop would pass over the second.
        soundfile.write(
            folder / "audio" / rows[-1][0], np.concatenate(waves)[: (10 if pairs else 5) * rates[0]], rates[0]
        )
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def saved_ast(folder: Path, **changes: Any) -> tuple[Any, Any]:
    """AST in full size, but for `changes`, with random weights, saved as a folder; the network and its
    feature extractor."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    torch.manual_seed(0)
    network, front = ASTModel(ASTConfig(**changes)).eval(), ASTFeatureExtractor()
    with torch.no_grad():  # all zero at birth: patches would not know where they are
        network.embeddings.position_embeddings.normal_(std=0.02)
    network.save_pretrained(folder)
    front.save_pretrained(folder)
    return network, front


def row(
    key: str, clips: int, seconds: dict[str, float], cosines: str, share: str, precision: str
) -> dict[str, str]:
    """A line of the table, printed too."""
    usual, ours, decoding = (1000 * seconds[name] / clips for name in ("usual", "ours", "decoding"))
    line = (
        f"| {key} | {usual:.1f} | {ours:.1f} | {usual / ours:.2f} | {decoding:.1f} | {ours / decoding:.2f} "
        f"| {cosines} | {share} | {precision} |"
    )
    print(line, flush=True)
    return {key: line}


@torch.inference_mode()
def ast_rows(data: Path, scratch: Path, count: int, repeats: int) -> dict[str, str]:
    """AST on 10 s clips, on 5 s clips padded, and on 5 s clips without their padding."""
    network, front = saved_ast(scratch / "weights")
    lines, made = {}, {}

    def usual(paths: list[str]) -> Features:
        found: dict[str, list] = {"pooled": [], "frames": []}
        for path in paths:
            wave, rate = librosa.load(path, sr=16000)
            output = network(**front(wave, sampling_rate=rate, return_tensors="pt"))
            found["pooled"].append(output.pooler_output[0].numpy())
            found["frames"].append(output.last_hidden_state[0, 2:].unflatten(0, (12, 101)).mean(0).T.numpy())
        return {view: np.stack(rows) for view, rows in found.items()}

    for key, pairs, settings in (
        ("10 s", True, {}),
        ("5 s", False, {}),
        ("5 s, --short-clips", False, {"short_clips": True}),
    ):
        folder = scratch / ("ten" if pairs else "five")
        if not folder.exists():
            clips_for_ast(data, folder, count, pairs)
        ours = Ours(folder, scratch / "out", "ast", str(scratch / "weights"), count, **settings)

        ours.features()  # what is built at the first pass
        ours.watch("_compute_tokens")
        ways = {"decoding": ours.decode, "usual": partial(usual, ours.paths), "ours": ours.features}
        seconds, got = rounds(ways, repeats)
        made[key] = ours.made()
        # A pass takes `at_once` clips, and there are no more lanes at work than passes.
        lanes = min(torch.get_num_threads(), -(-count // ours.worker.extractor.at_once))
        share = ours.inside / (seconds["ours"] * repeats * lanes)
        columns = made[key]["frames"].shape[-1]
        same = (
            cosine(made[key]["pooled"], got["usual"]["pooled"]),
            cosine(made[key]["frames"], got["usual"]["frames"][..., None, :columns]),
        )
        cosines = "{:.5f}, {:.5f}".format(*same) + (" (another embedding)" if settings else "")
        lines |= row(f"ast, {key}", count, seconds, cosines, f"{100 * share:.0f} %", ours.device.precision)
        ours.worker.close()
    padded, short = made["5 s"], made["5 s, --short-clips"]
    columns = short["frames"].shape[-1]
    print(
        f"--short-clips against the padded network, random weights: least cosine "
        f"{cosine(short['pooled'], padded['pooled']):.4f} (pooled), "
        f"{cosine(short['frames'], padded['frames'][..., :columns]):.4f} (the {columns} frames that both "
        "have)"
    )
    return lines


@torch.inference_mode()
def light_row(
    name: str, data: Path, scratch: Path, weights: str | None, clips: int, repeats: int
) -> dict[str, str]:
    """EfficientAT or logmel against decoding alone and the usual loop."""
    ours = Ours(data, scratch / "out", name, weights, clips)
    extractor, settings = ours.worker.extractor, ours.plan.settings
    rate = extractor.rate
    network = None
    if name == "efficientat":
        network = extractors.load_module(name).load(Path(weights or ""), settings.network).features.eval()

    def usual() -> Features:
        found: dict[str, list] = {view: [] for view in extractor.shapes}
        for path in ours.paths:
            wave, native = librosa.load(path, sr=None)
            # fixed, it may gain a sample of silence
            wave = librosa.resample(wave, orig_sr=native, target_sr=rate, fix=False)
            if network is None:
                mel = librosa.feature.melspectrogram(
                    y=wave,
                    sr=rate,
                    n_fft=settings.n_fft,
                    hop_length=settings.hop_length,
                    n_mels=settings.n_mels,
                )
                librosa.power_to_db(mel)
                continue
            piece = torch.from_numpy(extractor.fill_window(wave, *extractor.cut_windows(wave)[0]))[None]
            features = network(extractor.compute_spectrogram(piece))
            found["pooled"].append(features.mean((2, 3))[0].numpy())
            found["frames"].append(features[0].numpy())
        return {view: np.stack(rows) for view, rows in found.items() if rows}

    ours.features()
    seconds, got = rounds({"decoding": ours.decode, "usual": usual, "ours": ours.features}, repeats)
    made, cosines = ours.made(), ""
    if network is not None:
        cosines = (
            f"{cosine(made['pooled'], got['usual']['pooled']):.5f}, "
            f"{cosine(made['frames'], got['usual']['frames']):.5f}"
        )
    ours.worker.close()
    return row(
        f"{name}, {len(ours.paths)} clips", len(ours.paths), seconds, cosines, "", ours.device.precision
    )


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="ESC-10 as published: audio/ and meta/, clips of 5 s"
    )
    parser.add_argument(
        "--weights", help="EfficientAT's mn04_as_mAP_432.pt; without it EfficientAT is left out"
    )
    parser.add_argument(
        "--ast-clips", type=int, default=8, help="a multiple of what all threads take at once is fair"
    )
    parser.add_argument("--hf-clips", type=int, default=8, help="for wav2vec 2.0 and Whisper")
    parser.add_argument("--only", choices=("light", "ast", "hf"), help="measure these alone")
    parser.add_argument("--clips", type=int, default=400, help="for EfficientAT and logmel")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-results", action="store_true", help="leave benchmarks/RESULTS.md as it is")
    args = parser.parse_args()
    print(HEADER, flush=True)
    lines: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        light = (("logmel", None), ("efficientat", args.weights)) if args.only in (None, "light") else ()
        for name, weights in light:
            if name == "efficientat" and not weights:
                print("efficientat: left out, no --weights")
                continue
            lines |= light_row(name, args.data, Path(scratch) / name, weights, args.clips, args.rounds)
        if args.only in (None, "ast"):
            lines |= ast_rows(args.data, Path(scratch) / "ast", args.ast_clips, args.rounds)
        if args.only in (None, "hf"):
            from extraction_hf import hf_rows

            lines |= hf_rows(args.data, Path(scratch) / "hf", args.hf_clips, args.rounds)
    if not args.no_results:
        about = [
            "`python benchmarks/extraction.py --data ESC10 --weights mn04_as_mAP_432.pt`: on the CPU, rounds "
            "in turn,",
            "medians. AST in full size with random weights, which the cosines are of too. In the network: of "
            "the seconds",
            "of all threads that make passes. `--short-clips` makes other embeddings than the padded "
            "network. `hf` (`--only hf`): base models with random weights; the usual loop is the model "
            "card's, a clip at a time in fp32,",
            "on as many threads as ours. Whisper computes 30 s whatever the clip. bf16 only where faster.",
        ]
        keep_rows(f"Extraction on {machine()}", about, HEADER, lines)


if __name__ == "__main__":
    main()
