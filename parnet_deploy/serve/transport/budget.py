"""How many bytes of bodies may be in memory at once, over all connections."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from parnet_deploy.errors import RequestError


class Budget:
    """Bytes of bodies in memory, counted as they arrive.

    Attributes:
        size: how many there may be.
        used: how many there are.
    """

    def __init__(self, size: int) -> None:
        """Begin with nothing used."""
        self.size = size
        self.used = 0

    def hold(self) -> Hold:
        """One request's part, given back when the block ends."""
        return Hold(self)


class Hold:
    """One request's part of a budget."""

    __slots__ = ("_budget", "_bytes")

    def __init__(self, budget: Budget) -> None:
        """Hold nothing yet."""
        self._budget = budget
        self._bytes = 0

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Give all of it back."""
        self._budget.used -= self._bytes
        self._bytes = 0

    def take(self, count: int) -> None:
        """Hold `count` bytes more.

        Raises:
            RequestError: all connections together would have too many (503).
        """
        if self._budget.used + count > self._budget.size:
            raise RequestError(
                503, "too many bytes of requests are being received; try again", retry_after=1
            )
        self._budget.used += count
        self._bytes += count
