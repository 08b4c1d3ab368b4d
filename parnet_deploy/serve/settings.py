"""Every limit of a server, as a value."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Literal

from parnet_deploy.errors import UsageError

LogFormat = Literal["text", "json"]

_WORD = re.compile(r"[!-~]+")

_SIZES = (
    *("contexts", "queue", "max_batch", "max_pixels", "max_connections"),
    *("max_buffered", "max_header"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """How a server behaves. Times are in seconds, sizes in bytes.

    Attributes:
        host: address that it listens on.
        port: its port; 0 takes any that is free.
        name: what the model is called; None: as its engine bundle is.
        contexts: runs of the engine that may be under way at once.
        queue: requests that may wait for the engine; one more is refused with 503.
        timeout: from a request's body being there to its answer; afterwards 504.
        max_batch: images that dynamic batching puts together; 1 is off.
        max_delay: how long it waits for them.
        warm_up: runs before the server is ready; 0: it is ready, and not known to be well.
        max_body: largest body, after decompression too; None: what the largest batch needs.
        max_buffered: bytes of bodies in memory, over all connections of HTTP and gRPC; beyond them
            503.
        max_pixels: of all encoded images of a request together, looked at before each is decoded.
        max_header: largest header of a request; beyond it 431.
        header_timeout: from a connection, or a request's first byte, to the end of its header.
        body_timeout: from the end of the header to the end of the body.
        idle_timeout: between two requests on one connection.
        max_connections: connections of HTTP at once; one more is refused with 503. As many of gRPC,
            and calls over all of those.
        inline_below: a lone request whose run is expected to take less is run on the event loop's
            thread: to wake another costs more than it spares; 0: none is.
        grace: from SIGTERM to the end: what is in flight is answered meanwhile, and the engine
            closed.
        stall: a run that takes longer makes the server not live.
        decode_threads: threads that decode images and JSON; 0: one a core, at most four.
        keep_awake: processors do not go idle (`runtime.awake`): they need not be woken for a
            request.
        api_key: what clients have to send as ``Authorization: Bearer``; None: nothing.
        log_format: lines of text, or of JSON.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    contexts: int = 1
    queue: int = 64
    timeout: float = 30.0
    max_batch: int = 1
    max_delay: float = 0.0
    warm_up: int = 3
    max_body: int | None = None
    max_buffered: int = 256 * 1024 * 1024
    max_pixels: int = 25_000_000
    max_header: int = 32 * 1024
    header_timeout: float = 5.0
    body_timeout: float = 30.0
    idle_timeout: float = 60.0
    max_connections: int = 512
    inline_below: float = 0.005
    grace: float = 25.0
    stall: float = 60.0
    decode_threads: int = 0
    keep_awake: bool = False
    api_key: str | None = None
    log_format: LogFormat = "text"

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: a size below 1, a time that is not positive and finite, a port that is none,
                a delay that uses up the time for an answer, a key that
                no header can have.
        """
        self._check_sizes()
        self._check_times()
        if not 0 <= self.port <= 65535:
            raise UsageError(f"a port is 0 to 65535, not {self.port}")
        if self.api_key is not None and not _WORD.fullmatch(self.api_key):
            raise UsageError(
                "an API key is one word of ASCII letters, digits and signs, with no spaces in it"
            )

    def _check_sizes(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise UsageError(f"{_flag(name)} is at least 1, not {getattr(self, name)}")
        if self.max_body is not None and not 1 <= self.max_body <= self.max_buffered:
            raise UsageError(
                f"{_flag('max_body')} is 1 to {self.max_buffered} ({_flag('max_buffered')}), not "
                f"{self.max_body}"
            )

    def _check_times(self) -> None:
        for name in ("warm_up", "decode_threads", "max_delay", "inline_below"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{_flag(name)} is not negative, not {getattr(self, name)}")
        times = [f.name for f in fields(self) if f.name.endswith("timeout")] + ["grace", "stall"]
        for name in times:
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{_flag(name)} is positive and finite, not {getattr(self, name)}")
        if self.max_delay >= self.timeout:
            raise UsageError(
                f"--max-delay is less than --timeout ({self.timeout}), not {self.max_delay}: an "
                "image that waits so long is not answered"
            )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
