"""Engines on a CPU in every precision: what they compute in, that they do, and what is refused."""

from __future__ import annotations

import contextlib
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import evaluated
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import parnet_deploy.engine.openvino as openvino_builder
import parnet_deploy.runtime.openvino as openvino_runtime
from parnet_deploy.bundle import EngineBundle, ModelBundle, open_model
from parnet_deploy.cli.main import run
from parnet_deploy.engine import (
    BuildOptions,
    build_engine,
    choose_backend,
    make_builder,
    recorded_options,
)
from parnet_deploy.engine import choose as choose_module
from parnet_deploy.engine.onnxruntime import OnnxRuntimeBuilder
from parnet_deploy.engine.onnxruntime_weights import halve_weights as halve_onnx_weights
from parnet_deploy.engine.openvino_weights import halve_weights
from parnet_deploy.errors import BuildError, EngineError
from parnet_deploy.images import preprocess
from parnet_deploy.lowering import emulate
from parnet_deploy.runtime import open_runner
from parnet_deploy.runtime.cpu import SAFE_WEIGHT, has_narrow_weights, int8_overflows
from parnet_deploy.runtime.machine import CudaDriver
from parnet_deploy.spec import Array, Backend
from parnet_deploy.spec.precision import PRECISIONS
from parnet_deploy.spec.quantisation import scheme_of

openvino = openvino_runtime.load_openvino()

ONE_THREAD = BuildOptions(threads=1)
ON_CPU: tuple[Backend, ...] = ("onnxruntime", "openvino", "ncnn")
RUNS = {
    "onnxruntime": {"fp32": "fp32", "fp16": "fp32", "int8": "int8"},
    "openvino": {"fp32": "fp32", "fp16": "fp32", "bf16": "bf16", "int8": "int8"},
    "ncnn": {"fp32": "fp32"},
}

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="kernels of x86")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelBundle]:
    """A trained network in int8 and in bfloat16, as `export` writes it. Read only."""
    room = tmp_path_factory.mktemp("precisions")
    checkpoint = evaluated.write_checkpoint(room / "checkpoint.safetensors")
    data = f"imagefolder:{evaluated.write_images(room / 'images')}"
    more = {"int8": ("--calibrate", data, "--calibration-method", "minmax"), "bf16": ()}
    found = {}
    for precision, options in more.items():
        command = ["export", "--checkpoint", str(checkpoint), "--for", "openvino"]
        command += ["--precision", precision, "--output", str(room / precision), *options]
        assert run(command) == 0
        found[precision] = open_model(room / precision)
    return found


@pytest.fixture(scope="module")
def images() -> Array:
    return np.stack([preprocess(im, evaluated.PREPROCESSING)[0] for im in _pictures()])


def _pictures() -> list[Any]:
    samples = evaluated.samples(2, seed=3)
    return [samples.image(place) for place in range(len(samples))]


def build(model: ModelBundle, final: Path, backend: Backend, *, split: bool = False) -> Any:
    options = BuildOptions(threads=1, provider="cpu") if backend == "onnxruntime" else ONE_THREAD
    return build_engine(model, final, make_builder(backend, options, split=split), split=split)


def answers(engine: EngineBundle, images: Array) -> Array:
    with contextlib.closing(open_runner(engine)) as runner:
        return np.concatenate([runner.run({"images": one[None]})["logits"] for one in images])


def exact(model: ModelBundle, images: Array) -> Array:
    """The graph in float32 with its roundings, without any kernel in integers."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    proto = emulate(onnx.load(model.file("model.onnx")))
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.concatenate([session.run(None, {"images": one[None]})[0] for one in images])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backend", ON_CPU)
def test_what_is_computed_is_told_and_what_cannot_be_is_refused_with_a_way_out(
    backend: Backend, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(openvino_builder, "has_bfloat16", lambda: True)
    builder = make_builder(backend, BuildOptions(), split=False)
    if isinstance(builder, OnnxRuntimeBuilder):
        builder.provider = "cpu"
    if precision in RUNS[backend]:
        assert builder.computes(precision) == RUNS[backend][precision]
        return
    with pytest.raises(EngineError, match=rf"{precision}.*(--backend|--precision)"):
        builder.computes(precision)


def test_on_gpus_onnx_runtime_has_no_convolutions_in_int8() -> None:
    builder = OnnxRuntimeBuilder(BuildOptions(provider="cpu"))
    builder.provider = "cuda"
    with pytest.raises(EngineError, match="int8 on GPUs: build it with --provider cpu, or export"):
        builder.computes("int8")


def test_a_refused_precision_leaves_nothing_behind(
    models: dict[str, ModelBundle], tmp_path: Path
) -> None:
    refused: list[tuple[Backend, str]] = [("ncnn", "int8"), ("ncnn", "bf16")]
    for backend, name in (*refused, ("onnxruntime", "bf16")):
        with pytest.raises(EngineError, match="--backend"):
            build(models[name], tmp_path / "engine", backend)
    assert list(tmp_path.iterdir()) == []


def test_without_bfloat16_a_graph_in_it_is_computed_in_float32_and_says_so(
    models: dict[str, ModelBundle],
    images: Array,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_builder, "has_bfloat16", lambda: False)
    engine = build(models["bf16"], tmp_path / "engine", "openvino")
    assert engine.manifest.computes == "fp32"
    assert engine.manifest.arithmetic == "bf16, computed in fp32"
    right = exact(models["bf16"], images)
    assert np.abs(answers(engine, images) - right).max() <= 0.05 * np.abs(right).max()


def test_bfloat16_is_asked_for_where_the_cpu_has_it_and_float32_is_not_taken_for_it(
    models: dict[str, ModelBundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if openvino_runtime.has_bfloat16():
        engine = build(models["bf16"], tmp_path / "engine", "openvino")
        assert engine.manifest.computes == "bf16"
        return
    # This CPU is sold as one that has it.
    monkeypatch.setattr(openvino_builder, "has_bfloat16", lambda: True)
    with pytest.raises(BuildError, match="for f32, not for the bf16 asked for; this CPU has no"):
        build(models["bf16"], tmp_path / "engine", "openvino")


@X86
@pytest.mark.parametrize("narrow", [False, True], ids=["8 bits", "7 bits"])
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_int8_in_onnx_runtime_computes_every_convolution_in_integers(
    models: dict[str, ModelBundle], images: Array, tmp_path: Path, split: bool, narrow: bool
) -> None:
    model = models["int8"]
    options = BuildOptions(threads=1, provider="cpu", narrow_weights=narrow)
    builder = make_builder("onnxruntime", options, split=split)
    engine = build_engine(model, tmp_path / "engine", builder, split=split)
    assert engine.manifest.computes == "int8"
    assert recorded_options(engine.manifest) == options
    assert is_narrow(engine) == (narrow and int8_overflows())
    found: Counter[str] = Counter()
    kernels = []
    for stage in engine.manifest.stages:
        graph = onnx.load(engine.file(stage.file)).graph
        held = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            if ".conv" in node.name:
                found[node.op_type] += 1
                kernels += [held[name] for name in node.input if held.get(name, _NONE).ndim == 4]
    blocks = {block for stage in model.manifest.stages for block in stage.blocks if block != "head"}
    assert found["QLinearConv"] >= len(blocks)
    assert not found["Conv"] + found["FusedConv"]
    if int8_overflows():
        assert {kernel.dtype.name for kernel in kernels} == {"int8" if narrow else "uint8"}
    right = exact(model, images)
    off = np.abs(answers(engine, images) - right).max() / np.abs(right).max()
    assert off <= (0.2 if narrow and int8_overflows() else 0.05)


_NONE = np.zeros(0)


@X86
def test_int8_in_openvino_is_right_whatever_the_cpu_and_wrong_without_care(
    models: dict[str, ModelBundle],
    images: Array,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = exact(models["int8"], images)
    engine = build(models["int8"], tmp_path / "engine", "openvino")
    assert engine.manifest.computes == "int8"
    error = np.abs(answers(engine, images) - right).max() / np.abs(right).max()
    assert error <= 0.1
    assert is_narrow(engine) == int8_overflows()
    if not int8_overflows():
        return
    monkeypatch.setattr(openvino_builder, "int8_overflows", lambda: False)
    careless = build(models["int8"], tmp_path / "careless", "openvino")
    assert weights(careless) > SAFE_WEIGHT >= weights(engine)


def is_narrow(engine: EngineBundle) -> bool:
    manifest = engine.manifest
    return has_narrow_weights(manifest.backend, manifest.target, manifest.options)


@X86
def test_build_engine_says_when_it_narrows_weights_and_what_that_can_cost(
    models: dict[str, ModelBundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["build-engine", str(models["int8"].path), "--output", str(tmp_path / "engine")]
    assert run([*asked, "--backend", "openvino"]) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "VNNI" in line] or [""]
    assert bool(note) == int8_overflows()
    if note:
        assert note.startswith("note: ")
        assert "points of accuracy" in note


def weights(engine: EngineBundle) -> int:
    """The greatest int8 weight."""
    model = openvino.Core().read_model(engine.file("whole.xml"))
    return max(
        int(np.abs(node.data.astype(int)).max())
        for node in model.get_ops()
        if node.get_type_name() == "Constant"
        and node.get_element_type() == openvino.Type.i8
        and node.data.ndim > 1
    )


def convolution(
    kernel: Array, *, scale: Array, zero_point: Array, shared: bool = False
) -> onnx.ModelProto:
    """A convolution, or two, with an int8 kernel that DequantizeLinear reads."""
    make = onnx.helper
    tensors = {"w": kernel, "s": scale, "z": zero_point}
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()]
    nodes = [
        make.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0),
        make.make_node("Conv", ["x", "d"], ["y"]),
    ]
    if shared:
        initializers.append(onnx.numpy_helper.from_array(kernel, "w2"))
        nodes.insert(1, make.make_node("DequantizeLinear", ["w2", "s", "z"], ["d2"], axis=0))
        nodes.append(make.make_node("Conv", ["x", "d2"], ["y2"]))
    values = [make.make_tensor_value_info("x", 1, [1, kernel.shape[1], 4, 4])]
    outputs = [make.make_empty_tensor_value_info(f"y{n}") for n in ("", "2")[: 1 + shared]]
    graph = make.make_graph(nodes, "g", values, outputs, initializers)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10)


def in_openvino(proto: onnx.ModelProto) -> Any:
    return openvino.Core().read_model(proto.SerializeToString())


def dequantised(proto: onnx.ModelProto) -> Array:
    """The kernel of `convolution`, (O, C), float64."""
    found = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    return found["w"][:, :, 0, 0] * np.atleast_1d(found["s"].astype(np.float64))[:, None]


@given(
    seed=st.integers(0, 2**31),
    channels=st.integers(1, 5),
    per_channel=st.booleans(),
    greatest=st.integers(1, 127),
)
def test_halved_weights_stand_for_nearly_the_same(
    seed: int, channels: int, per_channel: bool, greatest: int
) -> None:
    rng = np.random.default_rng(seed)
    kernel = rng.integers(-greatest, greatest + 1, (channels, 2, 1, 1)).astype(np.int8)
    scale = rng.uniform(0.01, 1, channels if per_channel else ()).astype(np.float32)
    zero = np.zeros(scale.shape, np.int8)
    proto = convolution(kernel, scale=scale, zero_point=zero)
    exact, model = dequantised(proto), in_openvino(proto)
    beyond = int(np.abs(kernel.astype(int)).max()) > SAFE_WEIGHT
    assert halve_weights(model) == halve_onnx_weights(proto) == beyond
    kernels = [node.data for node in model.get_ops() if node.get_type_name() == "Constant"]
    (halved,) = [data for data in kernels if data.ndim == 4 and data.dtype == np.int8]
    written = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    np.testing.assert_array_equal(halved, written)
    assert int(np.abs(written.astype(int)).max()) <= SAFE_WEIGHT
    # An odd step of the old scale lies half a step of the new one away.
    room = np.atleast_1d(scale.astype(np.float64))[:, None] * beyond
    assert (np.abs(dequantised(proto) - exact) <= room * (1 + 1e-6)).all()
    images = rng.standard_normal((1, 2, 4, 4)).astype(np.float32)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    right = np.einsum("oc,nchw->nohw", dequantised(proto), images)
    assert np.abs(compiled([images])[0] - right).max() <= 1e-4 * np.abs(right).max() + 1e-5


def test_weights_that_are_not_written_so_are_refused() -> None:
    kernel = np.full((2, 1, 1, 1), 100, np.int8)
    one, zero = np.ones(2, np.float32), np.zeros(2, np.int8)
    for proto in (
        convolution(kernel, scale=one, zero_point=zero + 1),
        convolution(kernel, scale=one, zero_point=zero, shared=True),
    ):
        with pytest.raises(BuildError, match="export the model again"):
            halve_weights(in_openvino(proto))
        with pytest.raises(BuildError, match="export the model again"):
            halve_onnx_weights(proto)


@pytest.mark.parametrize(
    ("machine", "flags", "overflows"),
    [
        ("x86_64", "avx2 fma", True),
        ("x86_64", "avx2 avx512f", True),
        ("x86_64", "avx2 avx_vnni", False),
        ("AMD64", "avx512f avx512_vnni", False),
        ("x86_64", None, True),
        ("aarch64", "asimd", False),
    ],
)
def test_which_cpus_overflow(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    flags: str | None,
    overflows: bool,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
    assert int8_overflows(cpuinfo) == overflows


def test_auto_knows_what_runs_a_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_module, "installed", {"openvino": "2026.4.1", "ncnn": "1.0"}.get)
    monkeypatch.setattr(choose_module, "import_problem", lambda module: None)
    monkeypatch.setattr(choose_module, "cuda_driver", lambda: CudaDriver(problem="no GPU"))
    monkeypatch.setattr(choose_module, "provider_problem", lambda name: None)
    assert choose_backend("bf16").backend == "openvino"
    choice = choose_backend("int8")
    assert choice.backend == "onnxruntime"
    assert "onnxruntime on cuda: not taken, it has no convolutions in int8 there" in choice.reasons
    with pytest.raises(EngineError, match=r"fp8 \(onnxruntime: it reads no fp8 graphs.*rtx"):
        choose_backend("fp8")


def test_auto_knows_what_graphs_were_quantised_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_module, "installed", {"openvino": "2026.4.1"}.get)
    monkeypatch.setattr(choose_module, "import_problem", lambda module: None)
    monkeypatch.setattr(choose_module, "cuda_driver", lambda: CudaDriver(problem="no GPU"))
    monkeypatch.setattr(choose_module, "provider_problem", lambda name: "no GPU")
    with pytest.raises(EngineError, match=r"quantised for TensorRT and TensorRT RTX.*--for onnxr"):
        choose_backend("int8", scheme_of("int8", "tensorrt"))
    with pytest.raises(EngineError, match=r"fp8 graphs.*--compute-capability 8\.9"):
        choose_backend("fp8", scheme_of("fp8", "tensorrt"))
    monkeypatch.setattr(choose_module, "_tensorrt_problem", lambda kind: None)
    choice = choose_backend("int8", scheme_of("int8", "onnxruntime"))
    assert choice.backend == "onnxruntime"
    assert choice.reasons[0] == (
        "tensorrt: not taken, these were quantised for ONNX Runtime and OpenVINO"
    )


def test_int8_is_built_for_the_cpu_where_onnxruntime_has_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("parnet_deploy.engine.onnxruntime.provider_problem", lambda name: None)
    for precision, provider in (("int8", "cpu"), ("fp16", "cuda")):
        builder = make_builder("onnxruntime", BuildOptions(), split=False, precision=precision)
        assert builder.label == f"onnxruntime-{provider}"
    asked = BuildOptions(provider="cuda")
    builder = make_builder("onnxruntime", asked, split=False, precision="int8")
    with pytest.raises(EngineError, match="--provider cpu"):
        builder.computes("int8")
