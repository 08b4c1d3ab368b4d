"""Why a request has no answer: what its client is told, and what it is counted as."""

from __future__ import annotations

import enum

from parnet_deploy.errors import RequestError

RETRY_FULL = 1
"""Seconds after which a full queue is worth another try."""

RETRY_RESTART = 5
"""Seconds after which an engine that is being opened is."""


class Reason(enum.StrEnum):
    """What a request without an answer is counted as."""

    INVALID = "invalid"
    UNKNOWN_MODEL = "unknown model"
    QUEUE_FULL = "queue full"
    NOT_READY = "not ready"
    TIMEOUT = "timeout"
    ENGINE = "engine"
    NOT_FINITE = "not finite"
    STOPPED = "stopped"
    INTERNAL = "internal"


REJECTED = (Reason.INVALID, Reason.UNKNOWN_MODEL, Reason.QUEUE_FULL, Reason.NOT_READY)
"""Turned away before the engine was asked."""

FAILED = (Reason.TIMEOUT, Reason.ENGINE, Reason.NOT_FINITE, Reason.STOPPED, Reason.INTERNAL)
"""Taken in, and not answered."""


class CountedError(RequestError):
    """A `RequestError` that knows what it is counted as."""

    def __init__(
        self, reason: Reason, status: int, message: str, *, retry_after: int | None = None
    ) -> None:
        """Refuse with a status and a message for the client."""
        super().__init__(status, message, retry_after=retry_after)
        self.reason = reason

    def again(self) -> CountedError:
        """The same for another caller: an exception that is raised twice gathers tracebacks."""
        return CountedError(self.reason, self.status, str(self), retry_after=self.retry_after)


def invalid(message: str) -> CountedError:
    """What the client sent cannot be run."""
    return CountedError(Reason.INVALID, 400, message)


def unknown_model(name: str, version: str | None, known: str) -> CountedError:
    """No model has that name and version."""
    asked = f"'{name}'" if version is None else f"'{name}', version '{version}'"
    return CountedError(
        Reason.UNKNOWN_MODEL, 404, f"there is no model {asked} here; '{known}', version '1', is"
    )


def queue_full(limit: int) -> CountedError:
    """As many requests wait as may."""
    return CountedError(
        Reason.QUEUE_FULL,
        503,
        f"{limit} requests wait already, which is the limit; try again later",
        retry_after=RETRY_FULL,
    )


def not_ready(message: str) -> CountedError:
    """Nothing new is taken in."""
    return CountedError(Reason.NOT_READY, 503, message, retry_after=RETRY_RESTART)


def timed_out() -> CountedError:
    """The deadline came before the answer."""
    return CountedError(Reason.TIMEOUT, 504, "the request was not answered in time")


def engine_failed() -> CountedError:
    """The engine failed while it ran this request."""
    return CountedError(Reason.ENGINE, 500, "the engine failed; it is being started again")


def engine_down() -> CountedError:
    """The engine failed while this request waited for it."""
    return CountedError(
        Reason.ENGINE,
        503,
        "the engine failed before this request was run; try again later",
        retry_after=RETRY_RESTART,
    )


def not_finite() -> CountedError:
    """The engine gave what is not a number."""
    return CountedError(Reason.NOT_FINITE, 500, "the engine gave values that are not finite")


def stopped() -> CountedError:
    """The server ended while this request waited."""
    return CountedError(
        Reason.STOPPED,
        503,
        "the server stopped before this request was run; try again later",
        retry_after=RETRY_RESTART,
    )


def internal() -> CountedError:
    """A fault of the server's own."""
    return CountedError(
        Reason.INTERNAL, 500, "the server failed to answer this request; its log says why"
    )
