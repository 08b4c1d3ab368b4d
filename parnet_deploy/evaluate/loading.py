"""Images, made ready in threads ahead of what runs them, so that it does not wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int, window: int
) -> Generator[Result]:
    """Work on items in threads, and give the results in the items' order.

    Close it (`contextlib.closing`) where it may be left before its end: what was not begun is then
    dropped, and nobody is waited for.

    Args:
        work: called in a thread, with one item.
        items: taken as they are needed.
        threads: how many are worked on at once, at least 1.
        window: how many are begun or done, and not yet taken, at most; so memory is bounded.

    Yields:
        The results.

    Raises:
        Exception: what `work` raised, in the place of that item's result.
    """
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="images")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
