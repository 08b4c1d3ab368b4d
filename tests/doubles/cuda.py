"""A GPU that is not there: the double of `parnet_deploy.runtime.cuda.CudaDevice`.

It is as late as a real one: what is put on the stream runs when the stream is waited for, memory
that nobody wrote holds garbage, and whatever is used wrongly raises `MisuseError`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from parnet_deploy.errors import RunnerError
from parnet_deploy.spec import Array

GARBAGE = 0xCD
STREAM, RECORDING = 77, 78


class MisuseError(AssertionError):
    """The code under test broke a rule of CUDA or TensorRT."""


@dataclass
class FakeHost:
    array: Array


@dataclass
class FakeMemory:
    address: int
    nbytes: int


@dataclass
class FakeGraph:
    device: FakeDevice
    work: list[Callable[[], None]]
    open: bool = True

    def close(self) -> None:
        if self.open:
            self.open = False
            self.device.events.append("graph closed")


@dataclass
class FakeDevice:
    """See the module. `fail` names a call that raises, as a GPU that has failed does."""

    name: str = "cuda:0"
    fail: str = ""
    events: list[str] = field(default_factory=list)
    memory: dict[int, Array] = field(default_factory=dict)
    graphs: list[FakeGraph] = field(default_factory=list)
    closed: int = 0
    _queue: list[Callable[[], None]] = field(default_factory=list)
    _recorded: list[Callable[[], None]] | None = None
    _current: set[int] = field(default_factory=set)

    @property
    def stream(self) -> int:
        return STREAM if self._recorded is None else RECORDING

    @property
    def recording(self) -> bool:
        return self._recorded is not None

    @property
    def idle(self) -> bool:
        return not self._queue

    def make_current(self) -> None:
        self._current.add(threading.get_ident())

    def host_memory(self, nbytes: int) -> FakeHost:
        self._call("host_memory")
        return FakeHost(np.full(nbytes, GARBAGE, np.uint8))

    def device_memory(self, nbytes: int) -> FakeMemory:
        self._call("device_memory")
        address = 0x1000 * (len(self.memory) + 1)
        self.memory[address] = np.full(nbytes, GARBAGE, np.uint8)
        return FakeMemory(address, nbytes)

    def upload(self, source: FakeHost, target: FakeMemory, nbytes: int) -> None:
        self._call("upload")

        def copy() -> None:
            self.at(target.address)[:nbytes] = source.array[:nbytes]

        self.put(copy)

    def download(self, source: FakeMemory, target: FakeHost, nbytes: int) -> None:
        self._call("download")

        def copy() -> None:
            target.array[:nbytes] = self.at(source.address)[:nbytes]

        self.put(copy)

    def record(self, work: Callable[[], None]) -> FakeGraph:
        self._call("record")
        self._recorded = []
        try:
            work()
            graph = FakeGraph(self, self._recorded)
        finally:
            self._recorded = None
        self.graphs.append(graph)
        return graph

    def launch(self, graph: FakeGraph) -> None:
        self._call("launch")
        if not graph.open:
            raise MisuseError("a closed graph was launched")
        self._queue.extend(graph.work)

    def synchronize(self) -> None:
        self._call("synchronize")
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def close(self) -> None:
        self.closed += 1
        self.memory.clear()

    def at(self, address: int) -> Array:
        """The memory at an address, for kernels."""
        if address not in self.memory:
            raise MisuseError(f"there is no memory at {address:#x}")
        return self.memory[address]

    def put(self, work: Callable[[], None]) -> None:
        """Put work on the stream, or record it."""
        (self._queue if self._recorded is None else self._recorded).append(work)

    def check_current(self) -> None:
        if threading.get_ident() not in self._current:
            raise MisuseError("this thread did not make the GPU current")

    def _call(self, name: str) -> None:
        self.events.append(name)
        if self.closed:
            raise MisuseError(f"{name} after close")
        self.check_current()
        if self.fail == name:
            raise RunnerError(f"{self.name}: {name} failed: CUDA_ERROR_ILLEGAL_ADDRESS")
