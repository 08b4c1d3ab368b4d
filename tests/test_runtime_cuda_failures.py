"""CudaRunner when something fails: named, nothing wrong answered, everything freed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import pytest
from gpu_plans import NETWORKS, Network, check, image
from hypothesis import given, settings
from hypothesis import strategies as st

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import EngineError, ParnetDeployError, RunnerError
from parnet_deploy.runtime.cuda.runner import CudaRunner
from parnet_deploy.runtime.simulated.driver import SimulatedDriver
from parnet_deploy.runtime.simulated.handles import CUresult, Fault
from parnet_deploy.runtime.simulated.work import SimulatedFaultError
from parnet_deploy.spec import Array

PATIENCE = 60.0  # seconds; what takes longer hangs


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "missing"),
        ({"x": np.zeros((1, 4), np.float32)}, "is expected"),
        ({"x": np.zeros((1, 3), np.float64)}, "is expected"),
        ({"x": image(0, 5)}, "a batch of 5 was given, and the engine takes 1 to 4"),
    ],
)
def test_wrong_feeds_are_refused_and_do_no_harm(
    network: Network, feeds: dict[str, Array], message: str
) -> None:
    with network.open(network.driver()) as runner:
        for use in (runner.run, runner.run_all, runner.trace, runner.time_compute):
            with pytest.raises(RunnerError, match=message):
                use(feeds)
        check(network, runner.run({"x": image(1)}), image(1))


def test_a_batch_that_no_two_stages_take_is_refused() -> None:
    network = NETWORKS["one GPU"]
    driver = network.driver()
    programs = network.programs(driver)
    programs[1] = replace(programs[1], batch=BatchRange(min=8, opt=8, max=8))
    with pytest.raises(EngineError, match=r"no batch that every stage takes.*stream2 8 to 8"):
        network.open(driver, programs=programs)
    assert driver.live() == {}


def lose(network: Network, driver: SimulatedDriver, name: str) -> tuple[CudaRunner, list[bool]]:
    """A runner, one stage of which loses its GPU once the list is not empty."""
    broken: list[bool] = []
    programs = network.programs(driver)
    (index,) = [n for n, part in enumerate(network.parts) if part.name == name]
    compute = network.parts[index].compute

    def function(values: Mapping[str, Array]) -> Mapping[str, Array]:
        if broken:
            raise SimulatedFaultError
        return compute(values)

    programs[index] = replace(programs[index], function=function)
    return network.open(driver, programs=programs), broken


@pytest.mark.parametrize("name", ["stream1", "stream2", "fusion"])
@pytest.mark.parametrize("runs", [0, 1, 3])
def test_a_lost_gpu_is_one_error_that_names_it_and_never_an_old_answer(
    network: Network, name: str, runs: int
) -> None:
    driver = network.driver()
    runner, broken = lose(network, driver, name)
    for number in range(runs):
        check(network, runner.run({"x": image(number)}), image(number))
    broken.append(True)
    (device,) = [part.device for part in network.parts if part.name == name]
    with pytest.raises(RunnerError) as caught:
        runner.run({"x": image(9)})
    message = str(caught.value)
    assert f"'{name}'" in message
    assert f"on cuda:{device} failed: its work failed: CUDA_ERROR_ILLEGAL_ADDRESS" in message
    with pytest.raises(RunnerError, match="it failed before; open the engine again"):
        runner.run({"x": image(9)})
    runner.close()


def test_one_lost_gpu_of_three_is_named_with_its_stage_alone() -> None:
    network = NETWORKS["three GPUs"]
    runner, broken = lose(network, network.driver(), "stream2")
    broken.append(True)
    with pytest.raises(RunnerError, match=r"^stage 'stream2' on cuda:1 failed: "):
        runner.run({"x": image(0)})


def test_callers_that_wait_are_told_when_a_run_fails() -> None:
    network = NETWORKS["three GPUs"]
    runner, broken = lose(network, network.driver(), "stream2")
    broken.append(True)
    with ThreadPoolExecutor(8) as callers:
        futures = [callers.submit(runner.run, {"x": image(0)}) for _ in range(24)]
        errors = [str(future.exception(timeout=PATIENCE)) for future in futures]
    assert len([error for error in errors if "its work failed" in error]) == 1
    assert len([error for error in errors if "it failed before" in error]) == 23


@pytest.mark.parametrize("error", [ValueError("bad kernel"), RunnerError("did not start")])
def test_a_stage_that_does_not_start_is_named(network: Network, error: Exception) -> None:
    driver = network.driver()
    broken: list[bool] = []
    programs = network.programs(driver)
    programs[1] = replace(programs[1], refuses=lambda: error if broken else None)
    with network.open(driver, programs=programs) as runner:
        check(network, runner.run({"x": image(0)}), image(0))
        broken.append(True)
        part = network.parts[1]
        with pytest.raises(RunnerError) as caught:
            runner.run({"x": image(1)})
        assert str(caught.value) == f"stage '{part.name}' on cuda:{part.device} failed: {error}"
        with pytest.raises(RunnerError, match="it failed before"):
            runner.run({"x": image(0)})
    assert driver.live() == {}


CALLS = [
    *("cuCtxSetCurrent", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyPeerAsync"),
    *("cuEventRecord", "cuStreamWaitEvent", "cuEventSynchronize", "cuGraphLaunch"),
    *("cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuEventCreate"),
    *("cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"),
    *("cuDeviceCanAccessPeer", "cuCtxEnablePeerAccess"),
]


@settings(max_examples=100)
@given(
    network=st.sampled_from(list(NETWORKS.values())),
    call=st.sampled_from(CALLS),
    after=st.integers(0, 60),
)
def test_whatever_call_fails_no_answer_is_wrong_and_everything_is_freed(
    network: Network, call: str, after: int
) -> None:
    driver = network.driver()
    driver.faults[call] = Fault(code=CUresult.CUDA_ERROR_OUT_OF_MEMORY, after=after)
    runner, refused = attempt(lambda: network.open(driver))
    if runner is None:
        assert isinstance(refused, EngineError)
        assert re.search(r"cuda:\d.*CUDA_ERROR_OUT_OF_MEMORY", str(refused))
        assert driver.live() == {}
        return
    failed = False
    for number in range(5):
        x = image(number)
        answer, error = attempt(partial(runner.run, {"x": x}))
        if answer is not None:
            assert not failed, "it answers after it failed"
            check(network, answer, x)
            continue
        assert isinstance(error, RunnerError)
        told = "it failed before" if failed else r"cuda:\d.*CUDA_ERROR_OUT_OF_MEMORY"
        assert re.search(told, str(error))
        failed = True
    driver.faults.clear()
    runner.close()
    assert driver.live() == {}


T = TypeVar("T")


def attempt(call: Callable[[], T]) -> tuple[T | None, ParnetDeployError | None]:
    """What a call gives, or the error it raises."""
    try:
        return call(), None
    except ParnetDeployError as exc:
        return None, exc


def test_a_copy_between_gpus_that_fails_names_the_cut_and_both() -> None:
    network = NETWORKS["three GPUs"]
    driver = network.driver()
    with network.open(driver) as runner:
        driver.faults["cuMemcpyPeerAsync"] = Fault(code=CUresult.CUDA_ERROR_INVALID_VALUE)
        with pytest.raises(
            RunnerError, match=r"^the copy of 's1' from cuda:0 to cuda:2 failed: .*INVALID_VALUE$"
        ):
            runner.run({"x": image(0)})


def test_too_little_memory_is_an_engine_error_that_names_stage_and_gpu(network: Network) -> None:
    driver = network.driver()
    last = max(part.device for part in network.parts)
    driver.faults["cuMemAlloc"] = Fault(code=CUresult.CUDA_ERROR_OUT_OF_MEMORY, device=last)
    with pytest.raises(EngineError, match=rf"cuda:{last} .*: CUDA_ERROR_OUT_OF_MEMORY$"):
        network.open(driver)
    assert driver.live() == {}
