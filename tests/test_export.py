"""Graphs of heads: they compute what torch does, for any batch and mask; what is not a graph is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import test_models
import torch
from test_ast import tiny_ast
from torch import nn
from waves import synthetic, window

import models
from earshot.core import checksums, graphs
from earshot.core.checksums import CorruptFile
from earshot.core.errors import UserError
from earshot.export import compare, trace, write
from earshot.extractors import ast
from earshot.features import graph_trial
from earshot.features.exported import load_network
from earshot.training.predict import compute_logits

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason="pip install -r requirements-onnx.txt")

REFUSED = {"convnext_ggcn"}  # its graph of neighbours is rounded otherwise: exports of it may be refused


def needs(runtime: str) -> None:
    if graphs.find_missing_package(runtime):
        pytest.skip(f"pip install -r requirements-{runtime}.txt")


runtimes = pytest.mark.parametrize("runtime", ["onnx", "openvino"])


def compute_both(
    heads: list[nn.Module],
    shape: tuple[int, int, int],
    folder: Path,
    runtime: str,
    shifts: int = 1,
    multilabel: bool = False,
) -> float:
    """The largest difference between probabilities of torch and of a graph, over batches of five and one."""
    ensemble = write.Ensemble(heads, shifts, multilabel).eval()
    x, mask = test_models.clips(shape, 5)
    trace.write_graph(
        ensemble, (x[:2], mask[:2].float()), ("x", "mask"), ("probabilities", "logits"), folder, "heads",
        runtime, False,
    )  # fmt: skip
    graph, worst = graphs.Graph(folder, "heads", runtime, 1), 0.0
    for rows in (slice(0, 5), slice(4, 5)):
        with torch.inference_mode():
            wanted = ensemble(x[rows], mask[rows].float())
        fed = {"x": x[rows].numpy(), "mask": mask[rows].float().numpy()}
        for name, values in zip(("probabilities", "logits"), wanted, strict=True):
            worst = max(worst, float(np.abs(graph.run(name, **fed) - values.numpy()).max()))
    return worst


@pytest.mark.parametrize("case", [case for case in test_models.HEADS if case not in REFUSED])
def test_every_head_is_one_graph_for_any_batch_and_mask(case: str, tmp_path: Path) -> None:
    shape = test_models.SHAPES["mel"]
    heads = [test_models.make(case, shape).eval() for _ in range(2)]
    assert compute_both(heads, shape, tmp_path, "onnx") < 1e-4


# whose graphs OpenVINO makes for the traced batch alone, where a view is one vector
FIXED_BATCH = ("inception_transformer", "token_transformer")


@pytest.mark.slow
@pytest.mark.parametrize("view", ["mel", "frames", "efficientat frames", "pooled"])
@pytest.mark.parametrize("case", [case for case in test_models.HEADS if case not in REFUSED])
def test_every_head_by_openvino(case: str, view: str, tmp_path: Path) -> None:
    needs("openvino")
    shape = test_models.SHAPES[view]
    heads = [test_models.make(case, shape).eval()]
    if view == "pooled" and case.startswith(FIXED_BATCH):
        # an export of a run is tried with other batches, and is refused
        with pytest.raises(ValueError, match="broadcast"):
            compute_both(heads, shape, tmp_path, "openvino")
        return
    # a random network on one cell differs most; an export of a run is compared on its own rows, within 1e-4
    assert compute_both(heads, shape, tmp_path, "openvino") < (5e-4 if view == "pooled" else 1e-4)


@runtimes
def test_shifts_and_several_labels_are_part_of_the_graph(runtime: str, tmp_path: Path) -> None:
    needs(runtime)
    shape = (1, 16, 25)
    heads = [test_models.make("crnn", shape).eval(), test_models.make("audio_cnn-light", shape).eval()]
    assert compute_both(heads, shape, tmp_path, runtime, shifts=3, multilabel=True) < 1e-4

    x, mask = test_models.clips(shape, 4)
    rows = SimpleNamespace(shape=shape, iterate_batches=lambda rows, size: [(x, mask)])
    wanted = [compute_logits(head, rows, np.arange(4), 4, torch.no_grad(), 3) for head in heads]
    logits = write.Ensemble(heads, 3, True).eval()(x, mask.float())[1]
    assert torch.allclose(torch.stack(wanted, 1), logits, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 6, 40), (1, 7, 13), (1, 5, 5)])
def test_pooling_and_spectrum_as_products_are_the_same(shape: tuple[int, int, int]) -> None:
    x = torch.randn(2, *shape)
    for size in ((3, 5), (1, 4), (None, 2), (7, 50)):
        wanted = torch.nn.functional.adaptive_avg_pool2d(x, size)
        assert torch.allclose(trace._pool_2d(x, size), wanted, atol=1e-6)
    for n in (None, 64, 9):
        wanted = torch.fft.rfft(x, n=n).abs()
        assert torch.allclose(trace._rfft(x, n).abs(), wanted, atol=1e-4)


def test_a_head_that_onnx_lacks_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.svd(x[:, 0])[1]

    with pytest.raises(UserError, match="it cannot be exported .*: predict with torch") as refusal:
        trace.write_graph(Odd(), (torch.randn(2, 1, 3, 3),), ("x",), ("y",), tmp_path, "odd", "onnx", False)
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", ""), "the exporter prints the whole graph"
    assert torch.nn.functional.adaptive_avg_pool2d(torch.ones(1, 1, 2, 2), 1).shape == (1, 1, 1, 1)
    assert torch.backends.mha.get_fastpath_enabled()


@runtimes
def test_fp16_halves_the_file_and_keeps_the_order(runtime: str, tmp_path: Path) -> None:
    needs(runtime)
    head = models.build("mlp", (64, 1, 1), 5, hidden=(128,)).eval()
    x, sizes, found = torch.randn(40, 64, 1, 1), [], []
    for fp16 in (False, True):
        folder = tmp_path / str(fp16)
        folder.mkdir()
        trace.write_graph(head, (x[:2],), ("x",), ("y",), folder, "heads", runtime, fp16)
        sizes.append((folder / graphs.list_files("heads", runtime)[-1]).stat().st_size)
        found.append(graphs.Graph(folder, "heads", runtime, 1).run("y", x=x.numpy()))
    assert sizes[1] < 0.6 * sizes[0]
    assert 0 < np.abs(found[0] - found[1]).max() < 1e-2
    assert compare._check("rows", found[0], found[1], True).correlation > 0.9999


def test_a_graph_that_differs_is_refused() -> None:
    wanted = np.linspace(0, 1, 30).reshape(10, 3)
    with pytest.raises(UserError, match="the graph differs .*1.0e-03 at most from torch.*predict with torch"):
        compare._check("10 rows", wanted, wanted + 1e-3, False)
    with pytest.raises(UserError, match="in fp16 the order differs .*leave out --fp16"):
        compare._check("10 rows", wanted, wanted[::-1], True)
    with pytest.raises(UserError, match="not finite"):
        compare._check("10 rows", wanted, np.full_like(wanted, np.nan), False)


def test_untrusted_graphs_are_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    strange = helper.make_node("Run", ["x"], ["y"], domain="com.example")
    outside = helper.make_tensor("w", TensorProto.FLOAT, [4], np.zeros(4, np.float32))
    outside.ClearField("float_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../../secret")
    add = helper.make_node("Add", ["x", "w"], ["y"])
    for node, constants, reason in (
        (strange, [], "operator of the domain"),
        (add, [outside], "another file"),
    ):
        graph = helper.make_graph([node], "g", [value], [out], constants)
        (tmp_path / "heads.onnx").write_bytes(helper.make_model(graph).SerializeToString())
        with pytest.raises(CorruptFile, match=reason):
            graphs.Graph(tmp_path, "heads", "onnx", 1)
    (tmp_path / "heads.onnx").write_bytes(b"no graph")
    with pytest.raises(CorruptFile, match="heads.onnx cannot be loaded by onnx"):
        graphs.Graph(tmp_path, "heads", "onnx", 1)
    about = {"runtime": "onnx", "models": {}, "features": ""}
    checksums.write(tmp_path / "export.json", {**about, "runtime": "../x"}, "heads.onnx")
    with pytest.raises(CorruptFile, match="not the description of an export"):
        graphs.read_export(tmp_path)
    checksums.write(tmp_path / "export.json", about, "heads.onnx")
    assert graphs.read_export(tmp_path)["models"] == {}


@runtimes
def test_a_graph_that_takes_all_memory_is_noticed_in_another_process(runtime: str, tmp_path: Path) -> None:
    needs(runtime)

    class Ensemble(nn.Module):
        """Probabilities and logits, by way of ten copies of a number."""

        def forward(self, x):
            y = x.mean((1, 2)) + x[:, 0, 0, :1].expand(-1, 10).exp().sum(1, keepdim=True)
            return y.softmax(1), y[:, None]

    for copies in (10, 1 << 33):
        folder = tmp_path / str(copies)
        folder.mkdir()
        outputs = ("probabilities", "logits")
        module, example = Ensemble(), (torch.randn(2, 1, 4, 5),)
        trace.write_graph(module, example, ("x",), outputs, folder, "heads", "onnx", False)
        if copies > 10:
            enlarge(folder / "heads.onnx", 10, copies)
        if runtime == "openvino":
            import openvino

            openvino.save_model(openvino.convert_model(folder / "heads.onnx"), folder / "heads.xml")
        if copies == 10:
            graph_trial.try_graph(folder, "heads", runtime)
            continue
        with pytest.raises(CorruptFile, match="fails, or takes too much memory or time"):
            graph_trial.try_graph(folder, "heads", runtime)


def test_an_export_of_another_runtime_is_no_graph_of_this_one(tmp_path: Path) -> None:
    (tmp_path / "heads.onnx").write_bytes(b"")
    with pytest.raises(CorruptFile, match="heads.xml is missing"):
        graph_trial.try_graph(tmp_path, "heads", "openvino")


def enlarge(path: Path, old: int, new: int) -> None:
    """Put another number into the shapes of an ONNX file."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    tensors = [*model.graph.initializer]
    tensors += [one.t for node in model.graph.node for one in node.attribute if one.HasField("t")]
    for tensor in tensors:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.int64 and (values == old).any():
            tensor.CopyFrom(numpy_helper.from_array(np.where(values == old, new, values), tensor.name))
    onnx.save(model, path)


@runtimes
@pytest.mark.parametrize("views", [("pooled", "frames"), ("pooled",)])
def test_the_network_of_ast_is_a_graph(runtime: str, views: tuple[str, ...], tmp_path: Path) -> None:
    needs(runtime)
    tiny_ast(tmp_path / "ast")

    def build() -> ast.Extractor:
        return ast.Extractor(ast.Settings(views), window(1.28, 16000), weights=str(tmp_path / "ast"))

    extractor, waves = build(), [synthetic(seconds, 16000) for seconds in (7.0, 0.5)]
    wanted = build().extract(waves, [0.0, 0.0], 3)
    noise = np.stack([synthetic(1.28, 16000, seed) for seed in range(3)])
    write.write_network(extractor, noise, tmp_path, runtime, False)
    load_network(extractor, tmp_path, runtime)
    graph_trial.try_graph(tmp_path, "extractor", runtime)
    for one, other in zip(wanted, extractor.extract(waves, [0.0, 0.0], 3), strict=True):
        for view in views:
            assert np.ptp(one.views[view]) > 0.1
            np.testing.assert_allclose(other.views[view], one.views[view], atol=4e-3)
