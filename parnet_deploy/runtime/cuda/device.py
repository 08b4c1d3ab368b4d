"""One GPU as runners use it: memory, streams, events, graphs. Every call of CUDA's driver is here.

The calls are those of ``cuda.bindings.driver``, a module of cuda-bindings; tests put
`parnet_deploy.runtime.simulated.driver.SimulatedDriver` in its place. Reference:
https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from parnet_deploy.errors import MissingDependencyError, RunnerError, TargetError
from parnet_deploy.runtime.machine import CudaDriver, Gpu, cuda_driver
from parnet_deploy.spec import Array

Stream = Any
"""A stream's handle; ``int()`` of it is what TensorRT and ONNX Runtime take."""

Event = Any
"""An event's handle."""

Graph = Any
"""The handle of work that was recorded, to be launched as one."""

_MILLISECOND = 1e-3


class HostMemory:
    """Page-locked memory of the host, which every GPU copies from and to by itself.

    Attributes:
        address: where it lies.
        array: its bytes, as uint8 of shape (nbytes,).
    """

    def __init__(self, address: int, nbytes: int) -> None:
        """Memory at an address, which must outlive this object."""
        self.address = address
        memory: Any = (ctypes.c_uint8 * nbytes).from_address(address)
        self.array: Array = np.frombuffer(memory, dtype=np.uint8)


def find_gpu(index: int, driver: CudaDriver | None = None) -> Gpu:
    """The GPU of a number.

    Args:
        index: which one.
        driver: what the driver says; asked where None.

    Raises:
        TargetError: there is no GPU, or none of that number.
    """
    driver = driver or cuda_driver()
    if driver.problem is not None:
        raise TargetError(f"it needs an NVIDIA GPU and its driver, and {driver.problem}")
    for gpu in driver.gpus:
        if gpu.index == index:
            return gpu
    raise TargetError(f"it needs the GPU cuda:{index}, and there are only {len(driver.gpus)} here")


def load_driver() -> Any:
    """The module ``cuda.bindings.driver``.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as exc:
        raise MissingDependencyError(
            f"running engines on a GPU needs cuda-bindings ({exc}); pip install cuda-bindings"
        ) from exc


class CudaDevice:
    """A GPU, and everything that was made on it, which `close` frees.

    It is used through its primary context, as TensorRT and ONNX Runtime use it. Where something is
    made the GPU becomes current; a thread calls `make_current` before it puts anything on a stream,
    and again after it turned to another GPU. Every method but `drain`, `drop` and `close` raises
    RunnerError where the driver refuses; the message leaves out which GPU.

    Attributes:
        index: its number.
        name: ``cuda:0`` ...
    """

    def __init__(self, index: int = 0, *, driver: Any = None) -> None:
        """Take a GPU and make it current.

        Args:
            index: which GPU.
            driver: the driver's functions; loaded where None.

        Raises:
            MissingDependencyError: cuda-bindings is not installed.
            TargetError: CUDA refuses.
        """
        self._driver = driver or load_driver()
        self.index = index
        self.name = f"cuda:{index}"
        self._streams: list[Stream] = []
        self._freeing: list[tuple[Callable[..., Any], Any]] = []
        try:
            self._call("CUDA does not start", "cuInit", 0)
            self._number = self._call("there is no such GPU", "cuDeviceGet", index)
            self._context = self._call(
                "it gives no context", "cuDevicePrimaryCtxRetain", self._number
            )
            self._freeing.append((self._driver.cuDevicePrimaryCtxRelease, self._number))
            self.make_current()
        except RunnerError as exc:
            self.close()
            raise TargetError(f"{self.name} cannot be used: {exc}") from exc

    def make_current(self) -> None:
        """Let this thread's calls of CUDA, TensorRT's among them, go to this GPU."""
        self._call("it cannot be made current", "cuCtxSetCurrent", self._context)

    # -- what is made once

    def stream(self) -> Stream:
        """Make a stream: work on it runs in order, and beside that on other streams."""
        self.make_current()
        kind = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        made = self._call("a stream cannot be made", "cuStreamCreate", int(kind))
        self._streams.append(made)
        self._freeing.append((self._driver.cuStreamDestroy, made))
        return made

    def event(self, *, timed: bool = False) -> Event:
        """Make an event; one that is `timed` tells when what it marks was done."""
        self.make_current()
        flags = self._driver.CUevent_flags
        kind = flags.CU_EVENT_DEFAULT if timed else flags.CU_EVENT_DISABLE_TIMING
        made = self._call("an event cannot be made", "cuEventCreate", int(kind))
        self._freeing.append((self._driver.cuEventDestroy, made))
        return made

    def memory(self, nbytes: int) -> int:
        """Allocate memory on the GPU and give its address."""
        self.make_current()
        what = f"{nbytes} bytes of its memory cannot be allocated"
        made = int(self._call(what, "cuMemAlloc", nbytes))
        self._freeing.append((self._driver.cuMemFree, made))
        return made

    def host_memory(self, nbytes: int) -> HostMemory:
        """Allocate page-locked memory, for this and every other GPU."""
        self.make_current()
        portable = self._driver.CU_MEMHOSTALLOC_PORTABLE
        what = f"{nbytes} bytes of page-locked memory cannot be allocated"
        address = int(self._call(what, "cuMemHostAlloc", nbytes, portable))
        self._freeing.append((self._driver.cuMemFreeHost, address))
        return HostMemory(address, nbytes)

    def reaches(self, peer: CudaDevice) -> bool:
        """Whether its copies go straight to the memory of another GPU; lets them, if they can."""
        what = f"its way to {peer.name} cannot be asked for"
        if not self._call(what, "cuDeviceCanAccessPeer", self._number, peer._number):
            return False
        self.make_current()
        status = self._driver.cuCtxEnablePeerAccess(peer._context, 0)[0]
        codes = self._driver.CUresult
        return status in (codes.CUDA_SUCCESS, codes.CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED)

    # -- what is put on a stream

    def upload(self, source: int, target: int, nbytes: int, stream: Stream) -> None:
        """Copy from page-locked memory to the GPU."""
        self._call("copying to it failed", "cuMemcpyHtoDAsync", target, source, nbytes, stream)

    def download(self, source: int, target: int, nbytes: int, stream: Stream) -> None:
        """Copy from the GPU to page-locked memory."""
        self._call("copying from it failed", "cuMemcpyDtoHAsync", target, source, nbytes, stream)

    def send(self, peer: CudaDevice, source: int, target: int, nbytes: int, stream: Stream) -> None:
        """Copy from this GPU to another one. It cannot be recorded in a graph."""
        ends = (target, peer._context, source, self._context)
        self._call(f"copying to {peer.name} failed", "cuMemcpyPeerAsync", *ends, nbytes, stream)

    def mark(self, event: Event, stream: Stream) -> None:
        """Let an event stand for all that is on a stream of this GPU so far."""
        self._call("its work cannot be marked", "cuEventRecord", event, stream)

    def wait(self, stream: Stream, event: Event) -> None:
        """Let what is put on a stream from now on wait for an event, of this or another GPU."""
        self._call("its work cannot be put in order", "cuStreamWaitEvent", stream, event, 0)

    def record(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record what `work` puts on a stream, and on others that wait for it, instead of running.

        Every other stream that takes part waits for an event of this one first, and this one waits
        for all of them in the end. Other threads may use the GPU meanwhile.
        """
        local = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        what = "its work cannot be recorded as a CUDA graph"
        self._call(what, "cuStreamBeginCapture", stream, local)
        try:
            work()
        except BaseException:  # its error counts, and not that of a recording that broke
            with contextlib.suppress(RunnerError):
                self._discard(self._call(what, "cuStreamEndCapture", stream))
            raise
        graph = self._call(what, "cuStreamEndCapture", stream)
        try:
            return self._call(what, "cuGraphInstantiate", graph, 0)
        finally:
            self._discard(graph)

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Put recorded work on a stream."""
        self._call("a CUDA graph cannot be launched", "cuGraphLaunch", graph, stream)

    # -- what is asked afterwards

    def synchronize(self, event: Event) -> None:
        """Wait until what an event stands for is done."""
        self._call("its work failed", "cuEventSynchronize", event)

    def fetch(self, source: int, target: Array) -> None:
        """Copy from the GPU to any array, at once. Whatever writes there must have ended."""
        self.make_current()
        ends = (int(target.ctypes.data), source)
        self._call("copying from it failed", "cuMemcpyDtoH", *ends, target.nbytes)

    def seconds(self, start: Event, end: Event) -> float:
        """Time between two timed events of this GPU that are done."""
        milliseconds = self._call("its clock cannot be read", "cuEventElapsedTime", start, end)
        return float(milliseconds) * _MILLISECOND

    def drop(self, graph: Graph) -> None:
        """Free recorded work. A GPU that failed keeps it to the end of the process."""
        with contextlib.suppress(RunnerError):
            self._call("a CUDA graph cannot be freed", "cuGraphExecDestroy", graph)

    def drain(self) -> None:
        """Wait for everything on its streams, whether it fails or not."""
        with contextlib.suppress(RunnerError):
            self.make_current()
        for stream in self._streams:
            self._driver.cuStreamSynchronize(stream)

    def close(self) -> None:
        """Wait for all work and free everything in the reverse order; a second call does nothing.

        After a failed kernel every call of the driver fails; it frees the rest with the process.
        """
        freeing, self._freeing = self._freeing, []
        if freeing:
            self.drain()
        self._streams.clear()
        for free, handle in reversed(freeing):
            free(handle)

    def _discard(self, graph: Any) -> None:
        """Free the description of a graph, which is not needed once it is instantiated."""
        self._driver.cuGraphDestroy(graph)

    def _call(self, what: str, function: str, *arguments: Any) -> Any:
        """Call the driver. Its functions give a status, and a value where there is one."""
        try:
            status, *value = getattr(self._driver, function)(*arguments)
        except RuntimeError as exc:  # how cuda-bindings tell that the driver's library is missing
            raise RunnerError(f"{what}: {' '.join(str(exc).split())}") from exc
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise RunnerError(f"{what}: {status.name}")
        return value[0] if value else None
