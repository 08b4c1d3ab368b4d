"""A server's gRPC front: listening, and the end."""

from __future__ import annotations

import asyncio

import grpc

from parnet_deploy.errors import ServingError
from parnet_deploy.serve.grpc.guard import Guard
from parnet_deploy.serve.grpc.methods import service
from parnet_deploy.serve.plane import DataPlane
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.transport.budget import Budget
from parnet_deploy.serve.transport.limits import body_limit
from parnet_deploy.serve.transport.traffic import Traffic

_FAREWELL = 0.25
"""Seconds for clients to close their connections, once all is answered."""


class Front:
    """A server that listens.

    Attributes:
        port: where, also if any was asked for.
    """

    def __init__(self, server: grpc.aio.Server, guard: Guard, port: int) -> None:
        """Made by `start`."""
        self.port = port
        self._server = server
        self._guard = guard
        self._stopping = asyncio.Lock()

    async def stop(self, grace: float) -> bool:
        """Take nothing new, answer what is in flight, and end.

        It may be called again, also while it is under way: the shorter grace period counts.

        Args:
            grace: seconds for that; afterwards the rest is cancelled.

        Returns:
            Whether everything was answered.
        """
        traffic = self._guard.traffic
        traffic.drain()
        try:
            async with asyncio.timeout(grace):
                await traffic.quiet()
            answered = True
        except TimeoutError:
            answered = False
        # Only now: the library would wait for connections, too, and some never say anything. And
        # one at a time: two of its own stops free the same memory.
        async with self._stopping:
            await self._server.stop(_FAREWELL if answered else None)
        return answered


async def start(
    plane: DataPlane,
    settings: ServeSettings,
    port: int,
    *,
    budget: Budget | None = None,
    traffic: Traffic | None = None,
) -> Front:
    """Listen for gRPC beside HTTP, on the running event loop.

    Args:
        plane: what answers; it need not be ready.
        settings: the host, limits and the API key.
        port: 0 for any that is free.
        budget: of messages, shared with other transports; None: there are none.
        traffic: told of every call; None: nobody asks.

    Raises:
        ServingError: it cannot listen there.
    """
    limit = body_limit(plane.signature, settings)
    guard = Guard(settings, limit, budget or Budget(settings.max_buffered), traffic or Traffic())
    server = grpc.aio.server(options=_options(settings, limit))
    server.add_generic_rpc_handlers((service(plane, guard, limit),))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as exc:
        raise ServingError(
            f"cannot listen for gRPC on port {port} of {settings.host}: it is in use, or not for "
            "this user; choose another with --grpc-port (0: any that is free)"
        ) from exc
    await server.start()
    return Front(server, guard, port)


def _options(settings: ServeSettings, limit: int) -> list[tuple[str, int]]:
    """The library's own limits; times are in milliseconds."""
    return [
        ("grpc.so_reuseport", 0),  # else a second server may listen on the same port
        ("grpc.max_receive_message_length", limit),  # once decompressed, too
        ("grpc.max_metadata_size", settings.max_header),
        ("grpc.absolute_max_metadata_size", settings.max_header),
        ("grpc.max_concurrent_streams", settings.max_connections),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server_handshake_timeout_ms", round(1000 * settings.header_timeout)),
        ("grpc.max_connection_idle_ms", round(1000 * settings.idle_timeout)),
    ]
