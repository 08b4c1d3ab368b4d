"""What is asked of every request before it is answered, and what is said of it afterwards."""

from __future__ import annotations

import logging
import re

from starlette.types import Scope

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.http.exchange import Exchange
from parnet_deploy.serve.http.refusal import NOTHING_HERE
from parnet_deploy.serve.transport.key import check_key
from parnet_deploy.serve.transport.limits import too_large
from parnet_deploy.serve.transport.logs import log_facts
from parnet_deploy.serve.transport.traffic import Traffic

_log = logging.getLogger(__name__)

OPEN = frozenset(("/", "/v2/health/live", "/v2/health/ready"))
"""Paths that need no key: orchestrators have none, and the page asks its user for one."""

_STRANGE = re.compile(rb"%(?:[01][0-9a-f]|2[5f]|5c|7f|(?![0-9a-f]{2}))", re.IGNORECASE)
"""What hides a slash, a percent sign or a control character, or is no encoding at all."""


class Gate:
    """Where every request comes in and goes out, whatever answers it.

    Attributes:
        traffic: told of every request.
    """

    def __init__(self, *, traffic: Traffic, limit: int, api_key: str | None) -> None:
        """Nothing has come.

        Args:
            traffic: told of every request.
            limit: the largest body in bytes.
            api_key: what clients have to send, or None.
        """
        self.traffic = traffic
        self._limit = limit
        self._key = None if api_key is None else api_key.encode()

    def check(self, exchange: Exchange, scope: Scope) -> None:
        """Refuse what no route needs to see.

        Raises:
            RequestError: a path that is written strangely (404), a field that came twice (400), the
                wrong key (401), a body that is announced to be too large (413).
        """
        raw = scope.get("raw_path") or b""
        if b"%" in raw and (_STRANGE.search(raw) or "\ufffd" in scope["path"]):
            raise RequestError(404, NOTHING_HERE)
        if scope["path"] not in OPEN:
            if (name := exchange.repeated) is not None:
                raise RequestError(400, f"the header has more than one '{name}'")
            if self._key is not None:
                check_key(exchange.authorization, self._key, "'Authorization: Bearer KEY'")
        if exchange.content_length > self._limit:
            raise too_large(self._limit)

    def end(self, exchange: Exchange) -> None:
        """Count a request that has its answer, or nobody left to be answered, and log it."""
        self.traffic.answers[exchange.status] += 1
        message = f"{exchange.method} {exchange.path} {exchange.status}"
        log_facts(_log, message, exchange.facts)
