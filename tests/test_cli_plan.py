"""``parnet-deploy plan`` as people call it: what is proposed and why, measured, and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import Result, call, one_sentence
from conftest import Cli, export_tiny

from parnet_deploy.bench.stage_times import measure_stages
from parnet_deploy.bundle import (
    BatchRange,
    EngineBundle,
    ModelBundle,
    open_engine_bundle,
)
from parnet_deploy.cli import planning
from parnet_deploy.cli.plan_words import human_seconds
from parnet_deploy.engine import BuildOptions, build_engine, figures, make_builder
from parnet_deploy.engine.choose import Choice
from parnet_deploy.engine.plan import read_plan
from parnet_deploy.errors import BuildError
from parnet_deploy.runtime import FunctionRunner
from parnet_deploy.runtime.machine import CudaDriver, Gpu
from parnet_deploy.spec import Array, check_feeds, encode, variant

CPU = ("--backend", "onnxruntime", "--provider", "cpu", "--threads", "1")

Plan = Callable[..., Result]


@pytest.fixture(autouse=True, scope="module")
def _one_core_is_enough() -> None:
    """A probe of the CPU is made once for all of these tests."""
    figures.figures_of("cpu")


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Plan:
    return lambda *arguments: call(capsys, "plan", *arguments)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: ModelBundle) -> Path:
    """A bundle whose manifest says that it is ParNet-L; nothing else of it is read."""
    path = tmp_path_factory.mktemp("models") / "l"
    shutil.copytree(tiny_bundle.path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["spec"] = json.loads(encode(variant("l").spec))
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def engine(model: ModelBundle, final: Path, *, split: bool) -> EngineBundle:
    options = BuildOptions(provider="cpu", threads=1)
    return build_engine(
        model, final, make_builder("onnxruntime", options, split=split), split=split
    )


@pytest.fixture(scope="module")
def split_engine(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: ModelBundle) -> Path:
    return engine(tiny_bundle, tmp_path_factory.mktemp("engines") / "split", split=True).path


@pytest.fixture(scope="module")
def whole_engine(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: ModelBundle) -> Path:
    return engine(tiny_bundle, tmp_path_factory.mktemp("engines") / "whole", split=False).path


def with_gpus(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = tuple(
        Gpu(index=index, name=name, compute_capability="9.0", memory=2**30)
        for index, name in enumerate(names)
    )
    monkeypatch.setattr(figures, "cuda_driver", lambda: CudaDriver(gpus=found))
    monkeypatch.setattr(planning, "gpus", lambda: found)


def test_three_gpus_elsewhere_are_planned_for(plan: Plan, large: Path) -> None:
    result = plan(large, "--devices", "0,1,2", "--device-kind", "RTX 3090")
    assert result.status == 0, result.err
    for line in (
        "l: fp32, batch 1, on cuda:0, cuda:1, cuda:2",
        "whole, on one device ",
        "split, on one device, stem replicated ",
        "split, on the devices, stem shared ",
        "stream1 on cuda:0; stream2 on cuda:1; stream3, fusion on cuda:2",
        "Proposed is split, on the devices, stem replicated: 903 us, 0.53 of the 1710 us that one",
        "since streams run on 3 devices at once; 2 copies between them add up to 69 us.",
        "only what streams end with crosses; the other way it takes 940 us.",
        "so that only measuring tells: split, on the devices, stem shared.",
        "RTX 3090, 936 GB/s, 35.6 * 10^12 operations per second in fp32; figures from https://",
        "reach 50 % of the peak rates: assumed; --efficiency sets it",
        "costs 1.5 us in a CUDA graph (assumed)",
        "A copy starts after 3 us (assumed), and runs at 32 GB/s",
    ):
        assert line in result.out, line
    places = "stream1=cuda:0,stream2=cuda:1,stream3=cuda:2,fusion=cuda:2"
    command = f"next: parnet-deploy build-engine {large} --split-streams --place {places}"
    assert result.out.splitlines()[-1] == command
    rows = [line.split() for line in result.out.splitlines()]
    assert ["stream3", "cuda:2", "9.30", "111.2", "22", "us", "596", "us"] in rows
    assert ["merge1", "cuda:0", "cuda:2", "1.00", "450", "us", "485", "us"] in rows


def test_json_has_exact_numbers(plan: Plan, large: Path) -> None:
    arguments = ("--devices", "0,1", "--device-kind", "H200", "--precision", "fp16", "--json")
    result = plan(large, *arguments, "--efficiency", "1.0")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    ways = [(p["way"], p["stem"]) for p in report["predictions"]]
    assert ways[:3] == [
        ("whole", None),
        ("split-one-device", "replicate"),
        ("split", "replicate"),
    ]
    assert report["precision"] == "fp16"
    assert report["efficiency"] == 1.0
    assert report["devices"]["cuda:1"]["name"] == "H200"
    least = min(p["seconds"] for p in report["predictions"])
    assert report["proposed"]["seconds"] == pytest.approx(least, rel=0.005)
    ends = [stage["end"] for stage in report["stages"]]
    assert max(ends) < report["proposed"]["seconds"]
    assert {t["value"] for t in report["transfers"]} >= {"images", "logits"}
    assert report["measured"] == []
    assert len(report["reasons"]) >= 2


def test_on_one_cpu_splitting_wins_nothing_and_that_is_said(plan: Plan, large: Path) -> None:
    result = plan(large, "--devices", "cpu")
    assert result.status == 0, result.err
    assert "Splitting is expected to win nothing: one engine" in result.out.replace("One", "one")
    assert "share the device that each of them fills" in result.out
    assert "measured here: numpy's copy" in result.out
    assert "Copies" not in result.out
    assert "CUDA" not in result.out
    assert result.out.splitlines()[-1] == f"next: parnet-deploy build-engine {large}"


def test_gpus_that_are_left_unused_are_named(plan: Plan, large: Path) -> None:
    result = plan(large, "--devices", "0,1,2,3,4", "--device-kind", "l4")
    assert "cuda:3, cuda:4 are left unused." in result.out


def test_gpus_here_are_found_and_known_by_their_names(
    plan: Plan, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, "NVIDIA H200", "NVIDIA H200")
    result = plan(large)
    assert "on cuda:0, cuda:1" in result.out
    assert "cuda:0, cuda:1: H200, 4800 GB/s" in result.out

    with_gpus(monkeypatch, "A GPU of tomorrow")
    unknown = plan(large)
    one_sentence(unknown, 2, "no peak figures of 'A GPU of tomorrow'", "--device-kind", "RTX 3090")
    assert plan(large, "--devices", "0", "--device-kind", "h200").status == 0


def test_a_bundle_that_is_cut_in_the_other_way_is_to_be_exported_again(
    plan: Plan, tiny_bundle_dynamic: ModelBundle
) -> None:
    """A tiny network's stem is nothing to compute, and copies cost: it is replicated."""
    path = tiny_bundle_dynamic.path
    result = plan(path, "--devices", "0,1,2", "--device-kind", "H200")
    assert "tiny: fp32, batch 2, on" in result.out, "the batch that engines are best at"
    assert "split, on one device, stem replicated *" in result.out
    assert "a stream works where another waits for its next kernel to start" in result.out
    assert (
        "This bundle's stem is shared: export the model again with --stem replicate" in result.out
    )
    assert "next:" not in result.out


@pytest.mark.slow
def test_a_plan_in_a_file_is_built(
    cli: Cli, here: Cli, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    """As a user does it: plan, build from the plan, and the engine is where the plan said."""
    shutil.copytree(tiny_bundle.path, tmp_path / "models" / "tiny")
    made = cli("plan", "models/tiny", "--devices", "cpu", "--output", "plan.json")
    assert made.returncode == 0, made.stderr
    last = made.stdout.splitlines()[-1]
    assert last == "next: parnet-deploy build-engine models/tiny --plan plan.json"
    planned = read_plan(tmp_path / "plan.json")
    assert (planned.split, planned.placement) == (False, {"whole": "cpu"})
    built = here("build-engine", "models/tiny", "--plan", "plan.json", *CPU)
    assert built.returncode == 0, built.stderr
    assert not open_engine_bundle(tmp_path / "engines/tiny-onnxruntime-cpu").manifest.split


def test_a_plan_for_gpus_places_their_stages(
    capsys: pytest.CaptureFixture[str], plan: Plan, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    kind = ("--devices", "0,1", "--device-kind", "L4", "--output", file)
    assert plan(tiny_bundle.path, *kind).status == 0
    one_sentence(plan(tiny_bundle.path, *kind), 1, "plan.json exists already", "--force")
    assert plan(tiny_bundle.path, *kind, "--force").status == 0
    planned = read_plan(file)
    assert planned.split
    assert planned.stem == "replicate"
    assert set(planned.placement.values()) <= {"cuda:0", "cuda:1"}
    assert any("L4" in sentence for sentence in planned.assumptions)
    built = call(capsys, "build-engine", tiny_bundle.path, "--plan", file, *CPU)
    one_sentence(built, 2, "--provider cpu")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--place", "stream1=cpu"), ("--place names stages", "--split-streams")),
        (("--place", "stream1=cpu", "--split-streams"), ("leaves out stream2, stream3, fusion",)),
        (("--place", "stream1", "--split-streams"), ("names every stage once",)),
        (("--place", "a=cpu", "--devices", "0"), ("--devices and --place both say where",)),
        (("--place", "a=cpu,b=cuda:0", "--split-streams"), ("all on cpu, or on GPUs",)),
        (("--place", "a=gpu", "--split-streams"), ("such as cuda:0; not on gpu",)),
        (("--plan", "nowhere.json"), ("cannot read the plan nowhere.json",)),
    ],
)
def test_placements_that_cannot_be_built_are_one_sentence(
    capsys: pytest.CaptureFixture[str],
    tiny_bundle: ModelBundle,
    tmp_path: Path,
    options: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    output = ("--output", tmp_path / "out")
    backend = ("--backend", "onnxruntime")
    result = call(capsys, "build-engine", tiny_bundle.path, *backend, *output, *options)
    one_sentence(result, 2, *parts)
    assert not (tmp_path / "out").exists()


def test_a_placement_is_built_as_it_is_told(
    capsys: pytest.CaptureFixture[str], tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    placed = "stream1=cpu,stream2=cpu,stream3=cpu,fusion=cpu"
    arguments = ("--split-streams", "--place", placed, *CPU, "--output", tmp_path / "out")
    assert call(capsys, "build-engine", tiny_bundle.path, *arguments).status == 0
    built = open_engine_bundle(tmp_path / "out").manifest
    assert [stage.device for stage in built.stages] == ["cpu"] * 4


def test_a_plan_for_the_whole_is_not_split(
    capsys: pytest.CaptureFixture[str], plan: Plan, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    assert plan(tiny_bundle.path, "--devices", "cpu", "--output", file).status == 0
    arguments = ("--plan", file, "--split-streams", *CPU)
    result = call(capsys, "build-engine", tiny_bundle.path, *arguments)
    one_sentence(result, 2, "proposes one engine of the whole network", "leave out")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--devices", "0,1,0"), ("--devices names 0 twice",)),
        (("--devices", "0,x"), ("is cpu, or numbers of GPUs such as 0,1,2; not '0,x'",)),
        (("--devices", "cpu,0"), ("not 'cpu,0'",)),
        (("--devices", "0,1,2,3,4,5,6,7,8"), ("at most 8 GPUs, not 9",)),
        (("--devices", "0"), ("no cuda:0 here", "no NVIDIA driver", "--device-kind")),
        (("--devices", "0", "--device-kind", "RTX 3091"), ("'rtx 3090'", "Known: ", "h200")),
        (("--device-kind", "H200"), ("--devices says how many",)),
        (("--devices", "cpu", "--device-kind", "H200"), ("leave it out with --devices cpu",)),
        (("--devices", "cpu", "--precision", "fp16"), ("in fp16 is known, only in fp32",)),
        (("--devices", "cpu", "--precision", "fp64"), ("one of fp32, tf32", "not 'fp64'")),
        (("--devices", "cpu", "--efficiency", "0"), ("an efficiency is above 0",)),
        (("--devices", "cpu", "--measure", "--precision", "fp32"), ("leave out --precision",)),
        (("--devices", "0", "--device-kind", "H200", "--measure"), ("no cuda:0 here",)),
        (
            ("--devices", "cpu", "--measure", "--runs", "19"),
            ("--runs", "greater than or equal to 20"),
        ),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_bad_input_is_one_sentence(
    plan: Plan,
    tiny_bundle: ModelBundle,
    options: tuple[str, ...],
    parts: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = CudaDriver(problem="there is no NVIDIA driver here")
    monkeypatch.setattr(figures, "cuda_driver", lambda: nothing)
    one_sentence(plan(tiny_bundle.path, *options), 2, *parts)


def test_no_bundle_is_one_sentence(plan: Plan, tmp_path: Path) -> None:
    one_sentence(plan(tmp_path / "no"), 1, "there is no bundle at")


def test_one_stream_is_nothing_to_place(plan: Plan, tmp_path: Path) -> None:
    alone = {"stream_widths": (8,), "stream_blocks": (2,)}
    model = export_tiny(tmp_path / "alone", changes=alone)
    one_sentence(plan(model.path), 2, "'tiny' has one stream", "parnet-deploy build-engine")


def test_an_ensembles_members_are_planned_without_a_shared_stem(plan: Plan, tmp_path: Path) -> None:
    changes = {"stream_widths": (8,), "stream_blocks": (2,), "members": 2}
    model = export_tiny(tmp_path / "both", changes=changes)
    result = plan(model.path, "--devices", "0,1", "--device-kind", "RTX 4090")
    assert result.status == 0, result.err
    assert "stem shared" not in result.out


def test_stages_of_a_model_are_measured(plan: Plan, tiny_bundle: ModelBundle) -> None:
    arguments = ("--devices", "cpu", "--measure", "--runs", "20")
    result = plan(tiny_bundle.path, *arguments, "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    split, whole = report["measured"]
    assert (split["name"], whole["name"]) == ("split engine", "whole engine")
    for found in (split, whole):
        assert found["error"] == pytest.approx(found["predicted"] / found["measured"] - 1)
    assert "as the measured stages did" in " ".join(report["assumptions"])
    # The whole is predicted from what the stages were measured to reach, the split from them.
    predicted = {(p["way"], p["stem"]): p["seconds"] for p in report["predictions"]}
    assert whole["predicted"] == predicted["whole", None]
    assert split["predicted"] == pytest.approx(predicted["split-one-device", "replicate"])
    assert "measure: 4 stages and the engines, 20 rounds" in result.err


def test_a_split_engine_is_measured_as_it_is(
    plan: Plan, split_engine: Path, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    result = plan(split_engine, "--measure", "--runs", "20")
    assert result.status == 0, result.err
    table = result.out[result.out.index("Measured") :]
    assert "split engine" in table
    assert "whole engine" in table
    assert "next:" not in result.out, "it is built already"

    moved = tmp_path / "moved" / "split"
    shutil.copytree(split_engine, moved)
    alone = plan(moved, "--measure", "--runs", "20")
    assert alone.status == 0, alone.err
    assert "the whole engine is not measured: there is no bundle at" in alone.err
    assert "whole engine" not in alone.out[alone.out.index("Measured") :]


def test_a_whole_engine_has_no_stages_to_measure(plan: Plan, whole_engine: Path) -> None:
    one_sentence(plan(whole_engine, "--measure"), 2, "one engine of the whole", "--split-streams")
    assert plan(whole_engine).status == 0


def test_an_engine_is_measured_where_it_runs(
    plan: Plan, split_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, "NVIDIA H200", "NVIDIA L4")
    elsewhere = plan(split_engine, "--measure", "--devices", "0")
    one_sentence(elsewhere, 2, "runs on cpu", "plans for cuda:0", "leave out --devices")
    mixed = plan(split_engine, "--measure", "--devices", "0,1")
    one_sentence(mixed, 2, "these are H200, L4", "devices of one kind")


class OnGpu(FunctionRunner):
    """A runner that computes for 2 ms, whatever its copies take."""

    def time_compute(self, feeds: Mapping[str, Array]) -> float:
        check_feeds(self.inputs, feeds)
        return 2e-3


def test_stages_on_gpus_are_timed_without_their_copies(
    plan: Plan, split_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 ms each on two H200s: two streams share one, then what joins them, and the copies."""

    def opened(bundle: EngineBundle) -> OnGpu:
        outputs = bundle.manifest.outputs
        zeros = {spec.name: np.zeros(spec.concrete(1), spec.dtype) for spec in outputs}
        return OnGpu(lambda feeds: zeros, inputs=bundle.manifest.inputs, outputs=outputs)

    with_gpus(monkeypatch, "NVIDIA H200", "NVIDIA H200")
    monkeypatch.setattr("parnet_deploy.bench.stage_times.open_runner", opened)
    moved = tmp_path / "moved" / "split"
    shutil.copytree(split_engine, moved)
    bundle = open_engine_bundle(moved, check=False)
    numbers = {"stream1": 0, "stream2": 0, "stream3": 1, "fusion": 1}
    stages = tuple(
        replace(stage, device=f"cuda:{numbers[stage.name]}") for stage in bundle.manifest.stages
    )
    there = replace(bundle, manifest=replace(bundle.manifest, stages=stages))
    monkeypatch.setattr("parnet_deploy.cli.plan.open_bundle", lambda path, check: there)
    result = plan(moved, "--measure", "--runs", "20", "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    (split,) = report["measured"]
    assert split["predicted"] == pytest.approx(2 * 2e-3 + 2e-3, rel=0.05)
    assert list(report["devices"]) == ["cuda:0", "cuda:1"]


def test_engines_for_gpus_are_of_the_fastest_backend_and_placed_as_planned(
    plan: Plan, tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, "NVIDIA H200", "NVIDIA H200")
    asked: list[tuple[str, BuildOptions, bool]] = []

    def refuse(backend: str, options: BuildOptions, *, split: bool) -> None:
        asked.append((backend, options, split))
        raise BuildError("there is no GPU here, after all")

    choice = Choice("onnxruntime", ("taken",))
    monkeypatch.setattr("parnet_deploy.cli.plan_measuring.choose_backend", lambda: choice)
    monkeypatch.setattr("parnet_deploy.cli.plan_measuring.make_builder", refuse)
    result = plan(tiny_bundle.path, "--measure", "--devices", "1")
    one_sentence(result, 1, "there is no GPU here, after all")
    assert asked == [("onnxruntime", BuildOptions(provider="cuda", devices=(1,)), True)]


def test_what_varies_is_told(tmp_path: Path, split_engine: Path) -> None:
    """With a clock of our own, in which each run of a stage takes 1 or 3 seconds in turns."""
    ticks = iter(range(10**6))
    durations = (2.0, 0.0)

    def clock() -> float:
        tick = next(ticks)
        return float(tick) + durations[tick // 2 % 2] * (tick % 2)

    times = measure_stages(open_engine_bundle(split_engine), None, runs=20, clock=clock)
    assert set(times.stages) == {"stream1", "stream2", "stream3", "fusion"}
    assert set(times.unsteady) == {*times.stages, "split"}
    assert times.whole is None
    assert {latency.count for latency in times.stages.values()} == {20}
    steady = measure_stages(
        open_engine_bundle(split_engine), None, runs=20, clock=iter(range(10**6)).__next__
    )
    assert steady.unsteady == ()
    assert steady.split.p50 == 1000.0


def test_a_model_with_pixels_in_and_a_batch_is_measured(tmp_path: Path) -> None:
    model = export_tiny(
        tmp_path / "pixels", preprocess=True, stem="share", batch=BatchRange(min=1, opt=2, max=4)
    )
    built = engine(model, tmp_path / "split", split=True)
    times = measure_stages(built, engine(model, tmp_path / "whole", split=False), runs=20)
    assert list(times.stages) == ["stem", "stream1", "stream2", "stream3", "fusion"]
    assert times.whole is not None


def test_times_as_people_write_them() -> None:
    assert [human_seconds(s) for s in (0.0, 8.2e-4, 0.0099, 0.0131)] == [
        "0 us",
        "820 us",
        "9900 us",
        "13.1 ms",
    ]
