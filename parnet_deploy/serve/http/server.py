"""A server's life: listen, start the engine, answer, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, Protocol, TypeVar

import uvicorn

from parnet_deploy.serve.engine.model import ServedModel
from parnet_deploy.serve.http.app import Application, create_app
from parnet_deploy.serve.http.memory import gather_memory, keep_memory
from parnet_deploy.serve.http.sockets.connection import Limits
from parnet_deploy.serve.http.sockets.express_connection import ExpressConnection
from parnet_deploy.serve.http.sockets.hearing_out import Server
from parnet_deploy.serve.http.sockets.listening import Listener
from parnet_deploy.serve.http.sockets.reading import PARSED, Reading
from parnet_deploy.serve.http.watchdog import watching
from parnet_deploy.serve.plane import DataPlane
from parnet_deploy.serve.recording import Recorder
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.signature import Signature
from parnet_deploy.serve.transport.budget import Budget
from parnet_deploy.serve.transport.logs import Log, log_facts, logging_to
from parnet_deploy.serve.transport.traffic import Traffic

Made = TypeVar("Made")

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_OTHER_FILES = 192
"""Files that are open beside the connections: the engine's, the listeners, those turned away."""

_CLOSING = 1.0
"""Seconds of the grace period that are kept for closing connections and the engine."""

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
    budget: Budget | None = None,
    calls: Traffic | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, which mean the same: answer what is in flight, and end.

    Liveness is answered from the beginning, work once the engine is ready. A second signal ends
    the process at once.

    Args:
        plane: what answers.
        model: what it answers with; not started yet.
        recorder: the plane's own.
        settings: limits.
        listener: where; it listens once the event loop runs, and is closed at the end.
        engine: what is served, for the log.
        warnings: what has to be known of it, for the log, too.
        beside: starts another transport on the same event loop; it lives as long as this one.
        budget: of bodies, shared with that one.
        calls: its traffic, for the metrics.

    Returns:
        The exit status: 0, or `UNANSWERED`.

    Raises:
        ParnetDeployError: the engine, or the other transport, cannot be started.
    """
    keep_memory()
    traffic = Traffic()
    app = create_app(plane, recorder, settings, traffic=traffic, budget=budget, calls=calls)
    config = configure(app, settings, traffic)
    server = Server(config)
    traffic.tasks = server.server_state.tasks
    life = _Life(
        server=server,
        model=model,
        signature=recorder.signature,
        settings=settings,
        listener=listener,
        traffic=traffic,
        engine=engine,
        beside=beside,
    )
    with logging_to(None, settings.log_format) as log:
        life.log = log
        for warning in warnings:
            _log.warning(warning)
        _allow_connections(settings.max_connections)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            status = runner.run(life.run())
    if log.is_stuck or life.is_stuck:
        os._exit(status)  # a run that does not end, or a log that nobody reads, ends with us
    return status


def configure(app: Application, settings: ServeSettings, traffic: Traffic) -> uvicorn.Config:
    """How uvicorn runs the application: on uvloop, with httptools, and connections of our own.

    The connections are for one event loop.
    """
    limits = Limits(
        connections=settings.max_connections,
        header=settings.max_header,
        header_timeout=settings.header_timeout,
        idle_timeout=settings.idle_timeout,
        write_timeout=settings.body_timeout,
    )
    room = memoryview(bytearray(PARSED))

    def connection(*args: Any, **kwargs: Any) -> Reading:
        made = ExpressConnection(
            *args, **kwargs, limits=limits, traffic=traffic, express=app.express
        )
        return Reading(made, room)

    return uvicorn.Config(
        app,
        http=connection,  # type: ignore[arg-type]  # makes one
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )


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
    log: Log | None = None
    has_closed: bool = True
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def is_stuck(self) -> bool:
        """Whether something of the engine is still at work: a start, a run, an end."""
        return not self.has_closed or any(thread.is_alive() for thread in self.threads)

    async def run(self) -> int:
        """See `serve`."""
        stop = asyncio.Event()
        overseen = watching(self.model.holding_for, self.settings.stall, flush=self._flush)
        with _noted_signals(stop, self._flush), overseen:
            self.front = await self.beside() if self.beside else None
            self.listener.listen()
            serving = asyncio.create_task(self.server.serve(list(self.listener.sockets)))
            try:
                started = await self._start(stop, serving)
                if started and not stop.is_set():
                    self._tell()
                    await _first(stop, serving)
                end = asyncio.get_running_loop().time() + self.settings.grace
                all_answered = await self._drain(end)
            finally:
                self.server.should_exit = True
                await self._stop_front(0.0)
                await serving
            if started:
                await self._close(end)
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
        gather_memory()
        signature, url = self.signature, self.listener.url
        keyed = self.settings.api_key is not None
        key = '-H "Authorization: Bearer KEY" ' * keyed
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

    async def _drain(self, end: float) -> bool:
        """Whether everything is answered when the grace period ends, at this time of the loop.

        A little of it is left by then: what is not answered is told so, and the engine is closed.
        """
        loop = asyncio.get_running_loop()
        end -= min(_CLOSING, self.settings.grace / 4)
        _log.info("stopping: %d requests are in flight", self.traffic.active)
        self.traffic.drain()
        self.model.drain()
        answered = await asyncio.gather(self._finish(end), self._stop_front(end - loop.time()))
        left: Any = max(0.0, end - loop.time())  # which uvicorn gives to asyncio.wait_for
        self.server.config.timeout_graceful_shutdown = left
        return all(answered)

    async def _close(self, end: float) -> None:
        """Close the engine by this time of the loop, or leave it to the end of the process."""
        closing = self._aside(self.model.close)
        await asyncio.wait({closing}, timeout=max(0.0, end - asyncio.get_running_loop().time()))
        try:
            self.has_closed = closing.done() and closing.result()
        except Exception:  # noqa: BLE001 - whatever it is, the process ends all the same
            self.has_closed = False
            _log.exception("the engine could not be closed")
            return
        if not self.has_closed:
            _log.error("the engine is still at work, and ends with this process")

    def _flush(self) -> None:
        """Have what was logged written."""
        if self.log is not None:
            self.log.flush()

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

    def _aside(self, work: Callable[[], Made]) -> asyncio.Future[Made]:
        """Work on a thread that does not keep the process from ending."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Made] = loop.create_future()

        def do() -> None:
            settle: Callable[[], None]
            try:
                settle = partial(future.set_result, work())
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is the caller's
                settle = partial(future.set_exception, exc)
            with contextlib.suppress(RuntimeError):  # the loop has ended without us
                loop.call_soon_threadsafe(settle)

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
def _noted_signals(stop: asyncio.Event, flush: Callable[[], None]) -> Iterator[None]:
    """Inside the block the first signal sets `stop`, and the second one ends the process.

    It ends by itself, as if the signal had: the system lets no signal kill the first process of a
    container.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def end(signum: int, frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        flush()
        os._exit(128 + signum)

    def note(signum: int, frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, end)
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
