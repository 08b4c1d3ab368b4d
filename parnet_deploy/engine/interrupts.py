"""Ctrl-C and SIGTERM while a library works that swallows exceptions."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Note signals inside the block, and act on the first of them right behind it.

    Python runs a signal's handler wherever Python code runs next. While TensorRT builds, that is
    its logger's callback, and TensorRT drops what is raised there: the build would go on and end as
    if nobody had asked it to stop. Outside the main thread, where no handler runs, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        noted.append(signum)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])
