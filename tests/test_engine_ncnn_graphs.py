"""Graphs as ncnn layers one by one: what has no counterpart is refused, by name."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import export_tiny
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from parnet_deploy.bundle import BatchRange, ModelBundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.engine.base import BuildStage
from parnet_deploy.engine.ncnn.builder import NcnnBuilder
from parnet_deploy.engine.ncnn.layers import Blob, LayerGraph
from parnet_deploy.engine.ncnn.values import ChannelTable, UnfitValueError
from parnet_deploy.errors import (
    BuildError,
    BundleError,
    EngineError,
    MissingDependencyError,
)
from parnet_deploy.runtime import OnnxRuntimeRunner
from parnet_deploy.runtime.ncnn import NcnnRunner
from parnet_deploy.spec import (
    Array,
    TensorSpec,
)
from parnet_deploy.verify.compare import compare


def graph_of(
    folder: Path, *nodes: onnx.NodeProto, constants: dict[str, Array] | None = None
) -> BuildStage:
    """A stage x (1, 4, 6, 6) -> y, its output as large as its input says."""
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy"]
    initializers = [onnx.numpy_helper.from_array(v, k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "test", sides[:1], sides[1:], initializers)
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.save(model, folder / "graph.onnx")
    x, y = (TensorSpec(name=n, shape=(1, 4, 6, 6), dtype="float32") for n in "xy")
    return BuildStage(
        name="part",
        graph=folder / "graph.onnx",
        inputs=(x,),
        outputs=(y,),
        batch=BatchRange(),
        device="cpu",
    )


def node(operator: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, ["x", *inputs], ["y"], name="the-node", **attributes)


CUBE = np.ones((4, 4, 3, 3), np.float32)
PLANE = np.ones((1, 4, 6, 6), np.float32)


@pytest.mark.parametrize(
    ("made", "constants", "message"),
    [
        (node("Erf"), {}, r"ai\.onnx\.Erf, which this converter does not know; it knows Add, "),
        (node("Relu", domain="com.microsoft"), {}, r"com\.microsoft\.Relu, which"),
        (node("Softmax", axis=1), {}, "a softmax of"),
        (node("Flatten", axis=1), {}, "is not a vector"),
        (node("Conv", "w"), {"w": CUBE[:, :2]}, "for 4 channels"),
        (node("Conv", "w", auto_pad="SAME_UPPER"), {"w": CUBE}, "for 4 channels"),
        (node("Conv", "x"), {}, "'x' is no constant"),
        (node("Gemm", "w", alpha=2.0), {"w": CUBE[0, 0]}, "alpha"),
        (node("Gemm", "w"), {"w": CUBE[:, :, 0, 0]}, "times"),
        (node("Mul", "w"), {"w": PLANE}, r"a constant \(1, 4, 6, 6\)"),
        (node("Transpose", perm=[0, 1, 3, 2]), {}, "do not leave the batch and pixels"),
        (node("Reshape", "s"), {"s": np.array([0, 36, 4])}, "does not leave 36 pixels"),
        (node("Reshape", "s"), {"s": np.array([0, 5, 6, 6])}, "cannot reshape"),
        (node("Split", "s", axis=2), {"s": np.array([6])}, "axis 2"),
        (node("Split", "s", axis=1), {"s": np.array([3])}, r"4 channels are not \[3\]"),
        (node("Concat", "x", axis=2), {}, "cannot be joined"),
        (node("Cast", to=TensorProto.FLOAT16), {}, "a cast to type 10"),
        (node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), {}, "attributes"),
        (node("Add", "z"), {}, "z"),
    ],
)
def test_what_has_no_counterpart_is_one_clear_error(
    tmp_path: Path, made: onnx.NodeProto, constants: dict[str, Array], message: str
) -> None:
    stage = graph_of(tmp_path, made, constants=constants)
    with pytest.raises(BuildError, match=message) as caught:
        NcnnBuilder(BuildOptions()).build(stage, tmp_path)
    assert "'the-node'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "nodes",
    [
        # A convolution's output is read by an activation, and under another name by a sum.
        [("Conv", "xw", "c"), ("Reshape", "cs", "r"), ("Relu", "r", "a"), ("Add", "ac", "y")],
        [("Conv", "xw", "c"), ("Reshape", "cs", "r"), ("Relu", "c", "a"), ("Add", "ar", "y")],
        [("Conv", "xw", "c"), ("Relu", "c", "r"), ("Relu", "c", "a"), ("Add", "ar", "y")],
        [("Mul", "xk", "c"), ("Reshape", "cs", "r"), ("Add", "rk", "a"), ("Add", "ca", "y")],
        [("Mul", "xk", "c"), ("Add", "ck", "a"), ("Add", "ak", "r"), ("Add", "ar", "y")],
    ],
)
def test_a_value_with_other_readers_is_merged_with_none_of_them(
    tmp_path: Path, nodes: list[tuple[str, str, str]]
) -> None:
    rng = np.random.default_rng(0)
    made = [
        helper.make_node(
            operator,
            list(inputs),
            [output],
            **({"pads": [1, 1, 1, 1]} if operator == "Conv" else {}),
        )
        for operator, inputs, output in nodes
    ]
    constants = {
        "w": rng.standard_normal((4, 4, 3, 3)).astype(np.float32),
        "s": np.array([0, 4, 6, 6]),
        "k": rng.standard_normal((1, 4, 1, 1)).astype(np.float32),
    }
    stage = graph_of(tmp_path, *made, constants=constants)
    NcnnBuilder(BuildOptions(threads=1)).build(stage, tmp_path)
    sides = {"inputs": stage.inputs, "outputs": stage.outputs, "threads": 1}
    noise = np.random.default_rng(1)
    feeds = {
        spec.name: noise.standard_normal(spec.concrete(1)).astype(np.float32)
        for spec in stage.inputs
    }
    with (
        OnnxRuntimeRunner(stage.graph, **sides) as reference,
        NcnnRunner(tmp_path / "part.param", **sides) as runner,
    ):
        assert compare(reference.run(feeds), runner.run(feeds), 1e-4).passed


@pytest.mark.parametrize("second", ["Conv", "GlobalAveragePool", "Add"])
def test_channels_behind_the_pixels_are_for_elementwise_operators_alone(
    tmp_path: Path, second: str
) -> None:
    turned = helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1])
    others = {"Conv": ["w"], "Add": ["x"]}.get(second, [])
    reader = helper.make_node(second, ["t", *others], ["y"], name="the-node")
    stage = graph_of(tmp_path, turned, reader, constants={"w": CUBE})
    with pytest.raises(BuildError, match=r"'the-node' .* behind (its|their) pixels"):
        NcnnBuilder(BuildOptions()).build(stage, tmp_path)


def test_a_graph_that_gives_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"'y' is to be \(4, 6, 6\) .* gives \(4,\)"):
        NcnnBuilder(BuildOptions()).build(graph_of(tmp_path, node("GlobalAveragePool")), tmp_path)
    stage = graph_of(tmp_path, helper.make_node("Relu", ["x"], ["other"]))
    with pytest.raises(BuildError, match=r"'y' is to be .* gives nothing"):
        NcnnBuilder(BuildOptions()).build(stage, tmp_path)


def test_a_graph_in_float16_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = export_tiny(tmp_path / "half", precision="fp16")
    builder = make_builder("ncnn", BuildOptions(threads=1), split=False)
    sentence = "ncnn engines are built from graphs in fp32, and this model is in fp16: build it"
    with pytest.raises(EngineError, match=f"^{sentence} with .*--precision fp32"):
        build_engine(model, tmp_path / "engine", builder, split=False)


@pytest.mark.parametrize("content", [None, b"no graph"], ids=["missing", "garbage"])
def test_a_file_that_is_no_graph_is_a_build_error(tmp_path: Path, content: bytes | None) -> None:
    stage = graph_of(tmp_path, node("Relu"))
    stage.graph.unlink()
    if content is not None:
        stage.graph.write_bytes(content)
    with pytest.raises(BuildError, match=r"graph\.onnx cannot be read(: No such file| as ONNX: )"):
        NcnnBuilder(BuildOptions()).build(stage, tmp_path)


def test_weights_that_are_missing_are_a_build_error(
    tmp_path: Path, tiny_bundle: ModelBundle
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bundle.path, folder)
    (folder / "stages" / "weights.safetensors").unlink()
    stage = replace(graph_of(tmp_path, node("Relu")), graph=folder / "model.onnx")
    with pytest.raises(BuildError, match=r"model\.onnx cannot be read") as caught:
        NcnnBuilder(BuildOptions()).build(stage, tmp_path)
    assert "\n" not in str(caught.value)


def test_without_onnx_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = graph_of(tmp_path, node("Relu"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match="pip install onnx; running one does not"):
        NcnnBuilder(BuildOptions()).build(stage, tmp_path)


def test_a_folder_that_cannot_be_written_is_a_bundle_error(tmp_path: Path) -> None:
    stage = graph_of(tmp_path, node("Relu"))
    with pytest.raises(BundleError, match="'part' could not be written: No such file"):
        NcnnBuilder(BuildOptions()).build(stage, tmp_path / "nowhere")


def test_an_engine_that_does_not_answer_is_not_put_in_place(
    tmp_path: Path, tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(self: LayerGraph, outputs: Any, param: Path, weights: Path) -> None:
        real(self, outputs, param, weights)
        weights.write_bytes(weights.read_bytes()[:-4])

    real = LayerGraph.write
    monkeypatch.setattr(LayerGraph, "write", cut_short)
    with pytest.raises(BuildError, match=r"'whole' could not be built for cpu: .* bytes, and"):
        build_engine(tiny_bundle, tmp_path / "engine", NcnnBuilder(BuildOptions()), split=False)
    assert list(tmp_path.iterdir()) == []


# Layers and channels by themselves.


def test_a_value_that_is_wanted_and_read_is_kept(tmp_path: Path) -> None:
    layers = LayerGraph()
    x, y, z = (Blob(name=name, channels=2, size=()) for name in "xyz")
    layers.add("Input", [], x, {0: 2})
    layers.add("ReLU", [x], y)
    layers.add("BinaryOp", [y, y], z, {0: 0})
    outputs = [("y", y), ("again", y), ("z", z), ("same", x)]
    layers.write(outputs, tmp_path / "a.param", tmp_path / "a.bin")
    inputs, wanted = (
        tuple(TensorSpec(name=name, shape=(1, 2), dtype="float32") for name in names)
        for names in (["x"], ["y", "again", "z", "same"])
    )
    with NcnnRunner(tmp_path / "a.param", inputs=inputs, outputs=wanted, threads=1) as runner:
        answers = runner.run({"x": np.array([[3, -1]], np.float32)})
    assert {name: array.tolist() for name, array in answers.items()} == {
        "y": [[3, 0]],
        "again": [[3, 0]],
        "z": [[6, 0]],
        "same": [[3, -1]],
    }


def test_weights_that_do_not_fit_their_layer_are_not_written(tmp_path: Path) -> None:
    layers = LayerGraph()
    x = layers.add("Input", [], Blob(name="x", channels=2, size=()), {0: 2})
    y = Blob(name="y", channels=2, size=())
    layers.add("Scale", [x], y, {0: 2, 1: 0}, [np.ones(3)])
    with pytest.raises(EngineError, match=r"Scale 'y' has 12 bytes of weights, .* say 8"):
        layers.write([("y", y)], tmp_path / "a.param", tmp_path / "a.bin")


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    data=st.data(),
)
def test_any_order_of_channels_is_put_together(
    sizes: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    layers = LayerGraph()
    table = ChannelTable(layers)
    blobs = [Blob(name=f"x{n}", channels=size, size=()) for n, size in enumerate(sizes)]
    for blob in blobs:
        layers.add("Input", [], blob, {0: blob.channels})
    values = [table.value(blob) for blob in blobs]
    numbers = np.concatenate([value.channels for value in values])
    order = data.draw(st.permutations(range(len(numbers))))
    wanted = replace(values[0], channels=numbers[list(order)])
    output = table.blob(wanted, "y")
    assert table.blob(wanted, "again") is output
    folder = tmp_path_factory.mktemp("order")
    layers.write([("y", output)], folder / "a.param", folder / "a.bin")
    inputs = tuple(TensorSpec(name=b.name, shape=(1, b.channels), dtype="float32") for b in blobs)
    outputs = (TensorSpec(name="y", shape=(1, len(numbers)), dtype="float32"),)
    feeds = dict(
        zip(
            (blob.name for blob in blobs),
            np.split(np.arange(len(numbers), dtype=np.float32)[None], np.cumsum(sizes)[:-1], 1),
            strict=True,
        )
    )
    with NcnnRunner(folder / "a.param", inputs=inputs, outputs=outputs, threads=1) as runner:
        assert runner.run(feeds)["y"].tolist() == [list(order)]


def test_channels_that_are_wanted_twice_are_refused() -> None:
    table = ChannelTable(LayerGraph())
    value = table.value(Blob(name="x", channels=4, size=(2, 2)))
    for numbers in ([0, 1, 2, 1, 2, 3], [0, 1, 1]):
        with pytest.raises(UnfitValueError, match="twice"):
            table.blob(replace(value, channels=value.channels[numbers]), "y")
    with pytest.raises(UnfitValueError, match="pixels"):
        table.blob(replace(value, size=(4,)), "y")
