"""A fault, and what is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from serving_faults.model import Model
from serving_faults.wire import Answer

Judge = Callable[[Model, Answer], str]
"""What is wrong with an answer; empty where nothing is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One request that is not as it should be, or looks like it.

    Attributes:
        title: what is wrong with it.
        group: part of the list.
        sends: the bytes on the wire, in the parts in which they are sent.
        right: statuses that are right; 0 is a connection that is closed without a word.
        method: of the request.
        judge: what is wrong with an answer of status 200, where that is right.
        alone: why only our server is asked; empty: any server of the protocol is.
        weighed: whether what it takes of memory is told.
    """

    title: str
    group: str
    sends: Callable[[Model], Iterable[bytes]]
    right: frozenset[int]
    method: str = "POST"
    judge: Judge | None = None
    alone: str = ""
    weighed: bool = False

    @property
    def expected(self) -> str:
        """What is right, in words."""
        named = {0: "closed", 200: "the right answer"}
        return " or ".join(sorted(named.get(status, str(status)) for status in self.right))


def once(data: bytes) -> tuple[bytes, ...]:
    """A request that is sent in one part."""
    return (data,)
