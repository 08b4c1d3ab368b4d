"""CudaDevice on the simulated driver: memory, copies, recordings, times, errors, closing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from parnet_deploy.errors import EngineError, MissingDependencyError, RunnerError, TargetError
from parnet_deploy.runtime.cuda.device import CudaDevice
from parnet_deploy.runtime.simulated.driver import SimulatedDriver
from parnet_deploy.runtime.simulated.handles import CUresult, Fault
from parnet_deploy.runtime.simulated.work import GARBAGE, MisuseError, SimulatedFaultError


@pytest.fixture
def driver() -> SimulatedDriver:
    return SimulatedDriver(2)


@pytest.fixture
def device(driver: SimulatedDriver) -> CudaDevice:
    return CudaDevice(1, driver=driver)


def kernel(driver: SimulatedDriver, stream: Any, address: int, value: int) -> None:
    """Put a kernel on a stream that sets 8 bytes."""

    def run() -> None:
        driver.memory.at(address, 8).data[:8] = value

    driver.kernel(stream, run, label=f"set {value}", reads=[], writes=[(address, 8)])


# -- what CudaDevice does


def test_bytes_go_there_and_back_when_they_are_waited_for(device: CudaDevice) -> None:
    host, back = device.host_memory(8), device.host_memory(8)
    memory, stream, event = device.memory(8), device.stream(), device.event()
    host.array[...] = np.arange(8)
    device.upload(host.address, memory, 8, stream)
    device.download(memory, back.address, 5, stream)
    device.mark(event, stream)
    assert back.array.tolist() == [GARBAGE] * 8
    device.synchronize(event)
    assert back.array.tolist() == [0, 1, 2, 3, 4, GARBAGE, GARBAGE, GARBAGE]


def test_bytes_go_from_gpu_to_gpu(driver: SimulatedDriver) -> None:
    first, second = (CudaDevice(index, driver=driver) for index in (0, 1))
    source, target = first.memory(8), second.memory(8)
    assert first.reaches(second)
    assert first.reaches(second), "access that is there already is no error"
    first.make_current()
    stream, event = first.stream(), first.event()
    kernel(driver, stream, source, 7)
    first.send(second, source, target, 8, stream)
    first.mark(event, stream)
    first.synchronize(event)
    assert driver.memory.at(target, 8).data.tolist() == [7] * 8


def test_gpus_that_do_not_reach_each_other_say_so() -> None:
    driver = SimulatedDriver(2, peers=False)
    first, second = (CudaDevice(index, driver=driver) for index in (0, 1))
    assert not first.reaches(second)
    source, target, stream = first.memory(8), second.memory(8), first.stream()
    kernel(driver, stream, source, 1)
    with pytest.raises(MisuseError, match="'send' on cuda:0 does not reach 8 bytes of cuda:1"):
        first.send(second, source, target, 8, stream)


def test_peers_that_are_too_many_are_not_reached(driver: SimulatedDriver) -> None:
    driver.faults["cuCtxEnablePeerAccess"] = Fault(code=CUresult.CUDA_ERROR_INVALID_VALUE)
    first, second = (CudaDevice(index, driver=driver) for index in (0, 1))
    assert not first.reaches(second)


def test_what_is_recorded_runs_when_it_is_launched(
    device: CudaDevice, driver: SimulatedDriver
) -> None:
    memory, stream, event = device.memory(8), device.stream(), device.event()
    graph = device.record(stream, lambda: kernel(driver, stream, memory, 3))
    device.mark(event, stream)
    device.synchronize(event)
    assert driver.memory.at(memory, 8).data[0] == GARBAGE
    for _ in range(2):
        driver.memory.at(memory, 8).data[...] = 0
        device.launch(graph, stream)
        device.mark(event, stream)
        device.synchronize(event)
        assert driver.memory.at(memory, 8).data.tolist() == [3] * 8
    assert driver.live()["executable graph"] == 1
    assert "graph" not in driver.live(), "its description is freed at once"
    device.drop(graph)
    assert "executable graph" not in driver.live()


def test_what_fails_while_recording_is_what_is_told(
    device: CudaDevice, driver: SimulatedDriver
) -> None:
    stream = device.stream()

    def work() -> None:
        driver.faults["cuStreamEndCapture"] = Fault(code=CUresult.CUDA_ERROR_INVALID_VALUE)
        raise RunnerError("TensorRT did not start")

    with pytest.raises(RunnerError, match=r"^TensorRT did not start$"):
        device.record(stream, work)


def test_a_recording_that_broke_leaves_nothing_behind(
    device: CudaDevice, driver: SimulatedDriver
) -> None:
    stream = device.stream()
    before = driver.live()

    def work() -> None:
        raise RunnerError("no")

    for _ in range(3):
        with pytest.raises(RunnerError, match="no"):
            device.record(stream, work)
        assert driver.live() == before
        assert not driver.recording(stream)


@pytest.mark.parametrize(
    "call", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"]
)
def test_a_recording_that_is_refused_is_an_error(
    device: CudaDevice, driver: SimulatedDriver, call: str
) -> None:
    stream = device.stream()
    driver.faults[call] = Fault(code=CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
    with pytest.raises(RunnerError, match="its work cannot be recorded as a CUDA graph: CUDA_ERR"):
        device.record(stream, lambda: None)
    assert "graph" not in driver.live()


def test_times_are_those_between_timed_events(device: CudaDevice, driver: SimulatedDriver) -> None:
    memory, stream = device.memory(8), device.stream()
    events = [device.event(timed=True) for _ in range(3)]
    device.mark(events[0], stream)
    for event in events[1:]:
        kernel(driver, stream, memory, 1)
        device.mark(event, stream)
    with pytest.raises(RunnerError, match="CUDA_ERROR_NOT_READY"):
        device.seconds(events[0], events[2])
    device.synchronize(events[2])
    one, two = (device.seconds(events[0], event) for event in events[1:])
    assert two == pytest.approx(2 * one)
    assert one > 0
    with pytest.raises(RunnerError, match="CUDA_ERROR_INVALID_HANDLE"):
        device.seconds(events[0], device.event())


Use = Callable[[CudaDevice, Any], object]

USES: dict[str, tuple[str, Use]] = {
    "cuCtxSetCurrent": ("it cannot be made current", lambda d, s: d.make_current()),
    "cuStreamCreate": ("a stream cannot be made", lambda d, s: d.stream()),
    "cuEventCreate": ("an event cannot be made", lambda d, s: d.event()),
    "cuMemAlloc": ("4 bytes of its memory cannot be allocated", lambda d, s: d.memory(4)),
    "cuMemHostAlloc": ("4 bytes of page-locked memory cannot", lambda d, s: d.host_memory(4)),
    "cuMemcpyHtoDAsync": (
        "copying to it failed",
        lambda d, s: d.upload(d.host_memory(4).address, d.memory(4), 4, s),
    ),
    "cuMemcpyDtoHAsync": (
        "copying from it failed",
        lambda d, s: d.download(d.memory(4), d.host_memory(4).address, 4, s),
    ),
    "cuMemcpyPeerAsync": (
        "copying to cuda:1 failed",
        lambda d, s: d.send(d, d.memory(4), d.memory(4), 4, s),
    ),
    "cuDeviceCanAccessPeer": ("its way to cuda:1 cannot be", lambda d, s: d.reaches(d)),
    "cuEventRecord": ("its work cannot be marked", lambda d, s: d.mark(d.event(), s)),
    "cuStreamWaitEvent": ("its work cannot be put in order", lambda d, s: d.wait(s, d.event())),
    "cuEventSynchronize": ("its work failed", lambda d, s: d.synchronize(d.event())),
    "cuEventElapsedTime": ("its clock cannot", lambda d, s: d.seconds(d.event(), d.event())),
    "cuGraphLaunch": (
        "a CUDA graph cannot be launched",
        lambda d, s: d.launch(d.record(s, lambda: None), s),
    ),
}


@pytest.mark.parametrize("call", USES)
def test_every_error_says_what_failed_and_why(
    device: CudaDevice, driver: SimulatedDriver, call: str
) -> None:
    words, use = USES[call]
    stream = device.stream()
    driver.faults[call] = Fault(code=CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)
    with pytest.raises(RunnerError, match=rf"^{words}.*: CUDA_ERROR_ILLEGAL_ADDRESS$"):
        use(device, stream)


def test_close_waits_and_frees_everything_once(device: CudaDevice, driver: SimulatedDriver) -> None:
    memory, stream = device.memory(8), device.stream()
    device.host_memory(3)
    device.event()
    kernel(driver, stream, memory, 1)
    device.close()
    assert driver.live() == {}
    assert driver.calls["cuStreamSynchronize"] == 1
    calls = driver.calls.total()
    device.close()
    assert driver.calls.total() == calls


def test_a_lost_gpu_is_closed_without_an_error(device: CudaDevice, driver: SimulatedDriver) -> None:
    memory, stream, event = device.memory(8), device.stream(), device.event()

    def lost() -> None:
        raise SimulatedFaultError

    driver.kernel(stream, lost, label="lost", reads=[], writes=[(memory, 8)])
    device.mark(event, stream)
    with pytest.raises(RunnerError, match="its work failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.synchronize(event)
    with pytest.raises(RunnerError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.stream()
    device.close()


@pytest.mark.parametrize(
    ("call", "words"),
    [("cuInit", "CUDA does not start"), ("cuDevicePrimaryCtxRetain", "it gives no context")],
)
def test_a_gpu_that_refuses_is_a_target_error(
    driver: SimulatedDriver, call: str, words: str
) -> None:
    driver.faults[call] = Fault(code=CUresult.CUDA_ERROR_OUT_OF_MEMORY)
    with pytest.raises(TargetError, match=f"^cuda:0 cannot be used: {words}: CUDA_ERROR_OUT_OF"):
        CudaDevice(0, driver=driver)
    assert driver.live() == {}


def test_no_gpu_and_no_such_gpu(driver: SimulatedDriver) -> None:
    with pytest.raises(EngineError, match=r"cuda:0 cannot be used: .*CUDA_ERROR_NO_DEVICE"):
        CudaDevice(0, driver=SimulatedDriver(0))
    with pytest.raises(EngineError, match=r"cuda:2 cannot be used: .*CUDA_ERROR_INVALID_DEVICE"):
        CudaDevice(2, driver=driver)


def test_without_cuda_bindings_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(MissingDependencyError, match=r"cuda\.bindings.*pip install cuda-bindings"):
        CudaDevice(0)
