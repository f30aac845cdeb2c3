"""Settings before anything runs: recipes, which cache they mean, what a thing was made from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from earshot import extractors
from earshot.audio.load import AudioSettings
from earshot.core import cli, config, kinds
from earshot.core.config import (
    Recipe,
    TrainingFlags,
    WindowFlags,
    list_recipes,
    load_recipe,
    replace_defaults,
)
from earshot.core.errors import UserError
from earshot.core.fingerprint import to_record
from earshot.features import find_cache
from earshot.training.run import Run

# --- values out of YAML


@pytest.mark.parametrize(
    "key, value, want",
    [
        ("lr", "1e-3", 0.001),
        ("lr", 1, 1.0),
        ("epochs", 7, 7),
        ("optimizer", "sgd", "sgd"),
        ("folds", None, None),
        ("folds", 3, 3),
    ],
)
def test_values_get_their_fields_types(key, value, want):
    found = getattr(replace_defaults(TrainingFlags(), {key: value}, "here"), key)
    assert found == want and type(found) is type(want)


@pytest.mark.parametrize(
    "key, value",
    [
        ("lr", "fast"),
        ("lr", True),
        ("lr", None),
        ("lr", [1]),
        ("epochs", 3.5),
        ("epochs", "many"),
        ("epochs", True),
        ("optimizer", "lion"),
        ("optimizer", 3),
        ("epochs", None),
    ],
)
def test_values_of_the_wrong_type_are_named(key, value):
    with pytest.raises(UserError) as caught:
        replace_defaults(TrainingFlags(), {key: value}, "recipe x, training")
    assert str(caught.value).startswith(f"recipe x, training: {key} is {value!r}, but must be ")


def test_other_kinds_of_fields():
    assert replace_defaults(config.RunFlags(), {"fold": [1, 3]}, "").fold == (1, 3)
    assert replace_defaults(config.RunFlags(), {"fold": 3}, "").fold == (3,)
    assert replace_defaults(config.TrainMachineFlags(), {"fresh": True}, "").fresh is True
    assert replace_defaults(config.CompetitionFlags(), {"holdout": 5}, "").holdout == "5"
    windows = replace_defaults(WindowFlags(), {"pad": "wrap", "seconds": 4}, "")
    assert (windows.pad, windows.seconds, replace_defaults(windows, {"pad": None}, "").pad) == (
        "wrap",
        4.0,
        None,
    )
    with pytest.raises(
        UserError,
        match=r"here: unknown key hopp \(did you mean hop\?\): choose among seconds, hop, pad",
    ):
        replace_defaults(WindowFlags(), {"hopp": 1}, "here")
    assert dataclasses.asdict(replace_defaults(TrainingFlags(), {}, "")) == dataclasses.asdict(
        TrainingFlags()
    )


def test_a_removed_setting_gets_a_line(tmp_path):
    """In a recipe, as a flag, and by a run that was made with it."""
    gone = "was removed in 0.2"
    with pytest.raises(UserError, match=f"recipe x, training: pretrain {gone}"):
        replace_defaults(TrainingFlags(), {"pretrain": 60}, "recipe x, training")
    for argv in (["--pretrain", "60"], ["--pretrain=60"]):
        with pytest.raises(UserError, match=f"--pretrain {gone}"):
            cli.parse({"training": TrainingFlags()}, argv, "")
    Run.begin(tmp_path, {"training": {"epochs": 2, "pretrain": 60}}, {})
    with pytest.raises(UserError, match=f"was trained with --pretrain, which {gone}"):
        Run.begin(tmp_path, {"training": {"epochs": 2}}, {})


def test_renamed_settings_keep_their_place_in_records():
    """Recipes take either name, and a run or a cache made before the renaming has the same fingerprint."""
    new, old = {"num_masks": 2, "crop_share": 0.5}, {"masks": 2, "crop": 0.5}
    training = replace_defaults(TrainingFlags(), new, "")
    assert training == replace_defaults(TrainingFlags(), old, "")
    record = to_record(training)
    assert {key: record[key] for key in old} == old and not record.keys() & new.keys()
    assert to_record(config.AugmentFlags(bc_mix=0.5))["between"] == 0.5
    made = {**RECORD, "augment": to_record(config.AugmentFlags(augment=2, bc_mix=0.5))}
    for key in ("between", "bc_mix"):
        assert find_cache.list_mismatches(made, Recipe("r", features={"augment": 2, key: 0.5})) == []
        found = find_cache.list_mismatches(made, Recipe("r", features={"augment": 2, key: 1}))
        assert found == [f"{key}: 0.5, recipe 1"]


# --- recipes


@pytest.mark.parametrize(
    "text, match",
    [
        ("training: [1", "not valid YAML"),
        (b"about: K\xe4uzchen", "not valid YAML"),
        ("training: &a [*a]", "refers to itself"),
        ("training: &a {lr: 1}\nhead: *a", "refers to itself"),
        ("training: " + "[" * 5000, "not valid YAML"),
        ("- a\n- b", "has the sections about, features"),
        ("training: 3", "has the sections about, features, head, training"),
        ("traning: {lr: 1}", r"unknown section traning \(did you mean training\?\): a recipe has about"),
        ("1: {lr: 1}\ntrainig: 2", "unknown section 1: a recipe has"),
    ],
)
def test_recipes_that_are_none(tmp_path, text, match):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=match) as caught:
        load_recipe(str(path))
    assert str(path) in str(caught.value)


def test_recipes_are_found_by_name_or_path(tmp_path):
    with pytest.raises(
        UserError,
        match=f"no recipe named nope: choose one of {', '.join(list_recipes())}, or name",
    ):
        load_recipe("nope")
    (tmp_path / "mine.yml").write_text("about: my own\nhead:\ntraining: {epochs: 2}")
    assert load_recipe(str(tmp_path / "mine.yml")) == Recipe("mine", "my own", {}, {}, {"epochs": 2})
    (tmp_path / "empty.yaml").write_text("")
    assert load_recipe(str(tmp_path / "empty.yaml")) == Recipe("empty")
    assert {"linear", "sample", "ast_linear"} <= set(list_recipes())


def shapes_of(extractor: str | None, features: dict) -> dict[str, tuple]:
    """The views that a recipe's extractor gives, without its weights."""
    from earshot.extractors.base import Window

    if extractor == "logmel":
        module = extractors.load_module(extractor)
        names = {field.name for field in dataclasses.fields(module.Settings)}
        settings = replace_defaults(module.Settings(), {k: v for k, v in features.items() if k in names}, "")
        window = Window(float(features.get("seconds") or 5.0), None, "wrap", None, settings.rate or 44100)
        return module.Extractor(settings, window).shapes
    ast = {"pooled": (768, 1, 1), "frames": (768, 1, 101), "tokens": (768, 12, 101)}
    efficientat = {"pooled": (384, 1, 1), "frames": (384, 4, 16), "spectrogram": (1, 128, 501)}
    return {
        "ast": ast,
        "efficientat": efficientat,
        "encodec": {"latents": (128, 1, 375)},
        "onnx": {"pooled": (1024, 1, 1)},
        "waveform": {"wave": (1, 1, 22050)},
        "fbank": {"fbank": (1, 128, 1024)},
        None: {**ast, "mel": (1, 64, 250)},
    }[extractor]


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_fits(name):
    import models

    recipe = load_recipe(name)
    assert recipe.about and recipe.head and recipe.training
    replace_defaults(TrainingFlags(), recipe.training, name)
    extractor = recipe.features.get("extractor")
    if extractor:
        groups = [
            config.CompetitionFlags(),
            WindowFlags(),
            AudioSettings(),
            config.AugmentFlags(),
            extractors.load_module(extractor).Settings(),
        ]
        known = [{field.name for field in dataclasses.fields(group)} for group in groups]
        assert set(recipe.features) <= set().union(*known)
        for group, fields in zip(groups, known, strict=True):
            replace_defaults(group, {k: v for k, v in recipe.features.items() if k in fields}, name)
    else:
        assert not recipe.features
    options = dict(recipe.head)
    head, view = options.pop("name"), options.pop("view", None)
    shapes = shapes_of(extractor, recipe.features)
    views = [view] if view else [v for v in shapes if kinds.derive(v, shapes[v]) in models.get_kinds(head)]
    assert views
    from transformers import ASTModel  # noqa: F401 - first imported under "meta", torchaudio's constants would be on it

    for view in views:
        with torch.device("meta"):  # published sizes without their gigabytes
            assert models.build(head, shapes[view], 10, **options).config["num_classes"] == 10


# --- which cache a recipe means


RECORD = {
    "extractor": "logmel",
    "settings": {
        "n_mels": 64,
        "fmin": 20.0,
        "amin": 1e-10,
        "rate": 16000,
        "ref": "1",
        "top_db": None,
        "standardise": False,
        "views": ["pooled", "frames"],
    },
    "audio": {"mono": "mean", "trim": 60.0},
    "window": {"seconds": 5.0, "hop": None, "pad": "wrap"},
}


@pytest.mark.parametrize(
    "features, want",
    [
        ({}, []),
        (
            {
                "extractor": "logmel",
                "n_mels": 64,
                "fmin": 20,
                "amin": "1e-10",
                "ref": 1,
                "seconds": 5,
                "trim": 60,
                "pad": "wrap",
            },
            [],
        ),
        (
            {
                "rate": None,
                "seconds": None,
                "cache": "x",
                "weights": "y",
                "holdout": 0.2,
                "standardise": False,
            },
            [],
        ),
        ({"n_mels": 128, "pad": "silence"}, ["n_mels: 64, recipe 128", "pad: wrap, recipe silence"]),
        ({"extractor": "ast"}, ["extractor: logmel, recipe ast"]),
        ({"fmin": "low"}, ["fmin: 20.0, recipe low"]),
        ({"top_db": 80}, ["top_db: None, recipe 80"]),
        ({"standardise": True}, ["standardise: False, recipe True"]),
        ({"tokens": 3}, ["tokens: none, recipe 3"]),
        ({"views": ["pooled", "frames"]}, []),
        ({"views": ("pooled", "frames")}, []),
        ({"views": ["pooled"]}, ["views: ['pooled', 'frames'], recipe ['pooled']"]),
    ],
)
def test_mismatches(features, want):
    assert find_cache.list_mismatches(RECORD, Recipe("r", features=features)) == want


def test_what_says_where_from_or_how_fast_is_no_mismatch():
    features = {
        "competition": "birds",
        "id_column": "fname",
        "label_column": "label",
        "out": "data",
        "batch_size": 4,
    }
    assert find_cache.list_mismatches(RECORD, Recipe("r", features=features)) == []
    one = {**RECORD, "settings": {"views": ["pooled"]}}
    assert find_cache.list_mismatches(one, Recipe("r", features={"views": "pooled"})) == [], (
        "a recipe may write a single value plainly"
    )


def test_pick(tmp_path):
    def cache(name: str, **settings) -> Path:
        folder = tmp_path / "data" / "birds" / name
        folder.mkdir(parents=True)
        record = {**RECORD, "settings": {**RECORD["settings"], **settings}}
        (folder / "manifest.json").write_text(json.dumps({"record": record}))
        return folder

    data, wide = str(tmp_path / "data"), Recipe("r", features={"extractor": "logmel", "n_mels": 128})
    with pytest.raises(UserError, match=f"no cache in {data}/: run get_features.py first.*--features FOLDER"):
        find_cache.find_for_recipe(data, wide)
    first = cache("one")
    assert find_cache.find_for_recipe(data, wide) == first, "the only one, although it differs"
    second = cache("two", n_mels=128)
    assert find_cache.find_for_recipe(data, wide) == second, "the one that matches"
    for recipe in (None, Recipe("linear"), Recipe("r", features={"n_mels": 40})):
        with pytest.raises(
            UserError, match=f"which cache\\? there are {first}, {second}: choose one with --features FOLDER"
        ):
            find_cache.find_for_recipe(data, recipe)
    third = cache("zebra", n_mels=128)
    with pytest.raises(UserError, match=f"there are {second}, {third}: choose"):
        find_cache.find_for_recipe(data, wide)
    assert (
        find_cache.find_for_recipe(data, Recipe("r", features={**wide.features, "cache": "zebra"})) == third
    ), "named among those that match"
