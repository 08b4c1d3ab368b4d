"""The routes that do the work: the protocol's inference, and plain classification."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope, Send

from parnet_deploy.errors import RequestError
from parnet_deploy.runtime.outputs import Guess
from parnet_deploy.runtime.timeline import Span
from parnet_deploy.serve.http.body import BodyReader
from parnet_deploy.serve.http.exchange import Exchange, exchange_of
from parnet_deploy.serve.http.fields import Headers, completed, content_of, of_answer
from parnet_deploy.serve.http.page import TOP
from parnet_deploy.serve.http.refusal import JSON, HttpError
from parnet_deploy.serve.http.watch import Watch
from parnet_deploy.serve.plane import DataPlane, Lone
from parnet_deploy.serve.recording import Timing
from parnet_deploy.serve.signature import Signature

_HOW = "send a JPEG or PNG file as the body: curl --data-binary @cat.jpg URL"
_DIGITS = re.compile(r"[0-9]{1,9}")
_SWITCHES = {"": True, "1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Classified:
    """What ``/classify`` answers; times are in seconds.

    Attributes:
        model: its name.
        predictions: the likeliest classes, the likeliest first.
        timing: what it took.
        spans: when each stage of a second run worked; empty where that was not asked or not known.
    """

    model: str
    predictions: tuple[Guess, ...]
    timing: Timing
    spans: tuple[Span, ...]


class Infer:
    """``POST /v2/models/NAME/infer``."""

    def __init__(self, plane: DataPlane, reader: BodyReader, lone: Lone) -> None:
        """Ask `plane`; `lone` tells whether there is no other request."""
        self._plane = plane
        self._reader = reader
        self._lone = lone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, of the model that the route found in its path.

        Raises:
            RequestError: it is refused.
            ClientGoneError: nobody is left to be answered.
        """
        asked = scope["path_params"]
        await self.answer(scope, receive, send, name=asked["name"], version=asked.get("version"))

    async def answer(
        self, scope: Scope, receive: Receive, send: Send, *, name: str, version: str | None
    ) -> None:
        """Answer one request. What needs no body to be refused is refused before it is read.

        Raises:
            RequestError: it is refused.
            ClientGoneError: nobody is left to be answered.
        """
        exchange = exchange_of(scope)
        if not exchange.is_complete:  # else it is asked in a moment
            self._plane.check(name, version)
        header_length = exchange.header_length
        with self._reader.hold() as hold:
            body = await self._reader.read(exchange, receive, hold, aligned=header_length or 0)
            with Watch(receive):
                answer, timing = await self._plane.infer(
                    name, version, body, header_length, lone=self._lone
                )
        await _send(exchange, send, content_of(answer), answer.body, timing)


class Classify:
    """``POST /classify?top=5&trace=false``."""

    def __init__(
        self, plane: DataPlane, reader: BodyReader, lone: Lone, signature: Signature
    ) -> None:
        """Ask `plane`, whose model has this signature; `lone` is as of `Infer`."""
        self._plane = plane
        self._reader = reader
        self._lone = lone
        self._model = signature.name
        self._classes = len(signature.labels)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What the body is said to be is not looked at: curl says a form.

        Raises:
            RequestError: it is refused.
            ClientGoneError: nobody is left to be answered.
        """
        exchange = exchange_of(scope)
        top, trace = self._options(scope["query_string"])
        if exchange.media_type == b"multipart/form-data":
            raise HttpError(
                415, f"a form is not taken apart; {_HOW}", headers=[(b"accept", b"image/*")]
            )
        self._plane.check(None, None)
        with self._reader.hold() as hold:
            body = await self._reader.read(exchange, receive, hold)
            if not body:
                raise RequestError(400, f"the body is empty; {_HOW}")
            with Watch(receive):
                found = await self._plane.classify(
                    bytes(body), top=top, trace=trace, lone=self._lone
                )
        answer = Classified(
            model=self._model, predictions=found.guesses, timing=found.timing, spans=found.spans
        )
        body = msgspec.json.encode(answer)
        await _send(exchange, send, [(b"content-type", JSON)], body, found.timing)

    def _options(self, query: bytes) -> tuple[int, bool]:
        """How many labels, and whether with the stages' times.

        Raises:
            RequestError: an option is none, or has no such value (400).
        """
        try:
            given = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=8)
        except ValueError as exc:
            raise RequestError(400, "the query is not one; ask /classify?top=5&trace=1") from exc
        options = dict(given)
        if extra := sorted(options.keys() - {"top", "trace"}):
            raise RequestError(400, f"/classify takes top and trace, not '{extra[0]}'")
        top = options.get("top", str(min(TOP, self._classes)))
        trace = _SWITCHES.get(options.get("trace", "0").lower())
        if not (_DIGITS.fullmatch(top) and 1 <= int(top) <= self._classes):
            raise RequestError(400, f"top is a number from 1 to {self._classes}")
        if trace is None:
            raise RequestError(400, "trace is true or false")
        return int(top), trace


async def _send(
    exchange: Exchange, send: Send, headers: Headers, body: bytes, timing: Timing
) -> None:
    """Send an answer, in one piece where that can be."""
    exchange.timing = timing
    headers += of_answer(body, timing)
    if (wire := exchange.wire) is not None:  # what the guard does on the way is done here
        exchange.status, exchange.sent = 200, len(body)
        wire.send(200, completed(headers, exchange.id), body)
        return
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
