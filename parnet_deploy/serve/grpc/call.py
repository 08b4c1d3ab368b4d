"""One call: what it says of itself, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc

from parnet_deploy.serve.transport.asked import Asked


class Call(Asked):
    """One call and its answer.

    Attributes:
        method: what is asked for, such as ``ModelInfer``.
        authorization: what proves who asks; empty where it does not say.
        has_several_keys: whether it says more than once who asks.
        code: how it ended; None while it has not.
    """

    __slots__ = ("_peer", "authorization", "code", "has_several_keys", "method")

    def __init__(self, method: str, metadata: Iterable[tuple[str, str | bytes]], peer: str) -> None:
        """Look at a call's metadata, once; of a name that stands twice the last one counts."""
        pairs = [(name, value) for name, value in metadata if isinstance(value, str)]
        said = dict(pairs)
        super().__init__(said.get("x-request-id", ""))
        self.method = method
        self.authorization = said.get("authorization", "")
        self.has_several_keys = sum(name == "authorization" for name, _ in pairs) > 1
        self.code: grpc.StatusCode | None = None
        self._peer = peer

    def facts(self) -> dict[str, Any]:
        """What a log says of it: times in milliseconds, sizes in bytes."""
        return self.line(method="gRPC", path=self.method, status=self.outcome, client=self._peer)

    @property
    def outcome(self) -> str:
        """The name of its status; a client that has gone leaves none."""
        return "CANCELLED" if self.code is None else str(self.code.name)
