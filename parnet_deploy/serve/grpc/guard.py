"""What stands around every method: key, limits, deadlines, errors as statuses, the log's line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.engine.unanswered import internal
from parnet_deploy.serve.grpc.call import Call
from parnet_deploy.serve.grpc.status import code_of, retry_of
from parnet_deploy.serve.grpc.wire import NO_MESSAGE
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.transport.budget import Budget, Hold
from parnet_deploy.serve.transport.key import check_key
from parnet_deploy.serve.transport.limits import stopping
from parnet_deploy.serve.transport.logs import REQUEST_ID, log_facts
from parnet_deploy.serve.transport.traffic import Traffic

_log = logging.getLogger(__name__)

QUESTION = 1 << 16
"""The largest message in bytes of a method that asks for no inference: names, mostly."""

_QUESTIONS = 32
"""Questions that may be received at once, at least."""

_PATIENCE = 1.0
"""Seconds that a call waits for others to be received."""

_LARGE = 1 << 22
"""Bytes of a message from which on it is parsed on a thread: some milliseconds."""


def _pass() -> None:
    """Refuse nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A method of the service.

    Attributes:
        name: such as ``ModelInfer``.
        parse: makes a message of bytes; `DecodeError` or `RequestError` where they are none.
        largest: bytes that its messages may have.
        answer: answers a message; the answer is one, too, or already its bytes.
        check: raises `RequestError` where a call is refused whatever its message is.
        is_question: whether it asks for no inference.
        is_open: whether it needs no key, as orchestrators have none; nor is its message read, in
            which there is nothing, so that no other call can keep it waiting.
    """

    name: str
    parse: Callable[[bytes], Any]
    largest: int
    answer: Callable[[Any, Call], Awaitable[Any]]
    check: Callable[[], None] = _pass
    is_question: bool = False
    is_open: bool = False


class _Slots:
    """How many messages may be received at once, and for how many seconds each."""

    def __init__(self, count: int, seconds: float) -> None:
        self.free = asyncio.Semaphore(count)
        self.seconds = seconds


class Guard:
    """Stands around all methods.

    A call's message is read by us, though every method takes just one: so the key is checked before
    it is received, and it has a deadline.

    Attributes:
        traffic: the calls that are under way.
    """

    def __init__(
        self, settings: ServeSettings, limit: int, budget: Budget, traffic: Traffic
    ) -> None:
        """Let nobody have more than these settings say.

        Args:
            settings: the key, the deadlines, how many calls and bytes there may be at once.
            limit: the largest message in bytes.
            budget: of messages in memory.
            traffic: told of every call.
        """
        self.traffic = traffic
        self._key = None if settings.api_key is None else settings.api_key.encode()
        self._most = settings.max_connections
        self._budget = budget
        self._parsing = asyncio.Lock()
        # What is being received is not counted by byte, so that only so many may be as fit.
        most = max(1, settings.max_buffered // limit)
        self._receiving = _Slots(most, settings.body_timeout)
        # A question is a few names: it is here at once, or never, and keeps no other waiting.
        asking = min(settings.header_timeout, settings.body_timeout)
        self._asking = _Slots(max(most, _QUESTIONS), asking)

    def handler(self, method: Method) -> grpc.RpcMethodHandler:
        """What grpc calls for a method."""

        async def handle(_: object, context: grpc.aio.ServicerContext) -> bytes:
            return await self._handle(method, context)

        return grpc.stream_unary_rpc_method_handler(handle)

    async def _handle(self, method: Method, context: grpc.aio.ServicerContext) -> bytes:
        """Answer one call, whatever comes of it."""
        call = Call(method.name, context.invocation_metadata(), context.peer())
        REQUEST_ID.set(call.id)  # every call has a task, and with it a context, of its own
        self.traffic.active += 1
        context.add_done_callback(self._done)  # once its answer has been sent
        context.set_trailing_metadata((("x-request-id", call.id),))
        try:
            answer = await self._answer(method, call, context)
            if isinstance(answer, bytes):
                call.code, call.sent = grpc.StatusCode.OK, len(answer)
                return answer
            call.code = code_of(answer)
            metadata = (("x-request-id", call.id), *retry_of(answer))
            await context.abort(call.code, str(answer), metadata)
            return b""  # never: the line above raises
        finally:
            self.traffic.answers[call.outcome] += 1
            log_facts(_log, f"gRPC {method.name} {call.outcome}", call.facts)

    async def _answer(
        self, method: Method, call: Call, context: grpc.aio.ServicerContext
    ) -> bytes | RequestError:
        try:
            self._check(method, call)
            with self._budget.hold() as hold:
                request = await self._request(method, call, context, hold)
                answer = await method.answer(request, call)
        except RequestError as exc:
            return exc
        except grpc.aio.BaseError:
            raise  # the call has ended
        except Exception:  # noqa: BLE001  # whatever it is, the client hears that it is ours
            _log.exception("a call failed in a way that nobody foresaw")
            return internal()
        return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())

    def _check(self, method: Method, call: Call) -> None:
        """Refuse a call before its message is received.

        Raises:
            RequestError: two keys (400), the wrong one (401), or too many others (503); the server
                is about to stop (503); as the method's own check.
        """
        if method.is_open:
            return
        if call.has_several_keys:
            raise RequestError(400, "the metadata have more than one 'authorization'")
        if self._key is not None:
            given = call.authorization.encode("utf-8", "replace")
            check_key(given, self._key, "metadata, 'authorization: Bearer KEY'")
        if self.traffic.draining:
            raise stopping()
        if self.traffic.active > self._most:
            raise RequestError(
                503, f"{self._most} calls are under way, which is the limit", retry_after=1
            )
        method.check()

    async def _request(
        self, method: Method, call: Call, context: grpc.aio.ServicerContext, hold: Hold
    ) -> Any:
        """A call's message, parsed.

        Raises:
            RequestError: as `_receive`; it is not the method's (400) or too large for it (413), or
                too many bytes of others are in memory (503).
        """
        if method.is_open:
            return method.parse(b"")
        slots = self._asking if method.is_question else self._receiving
        data = await self._receive(context, slots)
        call.received = len(data)
        if len(data) > method.largest:
            raise RequestError(
                413, f"the message has more than {method.largest} bytes, which is the limit here"
            )
        hold.take(len(data))
        try:
            if len(data) <= _LARGE:
                return method.parse(data)
            async with self._parsing:  # one at a time: parsed, it may be several times as large
                return await asyncio.to_thread(method.parse, data)
        except DecodeError as exc:
            raise RequestError(400, NO_MESSAGE.format(method.name)) from exc

    async def _receive(self, context: grpc.aio.ServicerContext, slots: _Slots) -> bytes:
        """A call's message.

        Raises:
            RequestError: it has none (400), it does not come in time (408), as many others as may
                are being received, or the server is about to stop and does not wait for it (503).
        """
        try:
            async with asyncio.timeout(_PATIENCE) as deadline:
                with self.traffic.reading(deadline):
                    await slots.free.acquire()
        except TimeoutError as exc:
            raise stopping() if self.traffic.draining else _too_many() from exc
        try:
            async with asyncio.timeout(slots.seconds) as deadline:
                with self.traffic.reading(deadline):
                    data = await _read(context)
        except TimeoutError as exc:
            raise self._late(slots.seconds) from exc
        finally:
            slots.free.release()
        if data is grpc.aio.EOF:
            raise RequestError(400, "the call has no message")
        message: bytes = data
        return message

    def _late(self, seconds: float) -> RequestError:
        if self.traffic.draining:
            return stopping()
        return RequestError(408, f"the message was not complete after {seconds:g} s")

    def _done(self, context: grpc.aio.ServicerContext) -> None:
        self.traffic.active -= 1


async def _read(context: grpc.aio.ServicerContext) -> Any:
    """Read a message. Cancelled, it leaves grpc, which writes into memory of its own, to end it."""
    reading = asyncio.ensure_future(context.read())
    reading.add_done_callback(_seen)
    await asyncio.wait((reading,))
    return reading.result()


def _too_many() -> RequestError:
    return RequestError(503, "too many messages are being received; try again", retry_after=1)


def _seen(reading: asyncio.Future[Any]) -> None:
    """An error after everybody has gone is nobody's."""
    if not reading.cancelled():
        reading.exception()
