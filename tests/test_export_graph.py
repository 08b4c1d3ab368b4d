"""The emitted graphs compute what torch computes, value by value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
import torch
from conftest import randomise, tiny_network, tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import relative_error
from strategies import FORMS, SHAPES, small_size, specs

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import SpecError
from parnet_deploy.export import ExportOptions, save_with_weights, whole_graph
from parnet_deploy.export.gate import run_network
from parnet_deploy.export.model import export_onnx
from parnet_deploy.net import BlockGraph, ParNet, fuse
from parnet_deploy.spec import (
    IMAGES,
    LOGITS,
    Array,
    DeployForm,
    ParNetSpec,
    Preprocessing,
    depth,
    variant,
)

TOLERANCE = 1e-5


def options(spec: ParNetSpec, **changes: Any) -> ExportOptions:
    return ExportOptions(
        name="test", **{"preprocessing": Preprocessing(size=spec.image_size)} | changes
    )


def noise(spec: ParNetSpec, count: int = 1, seed: int = 0) -> Array:
    shape = (count, 3, *spec.image_size)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def session(source: bytes | Path) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


def all_values(graph: gs.Graph, names: list[str], images: Array) -> dict[str, Array]:
    """Run a graph, with every named value as an output."""
    tensors = graph.tensors()
    graph.outputs = [tensors[name] for name in names]
    values = session(export_onnx(graph).SerializeToString()).run(names, {IMAGES: images})
    return dict(zip(names, values, strict=True))


def assert_every_value_agrees(model: BlockGraph, choices: ExportOptions) -> None:
    images = noise(model.spec, choices.batch.max)
    with torch.inference_mode():
        expected = model.values(torch.from_numpy(images))
    actual = all_values(whole_graph(model, choices), list(expected), images)
    errors = {k: relative_error(torch.from_numpy(actual[k]), expected[k]) for k in expected}
    assert max(errors.values()) < TOLERANCE, errors


def random_network(spec: ParNetSpec, seed: int = 0) -> ParNet:
    torch.manual_seed(seed)
    model = ParNet(spec).eval()
    randomise(model, seed)
    return model


@settings(max_examples=15)
@given(spec=specs(), form=st.sampled_from(FORMS), count=st.integers(1, 3))
def test_any_network_in_any_form(spec: ParNetSpec, form: DeployForm, count: int) -> None:
    model = fuse(random_network(spec), form)
    batch = BatchRange(min=1, opt=1, max=count)
    assert_every_value_agrees(model, options(spec, form=form, batch=batch))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form(form: DeployForm) -> None:
    model = fuse(tiny_network(), form)
    assert_every_value_agrees(model, options(model.spec, form=form))


@pytest.mark.parametrize("name", SHAPES)
def test_every_variants_shape_as_trained_and_fused(name: str) -> None:
    spec = SHAPES[name]
    model = random_network(replace(spec, image_size=small_size(spec)))
    assert_every_value_agrees(model, options(model.spec))
    assert_every_value_agrees(fuse(model), options(model.spec))


@pytest.mark.parametrize("opset", [18, 19, 20, 21])
def test_every_operator_set(opset: int) -> None:
    model = fuse(tiny_network())
    graph = whole_graph(model, options(model.spec, opset=opset))
    proto = export_onnx(graph)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    onnx.checker.check_model(proto, full_check=True)
    assert_every_value_agrees(model, options(model.spec, opset=opset))


@pytest.mark.parametrize("opset", [0, 17, 22])
def test_other_operator_sets_are_refused(opset: int) -> None:
    with pytest.raises(SpecError, match=f"an opset of 18 to 21, not {opset}"):
        options(tiny_spec(), opset=opset)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("softmax", [False, True])
def test_preprocessing_and_softmax_in_the_graph(softmax: bool, in_graph: bool) -> None:
    model = tiny_network()
    preprocessing = Preprocessing(
        size=(64, 64), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), in_graph=in_graph
    )
    choices = options(model.spec, preprocessing=preprocessing, softmax=softmax)
    graph = export_onnx(whole_graph(fuse(model), choices))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8)
    images = pixels if in_graph else noise(model.spec)
    run = session(graph.SerializeToString())
    (output,) = run.get_outputs()
    assert output.name == ("probabilities" if softmax else LOGITS)
    (actual,) = run.run(None, {IMAGES: images})

    x = images.astype(np.float64)
    if in_graph:
        mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
        x = (x / 255 - mean) / std
    with torch.inference_mode():
        expected = model.double()(torch.from_numpy(x))
    expected = expected.softmax(1) if softmax else expected
    assert relative_error(torch.from_numpy(actual), expected) < TOLERANCE
    again = run_network(model.float(), images, preprocessing, softmax=softmax)
    assert relative_error(torch.from_numpy(again), expected) < TOLERANCE, "the gate's reference"
    if softmax:
        np.testing.assert_allclose(actual.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("streams", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["s", "cifar-s"])
def test_depth_is_the_longest_path_in_the_graph(name: str, streams: int) -> None:
    """Counted in the graph itself: convolutions and Gemms, but for those of the squeezes."""
    spec = variant(name).spec.with_widths((8, 8, 8, 8)).with_streams(streams)
    graph = whole_graph(fuse(random_network(spec)), options(spec))
    deepest: dict[str, int] = {}
    for node in graph.nodes:  # sorted: inputs come first
        counts = node.op in {"Conv", "Gemm"} and "squeeze" not in node.name
        before = max((deepest.get(tensor.name, 0) for tensor in node.inputs), default=0)
        for tensor in node.outputs:
            deepest[tensor.name] = before + counts
    assert deepest[LOGITS] == depth(spec) == 12


def test_one_input_one_output_and_the_batch_is_symbolic_where_it_is_dynamic() -> None:
    model = fuse(tiny_network())
    for batch, axis in ((BatchRange(min=3, opt=3, max=3), 3), (BatchRange(max=4), "N")):
        graph = export_onnx(whole_graph(model, options(model.spec, batch=batch))).graph
        (images,), (logits,) = graph.input, graph.output
        assert (images.name, logits.name) == (IMAGES, LOGITS)
        sizes = [images.type.tensor_type.shape.dim[0], logits.type.tensor_type.shape.dim[0]]
        assert [size.dim_param or size.dim_value for size in sizes] == [axis, axis]


def test_a_graph_with_its_weights_beside_it(tmp_path: Path) -> None:
    model = tiny_network()
    save_with_weights(whole_graph(model, options(model.spec)), tmp_path / "unfused.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"unfused.onnx", "unfused.safetensors"}
    images = noise(model.spec)
    (actual,) = session(tmp_path / "unfused.onnx").run(None, {IMAGES: images})
    with torch.inference_mode():
        expected = model(torch.from_numpy(images))
    assert relative_error(torch.from_numpy(actual), expected) < TOLERANCE
