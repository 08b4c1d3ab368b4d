"""Statuses and handles of the simulated driver, with the numbers that the driver gives them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from parnet_deploy.runtime.simulated.work import Node, Recording, Work


class CUresult(enum.IntEnum):
    """The driver's statuses, as far as they come up here."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_PEER_ACCESS_UNSUPPORTED = 217
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED = 704
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905
    CUDA_ERROR_CAPTURED_EVENT = 907
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908


class CUstream_flags(enum.IntEnum):  # noqa: N801  # the driver's name
    """Kinds of streams."""

    CU_STREAM_DEFAULT = 0
    CU_STREAM_NON_BLOCKING = 1


class CUevent_flags(enum.IntEnum):  # noqa: N801  # the driver's name
    """Kinds of events."""

    CU_EVENT_DEFAULT = 0
    CU_EVENT_DISABLE_TIMING = 2


class CUstreamCaptureMode(enum.IntEnum):
    """What other threads may do during a recording."""

    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


class RefusedError(Exception):
    """A call that the driver answers with an error."""

    def __init__(self, code: CUresult) -> None:
        """Answered with `code`."""
        super().__init__(code.name)
        self.code = code


@dataclass(eq=False, kw_only=True, repr=False)
class Handle:
    """What a context, a stream, an event or a graph is to its user: a number.

    Attributes:
        kind: which of them.
        number: its number.
    """

    kind: str
    number: int = 0

    def __int__(self) -> int:
        return self.number

    def __repr__(self) -> str:
        return f"<{self.kind} {self.number:#x}>"


@dataclass(eq=False, kw_only=True, repr=False)
class Context(Handle):
    """A GPU's primary context.

    Attributes:
        retained: how many users it has.
        reaches: numbers of the GPUs whose memory it may use.
        lost: whether a kernel failed on it.
    """

    retained: int = 0
    reaches: set[int] = field(default_factory=set)
    lost: bool = False


@dataclass(eq=False, kw_only=True, repr=False)
class SimulatedStream(Handle):
    """A stream: the last work on it, and the work its next one also waits for."""

    context: Context
    last: list[Work] = field(default_factory=list)
    recording: Recording | None = None
    recorded: list[Node] = field(default_factory=list)


@dataclass(eq=False, kw_only=True, repr=False)
class SimulatedEvent(Handle):
    """An event: the work it stands for, or the recorded actions."""

    context: Context
    timed: bool
    work: Work | None = None
    recording: Recording | None = None
    nodes: tuple[Node, ...] = ()


@dataclass(eq=False, kw_only=True, repr=False)
class SimulatedGraph(Handle):
    """A graph, or what can be launched of it, and its last launch."""

    context: Context
    recording: Recording
    last: list[Work] = field(default_factory=list)


@dataclass(kw_only=True)
class Fault:
    """A call that will fail.

    Attributes:
        code: with what.
        device: on which GPU; on any where None.
        after: how many more calls succeed before it.
    """

    code: CUresult
    device: int | None = None
    after: int = 0
