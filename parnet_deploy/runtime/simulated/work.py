"""What the simulated driver keeps: work with what must come before it, memory, recordings.

Work is put somewhere and runs when somebody waits for it, never before: who forgets to wait finds
garbage. Each piece of work knows all work that is sure to have ended before it starts, and whoever
reads memory whose writer is not among it, or writes it beside its readers, is told so by
`MisuseError`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parnet_deploy.spec import Array

GARBAGE = 0xCD
"""What memory holds that nobody has written."""


class MisuseError(BaseException):
    """The code under test broke a rule of CUDA, or of what is built on it.

    No `Exception`, so that the code under test does not take it for an error of a GPU.
    """


class SimulatedFaultError(Exception):
    """Raised by simulated work that fails as a kernel does: its GPU is lost from then on."""


@dataclass(eq=False, kw_only=True, repr=False)
class Block:
    """A piece of memory.

    Attributes:
        address: where it starts.
        data: its bytes.
        device: number of its GPU, or None for the host's.
        writer: the last work that writes it.
        readers: work that has read it since.
    """

    address: int
    data: Array
    device: int | None
    writer: Work | None = None
    readers: list[Work] = field(default_factory=list)
    freed: bool = False

    def __str__(self) -> str:
        where = "the host" if self.device is None else f"cuda:{self.device}"
        return f"{self.data.nbytes} bytes of {where} at {self.address:#x}"


@dataclass(eq=False, kw_only=True, repr=False)
class Action:
    """What a piece of work does.

    Attributes:
        label: for messages and for tests.
        run: does it, or None for what only keeps an order.
        reads: memory.
        writes: memory.
        seconds: how long it takes on the simulated clock.
    """

    label: str
    run: Callable[[], None] | None = None
    reads: tuple[Block, ...] = ()
    writes: tuple[Block, ...] = ()
    seconds: float = 0.0


_numbers = itertools.count()


class Work:
    """An action on its way.

    Attributes:
        action: what it does.
        context: the GPU's.
        before: all work that must end first, and of which the host has not yet heard.
        settled: whether it has run and the host waited for it.
        start: when it started, on the simulated clock.
        end: when it ended.
    """

    def __init__(self, action: Action, context: Any, after: Iterable[Work], now: float) -> None:
        """Put it behind other work and check what it reads and writes against all that runs."""
        self.action = action
        self.context = context
        self.number = next(_numbers)
        self.settled = False
        self.start = self.end = 0.0
        self._now = now
        self._after = [work for work in after if not work.settled]
        self.before: set[Work] = {
            work for one in self._after for work in (one, *one.before) if not work.settled
        }
        self._check()

    def run(self) -> None:
        """Do it, and everything before it."""
        for work in sorted((*self.before, self), key=lambda work: work.number):
            if not work.settled:
                work._run()

    def _run(self) -> None:
        self.start = max([self._now, *(work.end for work in self._after)])
        self.end = self.start + self.action.seconds
        self.settled = True
        if self.context.lost:
            return
        for block in (*self.action.reads, *self.action.writes):
            if block.freed:
                raise MisuseError(f"'{self.action.label}' uses {block}, which was freed")
        try:
            if self.action.run is not None:
                self.action.run()
        except SimulatedFaultError:
            self.context.lost = True

    def _check(self) -> None:
        action = self.action
        for block in action.reads:
            if block.writer is None and block.device is not None:
                raise MisuseError(f"'{action.label}' reads {block}, which nobody wrote")
            self._check_after([block.writer], f"reads {block}")
        for block in action.writes:
            self._check_after([block.writer, *block.readers], f"writes {block}")
        for block in action.reads:
            block.readers = [work for work in block.readers if not work.settled] + [self]
        for block in action.writes:
            block.writer, block.readers = self, []

    def _check_after(self, others: Iterable[Work | None], what: str) -> None:
        for other in others:
            if other is not None and not other.settled and other not in self.before:
                raise MisuseError(
                    f"'{self.action.label}' {what} and does not wait for '{other.action.label}', "
                    "which uses it"
                )


@dataclass(eq=False, kw_only=True, repr=False)
class Node:
    """An action that was recorded, and the recorded ones it waits for."""

    action: Action
    after: tuple[Node, ...]

    def all_before(self) -> set[Node]:
        """Itself and everything that it waits for."""
        found: set[Node] = set()
        open_ = [self]
        while open_:
            node = open_.pop()
            if node not in found:
                found.add(node)
                open_.extend(node.after)
        return found


@dataclass(eq=False, kw_only=True, repr=False)
class Recording:
    """A recording that is under way, or the graph that came of it.

    Attributes:
        origin: the stream it began on.
        thread: the thread that began it.
        nodes: in the order they were put there.
        streams: all that take part.
        valid: whether it can still become a graph.
        under_way: whether it has not been ended.
    """

    origin: Any
    thread: int
    nodes: list[Node] = field(default_factory=list)
    streams: list[Any] = field(default_factory=list)
    valid: bool = True
    under_way: bool = True


class Memory:
    """Blocks by their addresses."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.blocks: dict[int, Block] = {}
        self._next = 0x7F00_0000_0000

    def allocate(self, nbytes: int, device: int | None) -> Block:
        """A new block full of garbage; the host's lies where it says, for Python to write to."""
        data = np.full(nbytes, GARBAGE, np.uint8)
        address = int(data.ctypes.data) if device is None else self._next
        self._next += (nbytes // 512 + 2) * 512
        block = Block(address=address, data=data, device=device)
        self.blocks[address] = block
        return block

    def at(self, address: int, nbytes: int) -> Block:
        """The block at an address.

        Raises:
            MisuseError: there is none, or it is too small.
        """
        block = self.blocks.get(address)
        if block is None:
            raise MisuseError(f"there is no memory at {address:#x}")
        if nbytes > block.data.nbytes:
            raise MisuseError(f"{nbytes} bytes were to be used of {block}")
        return block

    def free(self, address: int) -> None:
        """Give a block back.

        Raises:
            MisuseError: there is none.
        """
        self.at(address, 0).freed = True
        del self.blocks[address]
