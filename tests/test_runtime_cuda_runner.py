"""CudaRunner on simulated GPUs: answers, order and overlap, times, many callers."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gpu_plans import NETWORKS, Network, Part, check, image, networks
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.errors import EngineError, RunnerError
from parnet_deploy.runtime.base import Runner, ShowsCuts
from parnet_deploy.runtime.simulated.handles import CUresult, Fault
from parnet_deploy.runtime.simulated.machine import COPY_SECONDS, KERNEL_SECONDS
from parnet_deploy.runtime.simulated.work import Work
from parnet_deploy.runtime.timeline import TimesCompute, Traces
from parnet_deploy.spec import Array

PATIENCE = 60.0  # seconds; what takes longer hangs


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


# -- answers


@given(network=networks(), batches=st.lists(st.integers(1, 4), min_size=3, max_size=8))
def test_any_network_answers_as_numpy_does(network: Network, batches: list[int]) -> None:
    driver = network.driver()
    with network.open(driver) as runner:
        for number, batch in enumerate(batches):
            x = image(number, batch)
            check(network, runner.run({"x": x}), x)
    assert driver.live() == {}


@given(network=networks())
def test_what_went_from_stage_to_stage_can_be_seen(network: Network) -> None:
    with network.open(network.driver()) as runner:
        assert isinstance(runner, Runner)
        assert isinstance(runner, ShowsCuts)
        for number in range(3):
            expected = network.expected(image(number))
            del expected["x"]
            values = runner.run_all({"x": image(number)})
            assert values.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_array_equal(values[name], value)


def test_answers_belong_to_the_caller(network: Network) -> None:
    with network.open(network.driver()) as runner:
        first = runner.run({"x": image(1)})["y"]
        kept = first.copy()
        runner.run({"x": image(2)})
        np.testing.assert_array_equal(first, kept)
        first[...] = 0  # writable


# -- order and overlap


def producers(network: Network, name: str) -> set[str]:
    """Every stage that a stage needs, by itself or through others."""
    makers = {value: part for part in network.parts for value in part.gives}
    (part,) = [part for part in network.parts if part.name == name]
    found: set[str] = set()
    for value in part.reads:
        if value in makers:
            found |= {makers[value].name} | producers(network, makers[value].name)
    return found


def check_order(network: Network, works: list[Work]) -> None:
    """A stage comes after those that it needs, and after no other."""
    stages = {part.name for part in network.parts}
    seen = [work for work in works if work.action.label in stages]
    assert {work.action.label for work in seen} == stages
    for work in seen:
        before = {other.action.label for other in work.before} & stages
        assert before == producers(network, work.action.label), work.action.label


@given(network=networks(), recordable=st.booleans())
def test_a_stage_starts_when_its_inputs_are_there_and_waits_for_nothing_else(
    network: Network, recordable: bool
) -> None:
    driver = network.driver()
    programs = network.programs(driver, recordable=recordable)
    with network.open(driver, programs=programs) as runner:
        for number in range(3):  # plain, recorded, replayed
            driver.history = []
            runner.run({"x": image(number)})
            check_order(network, driver.history)


def test_nobody_is_waited_for_but_events_and_only_for_the_answer(network: Network) -> None:
    driver = network.driver()
    with network.open(driver) as runner:
        for number in range(3):
            runner.run({"x": image(number)})
        assert driver.calls["cuStreamSynchronize"] == 0
        names = set(driver.calls)
        assert not names & {"cuCtxSynchronize", "cuMemcpyDtoH"}


def calls_of_a_run(network: Network, **changes: Any) -> dict[str, int]:
    """Calls of the third run, which replays what can be."""
    driver = network.driver()
    with network.open(driver, programs=network.programs(driver, **changes)) as runner:
        for number in range(2):
            runner.run({"x": image(number)})
        driver.calls.clear()
        runner.run({"x": image(2)})
        return dict(driver.calls)


def test_on_one_gpu_a_run_is_one_graph() -> None:
    calls = calls_of_a_run(NETWORKS["one GPU"])
    del calls["cuCtxSetCurrent"]
    assert calls == {"cuGraphLaunch": 1, "cuEventRecord": 1, "cuEventSynchronize": 1}


def test_on_three_gpus_a_run_is_a_graph_for_each_stream_and_one_that_joins() -> None:
    calls = calls_of_a_run(NETWORKS["three GPUs"])
    assert calls["cuGraphLaunch"] == 4
    assert calls["cuMemcpyPeerAsync"] == 2
    assert calls["cuStreamWaitEvent"] == 2 + 3, "each copy for its stream, the last stage for three"
    assert "cuMemcpyHtoDAsync" not in calls
    assert "cuMemcpyDtoHAsync" not in calls


def test_on_one_gpu_nothing_is_copied_between_stages() -> None:
    calls = calls_of_a_run(NETWORKS["one GPU"], recordable=False)
    assert (calls["cuMemcpyHtoDAsync"], calls["cuMemcpyDtoHAsync"]) == (1, 1)
    assert "cuMemcpyPeerAsync" not in calls


def test_each_gpu_gets_the_image_once() -> None:
    two = Network(
        parts=(
            Part(name="a", reads=("x",), gives=("p",), device=0),
            Part(name="b", reads=("x",), gives=("q",), device=0),
            Part(name="c", reads=("x", "p", "q"), gives=("y",), device=1),
        ),
        outputs=("y",),
        gpus=2,
    )
    calls = calls_of_a_run(two, recordable=False)
    assert (calls["cuMemcpyHtoDAsync"], calls["cuMemcpyPeerAsync"]) == (2, 2)


def test_memory_is_allocated_once(network: Network) -> None:
    driver = network.driver()
    with network.open(driver) as runner:
        allocated = driver.live()["memory"]
        runner.run({"x": image(0)})
        for batch in (4, 1, 1, 2):
            runner.run({"x": image(0, batch)})
        assert driver.live()["memory"] == allocated
        assert driver.calls["cuMemAlloc"] + driver.calls["cuMemHostAlloc"] == allocated


# -- what cannot be recorded


def test_what_cannot_be_recorded_runs_plainly(network: Network) -> None:
    calls = calls_of_a_run(network, recordable=False)
    assert "cuGraphLaunch" not in calls


def test_a_recording_that_fails_is_tried_once_and_is_no_error(network: Network) -> None:
    driver = network.driver()
    with network.open(driver) as runner:
        code = CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        driver.faults["cuStreamEndCapture"] = Fault(code=code)
        for number in range(4):
            check(network, runner.run({"x": image(number)}), image(number))
        assert driver.calls["cuGraphLaunch"] == 0
        assert driver.calls["cuStreamBeginCapture"] == driver.calls["cuStreamEndCapture"]
        assert driver.calls["cuStreamBeginCapture"] <= len(network.parts)


# -- times


def test_a_trace_shows_every_stage_and_copy_when_it_ran(network: Network) -> None:
    driver = network.driver()
    with network.open(driver) as runner:
        assert isinstance(runner, Traces)
        spans = runner.trace({"x": image(0)})
        assert spans == tuple(sorted(spans, key=lambda span: span.start))
        by_stage = {span.stage: span for span in spans if span.stage[:4] not in ("copy", "uplo")}
        assert by_stage.keys() == {part.name for part in network.parts} | {"download"}
        uploads = [span.device for span in spans if span.stage == "upload"]
        assert sorted(uploads) == sorted(set(uploads)), "one for each GPU that reads the image"
        for part in network.parts:
            span = by_stage[part.name]
            assert span.device == f"cuda:{part.device}"
            assert span.end - span.start == pytest.approx(KERNEL_SECONDS)
            for name in producers(network, part.name):
                assert by_stage[name].end <= span.start + 1e-12
        check(network, runner.run({"x": image(2)}), image(2))


def test_streams_overlap_in_a_trace(network: Network) -> None:
    with network.open(network.driver()) as runner:
        spans = {span.stage: span for span in runner.trace({"x": image(0)})}
    streams = [spans[f"stream{number}"] for number in (1, 2) if f"stream{number}" in spans]
    assert max(span.start for span in streams) < min(span.end for span in streams)


def test_compute_is_timed_without_the_callers_copies() -> None:
    def seconds(network: Network) -> float:
        driver = network.driver()
        with network.open(driver) as runner:
            assert isinstance(runner, TimesCompute)
            first = runner.time_compute({"x": image(0)})
            driver.history = []
            second = runner.time_compute({"x": image(0)})
            assert first == pytest.approx(second)
            labels = [work.action.label for work in driver.history]
            assert labels.count("fusion") == 3, "the run, the one before the clock, and the timed"
            if network.peers:
                assert labels.count("download") == 1, "the run's"
            return first

    assert seconds(NETWORKS["one GPU"]) == pytest.approx(2 * KERNEL_SECONDS)
    assert seconds(NETWORKS["three GPUs"]) == pytest.approx(2 * KERNEL_SECONDS + COPY_SECONDS)
    through_host = NETWORKS["three GPUs, through the host"]
    assert seconds(through_host) == pytest.approx(2 * KERNEL_SECONDS + 2 * COPY_SECONDS)


def test_timing_replays_graphs(network: Network) -> None:
    driver = network.driver()
    with network.open(driver) as runner:
        runner.time_compute({"x": image(0)})
        driver.calls.clear()
        runner.time_compute({"x": image(1)})
        assert driver.calls["cuGraphInstantiate"] <= len(network.parts), (
            "the run's own, which is recorded now"
        )
        driver.calls.clear()
        runner.time_compute({"x": image(2)})
        assert driver.calls["cuGraphInstantiate"] == 0
        assert driver.calls["cuGraphLaunch"] >= 3


# -- many callers


@pytest.mark.parametrize(
    ("name", "contexts", "runs"),
    [("three GPUs", 3, 1000), *((name, 1 + len(name) % 2, 40) for name in NETWORKS)],
)
def test_runs_from_eight_threads_equal_the_whole_engines(
    name: str, contexts: int, runs: int
) -> None:
    network = NETWORKS[name]

    def whole(values: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": network.expected(values["x"])["y"]}

    one = Network(parts=(Part(name="whole", reads=("x",), gives=("y",)),), outputs=("y",))
    driver = one.driver()
    programs = [replace(one.programs(driver)[0], function=whole)]
    images = [image(number, 1 + number % 2) for number in range(runs)]
    with one.open(driver, programs=programs) as runner:
        expected = [runner.run({"x": x})["y"] for x in images]
    split_driver = network.driver()
    with (
        network.open(split_driver, contexts=contexts) as split,
        ThreadPoolExecutor(8) as callers,
    ):
        answers = list(callers.map(lambda x: split.run({"x": x})["y"], images, timeout=PATIENCE))
    for answer, wanted in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer, wanted)
    assert split_driver.live() == {}


def test_contexts_have_memory_of_their_own_and_share_the_programs(network: Network) -> None:
    counts = []
    for contexts in (1, 2, 3):
        driver = network.driver()
        with network.open(driver, contexts=contexts):
            live = driver.live()
            counts.append((live["memory"], live["stream"], live["event"]))
    for one, two, three in zip(*counts, strict=True):
        assert (two, three) == (2 * one, 3 * one)
    with pytest.raises(EngineError, match="at least one context is needed, not 0"):
        network.open(network.driver(), contexts=0)


@pytest.mark.slow
def test_ten_thousand_runs_leave_nothing_behind() -> None:
    network = NETWORKS["two GPUs"]
    driver = network.driver()
    with network.open(driver) as runner:
        for _ in range(100):
            runner.run({"x": image(0)})
        live, before = driver.live(), allocated_blocks()
        for number in range(10_000):
            runner.run({"x": image(number)})
        assert driver.live() == live
        assert allocated_blocks() - before < 1000
    assert driver.live() == {}


def allocated_blocks() -> int:
    """Pieces of memory that Python has allocated, whatever for."""
    gc.collect()
    return sys.getallocatedblocks()


def test_closing_frees_everything_once_and_later_runs_are_refused(network: Network) -> None:
    driver = network.driver()
    runner = network.open(driver, contexts=2)
    runner.run({"x": image(0)})
    runner.trace({"x": image(0)})
    runner.time_compute({"x": image(0)})
    runner.close()
    assert driver.live() == {}
    calls = driver.calls.total()
    runner.close()
    assert driver.calls.total() == calls
    for use in (runner.run, runner.run_all, runner.trace, runner.time_compute):
        with pytest.raises(RunnerError, match="it is closed; open the engine again"):
            use({"x": image(0)})
