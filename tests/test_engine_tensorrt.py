"""TensorRT RTX really builds: every variant, stage, stem mode and batch, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import export_tiny, tiny_spec

from parnet_deploy.bundle import (
    BatchRange,
    EngineBundle,
    ModelBundle,
    Source,
    open_engine_bundle,
)
from parnet_deploy.engine import (
    BuildOptions,
    build_engine,
    build_stages,
    make_builder,
)
from parnet_deploy.engine.tensorrt.builder import TensorRTBuilder
from parnet_deploy.errors import BuildError, EngineError
from parnet_deploy.export import ExportOptions, export_model
from parnet_deploy.net import initialise
from parnet_deploy.runtime import machine, open_runner
from parnet_deploy.runtime.plan_text import PlanText, read_plan_text
from parnet_deploy.spec import ParNetSpec, Preprocessing, StemMode, default_form, variant

AMPERE = BuildOptions(compute_capabilities=("8.6",))


def narrow(name: str) -> ParNetSpec:
    """A variant with widths an eighth as large, and small images."""
    spec = variant(name).spec

    def eighth(width: int) -> int:
        return max(8, width // 8 // 4 * 4)

    return replace(
        spec,
        stem_widths=tuple(map(eighth, spec.stem_widths)),
        stream_widths=tuple(map(eighth, spec.stream_widths)),
        last_width=eighth(spec.last_width),
        image_size=min(spec.image_size, (64, 64)),
    )


def export(
    spec: ParNetSpec, final: Path, *, stem: StemMode = "replicate", batch: BatchRange | None = None
) -> ModelBundle:
    options = ExportOptions(
        name=final.name,
        preprocessing=Preprocessing(size=spec.image_size),
        stem=stem,
        batch=batch or BatchRange(),
        form=default_form("tensorrt-rtx"),
    )
    source = Source(kind="untrained", seed=0)
    return export_model(initialise(spec, seed=0).eval(), source, final, options)


def build(
    model: ModelBundle, final: Path, *, split: bool, options: BuildOptions = AMPERE
) -> EngineBundle:
    builder = make_builder("tensorrt-rtx", options, split=split)
    return build_engine(model, final, builder, split=split)


def texts(engine: EngineBundle) -> dict[str, PlanText]:
    read = {s.name: read_plan_text(engine.file(s.file)) for s in engine.manifest.stages}
    assert all(read.values())
    return {name: text for name, text in read.items() if text is not None}


def check_plans(engine: EngineBundle) -> None:
    """Kernels and streams are known, and everything is float32 without TF32."""
    for stage in engine.manifest.stages:
        assert stage.kernels, stage
        assert stage.streams, stage
    for text in texts(engine).values():
        assert text.tf32 is False
        assert "float" in text.dtypes
        assert not {"half", "bfloat16", "bf16", "fp8"} & set(text.dtypes), text.dtypes


@pytest.mark.parametrize("name", ["s", "m", "l", "xl", "cifar-s", "digits"])
def test_every_variant_builds_whole_and_split(name: str, tmp_path: Path) -> None:
    model = export(narrow(name), tmp_path / "model")
    for split in (False, True):
        engine = build(model, tmp_path / f"engine-{split}", split=split)
        expected = [stage.name for stage in model.manifest.stages] if split else ["whole"]
        assert [stage.name for stage in engine.manifest.stages] == expected
        check_plans(engine)


@pytest.mark.parametrize("stem", ["replicate", "share"])
@pytest.mark.parametrize("streams", [1, 2, 3, 4])
def test_any_number_of_streams_both_stems_and_a_dynamic_batch_build(
    streams: int, stem: StemMode, tmp_path: Path
) -> None:
    spec = tiny_spec().with_streams(streams)
    model = export(spec, tmp_path / "model", stem=stem, batch=BatchRange(min=1, opt=2, max=4))
    for split in (False, True):
        check_plans(build(model, tmp_path / f"engine-{split}", split=split))


@pytest.mark.parametrize(
    "changes", [{"activation": "relu"}, {"squeeze": False}], ids=["relu", "no squeeze"]
)
def test_ablations_build(changes: dict[str, object], tmp_path: Path) -> None:
    model = export_tiny(tmp_path / "model", changes=changes)
    check_plans(build(model, tmp_path / "engine", split=False))


def test_preprocessing_softmax_and_a_fixed_batch_build(tmp_path: Path) -> None:
    model = export_tiny(
        tmp_path / "model", preprocess=True, softmax=True, batch=BatchRange(min=3, opt=3, max=3)
    )
    engine = build(model, tmp_path / "engine", split=True)
    check_plans(engine)
    assert engine.manifest.stages[0].inputs[0].dtype == "uint8"
    assert engine.manifest.outputs[0].name == "probabilities"


def test_fp16_crosses_and_computes_in_half(tmp_path: Path) -> None:
    form = default_form("tensorrt-rtx")
    model = export_tiny(tmp_path / "model", precision="fp16", form=form)
    engine = build(model, tmp_path / "engine", split=True)
    assert engine.manifest.precision == "fp16"
    plans = texts(engine)
    cuts = {cut.tensor.name for cut in model.manifest.cuts}
    for stage in engine.manifest.stages:
        crossing = [spec for spec in (*stage.inputs, *stage.outputs) if spec.name in cuts]
        assert crossing
        assert {spec.dtype for spec in crossing} == {"float16"}
        assert "half" in plans[stage.name].dtypes


# -- what is written


def test_the_manifest_names_target_flags_and_versions(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    engine = build(tiny_bundle, tmp_path / "engine", split=False)
    manifest = open_engine_bundle(engine.path).manifest
    import tensorrt_rtx

    assert manifest.target == {
        "flavour": "tensorrt-rtx",
        "version": tensorrt_rtx.__version__,
        "compute_capabilities": ["8.6"],
        "gpu": None,
        "version_compatible": False,
        "weights": "included",
    }
    assert manifest.options == {
        "network_flags": ["STRONGLY_TYPED"],
        "builder_flags": ["REQUIRE_USER_ALLOCATION"],
        "profiling_verbosity": "DETAILED",
    }
    assert manifest.tools["tensorrt-rtx"] == tensorrt_rtx.__version__


def test_options_reach_the_plan(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    options = BuildOptions(
        compute_capabilities=("8.6", "8.9", "12.0"),
        tf32=True,
        optimization_level=2,
        aux_streams=0,
        workspace_mib=64,
    )
    engine = build(tiny_bundle, tmp_path / "engine", split=False, options=options)
    text = texts(engine)["whole"]
    assert text.compute_capabilities == ("8.6", "8.9", "12.0")
    assert text.tf32 is True
    assert text.streams == 1
    assert engine.manifest.options == {
        "network_flags": ["STRONGLY_TYPED"],
        "builder_flags": ["TF32", "REQUIRE_USER_ALLOCATION"],
        "profiling_verbosity": "DETAILED",
        "builder_optimization_level": 2,
        "workspace_mib": 64,
        "max_aux_streams": 0,
    }


def test_without_a_compute_capability_it_is_for_ampere_and_later(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    builder = make_builder("tensorrt-rtx", BuildOptions(), split=False)
    assert builder.label == "tensorrt-rtx-sm80-plus"
    engine = build_engine(tiny_bundle, tmp_path / "engine", builder, split=False)
    assert engine.manifest.target["compute_capabilities"] == ["8.0+"]
    assert texts(engine)["whole"].compute_capabilities == ("8.0",)


def test_the_same_graph_gives_the_same_plan(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    plans = [
        build(tiny_bundle, tmp_path / name, split=False).file("whole.plan").read_bytes()
        for name in ("a", "b")
    ]
    assert plans[0] == plans[1]


POLYGRAPHY = """
import sys
from polygraphy.backend.trt import EngineBytesFromNetwork, NetworkFromOnnxPath
from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
from polygraphy.logger import G_LOGGER
import tensorrt_rtx as trt

G_LOGGER.module_severity = G_LOGGER.ERROR

def configured(builder, network):
    config = CreateConfigRTX(compute_capabilities=[(8, 6)])(builder, network)
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    return config

network = NetworkFromOnnxPath(sys.argv[1], strongly_typed=True)
with open(sys.argv[2], "wb") as file:
    file.write(EngineBytesFromNetwork(network, configured)())
"""


def test_polygraphy_builds_the_same_plan(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    """NVIDIA's own tool as a second opinion on the order of calls."""
    peer = tmp_path / "polygraphy.plan"
    subprocess.run(
        [sys.executable, "-c", POLYGRAPHY, tiny_bundle.file("model.onnx"), peer],
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    ours = build(tiny_bundle, tmp_path / "engine", split=False).file("whole.plan")
    assert read_plan_text(peer) == read_plan_text(ours)


# -- what goes wrong


def test_an_engine_cannot_be_opened_without_a_gpu(
    tiny_bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = machine.CudaDriver(problem="there is no NVIDIA driver here (libcuda.so.1)")
    monkeypatch.setattr("parnet_deploy.runtime.cuda.device.cuda_driver", lambda: nothing)
    for split in (False, True):
        engine = build(tiny_bundle, tmp_path / f"engine-{split}", split=split)
        with pytest.raises(EngineError) as error:
            open_runner(engine)
        assert "it needs an NVIDIA GPU and its driver" in str(error.value)
        assert "there is no NVIDIA driver here" in str(error.value)


def test_turing_does_not_build_in_float32_and_it_says_why(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    options = BuildOptions(compute_capabilities=("7.5",))
    with pytest.raises(BuildError) as error:
        build(tiny_bundle, tmp_path / "engine", split=False, options=options)
    assert "cannot build 'whole' for a GPU of compute capability 7.5" in str(error.value)
    assert "FP32 GEMM is not supported" in str(error.value)
    assert not (tmp_path / "engine").exists()


def test_too_small_a_workspace_says_so(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    options = replace(AMPERE, workspace_mib=0)
    with pytest.raises(BuildError, match="increase the workspace memory"):
        build(tiny_bundle, tmp_path / "engine", split=False, options=options)


def test_a_graph_that_is_no_onnx_says_so(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    builder = TensorRTBuilder("tensorrt-rtx", AMPERE)
    (stage,) = build_stages(tiny_bundle, builder.devices, split=False)
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(BuildError, match="the graph of 'whole' cannot be read"):
        builder.build(replace(stage, graph=tmp_path / "text.onnx"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["text.onnx"]


@pytest.mark.skipif(machine.cuda_driver().problem is None, reason="with a GPU it builds")
def test_a_weight_stripped_rtx_plan_needs_a_gpu(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    options = replace(AMPERE, weight_stripped=True)
    with pytest.raises(BuildError, match="weight-stripped plans of TensorRT RTX need a GPU here"):
        build(tiny_bundle, tmp_path / "engine", split=False, options=options)
