"""What there is to say of every request, whatever brought it: its id, its sizes, its times."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from typing import Any

from parnet_deploy.serve.recording import Timing

_SANE_ID = re.compile(r"[A-Za-z0-9._:+/=@-]{1,128}")

_process = secrets.token_hex(4)
_numbers = itertools.count(1)


class Asked:
    """One request and its answer.

    Attributes:
        id: the client's ``x-request-id`` where it is one, or one of our own.
        began: when its header was complete, by `time.perf_counter`.
        received: bytes of it that were read, without its header.
        sent: bytes of its answer, without the header.
        timing: what the model's part took, where it had one.
    """

    __slots__ = ("began", "id", "received", "sent", "timing")

    def __init__(self, given_id: str) -> None:
        """Begin; `given_id` is the client's, or empty."""
        sane = _SANE_ID.fullmatch(given_id) is not None
        self.id = given_id if sane else f"{_process}-{next(_numbers):x}"
        self.began = time.perf_counter()
        self.received = 0
        self.sent = 0
        self.timing: Timing | None = None

    def line(self, *, method: str, path: str, status: int | str, client: str) -> dict[str, Any]:
        """What a log says of it: times in milliseconds, sizes in bytes."""
        facts: dict[str, Any] = {
            "event": "request",
            "id": self.id,
            "method": method,
            "path": path,
            "status": status,
            "received": self.received,
            "sent": self.sent,
            "ms": _milliseconds(time.perf_counter() - self.began),
        }
        if (timing := self.timing) is not None:
            facts["prepare_ms"] = _milliseconds(timing.prepare)
            facts["queue_ms"] = _milliseconds(timing.queue)
            facts["infer_ms"] = _milliseconds(timing.infer)
        facts["client"] = client
        return facts


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)
