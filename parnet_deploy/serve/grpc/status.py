"""Refusals as statuses of gRPC."""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from parnet_deploy.errors import RequestError

CODES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""By the status that HTTP has for the same."""

PUSHBACK = "grpc-retry-pushback-ms"
"""What tells a client that retries by itself how long to wait (gRFC A6)."""


def code_of(error: RequestError) -> grpc.StatusCode:
    """The status of a refusal."""
    return CODES.get(error.status, grpc.StatusCode.INTERNAL)


def retry_of(error: RequestError) -> tuple[tuple[str, str], ...]:
    """Metadata that tells when to try again; none where that is not known."""
    if error.retry_after is None:
        return ()
    return ((PUSHBACK, str(1000 * error.retry_after)),)
