"""The networks that the extractor `hf` takes, and transformers' own feature extractor of each, from a folder
whose settings are checked before they take memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earshot.core.errors import UserError
from earshot.extractors import hub
from earshot.extractors.hub import list_values

# model_type -> classes of transformers: the network, and its feature extractor
_WAVE = "Wav2Vec2FeatureExtractor"
NETWORKS = {
    "audio-spectrogram-transformer": ("ASTModel", "ASTFeatureExtractor"),
    "clap": ("ClapModel", "ClapFeatureExtractor"),
    "clap_audio_model": ("ClapAudioModel", "ClapFeatureExtractor"),
    "data2vec-audio": ("Data2VecAudioModel", _WAVE),
    "hubert": ("HubertModel", _WAVE),
    "moonshine": ("MoonshineModel", _WAVE),
    "parakeet_encoder": ("ParakeetEncoder", "ParakeetFeatureExtractor"),
    "pe_audio": ("PeAudioModel", "PeAudioFeatureExtractor"),
    "pe_audio_encoder": ("PeAudioEncoder", "PeAudioFeatureExtractor"),
    "sew": ("SEWModel", _WAVE),
    "sew-d": ("SEWDModel", _WAVE),
    "unispeech": ("UniSpeechModel", _WAVE),
    "unispeech-sat": ("UniSpeechSatModel", _WAVE),
    "wav2vec2": ("Wav2Vec2Model", _WAVE),
    "wav2vec2-bert": ("Wav2Vec2BertModel", "SeamlessM4TFeatureExtractor"),
    "wav2vec2-conformer": ("Wav2Vec2ConformerModel", _WAVE),
    "wavlm": ("WavLMModel", _WAVE),
    "whisper": ("WhisperModel", "WhisperFeatureExtractor"),
}
WIDTHS, BANDS = ("n_fft", "fft_window_size"), ("feature_size", "num_mel_bins")  # of filters, as saved
FFT = 512  # samples, where no width is saved
MOST_FILTERS = 2**24  # numbers; Whisper's have 51,200
MOST_SPANS = 64  # width / hop_length: Whisper's is 2.5
SHORTEST = 0.1  # seconds: the convolutions in front of some networks need 25 ms
MOST_SECONDS = 120  # of a window that is always filled; Whisper's has 30


@dataclass(frozen=True)
class NativeEncoder(hub.Pretrained):
    """A folder or hub id of any network in `NETWORKS`."""

    files: tuple[str, ...] = (
        "config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "*.safetensors",
        "*.safetensors.index.json",
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every `model_type` that it takes."""
        return tuple(NETWORKS)

    def find_network(self, kind: str | None) -> str | None:
        """See `hub.Pretrained.find_network`; None, too, for a type that isn't listed."""
        return NETWORKS[kind][0] if kind in NETWORKS else None

    @property
    def wanted(self) -> str:
        """See `hub.Pretrained.wanted`."""
        return "an audio encoder of transformers such as wav2vec2, wavlm, hubert or whisper"

    def load_processor(self, folder: Path) -> Any:
        """transformers' own feature extractor of a folder.

        Raises:
            UserError: there is none, or one whose sizes make no sense.
        """
        found = [folder / name for name in self.files[1:3] if (folder / name).is_file()]
        if not found:
            raise UserError(
                f"{self.extractor}: {folder} has no preprocessor_config.json, which says what the network "
                "takes: save the feature extractor there, too (save_pretrained does)"
            )
        for path in found:
            self.check_numbers(path)
        _, name = NETWORKS[self.read_json(folder / "config.json")["model_type"]]
        saved = [self.read_json(path) for path in found]
        self.check_filters(found[0], list_values(saved))
        named = [each.get("feature_extractor", each) for each in saved]
        types = [each.get("feature_extractor_type", name) for each in named if isinstance(each, dict)]
        wrong = [kind for kind in types if kind != name]
        if wrong:
            raise UserError(
                f"{self.extractor}: the feature extractor in {folder} is a {str(wrong[0])[:60]}, but this "
                f"network takes a {name}"
            )
        with self.explain(folder, "feature extractor"):
            import transformers

            # by its class: what looks it up by the folder's names would offer to run the folder's code
            processor = getattr(transformers, name).from_pretrained(str(folder), local_files_only=True)
        rate = getattr(processor, "sampling_rate", None)
        if not isinstance(rate, int) or not 1000 <= rate <= 192000:
            raise UserError(f"{self.extractor}: {found[0]} names no sampling rate from 1000 to 192000 Hz")
        try:
            fixed = find_fixed_seconds(processor)
            width = next((getattr(processor, key) for key in WIDTHS if hasattr(processor, key)), 0)
            spans = width / (getattr(processor, "hop_length", None) or FFT)
        except (TypeError, ValueError, ZeroDivisionError):
            fixed, spans = math.nan, math.nan
        if fixed is not None and not SHORTEST <= fixed <= MOST_SECONDS:
            raise UserError(
                f"{self.extractor}: {found[0]} fills every window to {fixed:g} s, outside {SHORTEST:g} to "
                f"{MOST_SECONDS} s"
            )
        if not spans <= MOST_SPANS:
            raise UserError(
                f"{self.extractor}: {found[0]}: n_fft {width} is over {MOST_SPANS} times hop_length: its "
                "spectrograms would take too much memory"
            )
        return processor

    def check_filters(self, path: Path, values: list[tuple[str, Any]]) -> None:
        """UserError where the settings of a feature extractor describe filters that take too much memory:
        they are made as it is loaded."""
        numbers = [(key, value) for key, value in values if isinstance(value, (int, float))]
        width = max([FFT, *(value for key, value in numbers if key in WIDTHS)])
        bands = max([1, *(value for key, value in numbers if key in BANDS)])
        if width * bands > MOST_FILTERS:
            raise UserError(
                f"{self.extractor}: {path}: filters of {bands} bands x {width} samples are {width * bands:,} "
                f"numbers, at most {MOST_FILTERS:,}"
            )


class FineTunedEncoder(NativeEncoder):
    """The same for a head, which has other ways out."""

    @property
    def ways_out(self) -> str:
        """See `hub.Pretrained.ways_out`."""
        return (
            "go online once, or give --head.weights FOLDER (config.json, preprocessor_config.json and "
            "model.safetensors, for example an attached Kaggle dataset), or take another head on frozen "
            "features (--head linear)"
        )


def find_fixed_seconds(processor: Any) -> float | None:
    """The seconds that a feature extractor always fills, whatever it is given; None: any length is taken as
    it is."""
    kind = type(processor).__name__
    if kind == "WhisperFeatureExtractor":
        return processor.n_samples / processor.sampling_rate
    if kind == "ClapFeatureExtractor":
        return processor.nb_max_samples / processor.sampling_rate
    if kind == "ASTFeatureExtractor":
        return processor.max_length / 100  # frames of 10 ms
    return None
