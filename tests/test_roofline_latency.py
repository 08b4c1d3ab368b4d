"""The latency model: its bounds, its schedules by hand, and the best placements that it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import specs, stem_modes

from parnet_deploy.errors import UsageError
from parnet_deploy.roofline import Device, Link, block_costs, floor, gpu_kind, roofline_seconds
from parnet_deploy.roofline.latency import Load, Schedule, Task, Work, lower_bound, simulate
from parnet_deploy.roofline.predict import (
    Assumptions,
    measured_load,
    reached_efficiency,
    stage_load,
    whole,
    work_of,
)
from parnet_deploy.roofline.search import best_placement
from parnet_deploy.spec import ParNetSpec, StemMode, stages, variant

H200, RTX_3090 = gpu_kind("H200"), gpu_kind("RTX 3090")


def device(*, bandwidth: float = 1e9, latency: float = 1.0, name: str = "toy") -> Device:
    link = Link(bandwidth=bandwidth, latency=latency)
    return Device(
        name=name,
        bandwidth=1.0,
        rates={"fp32": 1.0},
        launch=0.0,
        link=link,
        host=Link(bandwidth=float("inf"), latency=0.0),
        source="made up",
    )


def task(name: str, reads: Sequence[str], load: Load, on: Sequence[str] = ("a", "b")) -> Task:
    return Task(
        name=name, reads=tuple(reads), gives=(f"{name}_out",), loads=dict.fromkeys(on, load)
    )


def diamond(left: Load, right: Load, devices: Mapping[str, Device]) -> Work:
    """Two stages side by side, and one second of what joins them; every value has a byte."""
    on = tuple(devices)
    tasks = (
        task("left", ["images"], left, on),
        task("right", ["images"], right, on),
        task("fusion", ["left_out", "right_out"], Load(seconds=1.0), on),
    )
    sizes = dict.fromkeys(["images", "left_out", "right_out", "fusion_out"], 1)
    return Work(
        tasks=tasks,
        sizes=sizes,
        inputs=("images",),
        outputs=("fusion_out",),
        devices=devices,
    )


TWO = {"a": device(), "b": device()}
ALL_ON_A = dict.fromkeys(("left", "right", "fusion"), "a")
APART = {"left": "a", "right": "b", "fusion": "a"}


def ends(schedule: Schedule) -> dict[str, float]:
    return {turn.stage: turn.end for turn in schedule.turns}


def test_stages_that_fill_a_device_take_it_by_halves() -> None:
    """2 and 4 seconds side by side: both at half speed until 4, the rest alone until 6."""
    found = simulate(diamond(Load(seconds=2.0), Load(seconds=4.0), TWO), ALL_ON_A)
    assert ends(found) == {"left": 4.0, "right": 6.0, "fusion": 7.0}
    assert found.latency == 7.0
    assert found.transfers == ()


def test_stages_that_leave_a_device_idle_overlap() -> None:
    work = diamond(Load(seconds=2.0, share=0.5), Load(seconds=4.0, share=0.5), TWO)
    assert ends(simulate(work, ALL_ON_A)) == {"left": 2.0, "right": 4.0, "fusion": 5.0}


def test_a_little_too_much_for_a_device_slows_both_a_little() -> None:
    """Shares of 1 and 0.5: at two thirds of the speed until 3, then alone."""
    work = diamond(Load(seconds=2.0), Load(seconds=4.0, share=0.5), TWO)
    assert ends(simulate(work, ALL_ON_A)) == pytest.approx(
        {"left": 3.0, "right": 5.0, "fusion": 6.0}
    )


def test_a_cut_costs_the_link_and_is_told() -> None:
    found = simulate(diamond(Load(seconds=2.0), Load(seconds=4.0), TWO), APART)
    assert ends(found) == pytest.approx({"left": 2.0, "right": 4.0, "fusion": 6.0})
    (transfer,) = found.transfers
    assert (transfer.value, transfer.source, transfer.target) == ("right_out", "b", "a")
    assert (transfer.start, transfer.end) == (4.0, pytest.approx(5.0))


def test_a_value_goes_to_each_device_once() -> None:
    on = ("a", "b")
    work = Work(
        tasks=(
            task("stem", ["images"], Load(seconds=1.0), on),
            task("left", ["stem_out"], Load(seconds=1.0), on),
            task("right", ["stem_out"], Load(seconds=1.0), on),
        ),
        sizes=dict.fromkeys(["images", "stem_out", "left_out", "right_out"], 1),
        inputs=("images",),
        outputs=("left_out", "right_out"),
        devices=TWO,
    )
    found = simulate(work, {"stem": "a", "left": "b", "right": "b"})
    assert [transfer.value for transfer in found.transfers] == ["stem_out"]
    assert found.latency == pytest.approx(1 + 1 + 2)


def test_images_go_to_every_device_and_the_answer_comes_back() -> None:
    slow = replace(device(), host=Link(bandwidth=1e9, latency=3.0))
    found = simulate(diamond(Load(seconds=2.0), Load(seconds=4.0), {"a": slow, "b": slow}), APART)
    copies = [(t.value, t.source, t.target) for t in found.transfers]
    assert copies == [
        ("images", "host", "a"),
        ("images", "host", "b"),
        ("right_out", "b", "a"),
        ("fusion_out", "a", "host"),
    ]
    assert found.latency == pytest.approx(3 + 4 + 1 + 1 + 3)


def test_a_slow_link_keeps_the_stages_together() -> None:
    work = diamond(Load(seconds=2.0), Load(seconds=4.0), TWO)
    near = best_placement(work)
    assert near.schedule.latency == pytest.approx(5.0)
    assert near.placement["left"] != near.placement["right"] == near.placement["fusion"]
    far = dict.fromkeys(("a", "b"), device(latency=5.0))
    found = best_placement(diamond(Load(seconds=2.0), Load(seconds=4.0), far))
    assert set(found.placement.values()) == {"a"}
    spread = best_placement(
        diamond(Load(seconds=2.0), Load(seconds=4.0), far), spread=("left", "right")
    )
    assert spread.placement["left"] != spread.placement["right"]


def test_the_faster_of_two_devices_has_the_longer_stage() -> None:
    work = diamond(Load(seconds=2.0), Load(seconds=4.0), TWO)
    fast = {"a": Load(seconds=4.0), "b": Load(seconds=1.0)}
    tasks = tuple(replace(t, loads=fast) if t.name == "right" else t for t in work.tasks)
    assert best_placement(replace(work, tasks=tasks)).placement["right"] == "b"


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ({"left": "a", "right": "a"}, "stage 'fusion' is placed on no device"),
        ({**ALL_ON_A, "left": "c"}, "stage 'left' is placed on c, and can run on a, b"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(placement: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        simulate(diamond(Load(seconds=1.0), Load(seconds=1.0), TWO), placement)


def test_a_stage_that_waits_for_ever_is_named() -> None:
    work = diamond(Load(seconds=1.0), Load(seconds=1.0), TWO)
    with pytest.raises(UsageError, match="'fusion' reads what no stage before it gives"):
        simulate(replace(work, tasks=(*work.tasks[:1], *work.tasks[2:])), ALL_ON_A)


@pytest.mark.parametrize(("seconds", "share"), [(-1.0, 1.0), (1.0, 0.0), (1.0, 1.5)])
def test_loads_that_cannot_be_are_refused(seconds: float, share: float) -> None:
    with pytest.raises(UsageError, match="a share of a device above 0"):
        Load(seconds=seconds, share=share)


def test_an_efficiency_is_above_0() -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1, not 0"):
        Assumptions(efficiency=0.0)
    with pytest.raises(UsageError, match="at most 1, not 7"):
        Assumptions(efficiency=7.0)


def test_too_many_devices_and_none_are_refused() -> None:
    nine = {f"d{n}": device() for n in range(9)}
    with pytest.raises(UsageError, match="1 to 8 devices, not 9"):
        best_placement(diamond(Load(seconds=1.0), Load(seconds=1.0), nine))
    with pytest.raises(UsageError, match="1 to 8 devices, not 0"):
        best_placement(diamond(Load(seconds=1.0), Load(seconds=1.0), {}))


def paths(work: Work, placement: Mapping[str, str]) -> float:
    """The longest path: stages alone, and every copy between two devices on it."""
    made = dict.fromkeys(work.inputs, ("host", 0.0))
    for one in work.tasks:
        on = placement[one.name]
        start = 0.0
        for value in one.reads:
            where, at = made[value]
            if where == "host":
                at += work.devices[on].host.seconds(work.sizes[value])
            elif where != on:
                at += work.devices[on].link.seconds(work.sizes[value])
            start = max(start, at)
        made |= dict.fromkeys(one.gives, (on, start + one.loads[on].seconds))
    (output,) = work.outputs
    where, at = made[output]
    return at + work.devices[where].host.seconds(work.sizes[output])


GPU = st.sampled_from([H200, RTX_3090])
SMALL = Assumptions(precision="fp32", efficiency=0.5)


@st.composite
def placed(draw: st.DrawFn) -> tuple[Work, dict[str, str]]:
    """A network, split in one of its ways, with a placement on one to four equal GPUs."""
    spec = draw(specs())
    cut = stages(spec, draw(st.sampled_from(stem_modes(spec))))
    gpu = draw(GPU)
    names = [f"cuda:{n}" for n in range(draw(st.integers(1, 4)))]
    work = work_of(spec, cut, dict.fromkeys(names, gpu), SMALL)
    return work, {stage.name: draw(st.sampled_from(names)) for stage in cut}


@given(placed())
def test_a_run_is_no_shorter_than_its_longest_path_nor_than_any_devices_work(
    case: tuple[Work, dict[str, str]],
) -> None:
    work, placement = case
    found = simulate(work, placement)
    assert found == simulate(work, placement), "the same again"
    least = found.latency * (1 + 1e-9)
    assert least >= paths(work, placement)
    for name in work.devices:
        on = [one.loads[name].work for one in work.tasks if placement[one.name] == name]
        assert least >= sum(on)
    assert least >= lower_bound(work, placement) >= 0
    assert sorted(turn.stage for turn in found.turns) == sorted(placement)
    assert all(turn.device == placement[turn.stage] for turn in found.turns)
    for turn in found.turns:
        (one,) = (one for one in work.tasks if one.name == turn.stage)
        assert turn.end - turn.start >= one.loads[turn.device].seconds * (1 - 1e-9)


@given(placed())
def test_the_best_of_all_is_no_worse_than_any(case: tuple[Work, dict[str, str]]) -> None:
    work, placement = case
    best = best_placement(work).schedule.latency
    assert best <= simulate(work, placement).latency * (1 + 1e-9)


@given(spec=specs(), gpus=st.lists(GPU, min_size=2, max_size=4), data=st.data())
def test_one_more_device_never_makes_the_best_plan_slower(
    spec: ParNetSpec, gpus: list[Device], data: st.DataObject
) -> None:
    cut = stages(spec, data.draw(st.sampled_from(stem_modes(spec))))
    names = {f"cuda:{n}": gpu for n, gpu in enumerate(gpus)}
    fewer = dict(list(names.items())[:-1])
    with_all = best_placement(work_of(spec, cut, names, SMALL))
    without = best_placement(work_of(spec, cut, fewer, SMALL))
    assert with_all.schedule.latency <= without.schedule.latency


@given(spec=specs(), gpu=GPU, data=st.data())
def test_on_one_device_everything_is_on_it(
    spec: ParNetSpec, gpu: Device, data: st.DataObject
) -> None:
    cut = stages(spec, data.draw(st.sampled_from(stem_modes(spec))))
    found = best_placement(work_of(spec, cut, {"cuda:0": gpu}, SMALL))
    assert set(found.placement.values()) == {"cuda:0"}
    assert found.devices == ("cuda:0",)


@given(spec=specs(ensembles=False), gpu=GPU)
def test_on_one_busy_device_a_shared_stem_is_never_slower(spec: ParNetSpec, gpu: Device) -> None:
    """Where nothing but work counts, a stem that is computed once for each stream costs more."""
    assume(spec.streams > 1)
    busy = replace(gpu, launch=0.0)

    def latency(mode: StemMode) -> float:
        work = work_of(spec, stages(spec, mode), {"cuda:0": busy}, SMALL)
        return best_placement(work).schedule.latency

    assert latency("share") < latency("replicate")


@given(spec=specs(), gpu=GPU)
def test_a_whole_network_without_launches_takes_its_roofline(spec: ParNetSpec, gpu: Device) -> None:
    alone = replace(gpu, launch=0.0, host=Link(bandwidth=float("inf"), latency=0.0))
    work = work_of(spec, [whole(spec)], {"cuda:0": alone}, replace(SMALL, efficiency=1.0))
    layers = [layer for cost in block_costs(spec).values() for layer in cost.layers]
    found = best_placement(work).schedule.latency
    assert found == pytest.approx(roofline_seconds(layers, alone, "fp32"))
    assert found >= floor(spec, alone).total * (1 - 1e-9)


def test_three_3090s_beat_one_and_the_third_helps_little_on_h200s() -> None:
    """The paper's table 3 went from 6.50 to 4.01 ms with three RTX 3090s in float32."""

    def best(gpu: Device, count: int, assumed: Assumptions) -> float:
        spec = variant("l").spec
        names = {f"cuda:{n}": gpu for n in range(count)}
        return min(
            best_placement(work_of(spec, stages(spec, mode), names, assumed)).schedule.latency
            for mode in stem_modes(spec)
        )

    fp32, fp16 = Assumptions(), Assumptions(precision="fp16")
    assert 0.4 < best(RTX_3090, 3, fp32) / best(RTX_3090, 1, fp32) < 0.7
    assert best(H200, 3, fp16) / best(H200, 1, fp16) > 0.8


@given(spec=specs(), gpu=GPU, efficiency=st.floats(0.05, 1.0))
def test_measured_stages_tell_the_efficiency_again(
    spec: ParNetSpec, gpu: Device, efficiency: float
) -> None:
    (mode, *_) = stem_modes(spec)
    cut = stages(spec, mode)
    assumed = Assumptions(efficiency=efficiency)
    costs = block_costs(spec)
    loads = {
        stage.name: stage_load([costs[name] for name in stage.blocks], gpu, assumed)
        for stage in cut
    }
    assert reached_efficiency(spec, cut, gpu, assumed, loads) == pytest.approx(efficiency)


def test_a_measured_stage_is_idle_while_its_kernels_start() -> None:
    blocks = list(block_costs(variant("s").spec).values())
    starts = H200.launch * sum(block.kernels for block in blocks)
    assert measured_load(2 * starts, blocks, H200).share == pytest.approx(0.5)
    assert measured_load(starts, blocks, H200).share == pytest.approx(0.1), "and does something"
    assert measured_load(1.0, blocks, device()) == Load(seconds=1.0, share=1.0)


def test_a_measured_stage_counts_on_every_device() -> None:
    spec = variant("s").spec
    cut = stages(spec, "replicate")
    measured = {"stream1": Load(seconds=1.0)}
    work = work_of(spec, cut, {"a": H200, "b": H200}, SMALL, measured=measured)
    loads = {one.name: one.loads for one in work.tasks}
    assert loads["stream1"] == dict.fromkeys(("a", "b"), Load(seconds=1.0))
    assert loads["stream2"]["a"].seconds < 1e-2
