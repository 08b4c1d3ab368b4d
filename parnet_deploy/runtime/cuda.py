"""One GPU as a runner uses it: memory, one stream, graphs. Every call of the driver is here.

Memory, streams and graphs are cuda-core's, copies are the driver's own. Reference:
https://nvidia.github.io/cuda-python/cuda-core/latest/. Tests put a double in the place of
`CudaDevice`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from parnet_deploy.errors import MissingDependencyError, RunnerError, TargetError
from parnet_deploy.runtime.machine import CudaDriver, Gpu, cuda_driver
from parnet_deploy.spec import Array


class DeviceMemory(Protocol):
    """Memory on the GPU.

    Attributes:
        address: where it lies, for kernels.
        nbytes: its size.
    """

    address: int
    nbytes: int


class HostMemory(Protocol):
    """Page-locked memory of the host, which the GPU copies from and to by itself.

    Attributes:
        array: its bytes, as uint8 of shape (nbytes,).
    """

    array: Array


class Graph(Protocol):
    """Work that was recorded, to be launched as one."""

    def close(self) -> None:
        """Free it; a second call does nothing."""
        ...


class Device(Protocol):
    """What a runner needs of a GPU. Calls come from one thread at a time, but not always the same.

    Work is put on one stream, in order, and runs some time before `synchronize` returns.

    Attributes:
        name: ``cuda:0`` ..., for messages.
        stream: handle of the stream work goes to at the moment.
    """

    name: str

    @property
    def stream(self) -> int:
        """Handle of the stream that work goes to: while recording, the one that records."""
        ...

    def make_current(self) -> None:
        """Let this thread's calls of CUDA, TensorRT's among them, go to this GPU."""
        ...

    def host_memory(self, nbytes: int) -> HostMemory:
        """Allocate page-locked memory."""
        ...

    def device_memory(self, nbytes: int) -> DeviceMemory:
        """Allocate memory on the GPU."""
        ...

    def upload(self, source: HostMemory, target: DeviceMemory, nbytes: int) -> None:
        """Put a copy of the first `nbytes` to the GPU on the stream."""
        ...

    def download(self, source: DeviceMemory, target: HostMemory, nbytes: int) -> None:
        """Put a copy of the first `nbytes` from the GPU on the stream."""
        ...

    def record(self, work: Callable[[], None]) -> Graph:
        """Record what `work` puts on the stream instead of running it."""
        ...

    def launch(self, graph: Graph) -> None:
        """Put recorded work on the stream."""
        ...

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        ...

    def close(self) -> None:
        """Free all memory and the stream; a second call does nothing."""
        ...


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


class _Device:
    """Memory on the GPU, cuda-core's buffer."""

    def __init__(self, buffer: Any, nbytes: int) -> None:
        self.buffer = buffer
        self.address = int(buffer.handle)
        self.nbytes = nbytes


class _Host:
    """Page-locked memory, cuda-core's buffer."""

    def __init__(self, buffer: Any, nbytes: int) -> None:
        self.buffer = buffer
        self.address = int(buffer.handle)
        memory: Any = (ctypes.c_uint8 * nbytes).from_address(self.address)
        self.array: Array = np.frombuffer(memory, dtype=np.uint8)


class CudaDevice:
    """A `Device` on a real GPU."""

    def __init__(
        self, index: int = 0, *, load: Callable[[str], Any] = importlib.import_module
    ) -> None:
        """Take a GPU and make a stream on it.

        Args:
            index: which GPU.
            load: imports a module by its name.

        Raises:
            MissingDependencyError: cuda-core is not installed.
            TargetError: CUDA refuses.
        """
        try:
            self._core, self._driver = load("cuda.core"), load("cuda.bindings.driver")
        except ImportError as exc:
            raise MissingDependencyError(
                f"running TensorRT engines needs cuda-core ({exc}); "
                "install parnet-deploy[tensorrt] or parnet-deploy[rtx]"
            ) from exc
        self.name = f"cuda:{index}"
        self._index = index
        self._capturing: Any = None
        self._buffers: list[Any] = []
        try:
            self.make_current()
            self._stream: Any = self._core.Device(index).create_stream()
        except RunnerError as exc:
            raise TargetError(str(exc)) from exc
        except Exception as exc:
            raise TargetError(f"{self.name} cannot be used: {_one_line(exc)}") from exc

    @property
    def stream(self) -> int:
        """Handle of the stream that work goes to: while recording, the one that records."""
        return int((self._capturing or self._stream).handle)

    def make_current(self) -> None:
        """Let this thread's calls of CUDA, TensorRT's among them, go to this GPU."""
        with self._mapped("it cannot be made current"):
            self._core.Device(self._index).set_current()

    def host_memory(self, nbytes: int) -> _Host:
        """Allocate page-locked memory."""
        with self._mapped(f"{nbytes} bytes of page-locked memory cannot be allocated"):
            buffer = self._core.LegacyPinnedMemoryResource().allocate(nbytes)
        self._buffers.append(buffer)
        return _Host(buffer, nbytes)

    def device_memory(self, nbytes: int) -> _Device:
        """Allocate memory on the GPU."""
        with self._mapped(f"{nbytes} bytes of its memory cannot be allocated"):
            buffer = self._core.Device(self._index).allocate(nbytes, stream=self._stream)
        self._buffers.append(buffer)
        return _Device(buffer, nbytes)

    def upload(self, source: Any, target: Any, nbytes: int) -> None:
        """Put a copy of the first `nbytes` to the GPU on the stream."""
        copy = self._driver.cuMemcpyHtoDAsync
        self._check(copy(target.address, source.address, nbytes, self.stream), "copying to it")

    def download(self, source: Any, target: Any, nbytes: int) -> None:
        """Put a copy of the first `nbytes` from the GPU on the stream."""
        copy = self._driver.cuMemcpyDtoHAsync
        self._check(copy(target.address, source.address, nbytes, self.stream), "copying from it")

    def record(self, work: Callable[[], None]) -> Any:
        """Record what `work` puts on the stream instead of running it.

        Raises:
            RunnerError: it holds something that cannot be recorded.
        """
        with self._mapped("its work cannot be recorded as a CUDA graph"):
            builder = self._stream.create_graph_builder()
            try:
                builder.begin_building("thread_local")
                self._capturing = builder.stream
                self._do(work, builder)
                builder.end_building()
                return builder.complete()
            finally:
                self._capturing = None
                builder.close()

    def launch(self, graph: Any) -> None:
        """Put recorded work on the stream."""
        with self._mapped("a CUDA graph cannot be launched"):
            graph.launch(self._stream)

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        with self._mapped("its work failed"):
            self._stream.sync()

    def close(self) -> None:
        """Free all memory and the stream; a second call does nothing."""
        buffers, self._buffers = self._buffers, []
        stream, self._stream = self._stream, None
        for resource in (*buffers, stream):
            # After a failed kernel every call fails; the driver frees the rest with the process.
            with contextlib.suppress(Exception):
                if resource is not None:
                    resource.close()

    @staticmethod
    def _do(work: Callable[[], None], builder: Any) -> None:
        """Work that is recorded; if it fails, its error counts and not that of the recording."""
        try:
            work()
        except BaseException:
            with contextlib.suppress(Exception):
                builder.end_building()
            raise

    def _check(self, result: tuple[Any, ...], what: str) -> None:
        status = result[0]
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise RunnerError(f"{self.name}: {what} failed: {status.name}")

    @contextlib.contextmanager
    def _mapped(self, what: str) -> Iterator[None]:
        try:
            yield
        except RunnerError:
            raise
        except Exception as exc:
            raise RunnerError(f"{self.name}: {what}: {_one_line(exc)}") from exc


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__
