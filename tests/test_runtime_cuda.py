"""CudaDevice on doubles of cuda-core and the driver, which are compared with the real modules."""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parnet_deploy.errors import EngineError, MissingDependencyError, RunnerError
from parnet_deploy.runtime.cuda import CudaDevice


@dataclass
class Cuda:
    """The driver and cuda-core; `fail` names the call that fails."""

    fail: str = ""
    calls: list[str] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)

    def call(self, name: str, what: str | None = None) -> None:
        self.calls.append(what or name)
        if self.fail == name:
            raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS:\n  an illegal memory access")

    def load(self, name: str) -> Any:
        return {"cuda.core": self.core, "cuda.bindings.driver": self.driver}[name]

    @property
    def core(self) -> Any:
        return SimpleNamespace(
            Device=lambda index: Device(self, index),
            LegacyPinnedMemoryResource=lambda: SimpleNamespace(allocate=self.buffer),
        )

    @property
    def driver(self) -> Any:
        success = SimpleNamespace(name="CUDA_SUCCESS")
        failed = SimpleNamespace(name="CUDA_ERROR_INVALID_VALUE")

        def copy(name: str) -> Any:
            def run(target: int, source: int, nbytes: int, stream: int) -> tuple[Any]:
                self.calls.append(f"{name} on {stream}")
                if self.fail == name:
                    return (failed,)
                ctypes.memmove(target, source, nbytes)
                return (success,)

            return run

        return SimpleNamespace(
            CUresult=SimpleNamespace(CUDA_SUCCESS=success),
            cuMemcpyHtoDAsync=copy("cuMemcpyHtoDAsync"),
            cuMemcpyDtoHAsync=copy("cuMemcpyDtoHAsync"),
        )

    def buffer(self, nbytes: int, *, stream: Any = None) -> Any:
        self.call("allocate")
        memory = (ctypes.c_uint8 * nbytes)()
        self.kept.append(memory)
        return SimpleNamespace(
            handle=ctypes.addressof(memory), close=lambda: self.call("free", f"free {nbytes}")
        )


@dataclass
class Device:
    cuda: Cuda
    index: int

    def set_current(self) -> None:
        self.cuda.call("set_current", f"current {self.index}")

    def create_stream(self) -> Any:
        self.cuda.call("create_stream")
        return Stream(self.cuda)

    def allocate(self, nbytes: int, *, stream: Any) -> Any:
        assert isinstance(stream, Stream)
        return self.cuda.buffer(nbytes)


@dataclass
class Stream:
    cuda: Cuda
    handle: int = 7

    def sync(self) -> None:
        self.cuda.call("sync")

    def close(self) -> None:
        self.cuda.call("close stream")

    def create_graph_builder(self) -> Any:
        return Builder(self.cuda)


@dataclass
class Builder:
    cuda: Cuda

    @property
    def stream(self) -> Stream:
        return Stream(self.cuda, handle=8)

    def begin_building(self, mode: str) -> None:
        self.cuda.call("begin_building", f"begin {mode}")

    def end_building(self) -> None:
        self.cuda.call("end_building")

    def complete(self) -> Any:
        self.cuda.call("complete")
        return SimpleNamespace(launch=lambda stream: self.cuda.call("launch"))

    def close(self) -> None:
        self.cuda.call("close builder")


@pytest.fixture
def cuda() -> Cuda:
    return Cuda()


@pytest.fixture
def device(cuda: Cuda) -> CudaDevice:
    return CudaDevice(1, load=cuda.load)


def test_bytes_go_there_and_back_on_its_own_stream(device: CudaDevice, cuda: Cuda) -> None:
    host, back, memory = device.host_memory(8), device.host_memory(8), device.device_memory(8)
    host.array[...] = np.arange(8)
    back.array[...] = 0
    device.upload(host, memory, 8)
    device.download(memory, back, 5)
    device.synchronize()
    assert back.array.tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    assert cuda.calls[0] == "current 1"
    assert cuda.calls[-3:] == ["cuMemcpyHtoDAsync on 7", "cuMemcpyDtoHAsync on 7", "sync"]


def test_work_is_recorded_on_the_recording_stream(device: CudaDevice, cuda: Cuda) -> None:
    cuda.calls.clear()
    streams = []
    graph = device.record(lambda: streams.append(device.stream))
    assert streams == [8]
    assert device.stream == 7
    assert cuda.calls == ["begin thread_local", "end_building", "complete", "close builder"]
    device.launch(graph)
    assert cuda.calls[-1] == "launch"


def test_what_fails_while_recording_is_what_is_told(device: CudaDevice, cuda: Cuda) -> None:
    def work() -> None:
        cuda.fail = "end_building"  # a broken recording cannot be ended either
        raise RunnerError("TensorRT did not start")

    with pytest.raises(RunnerError, match=r"^TensorRT did not start$"):
        device.record(work)
    assert device.stream == 7
    assert cuda.calls[-1] == "close builder"


@pytest.mark.parametrize("call", ["begin_building", "end_building", "complete"])
def test_a_recording_that_fails_is_closed(device: CudaDevice, cuda: Cuda, call: str) -> None:
    cuda.fail = call
    with pytest.raises(RunnerError, match="cuda:1: its work cannot be recorded as a CUDA graph"):
        device.record(lambda: None)
    assert device.stream == 7
    assert cuda.calls[-1] == "close builder"


def test_every_error_names_the_gpu_and_the_reason(device: CudaDevice, cuda: Cuda) -> None:
    host, memory = device.host_memory(8), device.device_memory(8)
    graph = device.record(lambda: None)
    reason = "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access"
    for call, use, words in (
        ("allocate", lambda: device.host_memory(4), "4 bytes of page-locked memory cannot be"),
        ("allocate", lambda: device.device_memory(4), "4 bytes of its memory cannot be"),
        ("set_current", device.make_current, "it cannot be made current"),
        ("launch", lambda: device.launch(graph), "a CUDA graph cannot be launched"),
        ("sync", device.synchronize, "its work failed"),
    ):
        cuda.fail = call
        with pytest.raises(RunnerError) as error:
            use()
        assert str(error.value).startswith(f"cuda:1: {words}")
        assert str(error.value).endswith(reason)
    for call, copy in (
        ("cuMemcpyHtoDAsync", lambda: device.upload(host, memory, 8)),
        ("cuMemcpyDtoHAsync", lambda: device.download(memory, host, 8)),
    ):
        cuda.fail = call
        with pytest.raises(RunnerError, match=r"cuda:1: copying .* CUDA_ERROR_INVALID_VALUE"):
            copy()


@pytest.mark.parametrize("failed", [False, True])
def test_close_frees_everything_once(device: CudaDevice, cuda: Cuda, failed: bool) -> None:
    device.host_memory(3)
    device.device_memory(5)
    cuda.fail = "free" if failed else ""
    device.close()
    device.close()
    assert cuda.calls[-3:] == ["free 3", "free 5", "close stream"]
    assert cuda.calls.count("close stream") == 1


@pytest.mark.parametrize("call", ["set_current", "create_stream"])
def test_a_gpu_that_refuses_is_an_engine_error(cuda: Cuda, call: str) -> None:
    cuda.fail = call
    with pytest.raises(EngineError, match="cuda:0.*: CUDA_ERROR_ILLEGAL"):  # noqa: RUF043
        CudaDevice(0, load=cuda.load)


def test_without_cuda_core_it_says_what_to_install() -> None:
    def load(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    with pytest.raises(MissingDependencyError, match=r"cuda\.core.*install parnet-deploy\[tensor"):
        CudaDevice(0, load=load)


def test_the_real_modules_have_what_is_called() -> None:
    core = importlib.import_module("cuda.core")
    graph = importlib.import_module("cuda.core.graph")
    driver = importlib.import_module("cuda.bindings.driver")
    for kind, names in {
        core.Device: ("set_current", "create_stream", "allocate"),
        core.LegacyPinnedMemoryResource: ("allocate",),
        core.Buffer: ("handle", "close"),
        core.Stream: ("handle", "sync", "close", "create_graph_builder"),
        graph.GraphBuilder: ("begin_building", "end_building", "complete", "close", "stream"),
        graph.Graph: ("launch", "close"),
        driver: ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "CUresult"),
    }.items():
        missing = [name for name in names if not hasattr(kind, name)]
        assert not missing, (kind, missing)
    assert driver.CUresult.CUDA_SUCCESS.name == "CUDA_SUCCESS"
