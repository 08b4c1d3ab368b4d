"""Faults that take more than one request: what is done, and what has to come of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from serving_faults.checking import Finding
from serving_faults.model import Model
from serving_faults.servers import Server, StartError, ours
from serving_faults.wire import WireError


class WrongError(Exception):
    """What was measured is not right: what it was, and what would have been."""

    def __init__(self, measured: str, expected: str = "") -> None:
        """Measured something else than what is right."""
        super().__init__(f"{measured}; right is: {expected}" if expected else measured)
        self.measured = measured


class NotHereError(Exception):
    """It cannot be tried on this machine: why."""


class Side(Protocol):
    """Whose servers are looked at.

    Attributes:
        model: what they serve.
        folder: for whatever is made, empty at first.
        is_ours: whether they are ours, and take our options.
        look: seconds for which a connection is watched that should be ended.
    """

    model: Model
    folder: Path
    is_ours: bool
    look: float

    def serve(self, *options: object) -> Server:
        """A server with an engine that does as its images tell it, started where none runs yet."""

    def fresh(self, *options: object) -> AbstractContextManager[Server]:
        """Another one, for the block."""


Do = Callable[[Side], str]
"""Tries a fault; gives what was measured, in words. Raises `WrongError`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A fault that takes more than one request.

    Attributes:
        title: what is wrong.
        group: part of the list.
        expected: what is right, in words.
        do: tries it.
        alone: why only our server is asked; empty: any server of the protocol is.
    """

    title: str
    group: str
    expected: str
    do: Do
    alone: str = ""

    def check(self, side: Side) -> Finding:
        """Try it, and say what came of it.

        Raises:
            NotHereError: it cannot be tried on this machine.
        """
        wrong = ""
        try:
            measured = self.do(side)
        except WrongError as exc:
            measured, wrong = exc.measured, str(exc)
        except (WireError, StartError, OSError) as exc:
            measured = wrong = str(exc)
        return Finding(
            title=self.title,
            group=self.group,
            expected=self.expected,
            measured=measured,
            wrong=wrong,
        )


@dataclass(kw_only=True)
class Ours:
    """Our own servers, as `Side` has it.

    Attributes:
        engine: bundle of an engine that does as its images tell it.
    """

    model: Model
    engine: Path
    folder: Path
    is_ours: bool = True
    look: float = 20.0
    _opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _servers: dict[tuple[str, ...], Server] = field(default_factory=dict)

    def serve(self, *options: object) -> Server:
        """A server with these options, which may have been used already."""
        key = tuple(map(str, options))
        found = self._servers.get(key)
        if found is None or not found.is_alive:
            found = self._opened.enter_context(ours(self.engine, *options))
            self._servers[key] = found
        return found

    @contextlib.contextmanager
    def fresh(self, *options: object) -> Iterator[Server]:
        """Another one, for the block."""
        with ours(self.engine, *options) as server:
            yield server

    def close(self) -> None:
        """End them all."""
        self._servers.clear()
        self._opened.close()
