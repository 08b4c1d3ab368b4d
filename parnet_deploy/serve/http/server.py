"""A server's life: listen, start the engine, answer, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import resource
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from parnet_deploy.serve.engine.model import ServedModel
from parnet_deploy.serve.http.app import create_app
from parnet_deploy.serve.http.connection import Connection, Limits
from parnet_deploy.serve.http.listening import Listener
from parnet_deploy.serve.http.memory import keep_memory
from parnet_deploy.serve.plane import DataPlane
from parnet_deploy.serve.recording import Recorder
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.signature import Signature
from parnet_deploy.serve.transport.logs import log_facts, logging_to
from parnet_deploy.serve.transport.traffic import Traffic

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_OTHER_FILES = 192
"""Files that are open beside the connections: the engine's, the listeners, those turned away."""

_CLOSING = 15.0
"""Seconds for the engine to be closed."""

UNANSWERED = 1
"""Exit status where the grace period was over before everything was answered."""


def serve(
    plane: DataPlane,
    model: ServedModel,
    recorder: Recorder,
    settings: ServeSettings,
    listener: Listener,
    *,
    engine: str,
    warnings: Sequence[str] = (),
    beside: Callable[[], Awaitable[Front]] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, which mean the same: answer what is in flight, and end.

    Liveness is answered from the beginning, work once the engine is ready. A second signal ends
    the process at once.

    Args:
        plane: what answers.
        model: what it answers with; not started yet.
        recorder: the plane's own.
        settings: limits.
        listener: where; closed at the end.
        engine: what is served, for the log.
        warnings: what has to be known of it, for the log, too.
        beside: starts another transport on the same event loop; it lives as long as this one.

    Returns:
        The exit status: 0, or `UNANSWERED`.

    Raises:
        ParnetDeployError: the engine, or the other transport, cannot be started.
    """
    keep_memory()
    traffic = Traffic()
    config = configure(create_app(plane, recorder, settings, traffic=traffic), settings, traffic)
    life = _Life(
        server=Server(config),
        model=model,
        signature=recorder.signature,
        settings=settings,
        listener=listener,
        traffic=traffic,
        engine=engine,
        beside=beside,
    )
    with logging_to(None, settings.log_format) as log:
        for warning in warnings:
            _log.warning(warning)
        _allow_connections(settings.max_connections)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            status = runner.run(life.run())
    if log.is_stuck or life.is_stuck:
        os._exit(status)  # an engine that does not end, or a log that nobody reads, ends with us
    return status


def configure(app: ASGIApp, settings: ServeSettings, traffic: Traffic) -> uvicorn.Config:
    """How uvicorn runs the application: on uvloop, with httptools, and connections of our own."""
    limits = Limits(
        connections=settings.max_connections,
        header=settings.max_header,
        header_timeout=settings.header_timeout,
        idle_timeout=settings.idle_timeout,
        write_timeout=settings.body_timeout,
    )
    connection: Any = partial(Connection, limits=limits, traffic=traffic)
    return uvicorn.Config(
        app,
        http=connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )


class Server(uvicorn.Server):
    """uvicorn's server, which leaves signals alone: it would raise them again at the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class Front(Protocol):
    """Another transport, which answers from the same data plane.

    Attributes:
        port: where it listens.
    """

    port: int

    async def stop(self, grace: float) -> bool:
        """Answer what is in flight for so many seconds, and end. Whether all was answered."""
        ...


@dataclass(kw_only=True, slots=True)
class _Life:
    """From the first connection to the last."""

    server: Server
    model: ServedModel
    signature: Signature
    settings: ServeSettings
    listener: Listener
    traffic: Traffic
    engine: str
    beside: Callable[[], Awaitable[Front]] | None
    front: Front | None = None
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def is_stuck(self) -> bool:
        """Whether the engine is still being started or closed."""
        return any(thread.is_alive() for thread in self.threads)

    async def run(self) -> int:
        """See `serve`."""
        stop = asyncio.Event()
        with _noted_signals(stop):
            self.front = await self.beside() if self.beside else None
            serving = asyncio.create_task(self.server.serve(list(self.listener.sockets)))
            try:
                started = await self._start(stop, serving)
                if started and not stop.is_set():
                    self._tell()
                    await _first(stop, serving)
                all_answered = await self._drain()
            finally:
                self.server.should_exit = True
                await self._stop_front(0.0)
                await serving
            if started:
                await asyncio.wait({self._aside(self.model.close)}, timeout=_CLOSING)
        return 0 if all_answered else UNANSWERED

    async def _start(self, stop: asyncio.Event, serving: asyncio.Task[None]) -> bool:
        """Whether the engine was started before the server was told to stop."""
        url = self.listener.url
        _log.info("listening at %s, and starting %s", url, self.engine)
        if self.settings.api_key is None and not self.listener.is_local:
            _log.warning(
                "whoever reaches port %d of this machine may use this server; give "
                "--api-key-file, or --host 127.0.0.1",
                self.listener.port,
            )
        starting = self._aside(self.model.start)
        await _first(stop, starting, serving)
        if not starting.done():
            return False
        starting.result()
        return True

    def _tell(self) -> None:
        """Say where to send images."""
        gc.collect()
        gc.freeze()  # what is here by now stays: it need not be looked through again
        signature, url = self.signature, self.listener.url
        keyed = self.settings.api_key is not None
        key = '-H "Authorization: Bearer $PARNET_DEPLOY_API_KEY" ' * keyed
        facts: dict[str, object] = {
            "event": "ready",
            "url": url,
            "model": signature.name,
            "backend": signature.backend,
            "precision": signature.precision,
        }
        also = ""
        if self.front is not None:
            facts["grpc_port"] = self.front.port
            also = f", gRPC on port {self.front.port}"
        message = (
            f"ready: {self.engine} ({signature.backend}, {signature.precision}) at {url}{also}; "
            f"curl {key}--data-binary @cat.jpg {url}/classify"
        )
        log_facts(_log, message, lambda: facts)

    async def _drain(self) -> bool:
        """Whether everything was answered within the grace period."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.settings.grace
        _log.info("stopping: %d requests are in flight", self.traffic.active)
        self.traffic.drain()
        self.model.drain()
        answered = await asyncio.gather(self._finish(end), self._stop_front(self.settings.grace))
        self.server.config.timeout_graceful_shutdown = max(1, math.ceil(end - loop.time()))
        return all(answered)

    async def _finish(self, end: float) -> bool:
        """Whether HTTP has answered everything when this time of the loop comes."""
        try:
            async with asyncio.timeout_at(end):
                await self.model.drained()
                await self.traffic.quiet()
        except TimeoutError:
            _log.error("%d requests were not answered in time", self.traffic.active)
            return False
        return True

    async def _stop_front(self, grace: float) -> bool:
        """Whether the other transport, if there is one, has answered everything."""
        front, self.front = self.front, None
        return front is None or await front.stop(grace)

    def _aside(self, work: Callable[[], None]) -> asyncio.Future[None]:
        """Work on a thread that does not keep the process from ending."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def settle(error: Exception | None) -> None:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)

        def do() -> None:
            error = None
            try:
                work()
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is the caller's
                error = exc
            with contextlib.suppress(RuntimeError):  # the loop has ended without us
                loop.call_soon_threadsafe(settle, error)

        thread = threading.Thread(target=do, name="engine", daemon=True)
        self.threads.append(thread)
        thread.start()
        return future


async def _first(stop: asyncio.Event, *others: asyncio.Future[None]) -> None:
    """Wait for the first of these."""
    stopping = asyncio.create_task(stop.wait())
    events: set[asyncio.Future[Any]] = {stopping, *others}
    try:
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()


@contextlib.contextmanager
def _noted_signals(stop: asyncio.Event) -> Iterator[None]:
    """Inside the block the first signal sets `stop`, and the second one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def note(signum: int, frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        loop.call_soon_threadsafe(stop.set)

    before = {
        number: handler
        for number in _SIGNALS
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN  # as nohup has it
    }
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _allow_connections(connections: int) -> None:
    """Let this process have as many files open as it is to have connections, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < needed:
            _log.warning(
                "this process may have %d files open, and %d connections need %d; raise "
                "'ulimit -n' or lower --max-connections",
                allowed,
                connections,
                needed,
            )
