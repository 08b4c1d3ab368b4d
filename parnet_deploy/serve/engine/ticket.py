"""A request that was let in."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from parnet_deploy.serve.engine.unanswered import timed_out


class Ticket:
    """A request that was let in; a context manager that ends with it.

    Attributes:
        began: when it was let in, by the model's clock.
        deadline: when it has to be answered.
        open: whether somebody waits for the answer.
    """

    __slots__ = ("_clock", "_leave", "began", "deadline", "open", "preparing")

    def __init__(
        self, *, timeout: float, clock: Callable[[], float], leave: Callable[[Ticket], None]
    ) -> None:
        """Made by `ServedModel.admit`."""
        self.began = clock()
        self.deadline = self.began + timeout
        self.open = True
        self.preparing = True
        self._clock = clock
        self._leave = leave

    def age(self) -> float:
        """Seconds since it was let in."""
        return self._clock() - self.began

    def check(self) -> None:
        """For a thread at work for it: whether that is still of use.

        Raises:
            RequestError: 504; the deadline has come, or the client has gone, and reads nothing.
        """
        if not self.open or self._clock() >= self.deadline:
            raise timed_out()

    def __enter__(self) -> Self:
        """The ticket itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """The request has ended, whatever way."""
        if self.open:
            self._leave(self)
