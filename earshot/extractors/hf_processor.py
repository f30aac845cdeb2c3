"""The networks that the extractor `hf` takes, and transformers' own feature extractor of each, from a folder
whose settings are checked before they take memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earshot.core.errors import UserError, raise_if_temporary
from earshot.extractors import hub

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
        named = [each.get("feature_extractor", each) for each in saved]
        types = [each.get("feature_extractor_type", name) for each in named if isinstance(each, dict)]
        wrong = [kind for kind in types if kind != name]
        if wrong:
            raise UserError(
                f"{self.extractor}: the feature extractor in {folder} is a {wrong[0]}, but this network "
                f"takes a {name}"
            )
        with hub.silence_transformers():
            import transformers

            try:
                # by its class: what looks it up by the folder's names would offer to run the folder's code
                processor = getattr(transformers, name).from_pretrained(str(folder), local_files_only=True)
            except Exception as error:  # transformers raises OSError, ValueError, KeyError, TypeError, ...
                raise_if_temporary(folder, error)
                reason = " ".join(str(error).split())[:160]
                raise UserError(
                    f"{self.extractor}: the feature extractor in {folder} cannot be loaded ({reason}): "
                    f"{self.ways_out}"
                ) from None
        rate = getattr(processor, "sampling_rate", None)
        if not isinstance(rate, int) or not 1000 <= rate <= 192000:
            raise UserError(f"{self.extractor}: {found[0]} names no sampling rate from 1000 to 192000 Hz")
        return processor


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
