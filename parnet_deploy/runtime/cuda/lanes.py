"""Who runs when: a few lanes, and any number of threads that want one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from parnet_deploy.errors import RunnerError

Item = TypeVar("Item")


class Lanes(Generic[Item]):
    """Lends each of its items to one thread at a time; who finds none free waits.

    After an error in a lent item, and after `end`, nobody gets one any more, and nobody waits.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        """Lend these."""
        self._all = tuple(items)
        self._free = list(items)
        self._changed = threading.Condition()
        self._ended = ""

    @contextlib.contextmanager
    def lent(self) -> Iterator[Item]:
        """One of the items, for as long as the block lasts.

        Raises:
            RunnerError: there are none any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._ended)
            if self._ended:
                raise RunnerError(f"{self._ended}; open the engine again")
            item = self._free.pop()
        try:
            yield item
        except BaseException:
            self.end("it failed before")
            raise
        finally:
            with self._changed:
                self._free.append(item)
                self._changed.notify_all()

    def end(self, why: str) -> None:
        """Lend nothing any more.

        Args:
            why: what those who want an item are told; later reasons do not count.
        """
        with self._changed:
            self._ended = self._ended or why
            self._changed.notify_all()

    def take_back(self, why: str) -> tuple[Item, ...]:
        """Lend nothing any more, wait until everything is back, and give it away: once.

        Args:
            why: what those who want an item are told from now on.

        Returns:
            The items; none from the second time on.
        """
        with self._changed:
            self._ended = why
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._free) == len(self._all))
            items, self._all, self._free = self._all, (), []
        return items
