"""An untrusted run with valid checksums: what it lacks or claims wrongly is refused in one line before memory
is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_contract import changed, made, said, work  # noqa: F401

import models
import predict
from earshot.core import checksums
from earshot.core.errors import UserError
from earshot.training import checkpoint, run_schema

PREDICT = ["--runs", "runs/r", "--device", "cpu"]


@pytest.mark.parametrize(
    "key",
    [
        "prior",
        "columns",
        "precision",
        "features_folder",
        *(f"record.{key}" for key in run_schema.RunRecord.__annotations__),
    ],
)
@pytest.mark.parametrize("value", [None, 5])
def test_settings_that_lack_something(work: Path, key: str, value: object) -> None:  # noqa: F811
    def change(config: dict) -> None:
        inner = config["record"] if "." in key else config
        inner.pop(key.rpartition(".")[2])
        if value is not None:
            inner[key.rpartition(".")[2]] = value

    changed(Path("runs/r"), change)
    line = said(predict.main, PREDICT)
    assert key.rpartition(".")[2] in line and "config.yaml" in line and "--fresh" in line


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c["prior"].pop(), "a prior that is not 3 shares"),
        (lambda c: c.update(prior=[2.0, 0, 0]), "an invalid prior"),
        (lambda c: c["record"].update(classes=["a", "a", "b"]), "twice"),
        (lambda c: c.update(columns=["id"]), "an invalid columns"),
        (lambda c: c["record"]["features"].pop("extractor"), "extractor"),
        (lambda c: c.update(precision={"cpu": 3}), "precision"),
        *(
            (lambda c, pool=pool: c["record"]["training"].update(pool=pool), "pools windows by none of mean")
            for pool in ("all", ["max"], 3)
        ),
    ],
)
def test_settings_that_mean_nothing(work: Path, change, words: str) -> None:  # noqa: F811
    changed(Path("runs/r"), change)
    assert words in said(predict.main, PREDICT)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda head: head.update(name="none_such"), "none_such"),
        (lambda head: head.pop("input_shape"), "lacks input_shape"),
        (lambda head: head.update(input_shape=[10**6, 10**6, 10]), "does not fit"),
        (lambda head: head.update(num_classes=7), "does not fit"),
        (lambda head: head.update(input_shape="wide"), "three whole numbers"),
        (lambda head: head.update(options={"depth": 3}), "depth"),
        (lambda head: head.update(num_classes=10**15), "num_classes|does not fit|describes no head"),
        (lambda head: head.clear(), "lacks name"),
    ],
)
def test_heads_that_cannot_be_or_do_not_fit(work: Path, change, words: str, monkeypatch) -> None:  # noqa: F811
    path = Path("runs/r/fold_0/best/head.json")
    about = checksums.read(path)
    about.pop("sha256")
    change(about["head"])
    checksums.write(path, about, "model.safetensors")
    devices, rebuild = [], models.rebuild
    monkeypatch.setattr(
        models, "rebuild", lambda config: (devices.append(torch.empty(0).device.type), rebuild(config))[1]
    )
    line = said(predict.main, PREDICT)
    assert any(word in line for word in words.split("|")), line
    assert devices == ["meta"], "no memory is taken for it"


def test_weights_of_another_head(work: Path) -> None:  # noqa: F811
    folder = Path("runs/r/fold_0/best")
    about = checksums.read(folder / "head.json")
    about.pop("sha256")
    save_file({"other": torch.zeros(2)}, folder / "model.safetensors")
    checksums.write(folder / "head.json", about, "model.safetensors")
    assert "it is another run's" in said(predict.main, PREDICT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 8 + b"{}",
        (5).to_bytes(8, "little") + b"[[[[[",
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a": {}}',
    ],
)
def test_headers_of_safetensors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.read_shapes(path)


def test_shapes_are_those_of_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "b": torch.tensor(1.0)}, tmp_path / "a.safetensors", {"note": "x"})
    assert checkpoint.read_shapes(tmp_path / "a.safetensors") == {"a": [2, 3], "b": []}


@pytest.mark.parametrize("name", models.list_heads())
def test_every_head_tells_its_size_without_memory(name: str) -> None:
    small = {"timm": {"backbone": "test_resnet", "weights": None}}.get(name, {})
    shape = {"ast": (1, 128, 1024), "encoder": (1, 1, 16000)}.get(name, (1, 64, 100))
    # as published they are large: of them the size alone is looked at
    if name in ("inception_transformer", "ast", "encoder"):
        with torch.device("meta"):
            head = models.build(name, shape, 5, **small)
        assert sum(p.numel() for p in head.parameters()) > 10_000_000 and all(
            t.is_meta for t in head.state_dict().values()
        )
        return
    head = models.build(name, shape, 5, **small)
    with torch.device("meta"):
        empty = models.rebuild(head.config)
    assert {k: v.shape for k, v in empty.state_dict().items()} == {
        k: v.shape for k, v in head.state_dict().items()
    }
