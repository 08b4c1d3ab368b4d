"""GPUs, streams and work behind the simulated driver's functions, and what tests ask of them."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from parnet_deploy.runtime.simulated.handles import (
    Context,
    CUresult,
    Fault,
    Handle,
    RefusedError,
    SimulatedStream,
)
from parnet_deploy.runtime.simulated.work import (
    Action,
    Block,
    Memory,
    MisuseError,
    Node,
    Recording,
    Work,
)

Made = TypeVar("Made", bound=Handle)

COPY_SECONDS, KERNEL_SECONDS = 1e-6, 10e-6


def answered(body: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """A function of the driver: a status, and a value where there is one."""
    name = body.__name__
    anywhere = name in _NEEDS_NO_CONTEXT

    @functools.wraps(body)
    def call(self: Machine, *arguments: Any) -> tuple[Any, ...]:
        with self._lock:
            self.calls[name] += 1
            try:
                self._check_call(name, anywhere=anywhere)
                value = body(self, *arguments)
            except RefusedError as refused:
                return (refused.code, None)
            return (CUresult.CUDA_SUCCESS,) if value is None else (CUresult.CUDA_SUCCESS, value)

    return call


_NEEDS_NO_CONTEXT = {
    "cuInit",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease",
    "cuCtxSetCurrent",
    "cuDeviceCanAccessPeer",
}


class Machine:
    """GPUs that are not there.

    Attributes:
        calls: how often each function was called.
        faults: calls that fail, by function.
        history: work in the order in which it was put somewhere, while it is a list.
        memory: all memory.
    """

    def __init__(self, gpus: int = 1, *, peers: bool = True) -> None:
        """A machine.

        Args:
            gpus: how many there are.
            peers: whether they reach one another's memory.
        """
        self.calls: Counter[str] = Counter()
        self.faults: dict[str, Fault] = {}
        self.history: list[Work] | None = None
        self.memory = Memory()
        self._peers = peers
        self._lock = threading.RLock()
        self._current = threading.local()
        self._now = 0.0
        self._handles: dict[int, Handle] = {}
        self._contexts = [Context(kind="context", number=n + 1) for n in range(gpus)]
        self._recordings: list[Recording] = []
        self._next = 0x1000

    # -- for tests

    def live(self) -> dict[str, int]:
        """How many of each kind are there: contexts' users, streams, events, graphs, memory."""
        counts = Counter(handle.kind for handle in self._handles.values())
        counts["memory"] = len(self.memory.blocks)
        counts["context"] = sum(context.retained for context in self._contexts)
        return {kind: count for kind, count in sorted(counts.items()) if count}

    def lost(self, device: int) -> None:
        """Lose a GPU: whatever is asked of it from now on fails."""
        self._contexts[device].lost = True

    # -- for doubles of what runs on a GPU

    def current(self) -> int:
        """Number of the GPU that the calling thread has made current.

        Raises:
            MisuseError: it has made none current.
        """
        if not hasattr(self._current, "context"):
            raise MisuseError("this thread made no GPU current")
        return self._context.number - 1

    def check_current(self, device: int) -> None:
        """Fail unless the calling thread has made that GPU current.

        Raises:
            MisuseError: it has not.
        """
        if self.current() != device:
            raise MisuseError(f"cuda:{device} was to be used and is not current")

    def recording(self, stream: Any) -> bool:
        """Whether what is put on a stream is recorded. It is named by its handle or its number."""
        return self._stream(stream).recording is not None

    def kernel(
        self,
        stream: Any,
        run: Callable[[], None],
        *,
        label: str,
        reads: Sequence[tuple[int, int]],
        writes: Sequence[tuple[int, int]],
        seconds: float = KERNEL_SECONDS,
    ) -> None:
        """Put a kernel on a stream.

        Args:
            stream: its handle or its number.
            run: what it does; it may raise `SimulatedFaultError`.
            label: what it is called in messages and in `history`.
            reads: address and bytes of each memory that it reads.
            writes: address and bytes of each memory that it writes.
            seconds: how long it takes.

        Raises:
            MisuseError: a rule is broken.
        """
        with self._lock:
            found = self._stream(stream)
            self.check_current(found.context.number - 1)
            blocks = [[self.memory.at(*span) for span in spans] for spans in (reads, writes)]
            for block in (*blocks[0], *blocks[1]):
                self._check_reach(found.context, block, label)
            action = Action(
                label=label,
                run=run,
                reads=tuple(blocks[0]),
                writes=tuple(blocks[1]),
                seconds=seconds,
            )
            self._put(found, action)

    # -- how it works

    @property
    def _context(self) -> Context:
        context: Context = self._current.context
        return context

    def _check_call(self, name: str, *, anywhere: bool) -> None:
        if not anywhere:
            known = hasattr(self._current, "context")
            need(known, CUresult.CUDA_ERROR_INVALID_CONTEXT)
            need(not self._context.lost, CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)
        fault = self.faults.get(name)
        if fault is None or (fault.device is not None and self._context.number - 1 != fault.device):
            return
        fault.after -= 1
        if fault.after < 0:
            for recording in self._recordings if name == "cuStreamEndCapture" else ():
                self._end(recording)
            raise RefusedError(fault.code)

    def _end(self, recording: Recording) -> None:
        """Record no more, on none of its streams."""
        for stream in recording.streams:
            stream.recording, stream.recorded = None, []
        recording.under_way = False
        self._recordings = [other for other in self._recordings if other is not recording]

    def _check_not_recording(self) -> None:
        """What may allocate or free is not for a thread that records."""
        for recording in self._recordings:
            if recording.thread == threading.get_ident():
                recording.valid = False
                raise RefusedError(CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)

    def _check_mine(self, stream: SimulatedStream) -> None:
        self._known(stream)
        if stream.context is not self._context:
            raise MisuseError(f"a stream of cuda:{stream.context.number - 1} is not current")

    def _check_reach(self, context: Context, block: Block, label: str) -> None:
        device = block.device
        if device is not None and device + 1 not in (context.number, *context.reaches):
            raise MisuseError(f"'{label}' on cuda:{context.number - 1} does not reach {block}")

    def _copy(
        self, label: str, target: int, source: int, nbytes: int, stream: SimulatedStream
    ) -> None:
        self._check_mine(stream)
        into, out_of = self.memory.at(target, nbytes), self.memory.at(source, nbytes)
        if label != "send":
            on_host = (out_of if label == "upload" else into).device is None
            if not on_host or into.device == out_of.device:
                raise MisuseError(f"{label} of {out_of} to {into}")
        for block in (into, out_of):
            self._check_reach(stream.context, block, label)

        def run() -> None:
            into.data[:nbytes] = out_of.data[:nbytes]

        action = Action(label=label, run=run, reads=(out_of,), writes=(into,), seconds=COPY_SECONDS)
        self._put(stream, action)

    def _put(self, stream: SimulatedStream, action: Action) -> Work | Node:
        """Put an action on a stream, or into its recording."""
        recording = stream.recording
        if recording is not None:
            node = Node(action=action, after=tuple(stream.recorded))
            recording.nodes.append(node)
            stream.recorded = [node]
            return node
        work = self._work(action, stream.context, stream.last)
        stream.last = [work]
        return work

    def _work(self, action: Action, context: Context, after: Sequence[Work]) -> Work:
        work = Work(action, context, after, self._now)
        if self.history is not None:
            self.history.append(work)
        return work

    def _settle(self, work: Work) -> None:
        work.run()
        self._now = max(self._now, work.end)

    def _made(self, handle: Made) -> Made:
        self._next += 1
        handle.number = self._next
        self._handles[handle.number] = handle
        return handle

    def _unmade(self, handle: Handle) -> None:
        self._known(handle)
        del self._handles[handle.number]

    def _known(self, handle: Handle) -> None:
        if self._handles.get(handle.number) is not handle:
            raise MisuseError(f"a {handle.kind} was used that is not there any more")

    def _stream(self, stream: Any) -> SimulatedStream:
        found = self._handles.get(int(stream))
        if not isinstance(found, SimulatedStream):
            raise MisuseError(f"there is no stream {int(stream):#x}")
        return found


def need(condition: bool, code: CUresult) -> None:
    """Let the driver refuse with a code unless the condition holds."""
    if not condition:
        raise RefusedError(code)
