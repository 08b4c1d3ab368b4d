"""ONNX Runtime engines: they answer as the graph does; saved optimised, movable, whole or not."""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import export_tiny
from onnx import TensorProto

import parnet_deploy.engine.onnxruntime as module
from parnet_deploy.bundle import (
    MODEL_GRAPH,
    BatchRange,
    EngineBundle,
    ModelBundle,
    ModelManifest,
    open_engine_bundle,
)
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.engine.onnxruntime import OnnxRuntimeBuilder
from parnet_deploy.errors import BuildError, EngineError, UsageError
from parnet_deploy.runtime import SplitRunner, open_runner, rebuild_command
from parnet_deploy.runtime.machine import provider_problem
from parnet_deploy.spec import Array

TOLERANCE = 1e-5  # relative to the greatest absolute value

CPU = BuildOptions(threads=1, provider="cpu")


def build(model: ModelBundle, final: Path, *, split: bool = False) -> EngineBundle:
    return build_engine(model, final, make_builder("onnxruntime", CPU, split=split), split=split)


def some_images(manifest: ModelManifest, batch: int) -> Array:
    (spec,) = manifest.inputs
    rng = np.random.default_rng(batch)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, spec.concrete(batch), dtype=np.uint8)
    return rng.standard_normal(spec.concrete(batch)).astype(np.float32)


def plain_answer(model: ModelBundle, images: Array) -> Array:
    """The whole graph in a session without any optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.file(MODEL_GRAPH), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": images})[0]


def assert_equal_to_the_graph(engine: EngineBundle, model: ModelBundle) -> None:
    batches = {model.manifest.batch.min, model.manifest.batch.opt, model.manifest.batch.max}
    (output,) = model.manifest.outputs
    with open_runner(engine) as runner:
        for batch in batches:
            images = some_images(model.manifest, batch)
            expected = plain_answer(model, images)
            actual = runner.run({"images": images})[output.name]
            assert actual.shape == expected.shape
            assert np.abs(expected).max() > 0
            assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


def of_streams(streams: int) -> dict[str, object]:
    return {
        "stream_widths": (8, 16, 24, 32)[:streams],
        "stream_blocks": (1, 2, 1, 1)[:streams],
        "last_width": 40,
    }


@pytest.mark.parametrize("stem", ["replicate", "share"])
@pytest.mark.parametrize("streams", [1, 2, 3, 4])
def test_whole_and_split_engines_equal_the_graph(tmp_path: Path, streams: int, stem: str) -> None:
    model = export_tiny(tmp_path / "model", stem=stem, changes=of_streams(streams))
    for split in (False, True):
        engine = build(model, tmp_path / f"engine-{split}", split=split)
        expected = [stage.name for stage in model.manifest.stages] if split else ["whole"]
        assert [stage.name for stage in engine.manifest.stages] == expected
        assert_equal_to_the_graph(engine, model)


@pytest.mark.parametrize(
    "options",
    [
        {"batch": BatchRange(min=3, opt=3, max=3)},
        {"batch": BatchRange(min=1, opt=2, max=4)},
        {"preprocess": True},
        {"softmax": True},
        {"preprocess": True, "softmax": True, "stem": "share"},
        {"changes": {"activation": "relu", "squeeze": False, "image_size": (32, 96)}},
    ],
    ids=["batch 3", "batch 1:2:4", "uint8", "softmax", "uint8 softmax", "relu, no squeeze, 32x96"],
)
def test_every_option_of_the_export_survives(tmp_path: Path, options: dict[str, Any]) -> None:
    model = export_tiny(tmp_path / "model", **options)
    for split in (False, True):
        engine = build(model, tmp_path / f"engine-{split}", split=split)
        assert engine.manifest.inputs == model.manifest.inputs
        assert engine.manifest.outputs == model.manifest.outputs
        assert_equal_to_the_graph(engine, model)


@pytest.fixture(scope="module")
def whole(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    return build(tiny_bundle, tmp_path_factory.mktemp("engines") / "whole")


def operators(graph: Path) -> Counter[str]:
    model = onnx.load(graph, load_external_data=False)
    return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node)


def test_what_is_saved_is_optimised_for_this_cpu(
    whole: EngineBundle, tiny_bundle: ModelBundle
) -> None:
    before = operators(tiny_bundle.file(MODEL_GRAPH))
    after = operators(whole.file("whole.onnx"))
    assert before["Conv"] > 0
    assert before["Sigmoid"] > after["Sigmoid"] == 0  # SiLU is one operator now
    if whole.manifest.target["vectors"] in ("avx", "avx2", "avx512f"):
        # All but grouped convolutions whose groups are narrower than the CPU's vectors.
        assert after["com.microsoft.nchwc.Conv"] >= 0.8 * before["Conv"]


def test_weights_stand_once_beside_the_graph(whole: EngineBundle, tiny_bundle: ModelBundle) -> None:
    graph = onnx.load(whole.file("whole.onnx"), load_external_data=False)
    stored = {t.name for t in graph.graph.initializer if t.external_data}
    places = {
        entry.value
        for tensor in graph.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert stored
    assert places == {"whole.weights"}
    embedded = sum(len(t.raw_data) for t in graph.graph.initializer if t.name not in stored)
    weights = whole.file("whole.weights").stat().st_size
    source = tiny_bundle.file("stages/weights.safetensors").stat().st_size
    # 16 channels together, with AVX-512, pad these narrow layers; ParNet-L's hold no padding.
    assert weights <= (1.2 if whole.manifest.target.get("vectors") != "avx512f" else 3) * source
    assert embedded < 0.5 * whole.file("whole.onnx").stat().st_size


def test_nothing_but_the_named_files_is_left(whole: EngineBundle) -> None:
    files = {path.name for path in whole.path.iterdir()}
    assert files == {
        "labels.txt",
        "manifest.json",
        "manifest.sha256",
        "whole.onnx",
        "whole.weights",
    }


def test_an_engine_needs_neither_its_place_nor_its_model(tmp_path: Path) -> None:
    model = export_tiny(tmp_path / "model")
    engine = build(model, tmp_path / "engine", split=True)
    images = some_images(model.manifest, 1)
    expected = plain_answer(model, images)
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    engine.path.rename(moved)
    shutil.rmtree(model.path)
    with open_runner(open_engine_bundle(moved)) as runner:
        actual = runner.run({"images": images})["logits"]
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)


def test_a_model_behind_a_link_builds(tmp_path: Path, tiny_bundle: ModelBundle) -> None:
    link = tmp_path / "link"
    link.symlink_to(tiny_bundle.path)
    linked = replace(tiny_bundle, path=link)
    assert_equal_to_the_graph(build(linked, tmp_path / "engine"), tiny_bundle)


def test_the_manifest_says_how_and_for_what_it_was_built(whole: EngineBundle) -> None:
    manifest = whole.manifest
    assert manifest.backend == "onnxruntime"
    assert manifest.target["provider"] == "cpu"
    assert manifest.target["onnxruntime"] == onnxruntime.__version__
    assert manifest.options == {
        "graph_optimization_level": "ORT_ENABLE_ALL",
        "intra_op_num_threads": 1,
        "intra_op_spinning": True,
    }
    assert {"onnxruntime-gpu", "onnxruntime"} & set(manifest.tools)
    (stage,) = manifest.stages
    assert (stage.device, stage.kernels, stage.streams) == ("cpu", None, None)


def threads_of(engine: EngineBundle) -> dict[str, int]:
    """Threads of every stage's session, as ONNX Runtime says."""
    with open_runner(engine) as runner:
        if not isinstance(runner, SplitRunner):
            return {"whole": runner._session.get_session_options().intra_op_num_threads}
        return {
            stage.name: stage.runner._session.get_session_options().intra_op_num_threads
            for stage in runner._stages
        }


@pytest.mark.parametrize(("machine", "computes"), [("x86_64", "fp32"), ("aarch64", "fp16")])
def test_on_a_cpu_without_kernels_in_float16_it_computes_in_float32(
    machine: str, computes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    builder = OnnxRuntimeBuilder(BuildOptions(provider="cpu"))
    assert builder.computes("fp16") == computes
    assert builder.computes("fp32") == "fp32"
    builder.provider = "cuda"
    assert builder.computes("fp16") == "fp16"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Arm has kernels in float16")
def test_what_it_saves_of_a_graph_in_float16_computes_in_float32(tmp_path: Path) -> None:
    model = export_tiny(tmp_path / "half", precision="fp16")
    engine = build(model, tmp_path / "engine", split=False)
    graph = onnx.load(engine.file("whole.onnx"), load_external_data=False).graph
    types = {weight.name: weight.data_type for weight in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 10
    assert {types[node.input[1]] for node in convolutions} == {TensorProto.FLOAT}
    assert engine.manifest.computes == "fp32"


@pytest.mark.parametrize("split", [False, True])
def test_threads_of_the_build_are_those_of_the_run(
    tmp_path: Path, tiny_bundle: ModelBundle, split: bool
) -> None:
    options = BuildOptions(threads=3, provider="cpu")
    builder = make_builder("onnxruntime", options, split=split)
    engine = build_engine(tiny_bundle, tmp_path / "engine", builder, split=split)
    assert {stage.threads for stage in engine.manifest.stages} == {3}
    assert set(threads_of(engine).values()) == {3}


def test_a_whole_engine_leaves_its_threads_to_onnx_runtime(
    tmp_path: Path, tiny_bundle: ModelBundle
) -> None:
    builder = OnnxRuntimeBuilder(BuildOptions(provider="cpu"))
    engine = build_engine(tiny_bundle, tmp_path / "engine", builder, split=False)
    assert [stage.threads for stage in engine.manifest.stages] == [None]
    assert threads_of(engine) == {"whole": 0}


def test_stages_share_the_cores_by_their_work_and_are_opened_so(
    tmp_path: Path, tiny_bundle_dynamic: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parnet_deploy.engine.base.usable_cores", lambda: 5)
    builder = make_builder("onnxruntime", BuildOptions(provider="cpu"), split=True)
    engine = build_engine(tiny_bundle_dynamic, tmp_path / "engine", builder, split=True)
    told = {stage.name: stage.threads for stage in engine.manifest.stages}
    assert told["stem"] == told["fusion"] == 5
    streams = [told["stream1"], told["stream2"], told["stream3"]]
    # 0.74, 0.59 and 0.33 million operations.
    assert streams == [2, 2, 1]
    assert threads_of(engine) == told


@pytest.mark.parametrize(
    ("spin", "split", "expected"),
    [(None, False, True), (None, True, False), (False, False, False), (True, True, True)],
)
def test_threads_of_a_whole_engine_spin_within_a_run_and_those_of_stages_sleep(
    tmp_path: Path, tiny_bundle: ModelBundle, spin: bool | None, split: bool, expected: bool
) -> None:
    options = BuildOptions(provider="cpu", spin=spin)
    builder = make_builder("onnxruntime", options, split=split)
    engine = build_engine(tiny_bundle, tmp_path / "engine", builder, split=split)
    assert engine.manifest.options["intra_op_spinning"] is expected
    with open_runner(engine) as runner:
        opened = runner._stages[0].runner if isinstance(runner, SplitRunner) else runner
        entry = opened._session.get_session_options().get_session_config_entry
        assert entry("session.intra_op.allow_spinning") == str(int(expected))
        assert entry("session.force_spinning_stop") == "1"  # between runs they always sleep
    words = rebuild_command(engine).split()
    flags = {True: "--spin", False: "--no-spin"}
    assert ("--spin" in words or "--no-spin" in words) == (expected == split)  # not by default
    assert (flags[expected] in words) == (expected == split)


def test_a_graph_that_does_not_load_is_a_build_error(
    tmp_path: Path, tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.open_session

    def wrong_graph(path: Path, *args: Any) -> Any:
        return real(tiny_bundle.file("labels.txt"), *args)

    monkeypatch.setattr(module, "open_session", wrong_graph)
    with pytest.raises(BuildError, match="'whole' could not be built for cpu: ONNX Runtime cannot"):
        build(tiny_bundle, tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_were_cut_short_are_noticed_before_the_engine_is_put_in_place(
    tmp_path: Path, tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.open_session

    def cut_short(path: Path, *args: Any) -> Any:
        weights = path.with_suffix(".weights")
        if weights.exists():  # the second time: what was saved is opened
            weights.write_bytes(weights.read_bytes()[:-1000])
        return real(path, *args)

    monkeypatch.setattr(module, "open_session", cut_short)
    with pytest.raises(BuildError, match="'whole' could not be built"):
        build(tiny_bundle, tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(provider_problem("cuda") is None, reason="the CUDA provider works here")
@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (BuildOptions(provider="cuda"), "--provider cuda"),
        (BuildOptions(devices=(0, 1)), "--devices"),
    ],
)
def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error(
    options: BuildOptions, asked: str
) -> None:
    with pytest.raises(EngineError, match=f"{asked} needs ONNX Runtime's CUDA provider"):
        OnnxRuntimeBuilder(options)


def test_gpus_for_the_cpu_provider_are_refused() -> None:
    with pytest.raises(UsageError, match="--provider cpu uses none"):
        OnnxRuntimeBuilder(BuildOptions(provider="cpu", devices=(0,)))


@pytest.mark.parametrize(
    ("problem", "options", "label", "devices"),
    [
        (None, BuildOptions(), "onnxruntime-cuda", ("cuda:0",)),
        (None, BuildOptions(devices=(2, 0)), "onnxruntime-cuda", ("cuda:2", "cuda:0")),
        (None, BuildOptions(provider="cpu"), "onnxruntime-cpu", ("cpu",)),
        ("no driver", BuildOptions(), "onnxruntime-cpu", ("cpu",)),
    ],
)
def test_auto_takes_the_gpu_where_it_works(
    monkeypatch: pytest.MonkeyPatch,
    problem: str | None,
    options: BuildOptions,
    label: str,
    devices: tuple[str, ...],
) -> None:
    monkeypatch.setattr(module, "provider_problem", lambda provider: problem)
    builder = OnnxRuntimeBuilder(options)
    assert (builder.label, builder.devices) == (label, devices)
    assert builder.target()["provider"] == label.removeprefix("onnxruntime-")
