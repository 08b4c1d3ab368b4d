"""Which stage runs on which device, without being told, and being told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import specs, stem_modes

from parnet_deploy.bundle import BatchRange, ModelBundle, ModelManifest, Source
from parnet_deploy.engine import build_stages, figures
from parnet_deploy.engine.placement import check_placement, parse_placement, place
from parnet_deploy.engine.plan import Plan, read_plan
from parnet_deploy.errors import UsageError
from parnet_deploy.roofline import GPUS, Device
from parnet_deploy.spec import (
    ParNetSpec,
    Preprocessing,
    StemMode,
    default_form,
    encode,
    variant,
)


def manifest(spec: ParNetSpec, stem: StemMode) -> ModelManifest:
    """As far as placement reads it."""
    return ModelManifest(
        name="any",
        spec=spec,
        form=default_form("onnxruntime"),
        source=Source(kind="untrained"),
        opset=20,
        stem=stem,
        batch=BatchRange(),
        softmax=False,
        preprocessing=Preprocessing(size=spec.image_size),
        inputs=(),
        outputs=(),
        stages=(),
        cuts=(),
        tools={},
    )


@given(spec=specs(), devices=st.integers(1, 6), data=st.data())
def test_every_stage_has_a_device_and_streams_have_as_many_as_they_can(
    spec: ParNetSpec, devices: int, data: st.DataObject
) -> None:
    stem = data.draw(st.sampled_from(stem_modes(spec)))
    names = [f"cuda:{n}" for n in range(devices)]
    placed = place(manifest(spec, stem), names)
    streams = [f"stream{n}" for n in range(1, spec.streams + 1)]
    assert set(placed) == {*streams, "fusion", *["stem"] * (stem == "share")}
    assert len({placed[stream] for stream in streams}) == min(devices, spec.streams)
    assert set(placed.values()) <= set(names)


def test_l_on_three_gpus_keeps_each_stream_apart_and_joins_where_one_ends() -> None:
    placed = place(manifest(variant("l").spec, "replicate"), ("cuda:2", "cuda:0", "cuda:1"))
    streams = [placed[f"stream{n}"] for n in (1, 2, 3)]
    assert sorted(streams) == ["cuda:0", "cuda:1", "cuda:2"]
    assert placed["fusion"] in streams


def test_l_on_two_gpus_gives_the_longest_stream_one_of_its_own() -> None:
    """Stream 3 has 46 % of the streams' work where each has its own stem."""
    placed = place(manifest(variant("l").spec, "replicate"), ("cuda:0", "cuda:1"))
    assert placed["stream3"] != placed["stream1"] == placed["stream2"]


def test_a_faster_gpu_is_given_more(monkeypatch: pytest.MonkeyPatch) -> None:
    known: Mapping[str, Device] = {"cuda:0": GPUS["l4"], "cuda:1": GPUS["h200"]}
    monkeypatch.setattr("parnet_deploy.engine.placement.figures_of", known.__getitem__)
    placed = place(manifest(variant("l").spec, "replicate"), list(known))
    assert placed == {
        "stream1": "cuda:0",
        "stream2": "cuda:1",
        "stream3": "cuda:1",
        "fusion": "cuda:1",
    }


def test_an_int8_model_is_placed_by_float32_where_that_is_all_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only = replace(GPUS["h200"], rates={"fp32": 67e12})
    monkeypatch.setattr("parnet_deploy.engine.placement.figures_of", lambda device: only)
    model = replace(manifest(variant("s").spec, "share"), precision="int8")
    assert len(set(place(model, ("cuda:0", "cuda:1", "cuda:2")).values())) == 3


def test_one_device_needs_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: str) -> Device:
        raise AssertionError(device)

    monkeypatch.setattr("parnet_deploy.engine.placement.figures_of", refuse)
    assert set(place(manifest(variant("s").spec, "share"), ("cpu",)).values()) == {"cpu"}
    assert figures.figures_of is not refuse


def test_placements_as_people_write_them() -> None:
    assert parse_placement("stream1=cuda:0, fusion=cpu") == {"stream1": "cuda:0", "fusion": "cpu"}
    for text in ("stream1", "stream1=", "=cpu", "a=cpu,a=cpu", ""):
        with pytest.raises(UsageError, match="names every stage once"):
            parse_placement(text)


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ({"stream1": "a"}, "which are stream1, fusion; this one leaves out fusion"),
        ({"stream1": "a", "fusion": "a", "stem": "a"}, "this one names stem"),
        ({"stream1": "a", "stem": "a"}, "leaves out fusion and names stem"),
        ({"stream1": "a", "fusion": "c"}, "names c, and the engine is built for a, b"),
    ],
)
def test_a_placement_that_does_not_fit_is_refused(placement: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_placement(placement, ["stream1", "fusion"], ["a", "b"])


def test_what_is_given_is_built(tiny_bundle: ModelBundle) -> None:
    names = ("stream1", "stream2", "stream3", "fusion")
    given_devices = dict(zip(names, ("cuda:1", "cuda:0", "cuda:1", "cuda:1"), strict=True))
    devices = ("cuda:0", "cuda:1")
    built = build_stages(tiny_bundle, devices, split=True, placement=given_devices)
    assert {stage.name: stage.device for stage in built} == given_devices
    (whole,) = build_stages(tiny_bundle, devices, split=False, placement={"whole": "cuda:1"})
    assert whole.device == "cuda:1"
    with pytest.raises(UsageError, match="each stage, which are whole"):
        build_stages(tiny_bundle, devices, split=False, placement=given_devices)


def plan(**changes: object) -> Plan:
    made = Plan(
        spec=variant("s").spec,
        split=True,
        stem="replicate",
        placement={"stream1": "cpu"},
        precision="fp32",
        batch=1,
        latency=1e-3,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(encode(plan(assumptions=("the moon is round",))))
    assert read_plan(file) == plan(assumptions=("the moon is round",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the plan .*plan.json: No such file"),
        (b"{", "is no plan .*--output' writes one"),
        (encode(plan()).replace(b"replicate", b"borrow"), "is no plan .*borrow"),
        (b'{"format": "parnet-deploy/model"}', "is no plan"),
    ],
)
def test_a_file_that_is_no_plan_says_so(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_plan(tmp_path / "plan.json")


def test_a_plan_of_another_network_or_stem_is_refused() -> None:
    plan().check(manifest(variant("s").spec, "replicate"))
    plan(split=False, stem=None).check(manifest(variant("s").spec, "share"))
    with pytest.raises(UsageError, match=r"another network \('s'\) than the model \('m'\)"):
        plan().check(manifest(variant("m").spec, "replicate"))
    with pytest.raises(UsageError, match=r"stem replicated, .*exported with it shared.*replicate$"):
        plan().check(manifest(variant("s").spec, "share"))
