"""The double of CUDA's driver: it is like the real one, and keeps the rules that are CUDA's."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from parnet_deploy.errors import RunnerError, TargetError
from parnet_deploy.runtime.cuda.device import CudaDevice, load_driver
from parnet_deploy.runtime.machine import cuda_driver
from parnet_deploy.runtime.simulated import handles
from parnet_deploy.runtime.simulated.driver import SimulatedDriver
from parnet_deploy.runtime.simulated.work import MisuseError, SimulatedFaultError


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


# -- the double is like the real driver


def parameters(function: Any) -> list[str]:
    """Names of a real function's parameters, which its docstring begins with."""
    first = inspect.getdoc(function).splitlines()[0]  # type: ignore[union-attr]
    inside = re.sub(r"\[[^\]]*\]", "", first[first.index("(") + 1 : first.rindex(")")])
    names = [part.split(":")[0].split("=")[0].split()[-1] for part in inside.split(",") if part]
    return [name for name in names if name != "self"]


def test_the_double_has_the_drivers_functions_with_their_parameters() -> None:
    real = load_driver()
    functions = [name for name in dir(SimulatedDriver) if re.match("cu[A-Z]", name)]
    assert len(functions) > 20
    for name in functions:
        double = list(inspect.signature(getattr(SimulatedDriver, name)).parameters)[1:]
        assert parameters(getattr(real, name)) == double, name


def test_the_double_has_the_drivers_numbers() -> None:
    real = load_driver()
    for name in ("CUresult", "CUstream_flags", "CUevent_flags", "CUstreamCaptureMode"):
        for member in getattr(handles, name):
            assert int(getattr(getattr(real, name), member.name)) == member.value, member
    assert real.CUresult.CUDA_SUCCESS.name == "CUDA_SUCCESS"
    assert SimulatedDriver.CU_MEMHOSTALLOC_PORTABLE == real.CU_MEMHOSTALLOC_PORTABLE


def test_the_real_drivers_handles_are_numbers() -> None:
    real = load_driver()
    for kind in (real.CUstream, real.CUevent, real.CUcontext, real.CUdeviceptr, real.CUgraphExec):
        assert int(kind(7)) == 7


def test_without_the_drivers_library_it_is_one_error() -> None:
    if cuda_driver().cuda is not None:
        pytest.skip("there is a driver here")
    with pytest.raises(TargetError, match="cuda:0 cannot be used: CUDA does not start: "):
        CudaDevice(0)


# -- the rules that the double keeps


def test_reading_without_waiting_for_the_writer_is_misuse(
    device: CudaDevice, driver: SimulatedDriver
) -> None:
    host, memory = device.host_memory(8), device.memory(8)
    one, other, event = device.stream(), device.stream(), device.event()
    kernel(driver, one, memory, 1)
    with pytest.raises(MisuseError, match=r"'download' reads .* does not wait for 'set 1'"):
        device.download(memory, host.address, 8, other)
    device.mark(event, one)
    device.wait(other, event)
    device.download(memory, host.address, 8, other)


def test_writing_beside_a_reader_is_misuse(device: CudaDevice, driver: SimulatedDriver) -> None:
    host, memory = device.host_memory(8), device.memory(8)
    one, other = device.stream(), device.stream()
    kernel(driver, one, memory, 1)
    device.download(memory, host.address, 8, one)
    with pytest.raises(MisuseError, match=r"'set 2' writes .* does not wait for 'set 1'"):
        kernel(driver, other, memory, 2)


def test_an_event_stands_for_what_was_there_when_it_was_marked(
    device: CudaDevice, driver: SimulatedDriver
) -> None:
    host, memory = device.host_memory(8), device.memory(8)
    one, other, event = device.stream(), device.stream(), device.event()
    device.mark(event, one)
    kernel(driver, one, memory, 1)
    device.wait(other, event)
    with pytest.raises(MisuseError, match="does not wait for 'set 1'"):
        device.download(memory, host.address, 8, other)


def test_a_launched_graph_waits_for_its_stream_only(
    device: CudaDevice, driver: SimulatedDriver
) -> None:
    host, memory = device.host_memory(8), device.memory(8)
    one, other = device.stream(), device.stream()
    graph = device.record(one, lambda: device.download(memory, host.address, 8, one))
    kernel(driver, other, memory, 1)
    with pytest.raises(MisuseError, match="does not wait for 'set 1'"):
        device.launch(graph, one)


def test_memory_that_nobody_wrote_is_not_read(device: CudaDevice) -> None:
    host, memory, stream = device.host_memory(8), device.memory(8), device.stream()
    with pytest.raises(MisuseError, match="which nobody wrote"):
        device.download(memory, host.address, 8, stream)


def test_memory_that_is_too_small_or_freed_is_not_used(
    device: CudaDevice, driver: SimulatedDriver
) -> None:
    host, memory, stream = device.host_memory(9), device.memory(8), device.stream()
    with pytest.raises(MisuseError, match="9 bytes were to be used of 8 bytes"):
        device.upload(host.address, memory, 9, stream)
    event = device.event()
    device.upload(host.address, memory, 8, stream)
    device.mark(event, stream)
    driver.cuMemFree(memory)
    with pytest.raises(MisuseError, match="which was freed"):
        device.synchronize(event)


def test_another_gpu_must_be_made_current_first(driver: SimulatedDriver) -> None:
    first, second = (CudaDevice(index, driver=driver) for index in (0, 1))
    stream, event = first.stream(), first.event()
    second.make_current()
    with pytest.raises(MisuseError, match="a stream of cuda:0 is not current"):
        first.mark(event, stream)
    with pytest.raises(MisuseError, match="cuda:0 was to be used and is not current"):
        driver.check_current(0)


def test_a_thread_that_made_no_gpu_current_is_refused(device: CudaDevice) -> None:
    stream, event = device.stream(), device.event()
    errors: list[BaseException] = []

    def use() -> None:
        try:
            device.mark(event, stream)
        except RunnerError as exc:
            errors.append(exc)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert "CUDA_ERROR_INVALID_CONTEXT" in str(errors[0])


def recorded(device: CudaDevice, stream: Any, work: Callable[[], None]) -> str:
    """The driver's status for a recording."""
    with pytest.raises(RunnerError) as caught:
        device.record(stream, work)
    return str(caught.value)


def test_what_may_not_be_recorded(device: CudaDevice, driver: SimulatedDriver) -> None:
    one, other = device.stream(), device.stream()
    marked, memory = device.event(), device.memory(8)
    device.mark(marked, other)
    assert "ISOLATION" in recorded(device, one, lambda: device.wait(one, marked))
    assert "UNSUPPORTED" in recorded(device, one, lambda: device.memory(8) and None)
    second = CudaDevice(0, driver=driver)
    target = second.memory(8)
    device.make_current()

    def mark_and_wait() -> None:
        device.mark(marked, one)
        device.synchronize(marked)

    assert "UNSUPPORTED" in recorded(
        device, one, lambda: device.send(second, memory, target, 8, one)
    )
    assert "CAPTURED_EVENT" in recorded(device, one, mark_and_wait)


def test_streams_of_a_recording_must_join(device: CudaDevice, driver: SimulatedDriver) -> None:
    one, other, memory = device.stream(), device.stream(), device.memory(8)
    fork, join = device.event(), device.event()

    def forked() -> None:
        device.mark(fork, one)
        device.wait(other, fork)
        kernel(driver, other, memory, 1)

    def joined() -> None:
        forked()
        device.mark(join, other)
        device.wait(one, join)

    assert "UNJOINED" in recorded(device, one, forked)
    device.launch(device.record(one, joined), one)
    with pytest.raises(RunnerError, match="CUDA_ERROR_CAPTURED_EVENT"):
        device.wait(other, join)  # it stood in a recording, and has not been marked since


def test_a_handle_that_was_freed_is_misuse(device: CudaDevice, driver: SimulatedDriver) -> None:
    stream, event = device.stream(), device.event()
    driver.cuEventDestroy(event)
    with pytest.raises(MisuseError, match=r"an? event was used that is not there any more"):
        device.mark(event, stream)


def test_waiting_for_a_gpu_that_is_lost_is_misuse(driver: SimulatedDriver) -> None:
    first, second = (CudaDevice(index, driver=driver) for index in (0, 1))
    memory, stream = first.memory(8), first.stream()
    made, waiting = first.event(), second.event()
    other = second.stream()

    def lost() -> None:
        raise SimulatedFaultError

    first.make_current()
    driver.kernel(stream, lost, label="lost", reads=[], writes=[(memory, 8)])
    first.mark(made, stream)
    second.make_current()
    second.wait(other, made)
    second.mark(waiting, other)
    with pytest.raises(MisuseError, match="this waits for ever"):
        second.synchronize(waiting)
