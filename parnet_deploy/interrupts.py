"""Ctrl-C and SIGTERM, held back while work is done that must not be cut in two."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_Handler = Any  # typeshed's type of a handler has no public name


@contextlib.contextmanager
def held_back() -> Iterator[list[int]]:
    """Note signals inside the block, and act on the first of them right behind it.

    Two kinds of work need it. TensorRT runs Python code, its logger's callback, while it builds,
    and drops what a signal's handler raises there: the build would go on and end as if nobody had
    asked it to stop. A training must not be stopped in the middle of a step: it looks at the
    signals between two steps, saves what can be gone on with, and leaves the block. Whoever asks
    a second time wants it at once: that is raised where it arises. Outside the main thread, where
    no handler runs, nothing is held back.

    Yields:
        The signals' numbers, as they come.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(signum: int, frame: FrameType | None) -> None:
        noted.append(signum)
        if len(noted) > 1:
            _restore(before)
            signal.raise_signal(signum)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup and shells' background jobs have it
            signal.signal(number, note)
    try:
        yield noted
    finally:
        _restore(before)
        if len(noted) == 1:
            signal.raise_signal(noted[0])


def _restore(handlers: dict[signal.Signals, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
