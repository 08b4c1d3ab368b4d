"""The schedule of GPUs: what waits for what, what is copied where, what is launched as one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gpu_plans import Network, Part, networks, parnet, tensor
from hypothesis import given

from parnet_deploy.errors import EngineError
from parnet_deploy.runtime.cuda.schedule import HOST, Step, launches, schedule
from parnet_deploy.spec import TensorSpec


def steps_of(network: Network) -> tuple[Step, ...]:
    return schedule(
        network.stages(),
        inputs=(tensor("x"),),
        outputs=tuple(map(tensor, network.outputs)),
        reaches=lambda source, target: network.peers,
    )


def launched(steps: tuple[Step, ...]) -> list[list[str]]:
    return [[steps[n].name for n in numbers] for numbers in launches(steps, range(len(steps)))]


def waits(steps: tuple[Step, ...], name: str) -> list[tuple[str, int]]:
    (step,) = [step for step in steps if step.name == name]
    return [(steps[wait].name, steps[wait].device) for wait in step.waits]


@given(network=networks())
def test_a_step_waits_for_what_makes_its_inputs_and_for_nothing_else(network: Network) -> None:
    steps = steps_of(network)
    makers = {place: n for n, step in enumerate(steps) for place in step.writes}
    assert len(makers) == sum(len(step.writes) for step in steps), "nothing is written twice"
    for number, step in enumerate(steps):
        assert set(step.waits) == {makers[place] for place in step.reads if place in makers}
        assert all(wait < number for wait in step.waits)
        unmade = [place for place in step.reads if place not in makers]
        assert unmade in ([], [(HOST, "x")]), "only the caller's array is there from the start"
    assert [s.name for s in steps if s.kind == "stage"] == [part.name for part in network.parts]
    for name in network.outputs:
        assert (HOST, name) in makers


@given(network=networks())
def test_copies_are_made_once_and_only_between_places(network: Network) -> None:
    steps = steps_of(network)
    for step in steps:
        if step.kind == "stage":
            assert {place[0] for place in (*step.reads, *step.writes)} == {step.device}
            continue
        ((source, tensor_name),), ((target, same),) = step.reads, step.writes
        assert tensor_name == same
        assert source != target
        assert step.device in (source, target)
        if step.kind == "send":
            assert network.peers
            assert HOST not in (source, target)


@given(network=networks())
def test_a_launch_neither_starts_nor_shows_its_results_later_than_its_steps(
    network: Network,
) -> None:
    steps = steps_of(network)
    chosen = range(len(steps))
    parts = launches(steps, chosen)
    assert sorted(n for part in parts for n in part) == list(chosen)
    where = {n: index for index, part in enumerate(parts) for n in part}
    if len({step.device for step in steps}) == 1:
        assert len(parts) == 1
        return
    for index, part in enumerate(parts):
        assert len({steps[n].device for n in part}) == 1
        assert len(part) == 1 or all(steps[n].kind != "send" for n in part)
        for n in part:
            outside = [wait for wait in steps[n].waits if where[wait] != index]
            assert n == part[0] or not outside, "only its first step waits for others"
            assert all(where[wait] < index for wait in outside)
            users = [m for m in chosen if n in steps[m].waits and where[m] != index]
            assert n == part[-1] or not users, "only its last step is waited for"


def test_on_one_gpu_everything_is_one_launch_and_nothing_is_copied() -> None:
    steps = steps_of(parnet(0, 0, 0, gpus=1))
    assert launched(steps) == [["upload", "stream1", "stream2", "stream3", "fusion", "download"]]
    assert waits(steps, "fusion") == [("stream1", 0), ("stream2", 0), ("stream3", 0)]


def test_on_three_gpus_each_stream_is_one_launch_with_its_upload() -> None:
    steps = steps_of(parnet(0, 1, 2))
    assert launched(steps) == [
        ["upload", "stream1"],
        ["upload", "stream2"],
        ["upload", "stream3"],
        ["copy s1"],
        ["copy s2"],
        ["fusion", "download"],
    ]
    assert waits(steps, "fusion") == [("stream3", 2), ("copy s1", 0), ("copy s2", 1)]


def test_gpus_that_do_not_reach_each_other_go_through_the_host() -> None:
    steps = steps_of(parnet(0, 1, 2, peers=False))
    assert launched(steps) == [
        ["upload", "stream1", "copy s1"],
        ["upload", "stream2", "copy s2"],
        ["upload", "stream3"],
        ["copy s1"],
        ["copy s2"],
        ["fusion", "download"],
    ]
    assert [step.words for step in steps if step.name == "copy s1"] == [
        "the copy of 's1' from cuda:0 to the host",
        "the copy of 's1' from the host to cuda:2",
    ]


def test_a_shared_stem_is_uploaded_to_once_and_sent_to_each_other_gpu() -> None:
    steps = steps_of(parnet(0, 1, 2, stem=0))
    assert launched(steps) == [
        ["upload", "stem"],
        ["stream1"],
        ["copy f"],
        ["stream2"],
        ["copy f"],
        ["stream3"],
        ["copy s1"],
        ["copy s2"],
        ["fusion", "download"],
    ]


def test_what_is_timed_alone_is_all_but_the_callers_copies() -> None:
    steps = steps_of(parnet(0, 1, 1, peers=False))
    chosen = [number for number, step in enumerate(steps) if not step.of_caller]
    assert [steps[n].name for numbers in launches(steps, chosen) for n in numbers] == [
        *("stream1", "copy s1", "stream2", "stream3", "copy s1", "fusion"),
    ]


def test_an_output_that_went_through_the_host_is_not_copied_again() -> None:
    network = replace(parnet(0, 1, peers=False), outputs=("y", "s1"))
    steps = steps_of(network)
    assert [step.name for step in steps if step.writes == ((HOST, "s1"),)] == ["copy s1"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "there is no stage to run"),
        (
            (Part(name="b", reads=("cut",), gives=("y",)),),
            r"stage 'b' reads 'cut', float32\[N, 3\], and what is there is nothing of that name",
        ),
        ((Part(name="a", reads=("x",), gives=("z",)),), "the caller wants 'y'"),
        (
            (
                Part(name="a", reads=("x",), gives=("y",)),
                Part(name="b", reads=("x",), gives=("y",)),
            ),
            r"stage 'b' gives \['y'\], which is given already",
        ),
        ((Part(name="a", reads=("x",), gives=("x", "y")),), r"gives \['x'\], which is given"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(parts: tuple[Part, ...], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        steps_of(Network(parts=parts, outputs=("y",)))


def test_a_cut_of_another_dtype_than_its_reader_expects_is_refused() -> None:
    maker, reader = Network(
        parts=(
            Part(name="a", reads=("x",), gives=("cut",)),
            Part(name="b", reads=("cut",), gives=("y",)),
        ),
        outputs=("y",),
    ).stages()
    half = TensorSpec(name="cut", shape=("N", 3), dtype="float16")
    with pytest.raises(EngineError, match=r"'b' reads 'cut', float32.*is 'cut', float16"):
        schedule(
            [replace(maker, outputs=(half,)), reader],
            inputs=(tensor("x"),),
            outputs=(tensor("y"),),
            reaches=lambda source, target: True,
        )
