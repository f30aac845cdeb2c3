"""The benchmarks' own reckoning: narrowed networks, paired differences, right answers, sections of
RESULTS.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import models
from earshot.core.config import load_recipe


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import study

    return study


@pytest.mark.parametrize("width", [4, 8, 16, 100])
def test_narrow_networks_build(study, width):
    shapes = {"wave": (1, 1, 80000), "mel": (128, 1, 376), "encodec": (128, 1, 375)}
    sizes = []
    for case in study.cases().values():
        recipe = load_recipe(case.recipe)
        name, _ = recipe.head.pop("name"), recipe.head.pop("view")
        head = models.build(
            name, shapes[case.cache], 10, **{**recipe.head, **study.narrow(case.recipe, width), **case.head}
        )
        sizes.append(sum(p.numel() for p in head.parameters()))
    assert max(sizes) < 37e6 / width  # most weights are of one layer's channels times another's
    assert study.narrow("esc50_hifigan", 1) == {}
    assert all({yes, no} <= set(study.cases()) for _, yes, no in study.QUESTIONS)


def test_difference_is_paired(study, tmp_path):
    def run(name: str, answers: str) -> Path:
        (tmp_path / name).mkdir()
        rows = [
            f"{i}.wav,1,{'ab'[i % 2]},{0.9 if answer == 'a' else 0.2},{0.1 if answer == 'a' else 0.8}"
            for i, answer in enumerate(answers)
        ]
        (tmp_path / name / "oof_last.csv").write_text("\n".join(["id,fold,label,a,b", *rows]))
        return tmp_path / name

    yes, no = run("yes", "ababab"), run("no", "abbbaa")  # six are right, four are right
    gain, error = study.difference([yes], [no])
    each = np.array([0, 0, 1, 0, 0, 1])
    assert gain == pytest.approx(100 * each.mean()) and error == pytest.approx(
        100 * each.std(ddof=1) / np.sqrt(6)
    )
    assert study.difference([yes, no], [no, yes]) == (0.0, 0.0)


def test_a_class_called_as_a_column_is_read_rightly(study, tmp_path):
    (tmp_path / "oof_last.csv").write_text(
        "id,fold,label,a,class label\n1.wav,1,label,0.1,0.9\n2.wav,1,a,0.2,0.8\n"
    )
    assert study.right(tmp_path) == {"1.wav": True, "2.wav": False}


def test_rows_of_results_are_replaced_and_an_older_header_is_no_row(study, tmp_path):
    from common import keep_rows

    path = tmp_path / "RESULTS.md"
    for section in ("One", "Two"):
        keep_rows(section, ["about"], "| head | score |", {"a": "| a | 1 |", "b": "| b | 2 |"}, path)
    keep_rows("One", ["newer"], "| head | seeds | score |", {"a": "| a | 5 | 3 |"}, path)
    one, two = path.read_text().split("## ")[1:]
    assert one.count("| head") == 1 and "newer" in one and "about" not in one
    assert "| a | 1 |" not in one and "| a | 5 | 3 |" in one and "| b | 2 |" in one and "| a | 1 |" in two


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import fake

    return fake


def small_step(batch: int):
    """Two steps of AdamW, as `fake.peaks` takes them: a stage for each forward and backward pass, and for
    each step."""
    import torch

    def work(network):
        optimizer = torch.optim.AdamW(network.parameters(), foreach=True)
        x = torch.empty(batch, 100)
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            network(x).square().sum().backward()
            yield
            optimizer.step()
            yield

    return work


def test_computed_memory_is_parameters_gradients_states_and_activations(fake):
    from torch import nn

    batch = 3000
    network = nn.Sequential(nn.Linear(100, 400, bias=False), nn.ReLU(), nn.Linear(400, 10, bias=False))
    weights = 4 * (100 * 400 + 400 * 10)
    first, stepped, second, _ = fake.peaks([network], small_step(batch))
    # The worst moment is inside the backward pass: there are the input, the ReLU's output and the
    # gradients on both its sides.
    wide, narrow = 4 * batch * 400, 4 * batch * 10
    least = weights + 4 * batch * 100 + 2 * wide
    assert least <= first <= least + weights + wide + 4 * narrow
    # the two moments of each weight; step counts besides
    assert second - first == pytest.approx(2 * weights, abs=64)
    assert stepped >= 4 * weights + 4 * batch * 100


@pytest.mark.parametrize("batch", [1, 500])
def test_computed_memory_is_that_of_the_same_work_done(fake, batch):
    from torch import nn

    def network():
        return nn.Sequential(nn.Linear(100, 400), nn.LayerNorm(400), nn.GELU(), nn.Linear(400, 10))

    computed, done = (
        fake.peaks([network()], small_step(batch)),
        fake.peaks([network()], small_step(batch), values=True),
    )
    assert computed == pytest.approx(done, rel=0.01, abs=256)


def test_computed_memory_is_what_the_allocator_hands_out(fake):
    """Against torch's profiler, which sees every allocation on the CPU."""
    import torch
    from torch import nn
    from torch.profiler import ProfilerActivity, profile

    network = nn.Sequential(nn.Linear(100, 400), nn.ReLU(), nn.Linear(400, 10))
    own = sum(p.nbytes for p in network.parameters())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        for _ in small_step(2000)(network):
            pass
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU:
            now += event.nbytes()
            most = max(most, now)
    assert max(fake.peaks([network], small_step(2000))) == pytest.approx(own + most, rel=0.05)


def test_every_recipe_has_a_shape_and_a_head(fake):
    import noise

    from earshot.core.config import list_recipes

    # seconds each
    large = {"itmo2025", "itmo2025_finetune", "genre_cnn", "ast_finetune", "hf_finetune"}
    for name in set(list_recipes()) - large:
        case = noise.case(name)
        assert case.build().config["input_shape"] == list(case.shapes[case.view])


def test_memory_of_a_recipe_grows_with_its_batch(fake):
    import dataclasses

    import memory
    import noise

    case = noise.case("small_cnn")
    larger = dataclasses.replace(case, training=dataclasses.replace(case.training, batch_size=128))
    small, large = (memory.computed_peaks(c, "fp32")[0] for c in (case, larger))
    assert 2.5 < large / small < 4.5 and memory.computed_peaks(case, "fp16")[0] < small


def test_startup_times_the_first_line_and_ends_the_process(fake, tmp_path):
    import sys

    import startup

    said = startup.lines(
        [sys.executable, "-uc", "import time; print('a'); print('b: c'); time.sleep(60)"], tmp_path, "b:"
    )
    assert [line for _, line in said] == ["a", "b: c", ""] and said[0][0] <= said[1][0] <= said[2][0] < 30
    with pytest.raises(SystemExit, match="left with 3"):
        startup.lines([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


def test_the_kit_trains_a_recipe_on_noise(fake, tmp_path):
    import noise

    from earshot.core.device import choose

    case = noise.case("small_cnn", channels=[4, 8], blocks=[1, 1])
    fitter = noise.fitter(case, tmp_path, choose("cpu", "fp32"), 64, epochs=1)
    before = [p.detach().clone() for p in fitter.head.parameters()]
    assert np.isfinite(float(fitter.step(1, 0, fitter.rows.load_training_batch(np.arange(32)))))
    assert any((a != b).any() for a, b in zip(before, fitter.head.parameters(), strict=True))


@pytest.mark.slow
def test_gpu_table_tries_itself_on_a_cpu_and_refuses_without_a_gpu(fake, monkeypatch, capsys):
    import gpu
    import torch

    if not torch.cuda.is_available():
        monkeypatch.setattr("sys.argv", ["gpu.py"])
        with pytest.raises(SystemExit) as left:
            gpu.main()
        assert left.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr("sys.argv", ["gpu.py", "--device", "cpu", "--quick", "--no-results"])
    gpu.main()
    rows = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][
        1:
    ]
    assert [row[0].split(",")[0] for row in rows] == [
        "| matrix products",
        *["| ast"] * 2,
        *["| logmel"] * 2,
        "| `linear`",
        "| `sample`",
    ]
    assert all(float(row[1].split()[0]) >= 0 and "failed" not in row[1] for row in rows)


def test_extraction_compares_with_the_usual_loop(fake, tmp_path):
    """On noise: the features of both ways agree, and every way has taken its time."""
    import extraction
    import gpu

    line = extraction.light_row("logmel", gpu.noises(tmp_path / "clips", 4, 5.0), tmp_path, None, 4, 1)[
        "logmel, 4 clips"
    ]
    assert all(float(cell) > 0 for cell in line.split(" | ")[1:6])


def test_disk_of_a_recipe_is_that_of_its_features_and_weights(fake):
    import memory
    import noise

    (left, making), caches = memory.disk(noise.case("small_cnn"), 1_000_000)
    assert 40e6 <= left < 50e6 and making > left  # best and last weights of five folds, 4 bytes each
    values = np.prod(noise.case("small_cnn").shapes["mel"])
    assert caches == pytest.approx([2 * values * clips for clips in memory.CLIPS], abs=8e6)


def test_events_and_soundscapes_are_competitions_whose_solution_is_known(monkeypatch, tmp_path):
    """Recordings of one fold's clips each, labels of what lies in them, and scores of a submission that says
    just that."""
    import soundfile
    from conftest import tone

    from earshot.competition.load import load

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import events

    data, rows = tmp_path / "esc", []
    for folder in ("audio", "meta"):
        (data / folder).mkdir(parents=True)
    for index in range(20):
        fold, kind = index % 5 + 1, index // 5
        soundfile.write(data / "audio" / f"c{index}.wav", tone(kind, fold), 16000)
        rows.append([f"c{index}.wav", fold, f"tone{kind}"])
    events.write_csv(data / "meta" / "esc.csv", ["filename", "fold", "category"], rows)
    folds = {fold: events.Clips(data, fold) for fold in range(1, 6)}
    assert all(sorted(clips.labels) == ["tone0", "tone1", "tone2", "tone3"] for clips in folds.values())

    wave = np.zeros(4 * events.RATE, np.float32)
    placed = folds[2].draw(wave, 3, np.random.default_rng(0))
    assert len({label for label, _, _ in placed}) == 3
    outside = np.ones(len(wave), bool)
    for _, start, end in placed:
        outside[round(start * events.RATE) : round(end * events.RATE)] = False
    assert wave[~outside].std() > events.NOISE and not wave[outside].any()

    asked = events.make_events(tmp_path / "events", folds, 2, seconds=4.0)
    found = load(tmp_path / "events", task="multilabel")
    train = found.clips[found.clips.split == "train"]
    assert found.multilabel and found.classes == ["tone0", "tone1", "tone2", "tone3"]
    assert train.fold.tolist() == [1, 1, 2, 2, 3, 3, 4, 4] and all(
        Path(path).is_file() for path in found.clips.path
    )
    assert {len(labels) for labels in [*train.label, *asked.values()]} == {2, 3}

    solution = events.make_soundscapes(tmp_path / "scapes", folds, 2, seconds=15.0)
    found = load(tmp_path / "scapes")
    part = found.clips[found.clips.split == "subm"]
    assert part.id.tolist() == list(solution) and part.start.tolist() == [0, 5, 10] * 2 and not found.missing
    assert all(
        len(
            solution[f"soundscape_{n:03d}_5"]
            | solution[f"soundscape_{n:03d}_10"]
            | solution[f"soundscape_{n:03d}_15"]
        )
        >= 3
        for n in range(2)
    )

    def submitted(answers: dict) -> Path:
        events.write_csv(
            tmp_path / "s.csv",
            ["row_id", *found.classes],
            [[id, *(0.9 if c in said else 0.2 for c in found.classes)] for id, said in answers.items()],
        )
        return tmp_path / "s.csv"

    truth = np.array([[c in said for c in found.classes] for said in solution.values()])
    assert truth.any(0).all() and not truth.all(0).any()
    assert events.score(submitted(solution), solution) == (1.0, 1.0, 1.0)
    assert (
        events.score(submitted({id: set(found.classes) - said for id, said in solution.items()}), solution)[2]
        == 0
    )
    with pytest.raises(SystemExit, match="other ids"):
        events.score(submitted(dict(reversed(solution.items()))), solution)


def test_recipes_of_scikit_learn_heads_take_no_steps(fake):
    import noise

    from earshot.core.config import list_recipes

    fitted = {"knn", "logistic", "modulations", "patches", "svm"}
    assert set(list_recipes()) - set(noise.trained()) == fitted
