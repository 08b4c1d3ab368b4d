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
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from parnet_deploy.serve.settings import LogFormat

REQUEST_ID: ContextVar[str] = ContextVar("parnet_deploy_request_id", default="")
"""The id of the request that is being answered; empty outside of one."""

_FACTS = "parnet_facts"
_ID = "parnet_id"
_LINES = 10_000
"""Lines that wait to be written; beyond them, lines are dropped and counted."""

_TOGETHER = 64
"""Lines that are written in one piece."""

_PATIENCE = 1.0
"""Seconds for the last lines to be written."""

_PAUSE = 0.02
"""Seconds after which the thread that writes looks for more lines by itself. To wake it for each
would take longer than all else that a line costs the request it is about."""


def log_facts(
    logger: logging.Logger,
    message: str,
    facts: Callable[[], dict[str, Any]],
    level: int = logging.INFO,
) -> None:
    """Log a message with facts, which JSON has as fields of their own.

    Args:
        logger: where.
        message: what, in short.
        facts: asked only where the line is wanted.
        level: how grave it is.
    """
    if logger.isEnabledFor(level):
        record = logging.LogRecord(logger.name, level, "", 0, message, None, None)
        setattr(record, _FACTS, facts())
        logger.handle(record)


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.000Z INFO POST /classify 200 id=... ms=3.1``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows in lines of its own."""
        parts = [_time(record), record.levelname, _flat(record.getMessage())]
        facts = {"id": getattr(record, _ID, "")} | getattr(record, _FACTS, {})
        shown = {k: v for k, v in facts.items() if v != "" and k not in _IN_MESSAGE}
        parts += [f"{name}={_flat(str(value))}" for name, value in shown.items()]
        line = " ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


_IN_MESSAGE = ("event", "method", "path", "status")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, the traceback in a field of it."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := getattr(record, _ID, ""):
            line["id"] = request
        line |= getattr(record, _FACTS, {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


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
        """Put one in, or drop it where thousands wait; who sleeps for long is woken."""
        if len(self._waiting) >= _LINES:
            self.dropped += 1
            return
        self._waiting.append(line)
        if self._idle:
            self._filled.set()

    def end(self) -> None:
        """No more will come."""
        self._ended.set()
        self._filled.set()

    def take(self) -> Iterator[list[str]]:
        """All that are put in, some at a time, until the end."""
        ended = False
        while not ended:
            ended = self._ended.wait(_PAUSE)
            while self._waiting:
                self._taken = min(_TOGETHER, len(self._waiting))  # they count until written
                yield [self._waiting.popleft() for _ in range(self._taken)]
                self._taken = 0
            self._idle = True
            if not self._waiting and not ended:  # whoever puts one in now sees that it is idle
                self._filled.wait()
            self._idle = False
            self._filled.clear()

    def __len__(self) -> int:
        """How many are not written yet, those among them that are being written."""
        return len(self._waiting) + self._taken

    @property
    def is_behind(self) -> bool:
        """Whether more wait than are being written."""
        return bool(self._waiting)


class _Sender(logging.Handler):
    """Makes lines, with the id of the request that they belong to, and hands them over.

    They are made here, where nobody has to wait for Python's lock, and not by the thread that
    writes them: that would take it from the next requests.
    """

    def __init__(self, lines: _Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one over."""
        setattr(record, _ID, REQUEST_ID.get())
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a log must not break a request
            line = f"a line that cannot be formatted: {record.msg!r}"
        self._lines.put(line)


class Log:
    """The thread that writes lines."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        """Begin."""
        self._lines = _Lines()
        self._stream = stream
        self.handler = _Sender(self._lines)
        self.handler.setFormatter(formatter)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    @property
    def is_stuck(self) -> bool:
        """Whether lines are left that cannot be written."""
        return self._thread.is_alive()

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
                record = logging.LogRecord(__name__, logging.WARNING, "", 0, message, None, None)
                self._write_lines([self.handler.format(record)])

    def _write_lines(self, lines: list[str]) -> None:
        """Where nobody reads them any more, there is nobody to tell of that either."""
        with contextlib.suppress(OSError, ValueError):
            text = "".join(f"{line}\n" for line in lines)
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
            self._stream.flush()


@contextlib.contextmanager
def logging_to(stream: TextIO | None, kind: LogFormat) -> Iterator[Log]:
    """While the block runs, whatever is logged is written to a stream, or to standard error."""
    log = Log(stream or sys.stderr, JsonFormatter() if kind == "json" else TextFormatter())
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
        logging.logThreads, logging.logProcesses, logging.logMultiprocessing = flags
        root.handlers[:] = handlers
        ours.setLevel(levels[0])
        uvicorns.setLevel(levels[1])
        log.close()


def _time(record: logging.LogRecord) -> str:
    when = datetime.fromtimestamp(record.created, tz=UTC)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}Z"


def _flat(text: str) -> str:
    """In one line, whatever a client put into it."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
