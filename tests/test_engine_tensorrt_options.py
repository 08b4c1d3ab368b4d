"""Options of TensorRT 10, 11 and RTX, with doubles: what each is told, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doubles.scenario import Scenario
from doubles.tensorrt import VERSIONS, make_api

from parnet_deploy.bundle import EngineStage, ModelBundle
from parnet_deploy.engine import BuildOptions, BuildStage, build_stages
from parnet_deploy.engine.tensorrt.builder import TensorRTBuilder
from parnet_deploy.engine.tensorrt.inspect import count_layers
from parnet_deploy.engine.tensorrt.options import check_precision
from parnet_deploy.errors import BuildError, BundleError, EngineError, UsageError
from parnet_deploy.runtime.cuda.device import CudaDevice
from parnet_deploy.runtime.machine import Gpu
from parnet_deploy.runtime.simulated.driver import SimulatedDriver
from parnet_deploy.runtime.tensorrt_target import PlanTarget

A10 = Gpu(index=0, name="NVIDIA A10", compute_capability="8.6", memory=1 << 34)
L4 = Gpu(index=1, name="NVIDIA L4", compute_capability="8.9", memory=1 << 34)

Make = Callable[..., TensorRTBuilder]


@pytest.fixture(params=["10", "11", "rtx"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def scenario() -> Scenario:
    scenario = Scenario(driver=SimulatedDriver(3))
    scenario.open_device(0)
    return scenario


@pytest.fixture
def make(kind: str, scenario: Scenario) -> Make:
    def use(index: int) -> CudaDevice:
        scenario.log.append(f"use {index}")
        return scenario.open_device(index)

    def builder(options: BuildOptions | None = None, **changes: Any) -> TensorRTBuilder:
        return TensorRTBuilder(
            "tensorrt-rtx" if kind == "rtx" else "tensorrt",
            options or BuildOptions(),
            **{
                "api": make_api(kind, scenario),
                "find": lambda index: (A10, L4, replace(A10, index=2))[index],
                "use_gpu": use,
                **changes,
            },
        )

    return builder


@pytest.fixture
def stage(tiny_bundle: ModelBundle) -> BuildStage:
    return build_stages(tiny_bundle, ("cuda:0",), split=False)[0]


def title(kind: str) -> str:
    return f"{'TensorRT RTX' if kind == 'rtx' else 'TensorRT'} {VERSIONS[kind]}"


def test_tf32_is_off_unless_asked_for(
    make: Make, scenario: Scenario, stage: BuildStage, tmp_path: Path
) -> None:
    make().build(stage, tmp_path)
    assert "TF32" not in scenario.config.flags
    builder = make(BuildOptions(tf32=True))
    assert (builder.computes("fp32"), builder.computes("fp16")) == ("tf32", "fp16")
    assert make(BuildOptions()).computes("fp32") == "fp32"
    builder.build(stage, tmp_path)
    assert "TF32" in scenario.config.flags
    assert "TF32" in builder.options()["builder_flags"]


def test_numbers_reach_the_configuration(
    make: Make, scenario: Scenario, stage: BuildStage, tmp_path: Path
) -> None:
    options = BuildOptions(optimization_level=4, workspace_mib=256, aux_streams=2)
    make(options).build(stage, tmp_path)
    config = scenario.config
    assert config.pools == {"WORKSPACE": 256 << 20}
    assert (config.builder_optimization_level, config.max_aux_streams) == (4, 2)
    assert config.profiling_verbosity.name == "DETAILED"
    assert config.profiles == []


def test_a_dynamic_batch_is_one_profile(
    make: Make, scenario: Scenario, tiny_bundle_dynamic: ModelBundle, tmp_path: Path
) -> None:
    for stage in build_stages(tiny_bundle_dynamic, ("cuda:0",), split=True):
        make().build(stage, tmp_path)
        (profile,) = scenario.config.profiles
        assert profile.keys() == {spec.name for spec in stage.inputs}
        for spec in stage.inputs:
            rest = spec.shape[1:]
            assert profile[spec.name] == ((1, *rest), (2, *rest), (4, *rest))
    scenario.refuses.add("add_optimization_profile")
    with pytest.raises(BuildError, match="refuses the batch 1:2:4"):
        make().build(stage, tmp_path)


@pytest.mark.parametrize("kind", ["10", "11"], indirect=True)
def test_tensorrt_builds_for_the_gpu_it_finds(
    make: Make, scenario: Scenario, stage: BuildStage, tmp_path: Path, kind: str
) -> None:
    scenario.layers = [
        {"Name": "a", "LayerType": "CaskConvolution", "StreamId": 0},
        {"Name": "b", "LayerType": "gemm", "StreamId": 1},
        {"Name": "c", "LayerType": "signal", "StreamId": 2},
    ]
    builder = make()
    built = builder.build(stage, tmp_path)
    assert isinstance(built, EngineStage)
    assert (built.kernels, built.streams) == (2, 2)
    assert scenario.log[0] == "use 0"
    assert scenario.driver.live() == {"context": 1}  # the fixture's
    assert builder.label == "tensorrt-sm86"
    assert builder.target() == {
        "flavour": "tensorrt",
        "version": VERSIONS[kind],
        "compute_capabilities": ["8.6"],
        "gpu": "NVIDIA A10",
        "version_compatible": False,
        "weights": "included",
    }


@pytest.mark.parametrize("kind", ["10", "11"], indirect=True)
@pytest.mark.parametrize(
    ("layers", "counted"),
    [
        ([{"LayerType": "kgen"}, {"LayerType": "Wait"}], (1, 2)),  # StreamId is not told
        (["conv1", "conv2"], (None, None)),  # only names: built without details
        ([], (None, None)),
    ],
)
def test_what_the_inspector_does_not_tell_is_not_made_up(
    make: Make,
    scenario: Scenario,
    stage: BuildStage,
    tmp_path: Path,
    layers: list[Any],
    counted: tuple[int | None, int | None],
) -> None:
    scenario.layers = layers
    built = make().build(stage, tmp_path)
    assert (built.kernels, built.streams) == counted


def test_a_runtime_that_cannot_be_made_tells_nothing() -> None:
    def refuse(log: object) -> object:
        raise TypeError("factory function returned nullptr")

    api = make_api("11", Scenario())
    api.Runtime = refuse
    assert count_layers(api, b"a plan") == (None, None)


@pytest.mark.parametrize("kind", ["10", "11"], indirect=True)
def test_compatible_and_stripped_plans_of_tensorrt(
    make: Make, scenario: Scenario, stage: BuildStage, tmp_path: Path
) -> None:
    options = BuildOptions(version_compatible=True, hardware_compatible=True, weight_stripped=True)
    builder = make(options)
    builder.build(stage, tmp_path)
    names = ["VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL"]
    assert scenario.config.flags == set(names)
    assert scenario.config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert builder.options()["builder_flags"] == names
    assert builder.options()["hardware_compatibility_level"] == "AMPERE_PLUS"
    assert builder.label == "tensorrt-sm80-plus"
    told = builder.target()
    assert told["compute_capabilities"] == ["8.0+"]
    assert told["gpu"] is None
    assert told["version_compatible"] is True
    assert told["weights"] == "stripped"
    assert "hardware_compatibility_level" not in make(BuildOptions()).options()


@pytest.mark.parametrize("kind", ["10", "11"], indirect=True)
def test_timings_are_read_and_written(
    make: Make, scenario: Scenario, stage: BuildStage, tmp_path: Path
) -> None:
    cache = tmp_path / "caches" / "timings"
    builder = make(BuildOptions(timing_cache=cache))
    builder.build(stage, tmp_path)
    assert cache.read_bytes() == b"+timings"
    builder.build(stage, tmp_path)
    assert cache.read_bytes() == b"+timings+timings"
    assert [path.name for path in cache.parent.iterdir()] == ["timings"]
    scenario.refuses.add("set_timing_cache")
    with pytest.raises(BuildError, match="damaged or of another GPU or version; delete it"):
        builder.build(stage, tmp_path)


@pytest.mark.parametrize("kind", ["10", "11"], indirect=True)
def test_timings_that_cannot_be_kept_are_an_error(
    make: Make, scenario: Scenario, stage: BuildStage, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="cannot write the timing cache"):
        make(BuildOptions(timing_cache=tmp_path / "file" / "timings")).build(stage, tmp_path)
    with pytest.raises(BuildError, match="cannot read the timing cache"):
        make(BuildOptions(timing_cache=tmp_path)).build(stage, tmp_path)
    scenario.refuses.add("get_timing_cache")
    with pytest.raises(BuildError, match="gave no timings"):
        make(BuildOptions(timing_cache=tmp_path / "timings")).build(stage, tmp_path)


@pytest.mark.parametrize("kind", ["10", "11"], indirect=True)
def test_gpus_of_two_kinds_are_refused(make: Make, kind: str) -> None:
    with pytest.raises(BuildError, match=r"names NVIDIA A10 \(8\.6\), NVIDIA L4 \(8\.9\)"):
        make(BuildOptions(devices=(0, 1)))
    assert make(BuildOptions(devices=(0, 2))).devices == ("cuda:0", "cuda:2")


@pytest.mark.parametrize("kind", ["10", "11"], indirect=True)
def test_tensorrt_without_a_gpu_is_refused(make: Make) -> None:
    def none(index: int) -> Gpu:
        raise EngineError("it needs an NVIDIA GPU and its driver, and there is none")

    with pytest.raises(EngineError, match="it needs an NVIDIA GPU"):
        make(find=none)


@pytest.mark.parametrize("kind", ["rtx"], indirect=True)
def test_rtx_builds_for_named_compute_capabilities_without_a_gpu(
    make: Make, scenario: Scenario, stage: BuildStage, tmp_path: Path
) -> None:
    builder = make(BuildOptions(compute_capabilities=("8.6", "12.0"), weight_stripped=True))
    builder.build(stage, tmp_path)
    assert scenario.config.num_compute_capabilities == 2
    assert scenario.config.capabilities == {0: "SM86", 1: "SM120"}
    assert scenario.config.flags == {"STRIP_PLAN", "REFIT_IDENTICAL", "REQUIRE_USER_ALLOCATION"}
    assert builder.label == "tensorrt-rtx-sm86-sm120"
    assert scenario.log == []
    make().build(stage, tmp_path)
    assert scenario.config.num_compute_capabilities == 0
    scenario.refuses.add("set_compute_capability")
    with pytest.raises(BuildError, match=r"refuses the compute capability 8\.6"):
        builder.build(stage, tmp_path)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("rtx", {"timing_cache": Path("t")}, "has no --timing-cache: it measures nothing"),
        ("rtx", {"version_compatible": True}, "has no --version-compatible: its plans run on"),
        ("rtx", {"hardware_compatible": True}, "has no --hardware-compatible: name several"),
        ("rtx", {"compute_capabilities": ("9.9",)}, "no --compute-capability 9.9; it builds for 8"),
        ("10", {"compute_capabilities": ("8.6",)}, "has no --compute-capability: it builds for"),
        ("11", {"compute_capabilities": ("8.6",)}, "has no --compute-capability: it builds for"),
        ("10", {"optimization_level": 6}, "has builder optimization levels 0 to 5, not 6"),
    ],
    indirect=["kind"],
)
def test_what_a_version_lacks_is_one_clear_error(
    make: Make, kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        make(BuildOptions(**options))
    assert str(error.value).startswith(title(kind))
    assert message in str(error.value)


def test_a_flag_that_a_version_does_not_know_is_named(kind: str, scenario: Scenario) -> None:
    import enum

    api = make_api(kind, scenario)
    api.BuilderFlag = enum.IntEnum("BuilderFlag", ["TF32", "STRIP_PLAN"])
    with pytest.raises(UsageError, match="no --weight-stripped: it lacks REFIT_IDENTICAL"):
        TensorRTBuilder(
            "tensorrt-rtx" if kind == "rtx" else "tensorrt",
            BuildOptions(weight_stripped=True),
            api=api,
            find=lambda index: A10,
        )


def test_options_of_other_backends_are_refused(make: Make) -> None:
    with pytest.raises(UsageError, match="--provider, --threads: not for TensorRT engines"):
        make(BuildOptions(provider="cpu", threads=2))


def test_every_parser_error_is_told_with_its_node(
    make: Make, scenario: Scenario, stage: BuildStage, tmp_path: Path
) -> None:
    scenario.parser_errors = (
        ("stem1.conv", "Conv", "kernel is\n  3x3"),
        ("last.gate", "Sigmoid", "no such type"),
        ("", "", "2 errors in all"),
    )
    with pytest.raises(BuildError) as error:
        make().build(stage, tmp_path)
    assert str(error.value) == (
        "the graph of 'whole' cannot be read: node 'stem1.conv' (Conv): kernel is 3x3; "
        "node 'last.gate' (Sigmoid): no such type; 2 errors in all"
    )


def test_a_failed_build_tells_the_last_errors(
    make: Make, scenario: Scenario, stage: BuildStage, tmp_path: Path, kind: str
) -> None:
    scenario.refuses.add("build_serialized_network")
    with pytest.raises(BuildError) as error:
        make().build(stage, tmp_path)
    assert str(error.value).startswith(f"{title(kind)} cannot build 'whole' for ")
    assert str(error.value).endswith("Error Code 4: no tactics within workspace limit")
    assert list(tmp_path.iterdir()) == []


def test_a_builder_that_cannot_be_made_is_a_build_error(
    scenario: Scenario, stage: BuildStage, tmp_path: Path, kind: str
) -> None:
    def refuse(log: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    api = make_api(kind, scenario)
    api.Builder = refuse
    builder = TensorRTBuilder(
        "tensorrt-rtx" if kind == "rtx" else "tensorrt",
        BuildOptions(),
        api=api,
        find=lambda index: A10,
        use_gpu=scenario.open_device,
    )
    with pytest.raises(BuildError, match=r"cannot build 'whole' .*: it gave no reason"):
        builder.build(stage, tmp_path)


def test_a_plan_that_cannot_be_written_is_a_bundle_error(
    make: Make, stage: BuildStage, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=r"cannot write whole\.plan: No such file"):
        make().build(stage, tmp_path / "gone")


@pytest.mark.parametrize(
    ("precision", "capabilities", "words"),
    [
        ("fp8", ("8.6",), r"fp8 takes a GPU of compute capability 8\.9 or later, .* for 8\.6: "),
        ("fp8", ("8.9", "8.6"), r"fp8 takes .* for 8\.6: "),
        ("fp8", ("8.0+",), r"fp8 takes .* for 8\.0 and later: "),
        ("bf16", ("7.5",), r"bf16 takes a GPU of compute capability 8\.0 or later, .* for 7\.5: "),
        ("int8", ("7.5",), r"with TensorRT RTX int8 takes .* 8\.0 or later, .* for 7\.5: "),
        ("int8", ("8.6", "7.5"), r"int8 takes .* for 7\.5: .* --precision fp16"),
    ],
)
def test_a_precision_that_a_gpu_lacks_is_refused(
    precision: str, capabilities: tuple[str, ...], words: str
) -> None:
    target = PlanTarget(flavour="tensorrt-rtx", version="1", compute_capabilities=capabilities)
    with pytest.raises(EngineError, match=words):
        check_precision(precision, target)


@pytest.mark.parametrize(
    ("precision", "capability"),
    [("fp8", "8.9"), ("fp8", "12.0"), ("bf16", "8.0+"), ("int8", "8.0+"), ("fp16", "7.5")],
)
def test_a_precision_that_a_gpu_has_is_not(precision: str, capability: str) -> None:
    target = PlanTarget(flavour="tensorrt-rtx", version="1", compute_capabilities=(capability,))
    check_precision(precision, target)


def test_tensorrt_itself_computes_in_int8_on_turing() -> None:
    """TensorRT RTX does not: tests/test_engine_tensorrt_precisions.py."""
    check_precision(
        "int8", PlanTarget(flavour="tensorrt", version="1", compute_capabilities=("7.5",))
    )


@pytest.mark.parametrize("kind", ["10", "11", "rtx"], indirect=True)
def test_fp8_is_refused_before_anything_is_built(make: Make, scenario: Scenario) -> None:
    """The GPU found is of 8.6; TensorRT RTX, with none named, builds for 8.0 and later."""
    builder = make()
    before = list(scenario.log)
    with pytest.raises(EngineError, match="fp8 takes a GPU of compute capability"):
        builder.computes("fp8")
    assert builder.computes("int8") == "int8"
    assert scenario.log == before
