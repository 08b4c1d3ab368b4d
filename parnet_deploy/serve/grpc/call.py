"""One call: what it says of itself, and what came of it."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Iterable
from typing import Any

import grpc

from parnet_deploy.serve.recording import Timing

_SANE_ID = re.compile(r"[A-Za-z0-9._:+/=@-]{1,128}")

_process = secrets.token_hex(4)
_numbers = itertools.count(1)


class Call:
    """One call and its answer.

    Attributes:
        id: the client's ``x-request-id`` where it is one, or one of our own.
        method: what is asked for, such as ``ModelInfer``.
        authorization: what proves who asks; empty where it does not say.
        received: bytes of the message that was read.
        sent: bytes of the answer's message.
        code: how it ended; None while it has not.
        timing: what the model's part took, where it had one.
    """

    __slots__ = (
        "_began",
        "_peer",
        "authorization",
        "code",
        "id",
        "method",
        "received",
        "sent",
        "timing",
    )

    def __init__(self, method: str, metadata: Iterable[tuple[str, str | bytes]], peer: str) -> None:
        """Look at a call's metadata, once; of a name that stands twice the last one counts."""
        said = {name: value for name, value in metadata if isinstance(value, str)}
        given = said.get("x-request-id", "")
        own = f"{_process}-g{next(_numbers):x}"
        self.id = given if _SANE_ID.fullmatch(given) else own
        self.method = method
        self.authorization = said.get("authorization", "")
        self.received = 0
        self.sent = 0
        self.code: grpc.StatusCode | None = None
        self.timing: Timing | None = None
        self._began = time.perf_counter()
        self._peer = peer

    def facts(self) -> dict[str, Any]:
        """What a log says of it: times in milliseconds, sizes in bytes."""
        facts: dict[str, Any] = {
            "event": "request",
            "id": self.id,
            "method": "gRPC",
            "path": self.method,
            "status": self.outcome,
            "received": self.received,
            "sent": self.sent,
            "ms": _milliseconds(time.perf_counter() - self._began),
        }
        if (timing := self.timing) is not None:
            facts["prepare_ms"] = _milliseconds(timing.prepare)
            facts["queue_ms"] = _milliseconds(timing.queue)
            facts["infer_ms"] = _milliseconds(timing.infer)
        facts["client"] = self._peer
        return facts

    @property
    def outcome(self) -> str:
        """The name of its status; a client that has gone leaves none."""
        return "CANCELLED" if self.code is None else str(self.code.name)


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)
