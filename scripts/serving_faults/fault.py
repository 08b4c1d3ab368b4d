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
        right: statuses that are right.
        method: of the request.
        judge: what is wrong with an answer of status 200, where that is right.
        alone: why only our server is asked; empty: any server of the protocol is.
    """

    title: str
    group: str
    sends: Callable[[Model], Iterable[bytes]]
    right: frozenset[int]
    method: str = "POST"
    judge: Judge | None = None
    alone: str = ""

    @property
    def expected(self) -> str:
        """What is right, in words."""
        words = [str(status) if status != 200 else "the right answer" for status in self.right]
        return " or ".join(sorted(words))


def once(data: bytes) -> tuple[bytes, ...]:
    """A request that is sent in one part."""
    return (data,)
