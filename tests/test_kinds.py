"""Kinds of views: declared, derived for older caches, matched by heads; settings that weights need."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml
from made_cache import make

import models
from earshot import extractors
from earshot.core import checksums, kinds
from earshot.core.config import Recipe
from earshot.core.errors import UserError
from earshot.features import cache as caches
from earshot.features.cache import Cache
from earshot.search import candidates
from earshot.training import experiment

WEIGHTS = {"weights": "folder"}


def test_models_have_the_same_kinds() -> None:
    assert get_args(models.Kind) == kinds.KINDS == tuple(kinds.LAYOUT)
    for name in models.list_heads():
        assert set(models.get_kinds(name)) <= set(kinds.KINDS) and models.get_kinds(name)
    with pytest.raises(models.HeadError, match="no kind mel: choose from vector, "):
        models.register("other", kinds=("mel",), about="")


@pytest.mark.parametrize("name", extractors.list_names())
def test_known_views_derive_to_what_extractors_declare(name: str) -> None:
    sequence = (768, 1, 101)
    shapes = {
        ("ast", "frames"): sequence,
        ("hf", "frames"): sequence,
        ("onnx", "frames"): sequence,
        ("efficientat", "frames"): (384, 4, 16),
        ("efficientat", "blocks"): (2400, 1, 1),
        ("efficientat", "spectrogram"): (1, 128, 501),
    }
    for view, kind in extractors.load_module(name).Extractor.views.items():
        assert kinds.derive(view, shapes.get((name, view), (9, 9, 9))) == kind


def test_unknown_views_derive_from_their_shape() -> None:
    shapes = {
        "vector": (5, 1, 1),
        "sequence": (5, 1, 7),
        "grid": (5, 3, 7),
        "spectrogram": (1, 3, 7),
        "waveform": (1, 1, 700),
    }
    for kind, shape in shapes.items():
        assert kinds.derive("mine", shape) == kind and kinds.fits(kind, shape, False)
        assert not kinds.fits(kind, shape, True)
    assert kinds.fits("codes", (2, 1, 7), True) and not kinds.fits("codes", (2, 3, 7), True)
    assert not kinds.fits("vector", (5, 1, 2), False) and not kinds.fits("sequence", (5, 2, 2), False)


def test_the_first_view_of_the_best_kind() -> None:
    has = {"b": "grid", "a": "sequence", "c": "sequence"}
    assert kinds.choose(("vector", "sequence", "grid"), has) == "a"
    assert kinds.choose(("waveform",), has) is None


def set_manifest(folder: Path, **changes: object) -> Cache:
    manifest = checksums.read(folder / caches.MANIFEST)
    checksums.write(folder / caches.MANIFEST, {**manifest, **changes})
    return Cache(folder)


def test_a_cache_says_its_kinds(tmp_path: Path) -> None:
    folder = make(tmp_path / "c" / "one", {"notes": (1, 1, 40), "mel": (1, 8, 20)})
    assert Cache(folder).kinds == {"mel": "spectrogram", "notes": "waveform"}, "derived"
    found = set_manifest(folder, kinds={"notes": "sequence", "mel": "spectrogram"})
    assert found.kinds["notes"] == "sequence"
    with pytest.raises(UserError, match="invalid kinds"):
        set_manifest(folder, kinds={"notes": "melody"})


def test_a_cache_without_the_kind(tmp_path: Path) -> None:
    cache = Cache(make(tmp_path / "c" / "one", {"wave": (1, 1, 40)}))
    with pytest.raises(UserError) as error:
        experiment.describe_head(Recipe("x", head={"name": "patches"}), cache)
    assert str(error.value) == (
        f"{cache.folder} has no spectrogram, which patches needs (it has wave): "
        "extract with --extractor logmel, or choose another head"
    )
    with pytest.raises(UserError, match="--extractor fbank"):
        experiment.describe_head(Recipe("x", head={"name": "ast", **WEIGHTS}), cache)


@pytest.mark.parametrize(
    "head", [{"name": "ast"}, {"name": "inception_transformer", "ast": True, "view": "mel"}]
)
def test_weights_need_their_own_settings(tmp_path: Path, head: dict, capsys: pytest.CaptureFixture) -> None:
    cache = Cache(make(tmp_path / "c" / "one", {"mel": (1, 128, 20)}))
    assert experiment.describe_head(Recipe("x", head=head), cache).view == "mel", "nothing to spoil"
    recipe = tmp_path / "x.yaml"
    for flag in (None, "mel"):
        with pytest.raises(UserError, match="other settings than the weights .*--extractor fbank"):
            experiment.describe_head(Recipe("x", head=head | WEIGHTS), cache, view=flag)
    recipe.write_text(yaml.safe_dump({"head": head | WEIGHTS}))
    with pytest.raises(UserError, match="no cache has a view for it"):
        candidates.list_candidates([cache], (str(recipe),))
    assert "left out: " in capsys.readouterr().out


def test_fbank_is_what_the_weights_know(tmp_path: Path) -> None:
    module = extractors.load_module("fbank")
    described = module.Extractor.describe(module.Settings(), 16000)
    assert models.get_needs("ast", WEIGHTS).items() <= described.items() and models.get_needs("ast", {}) == {}
    assert models.get_needs("timm", WEIGHTS) == {}
