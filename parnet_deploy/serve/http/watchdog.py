"""What ends a process whose event loop is held up by a run that does not end.

A short run is done on the event loop's thread (`ServedModel.run`). Should one hang, nobody is left
to answer that the server is not live, nor to take SIGTERM.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator

HELD = 3
"""Exit status of a process that a run has held up for longer than `--stall`."""

_log = logging.getLogger("parnet_deploy.serve")


@contextlib.contextmanager
def watching(
    holding_for: Callable[[], float],
    stall: float,
    *,
    flush: Callable[[], None],
    end: Callable[[int], None] = os._exit,
) -> Iterator[None]:
    """While the block runs, a thread looks whether a run holds the event loop up for too long.

    Args:
        holding_for: seconds for which one does.
        stall: how many are too many.
        flush: has what was logged written.
        end: ends the process with an exit status.
    """
    over = threading.Event()

    def watch() -> None:
        looks = 0
        while not over.wait(min(1.0, stall / 4)):
            looks = looks + 1 if holding_for() > stall else 0
            if looks > 1:  # not at once: the whole process may have been stopped for a while
                _log.error("the engine does not answer, and nothing else can; the process ends")
                flush()
                end(HELD)
                return

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
