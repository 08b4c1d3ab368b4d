"""What a server says on standard error: lines of text, or of JSON, with the request's id.

A line is handed to a thread that writes it: a reader that has stopped reading stops no request.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TextIO

from parnet_deploy.serve.settings import LogFormat
from parnet_deploy.serve.transport.log_lines import Said, in_json, in_text

REQUEST_ID: ContextVar[str] = ContextVar("parnet_deploy_request_id", default="")
"""The id of the request that is being answered; empty outside of one."""

_FACTS = "parnet_facts"
_LINES = 10_000
"""Lines that wait to be written; beyond them, lines are dropped and counted."""

_TOGETHER = 64
"""Lines that are written in one piece."""

_PATIENCE = 1.0
"""Seconds for the last lines to be written."""

_PAUSE = 0.25
"""Seconds after which the thread that writes looks for more lines by itself. To wake it costs the
request that is being answered more than all its lines do, so that this must be seldom; a line that
comes alone is written at once."""


def log_facts(
    logger: logging.Logger,
    message: str,
    facts: Callable[[], dict[str, Any]],
    level: int = logging.INFO,
) -> None:
    """Log a message with facts, which JSON has as fields of their own.

    Every request ends with this, so within `logging_to` it goes straight to the log: a record of
    `logging` costs more than the line.

    Args:
        logger: where.
        message: what, in short.
        facts: asked only where the line is wanted.
        level: how grave it is.
    """
    if not logger.isEnabledFor(level):
        return
    if (log := _current.log) is not None:
        said = Said(time.time(), level, logger.name, message, REQUEST_ID.get(), facts())
        log.say(said)
        return
    record = logging.LogRecord(logger.name, level, "", 0, message, None, None)
    setattr(record, _FACTS, facts())
    logger.handle(record)


class _Lines:
    """Lines on their way to the thread that writes them; one thread takes, any may put."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._taken = 0
        self._idle = False
        self._filled = threading.Event()
        self._ended = threading.Event()
        self.dropped = 0

    def put(self, line: str) -> None:
        """Put one in, or drop it where thousands wait; who sleeps is woken before they do."""
        waiting = len(self._waiting)
        if waiting >= _LINES:
            self.dropped += 1
            return
        self._waiting.append(line)
        if self._idle or waiting >= _LINES // 2:
            self._filled.set()

    def end(self) -> None:
        """No more will come."""
        self._ended.set()
        self._filled.set()

    def take(self) -> Iterator[list[str]]:
        """All that are put in, some at a time, until the end."""
        ended = False
        while not ended:
            if self._waiting:
                yield from self._pieces()
                ended = self._sleep(_PAUSE)  # more will come, and need wake nobody
            else:
                self._idle = True
                # Whoever puts one in from here on sees that it is idle.
                ended = self._sleep(0.0 if self._waiting else None)
                self._idle = False
        yield from self._pieces()

    def _pieces(self) -> Iterator[list[str]]:
        while self._waiting:
            self._taken = min(_TOGETHER, len(self._waiting))  # they count until written
            yield [self._waiting.popleft() for _ in range(self._taken)]
            self._taken = 0

    def _sleep(self, seconds: float | None) -> bool:
        """Until somebody wakes it, for so many seconds at most; whether this is the end."""
        if not self._ended.is_set():
            self._filled.wait(seconds)
        self._filled.clear()
        return self._ended.is_set()

    def __len__(self) -> int:
        """How many are not written yet, those among them that are being written."""
        return len(self._waiting) + self._taken

    @property
    def is_behind(self) -> bool:
        """Whether more wait than are being written."""
        return bool(self._waiting)


class _Sender(logging.Handler):
    """Hands over what is logged elsewhere."""

    def __init__(self, say: Callable[[Said], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one over, with the id of the request that it belongs to."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - a log must not break a request
            message = _unformatted(record.msg)
        self._say(
            Said(
                record.created,
                record.levelno,
                record.name,
                message,
                REQUEST_ID.get(),
                {},  # what has facts went straight to the log (`log_facts`)
                record.exc_info[1] if record.exc_info else None,
            )
        )


class Log:
    """The thread that writes lines.

    They are made by whoever logs, where nobody has to wait for Python's lock, and not by that
    thread: it would take the lock from the next requests.
    """

    def __init__(self, stream: TextIO, line: Callable[[Said], str]) -> None:
        """Begin."""
        self._lines = _Lines()
        self._stream = stream
        self._line = line
        self.handler = _Sender(self.say)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    @property
    def is_stuck(self) -> bool:
        """Whether lines are left that cannot be written."""
        return self._thread.is_alive()

    def say(self, said: Said) -> None:
        """Log it."""
        try:
            line = self._line(said)
        except Exception:  # noqa: BLE001 - a log must not break a request
            line = _unformatted(said.message)
        self._lines.put(line)

    def flush(self) -> None:
        """Wait until what was logged is written, unless nobody reads it.

        For signal handlers: no lock is taken, which the code that was interrupted might hold.
        """
        end = time.monotonic() + _PATIENCE
        while self._lines and time.monotonic() < end:
            time.sleep(0.005)

    def close(self) -> None:
        """Write what is left, unless nobody reads it."""
        self._lines.end()
        self._thread.join(_PATIENCE)

    def _write(self) -> None:
        told = 0
        for lines in self._lines.take():
            self._write_lines(lines)
            dropped = self._lines.dropped
            if dropped > told and not self._lines.is_behind:  # it has caught up
                message = f"{dropped - told} lines of this log were dropped: nobody read them"
                told = dropped
                said = Said(time.time(), logging.WARNING, __name__, message, "", {})
                self._write_lines([self._line(said)])

    def _write_lines(self, lines: list[str]) -> None:
        """Where nobody reads them any more, there is nobody to tell of that either."""
        with contextlib.suppress(OSError, ValueError):
            text = "".join(f"{line}\n" for line in lines)
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
            self._stream.flush()


class _Current:
    """Which log there is at the moment."""

    log: Log | None = None


_current = _Current()


@contextlib.contextmanager
def logging_to(stream: TextIO | None, kind: LogFormat) -> Iterator[Log]:
    """While the block runs, whatever is logged is written to a stream, or to standard error."""
    log = Log(stream or sys.stderr, in_json if kind == "json" else in_text)
    before, _current.log = _current.log, log
    root, ours = logging.getLogger(), logging.getLogger("parnet_deploy")
    uvicorns = logging.getLogger("uvicorn.error")
    handlers, levels = root.handlers[:], (ours.level, uvicorns.level)
    root.handlers[:] = [log.handler]
    if ours.level == logging.NOTSET:  # else --debug has set it
        ours.setLevel(logging.INFO)
    uvicorns.setLevel(logging.ERROR)  # its warnings are about clients, and told by us
    flags = logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    # What no line shows need not be looked up ("Optimization" in Python's logging HOWTO).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    try:
        yield log
    finally:
        _current.log = before
        logging.logThreads, logging.logProcesses, logging.logMultiprocessing = flags
        root.handlers[:] = handlers
        ours.setLevel(levels[0])
        uvicorns.setLevel(levels[1])
        log.close()


def _unformatted(message: object) -> str:
    return f"a line that cannot be formatted: {message!a}"
