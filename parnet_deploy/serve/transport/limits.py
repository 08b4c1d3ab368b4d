"""The largest body that a server takes, and refusals that HTTP and gRPC have in the same words."""

from __future__ import annotations

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.signature import Signature

_PER_NUMBER = 24
"""Bytes that a number takes in JSON at most: ``-1.2345678901234567e-100``, and a comma."""

_ROOM = 65_536
"""Bytes for names and shapes."""

_PHOTOGRAPH = 16 * 1024 * 1024


def body_limit(signature: Signature, settings: ServeSettings) -> int:
    """The largest body in bytes: what was set, or what the largest batch needs as JSON.

    Where that is less, a photograph of 16 MiB; never more than may be in memory at once.
    """
    if settings.max_body is not None:
        return settings.max_body
    numbers = 0
    for spec in signature.inputs:
        items = 1
        for size in spec.concrete(signature.batch.max):
            items *= size
        numbers += items
    return min(max(numbers * _PER_NUMBER + _ROOM, _PHOTOGRAPH), settings.max_buffered)


def too_large(limit: int) -> RequestError:
    """The refusal of a body beyond the limit."""
    return RequestError(413, f"the body has more than {limit} bytes, which is the limit here")


def stopping() -> RequestError:
    """The refusal of what comes when the server is about to end."""
    return RequestError(503, "the server is shutting down", retry_after=1)
