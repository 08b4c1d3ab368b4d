"""ncnn engines: they answer as the graph does, value by value; converted, movable, whole or not."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import export_tiny, randomise, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import relative_error
from strategies import FORMS, SHAPES, small_size, specs, stem_modes

import parnet_deploy.engine.ncnn.builder as module
from parnet_deploy.bundle import BatchRange, EngineBundle, ModelBundle, Source, open_engine_bundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.engine.ncnn.builder import NcnnBuilder
from parnet_deploy.engine.ncnn.convert import convert
from parnet_deploy.engine.ncnn.layers import LayerGraph
from parnet_deploy.errors import (
    TargetError,
)
from parnet_deploy.export import ExportOptions, export_model, whole_graph
from parnet_deploy.export.model import export_onnx
from parnet_deploy.net import BlockGraph, ParNet, fuse
from parnet_deploy.runtime import OnnxRuntimeRunner, open_runner
from parnet_deploy.runtime.ncnn import NcnnRunner
from parnet_deploy.runtime.ncnn_param import NcnnLayer, read_param
from parnet_deploy.spec import (
    IMAGES,
    Array,
    DeployForm,
    ParNetSpec,
    Preprocessing,
    StemMode,
    TensorSpec,
    default_form,
)
from parnet_deploy.verify.compare import compare

TOLERANCE = 1e-4  # of verify, for float32; relative to the greatest absolute value


def build(model: ModelBundle, final: Path, *, split: bool = False) -> EngineBundle:
    builder = NcnnBuilder(BuildOptions(threads=1))
    return build_engine(model, final, builder, split=split)


def some_arrays(specs: tuple[TensorSpec, ...], batch: int) -> dict[str, Array]:
    rng = np.random.default_rng(batch)
    return {
        spec.name: rng.integers(0, 256, spec.concrete(batch), dtype=np.uint8)
        if spec.dtype == "uint8"
        else rng.standard_normal(spec.concrete(batch)).astype(np.float32)
        for spec in specs
    }


def assert_stages_equal_their_graphs(engine: EngineBundle, model: ModelBundle) -> None:
    """Each stage alone, at every batch, against ONNX Runtime without rewrites; then all as one."""
    graphs = {stage.name: stage.file for stage in model.manifest.stages} | {"whole": "model.onnx"}
    batch = model.manifest.batch
    for stage in engine.manifest.stages:
        sides = {"inputs": stage.inputs, "outputs": stage.outputs, "threads": 1}
        graph = model.file(graphs[stage.name])
        with (
            OnnxRuntimeRunner(graph, optimise=False, **sides) as reference,
            NcnnRunner(engine.file(stage.file), **sides) as runner,
        ):
            for count in {batch.min, batch.opt, batch.max}:
                feeds = some_arrays(stage.inputs, count)
                report = compare(reference.run(feeds), runner.run(feeds), TOLERANCE)
                assert report.passed, report
    graph = model.file("model.onnx")
    sides = {"inputs": model.manifest.inputs, "outputs": model.manifest.outputs, "threads": 1}
    feeds = some_arrays(model.manifest.inputs, batch.max)
    with OnnxRuntimeRunner(graph, **sides) as reference, open_runner(engine) as whole:
        assert compare(reference.run(feeds), whole.run(feeds), TOLERANCE).passed


def of_streams(streams: int) -> dict[str, object]:
    return {
        "stream_widths": (8, 16, 24, 32)[:streams],
        "stream_blocks": (1, 2, 1, 1)[:streams],
        "last_width": 40,
    }


@pytest.mark.parametrize(
    ("streams", "stem"), [(1, "replicate"), (2, "share"), (3, "replicate"), (4, "share")]
)
def test_whole_and_split_engines_equal_the_graph(
    tmp_path: Path, streams: int, stem: StemMode
) -> None:
    model = export_tiny(tmp_path / "model", stem=stem, changes=of_streams(streams))
    for split in (False, True):
        engine = build(model, tmp_path / f"engine-{split}", split=split)
        expected = [stage.name for stage in model.manifest.stages] if split else ["whole"]
        assert [stage.name for stage in engine.manifest.stages] == expected
        assert_stages_equal_their_graphs(engine, model)


@pytest.mark.parametrize(
    "options",
    [
        {"batch": BatchRange(min=3, opt=3, max=3), "softmax": True},
        {"batch": BatchRange(min=1, opt=2, max=4), "preprocess": True, "stem": "share"},
        {"changes": {"activation": "relu", "squeeze": False, "image_size": (32, 96)}},
    ],
    ids=["batch 3, softmax", "batch 1:2:4, uint8", "relu, no squeeze, 32x96"],
)
def test_every_option_of_the_export_survives(tmp_path: Path, options: dict[str, Any]) -> None:
    model = export_tiny(tmp_path / "model", **options)
    for split in (False, True):
        engine = build(model, tmp_path / f"engine-{split}", split=split)
        assert engine.manifest.inputs == model.manifest.inputs
        assert engine.manifest.outputs == model.manifest.outputs
        assert_stages_equal_their_graphs(engine, model)


def random_network(spec: ParNetSpec) -> ParNet:
    torch.manual_seed(0)
    model = ParNet(spec).eval()
    randomise(model)
    return model


def value_specs(values: dict[str, Array]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, shape=("N", *array.shape[1:]), dtype="float32")
        for name, array in values.items()
    )


def every_value(model: BlockGraph, form: DeployForm, folder: Path) -> tuple[float, list[NcnnLayer]]:
    """Greatest relative error over every block's value, against torch; and the layers."""
    spec = model.spec
    images = np.random.default_rng(0).standard_normal((2, 3, *spec.image_size)).astype(np.float32)
    with torch.inference_mode():
        expected = {k: v.numpy() for k, v in model.values(torch.from_numpy(images)).items()}
    options = ExportOptions(
        name="test",
        preprocessing=Preprocessing(size=spec.image_size),
        batch=BatchRange(min=1, opt=1, max=2),
        form=form,
    )
    onnx.save(export_onnx(whole_graph(model, options)), folder / "model.onnx")
    inputs, outputs = value_specs({IMAGES: images}), value_specs(expected)
    layers, blobs = convert(folder / "model.onnx", inputs, outputs)
    path = folder / "model.param"
    layers.write(blobs, path, folder / "model.bin")
    with NcnnRunner(path, inputs=inputs, outputs=outputs, threads=1) as runner:
        actual = runner.run({IMAGES: images})
    errors = [
        relative_error(torch.from_numpy(actual[name]), torch.from_numpy(expected[name]))
        for name in expected
    ]
    return max(errors), list(read_param(path.read_text()))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_value_keeps_its_name_in_every_form(form: DeployForm, tmp_path: Path) -> None:
    error, _ = every_value(fuse(tiny_network(), form), form, tmp_path)
    assert error < TOLERANCE


@pytest.mark.parametrize("name", SHAPES)
def test_every_variants_shape_as_trained_and_fused(name: str, tmp_path: Path) -> None:
    spec = SHAPES[name]
    model = random_network(replace(spec, image_size=small_size(spec)))
    for network in (model, fuse(model)):
        error, _ = every_value(network, DeployForm(), tmp_path)
        assert error < TOLERANCE


@settings(max_examples=15)
@given(spec=specs(), form=st.sampled_from(FORMS))
def test_any_network_in_any_form(
    spec: ParNetSpec, form: DeployForm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    error, _ = every_value(fuse(random_network(spec), form), form, tmp_path_factory.mktemp("any"))
    assert error < TOLERANCE


@settings(max_examples=5)
@given(spec=specs(), data=st.data())
def test_any_network_in_stages(
    spec: ParNetSpec, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    options = ExportOptions(
        name="any",
        preprocessing=Preprocessing(size=spec.image_size, in_graph=data.draw(st.booleans())),
        stem=data.draw(st.sampled_from(stem_modes(spec))),
        form=data.draw(st.sampled_from(FORMS)),
    )
    source = Source(kind="untrained", seed=0)
    model = export_model(random_network(spec), source, folder / "model", options)
    assert_stages_equal_their_graphs(build(model, folder / "engine", split=True), model)


def kinds(layers: list[NcnnLayer]) -> Counter[str]:
    return Counter(layer.kind for layer in layers)


def test_what_ncnn_does_in_one_pass_is_one_layer(tmp_path: Path) -> None:
    form = default_form("ncnn")
    model = fuse(tiny_network(), form)
    error, layers = every_value(model, form, tmp_path)
    assert error < TOLERANCE
    found = kinds(layers)
    graph = onnx.load(tmp_path / "model.onnx").graph
    before = Counter(node.op_type for node in graph.node)
    gates = before["Gemm"] - 1
    assert found["Swish"] == before["Sigmoid"] - gates > 0
    assert "Sigmoid" not in found
    activated = [layer for layer in layers if layer.params.get(9) == 4]
    assert kinds(activated) == {"InnerProduct": gates}
    assert found["Convolution"] + found["ConvolutionDepthWise"] == before["Conv"]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_blocks_value_is_a_blob_of_its_name_also_where_nobody_wants_it(
    form: DeployForm, tmp_path: Path
) -> None:
    model = fuse(tiny_network(), form)
    options = ExportOptions(name="t", preprocessing=Preprocessing(size=(64, 64)), form=form)
    graph = whole_graph(model, options)
    onnx.save(export_onnx(graph), tmp_path / "model.onnx")
    inputs = (TensorSpec(name=IMAGES, shape=(1, 3, 64, 64), dtype="float32"),)
    outputs = (TensorSpec(name="logits", shape=(1, 7), dtype="float32"),)
    layers, blobs = convert(tmp_path / "model.onnx", inputs, outputs)
    layers.write(blobs, tmp_path / "model.param", tmp_path / "model.bin")
    made = {
        blob for layer in read_param((tmp_path / "model.param").read_text()) for blob in layer.tops
    }
    assert {block.name for block in model.layout if block.kind != "head"} <= made


@pytest.fixture(scope="module")
def whole(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    return build(tiny_bundle, tmp_path_factory.mktemp("engines") / "whole")


def test_nothing_but_the_named_files_is_left(whole: EngineBundle) -> None:
    files = {path.name for path in whole.path.iterdir()}
    assert files == {"labels.txt", "manifest.json", "manifest.sha256", "whole.bin", "whole.param"}


def test_weights_are_written_once_and_as_they_are(
    whole: EngineBundle, tiny_bundle: ModelBundle
) -> None:
    source = tiny_bundle.file("stages/weights.safetensors").stat().st_size
    assert 0.9 * source < whole.file("whole.bin").stat().st_size < 1.1 * source


def test_the_same_weights_give_the_same_files(tmp_path: Path, tiny_bundle: ModelBundle) -> None:
    one, two = (build(tiny_bundle, tmp_path / name, split=True) for name in "ab")
    assert one.manifest.files == two.manifest.files


def test_an_engine_needs_neither_its_place_nor_its_model(tmp_path: Path) -> None:
    model = export_tiny(tmp_path / "model")
    engine = build(model, tmp_path / "engine", split=True)
    feeds = some_arrays(model.manifest.inputs, 1)
    with open_runner(engine) as runner:
        expected = runner.run(feeds)["logits"]
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    engine.path.rename(moved)
    shutil.rmtree(model.path)
    with open_runner(open_engine_bundle(moved)) as runner:
        np.testing.assert_array_equal(runner.run(feeds)["logits"], expected)


def test_a_model_behind_a_link_builds(tmp_path: Path, tiny_bundle: ModelBundle) -> None:
    link = tmp_path / "link"
    link.symlink_to(tiny_bundle.path)
    linked = replace(tiny_bundle, path=link)
    assert_stages_equal_their_graphs(build(linked, tmp_path / "engine"), tiny_bundle)


def test_the_manifest_says_how_and_for_what_it_was_built(whole: EngineBundle) -> None:
    manifest = whole.manifest
    assert manifest.backend == "ncnn"
    assert manifest.target == {"param": "7767517"}  # and nothing of this CPU
    assert manifest.options == {"num_threads": 1}
    assert {"ncnn", "onnx", "numpy"} <= manifest.tools.keys()
    (stage,) = manifest.stages
    assert (stage.file, stage.device) == ("whole.param", "cpu")


def test_it_is_chosen_by_name() -> None:
    builder = make_builder("ncnn", BuildOptions(threads=3), split=False)
    assert isinstance(builder, NcnnBuilder)
    assert (builder.label, builder.devices) == ("ncnn-cpu", ("cpu",))
    assert builder.options() == {"num_threads": 3}


def test_an_engine_of_another_format_is_for_another_version(whole: EngineBundle) -> None:
    other = replace(whole, manifest=replace(whole.manifest, target={"param": "7767518"}))
    with pytest.raises(TargetError, match="cannot run here: its layers are in format 7767518"):
        open_runner(other)


# Seeded faults: each changes one thing that a converter could get wrong.


def swapped(kind: str) -> Callable[[LayerGraph], None]:
    """Two weights of the largest layer of a kind, swapped."""

    def change(layers: LayerGraph) -> None:
        drafts = [draft for draft in layers.drafts if draft.kind == kind and draft.weights]
        draft = max(drafts, key=lambda draft: draft.weights[0].size)
        weight = draft.weights[0].copy()
        weight[[0, 1]] = weight[[1, 0]]
        draft.weights[0] = weight

    return change


def retyped(kind: str, other: str) -> Callable[[LayerGraph], None]:
    def change(layers: LayerGraph) -> None:
        next(draft for draft in layers.drafts if draft.kind == kind).kind = other

    return change


def set_parameter(kind: str, number: int, value: int) -> Callable[[LayerGraph], None]:
    def change(layers: LayerGraph) -> None:
        draft = next(draft for draft in layers.drafts if draft.kind == kind)
        assert draft.params[number] != value
        draft.params[number] = value

    return change


def swapped_inputs(layers: LayerGraph) -> None:
    next(draft for draft in layers.drafts if draft.kind == "Concat").bottoms.reverse()


@pytest.mark.parametrize(
    "fault",
    [
        swapped("Convolution"),
        swapped("ConvolutionDepthWise"),
        swapped("InnerProduct"),
        swapped("Scale"),
        retyped("Swish", "ReLU"),
        retyped("Swish", "Sigmoid"),
        set_parameter("InnerProduct", 9, 1),
        set_parameter("BinaryOp", 0, 0),
        swapped_inputs,
    ],
    ids=["conv", "grouped", "product", "scale", "relu", "sigmoid", "gate", "operator", "join"],
)
def test_a_fault_in_the_layers_is_caught_by_the_comparison(
    tmp_path: Path,
    tiny_bundle: ModelBundle,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[LayerGraph], None],
) -> None:
    def faulty(*args: Any) -> Any:
        layers, outputs = convert(*args)
        fault(layers)
        return layers, outputs

    monkeypatch.setattr(module, "convert", faulty)
    engine = build(tiny_bundle, tmp_path / "engine")
    with pytest.raises(AssertionError, match="logits"):
        assert_stages_equal_their_graphs(engine, tiny_bundle)
