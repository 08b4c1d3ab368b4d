"""What a builder records of its options, and that it is read back as what was given."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doubles.scenario import Scenario
from doubles.tensorrt import make_api

from parnet_deploy.bench.entries.schedules import Schedule, build_options
from parnet_deploy.bundle import EngineManifest, ModelBundle, build_command
from parnet_deploy.engine import (
    Builder,
    BuildOptions,
    build_engine,
    make_builder,
    recorded_options,
)
from parnet_deploy.engine.tensorrt.builder import TensorRTBuilder
from parnet_deploy.runtime.machine import Gpu
from parnet_deploy.runtime.simulated.driver import SimulatedDriver
from parnet_deploy.spec import Backend

GPU = (0,)


@pytest.fixture(scope="module")
def manifest(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> EngineManifest:
    """One of ONNX Runtime, from which those of other options and backends are made."""
    folder = tmp_path_factory.mktemp("recorded") / "engine"
    builder = make_builder("onnxruntime", BuildOptions(provider="cpu"), split=False)
    return build_engine(tiny_bundle, folder, builder, split=False).manifest


def recorded(manifest: EngineManifest, builder: Builder, *, split: bool) -> EngineManifest:
    """What a builder would have written of itself."""
    stages = tuple(
        replace(stage, device=device) for device in builder.devices for stage in manifest.stages
    )
    return replace(
        manifest,
        backend=builder.backend,
        split=split,
        target=builder.target(),
        options=builder.options(),
        stages=stages,
    )


def plans(kind: str, options: BuildOptions) -> TensorRTBuilder:
    scenario = Scenario(driver=SimulatedDriver(3))

    def find(number: int) -> Gpu:
        return Gpu(index=number, name="NVIDIA A10", compute_capability="8.6", memory=1 << 34)

    backend: Any = "tensorrt-rtx" if kind == "rtx" else "tensorrt"
    return TensorRTBuilder(
        backend,
        options,
        api=make_api(kind, scenario),
        find=find,
        use_gpu=scenario.open_device,
    )


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("onnxruntime", BuildOptions(provider="cpu")),
        ("onnxruntime", BuildOptions(provider="cpu", threads=3)),
        ("onnxruntime", BuildOptions(provider="cpu", spin=True)),
        ("onnxruntime", BuildOptions(provider="cpu", threads=1, spin=False)),
        ("openvino", BuildOptions()),
        ("openvino", BuildOptions(threads=1)),
        ("ncnn", BuildOptions()),
        ("ncnn", BuildOptions(threads=1)),
    ],
)
def test_options_on_a_cpu_are_read_back(
    manifest: EngineManifest, backend: Backend, options: BuildOptions, split: bool
) -> None:
    builder = make_builder(backend, options, split=split)
    assert recorded_options(recorded(manifest, builder, split=split)) == options


BOTH_FLAVOURS: tuple[dict[str, Any], ...] = (
    {},
    {"devices": (0, 2)},
    {"tf32": True, "optimization_level": 4, "workspace_mib": 512, "aux_streams": 0},
    {"aux_streams": 2, "weight_stripped": True},
)
COMPATIBLE: tuple[dict[str, Any], ...] = (
    {"version_compatible": True},
    {"hardware_compatible": True, "optimization_level": 0},
)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        *((kind, given) for kind in ("10", "11", "rtx") for given in BOTH_FLAVOURS),
        *((kind, given) for kind in ("10", "11") for given in COMPATIBLE),
        ("rtx", {"compute_capabilities": ("8.6", "12.0")}),
    ],
)
def test_options_of_plans_are_read_back(
    manifest: EngineManifest, kind: str, given: dict[str, Any]
) -> None:
    options = BuildOptions(**{"devices": GPU, **given})
    found = recorded(manifest, plans(kind, options), split=True)
    assert recorded_options(found) == options


def test_every_option_is_read_back_in_a_test_here(manifest: EngineManifest) -> None:
    """But for the file of a timing cache, which is nobody's property afterwards."""
    everything = {
        "provider", "devices", "threads", "spin", "compute_capabilities", "tf32",
        "optimization_level", "workspace_mib", "aux_streams", "version_compatible",
        "hardware_compatible", "weight_stripped", "narrow_weights",
    }  # fmt: skip
    assert set(BuildOptions.__slots__) == everything | {"timing_cache"}


@pytest.mark.parametrize(
    ("chosen", "split", "sibling"),
    [(None, False, None), (None, True, None), (True, False, True), (False, True, False)],
)
def test_a_sibling_spins_as_its_kind_does_unless_somebody_chose(
    manifest: EngineManifest, chosen: bool | None, split: bool, sibling: bool | None
) -> None:
    options = BuildOptions(provider="cpu", spin=chosen)
    found = recorded(manifest, make_builder("onnxruntime", options, split=split), split=split)
    other = Schedule(name="whole" if split else "split-one-device", devices=("cpu",))
    again = build_options(found, other)
    assert again.spin is sibling
    builder = make_builder("onnxruntime", again, split=not split)
    assert builder.options()["intra_op_spinning"] is (split if chosen is None else chosen)


def test_the_command_that_rebuilds_has_every_option_that_was_chosen(
    manifest: EngineManifest,
) -> None:
    options = BuildOptions(devices=GPU, workspace_mib=64, aux_streams=0, weight_stripped=True)
    found = recorded(manifest, plans("11", options), split=False)
    words = shlex.split(build_command(Path("engines/x"), found))
    assert words[3:-3] == [
        "--backend", "tensorrt", "--workspace", "64", "--aux-streams", "0", "--weight-stripped",
    ]  # fmt: skip
    quiet = make_builder("onnxruntime", BuildOptions(provider="cpu", spin=False), split=True)
    words = shlex.split(build_command(Path("e"), recorded(manifest, quiet, split=True)))
    assert "--no-spin" in words
