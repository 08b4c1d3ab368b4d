"""Schedules: which there are, their names, and siblings that are built as their engine was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from parnet_deploy.bench.entries.schedules import (
    Entered,
    Identity,
    Schedule,
    build_options,
    build_siblings,
    contestant_name,
    identity,
    schedule_of,
    schedules,
)
from parnet_deploy.bundle import EngineBundle, ModelBundle, open_engine_bundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder, recorded_options

IMAGES = Path("images.npz")


def names(found: tuple[Schedule, ...]) -> list[str]:
    return [schedule.name for schedule in found]


def test_a_cpu_has_a_whole_and_a_split_schedule() -> None:
    found = schedules("onnxruntime", ("cpu",))
    assert names(found) == ["whole", "split-one-device"]
    assert [schedule.split for schedule in found] == [False, True]


def test_gpus_have_all_four() -> None:
    found = schedules("tensorrt", ("cuda:0", "cuda:1", "cuda:2"))
    assert names(found) == ["whole-one-stream", "whole", "split-one-device", "split"]
    assert [schedule.devices for schedule in found] == [
        ("cuda:0",),
        ("cuda:0",),
        ("cuda:0",),
        ("cuda:0", "cuda:1", "cuda:2"),
    ]
    assert [schedule.aux_streams for schedule in found] == [0, None, None, None]
    assert names(schedules("tensorrt-rtx", ("cuda:0",))) == names(found)[:3]


def siblings(
    engine: EngineBundle, folder: Path, entered: set[Identity] | None = None
) -> tuple[Entered, list[str]]:
    steps: list[str] = []
    found = build_siblings(
        engine,
        IMAGES,
        folder,
        ("cpu",),
        entered=set() if entered is None else entered,
        progress=steps.append,
    )
    return found, steps


def test_an_engines_other_schedules_are_built_as_it_was(
    tiny_engine: EngineBundle, tmp_path: Path
) -> None:
    (found, steps) = siblings(tiny_engine, tmp_path)
    (split,) = found.contestants
    assert (split.name, split.settings["schedule"]) == ("onnxruntime split", "split-one-device")
    built = open_engine_bundle(Path(split.path))
    assert built.manifest.split
    assert built.manifest.model.manifest_sha256 == tiny_engine.manifest.model.manifest_sha256
    assert recorded_options(built.manifest) == recorded_options(tiny_engine.manifest)
    assert recorded_options(built.manifest).threads == 1
    assert found.absent == ()
    assert steps == ["build: onnxruntime split"]


def test_a_split_engine_gets_the_whole_one_beside_it(
    tiny_bundle_dynamic: ModelBundle, tmp_path: Path
) -> None:
    builder = make_builder("onnxruntime", BuildOptions(provider="cpu"), split=True)
    split = build_engine(tiny_bundle_dynamic, tmp_path / "split", builder, split=True)
    own = schedule_of(split.manifest)
    assert own.name == "split-one-device"
    assert contestant_name(split.manifest, own) == "onnxruntime split, stem shared"
    (found, _) = siblings(split, tmp_path)
    assert [c.name for c in found.contestants] == ["onnxruntime whole"]


@pytest.mark.parametrize("threads", [1, 2])
def test_what_takes_part_already_is_not_built_again(
    tiny_engine: EngineBundle, tiny_bundle: ModelBundle, tmp_path: Path, threads: int
) -> None:
    """With other threads it is another engine."""
    options = BuildOptions(provider="cpu", threads=threads)
    builder = make_builder("onnxruntime", options, split=True)
    split = build_engine(tiny_bundle, tmp_path / "split", builder, split=True)
    both = {identity(e.manifest, schedule_of(e.manifest)) for e in (tiny_engine, split)}
    counts = []
    for each in (tiny_engine, split):
        found, steps = siblings(each, tmp_path, both)
        counts.append((len(found.contestants), len(steps)))
    assert counts == ([(0, 0)] * 2 if threads == 1 else [(1, 1)] * 2)


def test_a_schedule_that_cannot_be_built_is_absent_with_the_reason(
    tiny_engine: EngineBundle, tmp_path: Path
) -> None:
    manifest = replace(tiny_engine.manifest, model=replace(tiny_engine.manifest.model, path="gone"))
    found, _ = siblings(replace(tiny_engine, manifest=manifest), tmp_path)
    assert found.contestants == ()
    (absence,) = found.absent
    assert absence.name == "onnxruntime split"
    assert "there is no bundle at" in absence.reason


def test_a_model_that_was_exported_anew_since_does_not_stand_in(
    tiny_engine: EngineBundle, tmp_path: Path
) -> None:
    manifest = replace(
        tiny_engine.manifest, model=replace(tiny_engine.manifest.model, manifest_sha256="0" * 64)
    )
    found, _ = siblings(replace(tiny_engine, manifest=manifest), tmp_path)
    (absence,) = found.absent
    assert "is another model" in absence.reason


def test_options_of_tensorrt_engines_are_kept(tiny_engine: EngineBundle) -> None:
    gpu = ("cuda:0", "cuda:2")
    manifest = replace(
        tiny_engine.manifest,
        backend="tensorrt-rtx",
        split=True,
        target={"compute_capabilities": ["8.6", "9.0"]},
        options={"builder_flags": ["TF32"], "builder_optimization_level": 4},
        stages=tuple(
            replace(stage, device=device) for device in gpu for stage in tiny_engine.manifest.stages
        ),
    )
    assert schedule_of(manifest) == Schedule(name="split", devices=gpu)
    assert build_options(manifest, Schedule(name="split", devices=gpu)) == BuildOptions(
        compute_capabilities=("8.6", "9.0"), tf32=True, optimization_level=4, devices=(0, 2)
    )
    limited = replace(manifest, options={"max_aux_streams": 2, "workspace_mib": 64})
    whole = Schedule(name="whole", devices=("cuda:0",))
    assert build_options(limited, whole) == BuildOptions(
        compute_capabilities=("8.6", "9.0"), aux_streams=2, workspace_mib=64, devices=(0,)
    )
    single = replace(manifest, options={"max_aux_streams": 0})
    assert build_options(single, whole).aux_streams is None
    assert build_options(single, Schedule(name="split", devices=gpu)).aux_streams == 0
    one = Schedule(name="whole-one-stream", devices=("cuda:0",), aux_streams=0)
    assert build_options(manifest, one).aux_streams == 0
    assert contestant_name(manifest, one) == "tensorrt-rtx whole, one stream"
    assert (
        contestant_name(replace(manifest, precision="fp16"), Schedule(name="split", devices=gpu))
        == "tensorrt-rtx fp16 split on cuda:0,2"
    )


def test_a_plan_for_ampere_and_later_is_built_for_that_again(tiny_engine: EngineBundle) -> None:
    manifest = replace(
        tiny_engine.manifest, backend="tensorrt-rtx", target={"compute_capabilities": ["8.0+"]}
    )
    whole = Schedule(name="whole", devices=("cuda:0",))
    assert build_options(manifest, whole).compute_capabilities == ()


def test_one_stream_is_told_from_an_engine_with_auxiliary_ones(tiny_engine: EngineBundle) -> None:
    manifest = replace(tiny_engine.manifest, options={"max_aux_streams": 0})
    assert schedule_of(manifest).name == "whole-one-stream"
    assert schedule_of(tiny_engine.manifest).name == "whole"
