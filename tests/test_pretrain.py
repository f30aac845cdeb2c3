"""Masked prediction before the folds: it learns, labels have no say in it, folds start from it, exact on
restarting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_fitter import CPU, NEVER, StopsAt
from test_seeds import every_file, made_up, stopped_every

import models
import train
from earshot.core.config import TrainingFlags
from earshot.core.errors import UserError
from earshot.features.cache import Cache
from earshot.training import dataset, pretrain
from earshot.training.checkpoint import FoldFolder

SHAPE = (4, 3, 6)
HEAD = {"dim": 16, "layers": 1, "heads": 2, "feedforward": 16}
TRAIN = (
    "--head",
    "token_transformer",
    *(w for k, v in HEAD.items() for w in (f"--head.{k}", str(v))),
    "--features",
    "data/syn/one",
    "--epochs",
    "2",
    "--batch-size",
    "16",
    "--pretrain",
    "3",
)
SETTINGS = TrainingFlags(batch_size=16, lr=2e-2, pretrain=12)


def build():
    return models.build("token_transformer", SHAPE, 3, **HEAD)


@pytest.fixture
def rows(monkeypatch, tmp_path):
    made_up(monkeypatch, tmp_path, shapes={"frames": SHAPE}, noise=0.05)
    return dataset.training_rows(Cache("data/syn/one"), "frames", (), SETTINGS, CPU, unlabelled=True)


@pytest.mark.parametrize("shape", [(4, 3, 6), (1, 20, 50), (2, 1, 7)])
def test_the_loss_is_of_hidden_real_patches(shape):
    """A decoder that always answers zero is wrong by what is in the patches that are hidden and real."""
    torch.manual_seed(0)
    head = models.build("token_transformer", shape, 3, **HEAD)
    model = head.pretraining().eval()
    torch.nn.init.zeros_(model.decode.weight), torch.nn.init.zeros_(model.decode.bias)
    x, mask = torch.randn(5, *shape), torch.ones(5, shape[2], dtype=torch.bool)
    mask[0, shape[2] // 2 :] = False
    for given in (mask, None):
        torch.manual_seed(1)
        found = float(model(x, given).detach())
        torch.manual_seed(1)
        hidden = torch.rand(5, head.grid[0] * head.grid[1]) < 0.5
        height, width = head.patch
        total, count = 0.0, 0
        for row in range(5):
            image = torch.zeros(shape[0], head.grid[0] * height, head.grid[1] * width)
            image[:, : shape[1], : shape[2]] = x[row] if given is None else x[row] * mask[row]
            for cell in range(hidden.shape[1]):
                top, left = cell // head.grid[1] * height, cell % head.grid[1] * width
                real = given is None or bool(mask[row, left : left + width].any())
                if hidden[row, cell] and real:
                    total, count = (
                        total + float(image[:, top : top + height, left : left + width].square().mean()),
                        count + 1,
                    )
        assert found == pytest.approx(total / count, rel=1e-4)
    assert not any(name.startswith("fc.") for name in model.kept()) and "position" in model.kept()


def test_it_learns_without_labels_and_a_stop_changes_nothing(rows, tmp_path):
    lines: list[str] = []
    assert pretrain.fit(FoldFolder(tmp_path / "whole"), build, rows, SETTINGS, CPU, lines.append, NEVER)
    errors = [float(line.split("error ")[1].split()[0]) for line in lines]
    assert len(errors) == 12 and errors[-1] < 0.8 * errors[0]
    rows.targets = np.roll(rows.targets, 1, axis=0)  # nobody looks at them
    for stop in (1, 6, 20):
        folder = FoldFolder(tmp_path / str(stop))
        assert (
            not pretrain.fit(folder, build, rows, SETTINGS, CPU, lines.append, StopsAt(stop))
            and not folder.finished()
        )
        with pytest.raises(UserError, match="is not finished"):
            pretrain.load(build(), FoldFolder(tmp_path / "fold_1"), stop)
        assert pretrain.fit(folder, build, rows, SETTINGS, CPU, lines.append, NEVER) and folder.finished()
        found, whole = (
            load_file(tmp_path / name / "last" / "model.safetensors") for name in (str(stop), "whole")
        )
        assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    assert pretrain.fit(folder, None, None, SETTINGS, CPU, None, None), "what is finished is not done again"


def test_folds_start_from_it(rows, tmp_path):
    head = build()
    for name in ("pretrain_7",):
        pretrain.fit(FoldFolder(tmp_path / name), build, rows, SETTINGS, CPU, str, NEVER)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    pretrain.load(head, FoldFolder(tmp_path / "fold_1_seed7"), 7)
    learnt = load_file(tmp_path / "pretrain_7" / "last" / "model.safetensors")
    for name, value in head.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith("fc.") else learnt[name])
    assert not torch.equal(before["position"], learnt["position"])


@pytest.mark.slow
def test_the_line_stopped_at_any_moment(rows, monkeypatch, capsys):
    args = (*TRAIN, "--seeds", "2", "--refit")
    train.main([*args, "--name", "calm"])
    said = capsys.readouterr().out
    assert (
        said.index("pretraining seed 0  epoch 3/3")
        < said.index("pretraining seed 1")
        < said.index("fold 1/3  epoch")
    )
    patch = pytest.MonkeyPatch()
    assert stopped_every(patch, 13, *args, "--name", "stopped") >= 5
    patch.undo()
    calm, stopped = Path("runs/calm"), Path("runs/stopped")
    assert every_file(calm) == every_file(stopped)
    for seed in (0, 1):
        assert (calm / f"pretrain_{seed}" / "last" / "model.safetensors").read_bytes() == (
            stopped / f"pretrain_{seed}" / "last" / "model.safetensors"
        ).read_bytes()
    for head, view, words in (("mlp", "frames", "this head has no masked prediction"),):
        with pytest.raises(UserError, match=words):
            train.main(
                [
                    "--head",
                    head,
                    "--view",
                    view,
                    "--features",
                    "data/syn/one",
                    "--pretrain",
                    "2",
                    "--epochs",
                    "1",
                ]
            )


def test_a_pooled_embedding_has_nothing_to_hide():
    with pytest.raises(models.HeadError, match="no patches to hide"):
        models.build("token_transformer", (24, 1, 1), 3, **HEAD).pretraining()
