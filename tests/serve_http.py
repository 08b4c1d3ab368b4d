"""What tests of HTTP share: a double of the data plane, requests without and with a socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import RequestError
from parnet_deploy.runtime.outputs import Guess
from parnet_deploy.runtime.timeline import Span
from parnet_deploy.serve.classify import Classification
from parnet_deploy.serve.http.app import Application, create_app
from parnet_deploy.serve.http.server import Server, configure
from parnet_deploy.serve.http.sockets.listening import Listener, bind
from parnet_deploy.serve.plane import Lone
from parnet_deploy.serve.protocol.metadata import (
    ModelMetadata,
    ServerMetadata,
    model_metadata,
    server_metadata,
)
from parnet_deploy.serve.protocol.response import EncodedResponse
from parnet_deploy.serve.recording import Recorder, Timing
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.signature import Signature
from parnet_deploy.serve.transport.budget import Budget
from parnet_deploy.serve.transport.traffic import Traffic
from parnet_deploy.spec import Preprocessing, TensorSpec

SIGNATURE = Signature(
    name="tiny",
    inputs=(TensorSpec(name="images_nchw", shape=("N", 3, 64, 64), dtype="float32"),),
    outputs=(TensorSpec(name="logits", shape=("N", 3), dtype="float32"),),
    batch=BatchRange(min=1, opt=1, max=2),
    labels=("ant", "bee", "cat"),
    preprocessing=Preprocessing(size=(64, 64)),
    softmax=False,
    backend="onnxruntime",
    precision="fp32",
)
TIMING = Timing(prepare=0.001, queue=0.002, infer=0.003, total=0.007)
SPAN = Span(stage="stream1", device="cpu", start=0.0, end=0.002)
INFER = "/v2/models/tiny/infer"
LIVE = "/v2/health/live"


async def at_once() -> None:
    """Work that is done already."""


class Plane:
    """A data plane that echoes bodies.

    Attributes:
        refusal: of all work, before its body is read.
        work: awaited by every request; it may wait, or raise.
        asked: what it was asked, in order.
        cancelled: how many requests were cancelled while they were worked on.
        now: called by every inference that is answered within a call; it may raise. None: none is.
        answered_at_once: how many were.
    """

    def __init__(self) -> None:
        self.live = True
        self.ready = True
        self.message = ""
        self.refusal: RequestError | None = None
        self.work: Callable[[], Awaitable[None]] = at_once
        self.asked: list[Any] = []
        self.cancelled = 0
        self.begun = threading.Event()
        self.now: Callable[[], object] | None = None
        self.answered_at_once = 0

    def check(self, name: str | None, version: str | None) -> None:
        if name is not None:
            self._check(name, version)
        if self.refusal is not None:
            raise self.refusal

    async def infer(
        self,
        name: str,
        version: str | None,
        body: bytes,
        header_length: int | None,
        *,
        lone: Lone,
    ) -> tuple[EncodedResponse, Timing]:
        self._check(name, version)
        self.asked.append((name, version, body, header_length))
        await self._do()
        return echo(body, header_length), TIMING

    def takes_at_once(self, size: int, header_length: int | None) -> bool:
        return self.now is not None

    def infer_at_once(
        self, name: str, version: str | None, body: bytes, header_length: int | None
    ) -> tuple[EncodedResponse, Timing] | None:
        if self.now is None:
            return None
        self.now()
        self.answered_at_once += 1
        return echo(body, header_length), TIMING

    async def classify(self, body: bytes, *, top: int, trace: bool, lone: Lone) -> Classification:
        self.asked.append((body, top, trace))
        await self._do()
        guesses = tuple(
            Guess(label=label, index=index, probability=1 / 3)
            for index, label in enumerate(SIGNATURE.labels[:top])
        )
        return Classification(guesses=guesses, timing=TIMING, spans=(SPAN,) * trace)

    def model_ready(self, name: str, version: str | None = None) -> bool:
        self._check(name, version)
        return self.ready

    def server_metadata(self) -> ServerMetadata:
        return server_metadata()

    def model_metadata(self, name: str, version: str | None = None) -> ModelMetadata:
        self._check(name, version)
        return model_metadata(SIGNATURE)

    def model_config(self, name: str, version: str | None = None) -> dict[str, Any]:
        self._check(name, version)
        return {"name": name}

    def statistics(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        if name is not None:
            self._check(name, version)
        return {"model_stats": [{"name": "tiny"}]}

    async def _do(self) -> None:
        self.begun.set()
        try:
            await self.work()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def _check(self, name: str, version: str | None) -> None:
        if name != "tiny" or version not in (None, "1"):
            raise RequestError(404, f"there is no model '{name}' here")


def echo(body: bytes, header_length: int | None) -> EncodedResponse:
    """What comes back of a body."""
    if header_length is None:
        return EncodedResponse(
            body=b'{"ok":true}', header_length=None, content_type="application/json"
        )
    return EncodedResponse(
        body=body, header_length=header_length, content_type="application/octet-stream"
    )


def app_of(
    plane: Plane,
    traffic: Traffic | None = None,
    *,
    budget: Budget | None = None,
    calls: Traffic | None = None,
    **settings: Any,
) -> Application:
    recorder = Recorder(SIGNATURE)
    limits = ServeSettings(**settings)
    return create_app(plane, recorder, limits, traffic=traffic, budget=budget, calls=calls)


# --- without a socket ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Got:
    """An answer, header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of a refusal, which is the only thing in its body."""
        assert self.headers["content-type"] == "application/json"
        assert list(self.json) == ["error"]
        return str(self.json["error"])


def scope_of(method: str, path: str, fields: dict[str, str]) -> dict[str, Any]:
    """A request as ASGI has it; the path is percent-encoded, with its query."""
    raw, _, query = path.partition("?")
    return {
        "type": "http",
        "method": method,
        "path": unquote(raw),
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "headers": [(n.encode(), v.encode("latin-1")) for n, v in fields.items()],
        "client": ("127.0.0.1", 40000),
        "http_version": "1.1",
    }


async def asked(
    app: ASGIApp,
    method: str,
    path: str,
    body: bytes | Iterable[bytes] = b"",
    headers: dict[str, str] | None = None,
    *,
    announced: bool = True,
    leaves: bool = False,
) -> Got | None:
    """Ask an application, as a server would.

    Args:
        app: the application.
        method: such as GET.
        path: percent-encoded, with its query.
        body: at once, or in parts.
        headers: names in any case.
        announced: say with Content-Length how long a body that comes at once is.
        leaves: the client goes as soon as it has sent its body; else it waits.

    Returns:
        The answer, or None where there was none.
    """
    parts = [body] if isinstance(body, bytes) else list(body)
    fields = {name.lower(): value for name, value in (headers or {}).items()}
    if isinstance(body, bytes) and body and announced:
        fields.setdefault("content-length", str(len(body)))
    elif any(parts):
        fields.setdefault("transfer-encoding", "chunked")
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)}
        for number, part in enumerate(parts, start=1)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope_of(method, path, fields), receive, send)
    if not sent:
        return None
    start, *rest = sent
    found = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return Got(status=start["status"], headers=found, body=b"".join(part["body"] for part in rest))


def ask(app: ASGIApp, *arguments: Any, **options: Any) -> Got:
    """Ask an application that answers."""
    got = asyncio.run(asked(app, *arguments, **options))
    assert got is not None
    return got


# --- with one -----------------------------------------------------------------------------------


class Client(socket.socket):
    """A connection; what was read of it beyond an answer is `left`."""

    left = b""


@dataclass(kw_only=True)
class Running:
    """A server in a thread of this process."""

    listener: Listener
    traffic: Traffic
    server: Server
    loop: asyncio.AbstractEventLoop | None = None
    clients: list[Client] = field(default_factory=list)

    def connect(self) -> Client:
        client = Client(socket.AF_INET, socket.SOCK_STREAM)
        client.settimeout(20)
        client.connect(("127.0.0.1", self.listener.port))
        self.clients.append(client)
        return client

    def say(self, data: bytes) -> Client:
        client = self.connect()
        client.sendall(data)
        return client

    def ask(self, data: bytes) -> Got:
        """Send bytes on a connection of their own, and read one answer."""
        return read_answer(self.say(data))


@contextlib.contextmanager
def running(plane: Plane, **settings: Any) -> Iterator[Running]:
    """A server of the plane on a free port."""
    traffic = Traffic()
    config = configure(app_of(plane, traffic, **settings), ServeSettings(**settings), traffic)
    running = Running(listener=bind("127.0.0.1", 0), traffic=traffic, server=Server(config))
    running.listener.listen()
    traffic.tasks = running.server.server_state.tasks
    config.timeout_graceful_shutdown = 5
    started = threading.Event()

    async def main() -> None:
        running.loop = asyncio.get_running_loop()
        started.set()
        await running.server.serve(list(running.listener.sockets))

    def run() -> None:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(20)
    try:
        yield running
    finally:
        for client in running.clients:
            client.close()
        running.server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        running.listener.close()


def get(path: str, *headers: str) -> bytes:
    """A request without a body."""
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: x", *headers, "", "")).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request with one."""
    length = f"Content-Length: {len(body)}"
    lines = (f"POST {path} HTTP/1.1", "Host: x", length, *headers, "", "")
    return "\r\n".join(lines).encode() + body


def read_answer(client: Client) -> Got:
    """Read one answer, however it comes; a Content-Length says where it ends."""
    data = client.left
    while b"\r\n\r\n" not in data:
        data += _more(client, data)
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
    length = int(headers["content-length"])
    while len(body) < length:
        body += _more(client, body)
    client.left = body[length:]
    return Got(status=int(line.split()[1]), headers=headers, body=body[:length])


def is_closed(client: Client) -> bool:
    """Whether the server hangs up, without a word, before this client gives up."""
    try:
        return client.left == client.recv(1) == b""
    except ConnectionResetError:
        return True


def wait_until(condition: Callable[[], object]) -> None:
    """Until it is so, or the test has failed."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def _more(client: socket.socket, data: bytes) -> bytes:
    part = client.recv(65536)
    assert part, f"the connection was closed after {data!r}"
    return part
