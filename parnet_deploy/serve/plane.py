"""The data plane: what a transport asks for. It knows nothing of HTTP but its status codes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.classify import Classification, decode_files, decode_inputs, guess
from parnet_deploy.serve.engine.batching import Arrays
from parnet_deploy.serve.engine.inference import Answer
from parnet_deploy.serve.engine.model import ServedModel
from parnet_deploy.serve.engine.ticket import Ticket
from parnet_deploy.serve.engine.unanswered import (
    CountedError,
    Reason,
    invalid,
    unknown_model,
)
from parnet_deploy.serve.protocol.metadata import (
    ModelMetadata,
    ServerMetadata,
    model_config,
    model_metadata,
    server_metadata,
)
from parnet_deploy.serve.protocol.request import EncodedImages, InferRequest, parse_request
from parnet_deploy.serve.protocol.response import EncodedResponse, encode_response
from parnet_deploy.serve.recording import Recorder, Timing
from parnet_deploy.serve.signature import VERSION, Signature
from parnet_deploy.serve.statistics import statistics

Found = TypeVar("Found")
Written = TypeVar("Written")

Read = Callable[[Signature], InferRequest]
"""Makes a request for a model of what has come; `RequestError` where it cannot."""

Write = Callable[[InferRequest, Arrays, Signature], Written]
"""Makes an answer of a request and the model's outputs."""

Lone = Callable[[], bool]
"""Tells whether a transport knows of no other request than the one that asks."""

LARGE_JSON = 1 << 16
"""Bytes of JSON in a body from which on it is parsed on a thread: about a millisecond."""

LARGE_BINARY = 1 << 22
"""The same of all of a body: binary tensors are hardly parsed, but looked through."""

LARGE_ANSWER = 1 << 14
"""Numbers of an answer in JSON from which on it is written on a thread."""


class DataPlane:
    """Answers requests of one model, whatever brings them; for one event loop.

    Attributes:
        model: what answers.
        recorder: what is told of it.
        signature: what the model reads and gives.
    """

    def __init__(self, model: ServedModel, recorder: Recorder) -> None:
        """Answer with this model, and record what happens."""
        self.model = model
        self.recorder = recorder
        self.signature = model.signature

    @property
    def live(self) -> bool:
        """Whether the process need not be restarted."""
        return self.model.live

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self.model.ready

    @property
    def message(self) -> str:
        """Why they are not, for clients; empty where they are."""
        return self.model.message

    def check(self, name: str | None, version: str | None) -> None:
        """Refuse work that would be refused whatever its body is, before that is read.

        A refusal is recorded. What passes has not been let in: that is asked again when the body
        is there.

        Args:
            name: the model's, or None where no model is named.
            version: the model's, or None for any.

        Raises:
            RequestError: 404, the model is unknown; 503, it is not ready, or as many requests wait
                as may.
        """
        try:
            if name is not None:
                self._check_model(name, version)
            self.model.check()
        except CountedError as exc:
            self.recorder.refused(exc.reason, 0.0)
            raise

    def model_ready(self, name: str, version: str | None = None) -> bool:
        """Whether a model answers.

        Raises:
            RequestError: 404, it is unknown.
        """
        self._check_model(name, version)
        return self.model.ready

    def server_metadata(self) -> ServerMetadata:
        """What the server says of itself."""
        return server_metadata()

    def model_metadata(self, name: str, version: str | None = None) -> ModelMetadata:
        """What a model says of itself.

        Raises:
            RequestError: 404, it is unknown.
        """
        self._check_model(name, version)
        return model_metadata(self.signature)

    def model_config(self, name: str, version: str | None = None) -> dict[str, Any]:
        """How a model is served, in Triton's words.

        Raises:
            RequestError: 404, it is unknown.
        """
        self._check_model(name, version)
        return model_config(self.signature, self.model.settings)

    def statistics(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """What happened to a model's requests; without a name to all models'.

        Raises:
            RequestError: 404, it is unknown.
        """
        if name is not None:
            self._check_model(name, version)
        return statistics(self.recorder)

    async def infer(
        self,
        name: str,
        version: str | None,
        body: bytes | memoryview,
        header_length: int | None,
        *,
        lone: Lone = bool,
    ) -> tuple[EncodedResponse, Timing]:
        """Answer an inference request of the Open Inference Protocol.

        Args:
            name: the model's.
            version: the model's, or None for any.
            body: JSON, and behind it the bytes of binary tensors.
            header_length: bytes of the JSON, or None where all of the body is.
            lone: asked before the engine is; its run may hold the event loop up for a lone request.

        Raises:
            RequestError: 400, 404, 500, 503 or 504.
        """
        read = partial(parse_request, body, header_length)
        is_large = _is_large(len(body), header_length)
        return await self.answer(name, version, read, encode_response, is_large=is_large, lone=lone)

    def takes_at_once(self, size: int, header_length: int | None) -> bool:
        """Whether `infer_at_once` may answer a body of so many bytes, as of `infer`."""
        return self.model.is_idle and not _is_large(size, header_length)

    def infer_at_once(
        self, name: str, version: str | None, body: bytes | memoryview, header_length: int | None
    ) -> tuple[EncodedResponse, Timing] | None:
        """Answer a lone inference request within this call, as `infer` would.

        Args:
            name: the model's.
            version: the model's, or None for any.
            body: as of `infer`.
            header_length: as of `infer`.

        Returns:
            As `infer`; None where that would take long, or has to wait: ask `infer` then.

        Raises:
            RequestError: as `infer`.
        """
        if not self.takes_at_once(len(body), header_length):
            return None
        begin = time.perf_counter()
        try:
            return self._answer_at_once(name, version, body, header_length)
        except Exception as exc:
            self._refused(exc, begin)
            raise

    async def answer(
        self,
        name: str,
        version: str | None,
        read: Read,
        write: Write[Written],
        *,
        is_large: bool,
        lone: Lone = bool,
    ) -> tuple[Written, Timing]:
        """Answer an inference request, whatever it and its answer are made of.

        Args:
            name: the model's.
            version: the model's, or None for any.
            read: makes the request.
            write: makes its answer.
            is_large: whether reading takes so long that it is done on a thread.
            lone: as of `infer`.

        Raises:
            RequestError: 404, 500, 503, 504, or as `read`.
        """
        return await self._recorded(
            self._answer(name, version, read, write, is_large=is_large, lone=lone)
        )

    async def classify(
        self, body: bytes, *, top: int = 5, trace: bool = False, lone: Lone = bool
    ) -> Classification:
        """Tell what is in an image.

        Args:
            body: an image file.
            top: how many classes, the likeliest first.
            trace: tell when each stage of the engine works, too; it is run once more for that.
            lone: as of `infer`.

        Raises:
            RequestError: 400, 500, 503 or 504.
        """
        return await self._recorded(self._classify(body, top, trace, lone))

    async def _answer(
        self,
        name: str,
        version: str | None,
        read: Read,
        write: Write[Written],
        *,
        is_large: bool,
        lone: Lone,
    ) -> tuple[Written, Timing]:
        self._check_model(name, version)
        with self.model.admit() as ticket:
            request, feeds = await self._read(ticket, read, is_large=is_large)
            answer = (await self.model.run(ticket, feeds, lone=lone())).checked()
            written = await self._write(ticket, write, request, answer.outputs)
            timing = self._timing(ticket, answer)
        self.recorder.answered(timing, request.batch)
        return written, timing

    def _answer_at_once(
        self, name: str, version: str | None, body: bytes | memoryview, header_length: int | None
    ) -> tuple[EncodedResponse, Timing] | None:
        self._check_model(name, version)
        with self.model.admit() as ticket:
            request = parse_request(body, header_length, self.signature)
            if _has_files(request) or self._in_text(request) > LARGE_ANSWER:
                return None
            answer = self.model.run_at_once(ticket, self._decode(ticket, request))
            if answer is None:
                return None
            written = encode_response(request, answer.checked().outputs, self.signature)
            timing = self._timing(ticket, answer)
        self.recorder.answered(timing, request.batch)
        return written, timing

    async def _classify(self, body: bytes, top: int, trace: bool, lone: Lone) -> Classification:
        if top < 1:
            raise invalid(f"at least one class is asked for, not {top}")
        with self.model.admit() as ticket:
            signature, max_pixels = self.signature, self.model.settings.max_pixels
            image = await self.model.prepare(
                ticket, partial(decode_files, (body,), signature, max_pixels, ticket.check)
            )
            feeds = {signature.image.name: image}
            answer = await self.model.run(ticket, feeds, trace=trace, lone=lone())
            guesses = guess(answer.checked().outputs, signature, top)
            timing = self._timing(ticket, answer)
        self.recorder.answered(timing, 1)
        return Classification(guesses=guesses, timing=timing, spans=answer.spans)

    async def _recorded(self, request: Coroutine[Any, Any, Found]) -> Found:
        """Record how a request ends that is not answered."""
        begin = time.perf_counter()
        try:
            return await request
        except asyncio.CancelledError:
            self.recorder.cancelled(time.perf_counter() - begin)
            raise
        except Exception as exc:
            self._refused(exc, begin)
            raise

    def _refused(self, error: Exception, begin: float) -> None:
        """Record why a request that began at that time is not answered."""
        if isinstance(error, CountedError):
            reason = error.reason
        elif isinstance(error, RequestError):  # the protocol's, for whatever a client got wrong
            reason = Reason.INVALID
        else:
            reason = Reason.INTERNAL
        self.recorder.refused(reason, time.perf_counter() - begin)

    async def _read(
        self, ticket: Ticket, read: Read, *, is_large: bool
    ) -> tuple[InferRequest, Arrays]:
        """Read a request, and decode what is encoded; what takes long, on a thread."""
        if is_large:
            return await self.model.prepare(ticket, partial(self._read_and_decode, ticket, read))
        request = read(self.signature)
        if _has_files(request):
            return request, await self.model.prepare(ticket, partial(self._decode, ticket, request))
        return request, self._decode(ticket, request)

    def _read_and_decode(self, ticket: Ticket, read: Read) -> tuple[InferRequest, Arrays]:
        request = read(self.signature)
        return request, self._decode(ticket, request)

    def _decode(self, ticket: Ticket, request: InferRequest) -> Arrays:
        max_pixels = self.model.settings.max_pixels
        return decode_inputs(request.inputs, self.signature, max_pixels, ticket.check)

    async def _write(
        self,
        ticket: Ticket,
        write: Write[Written],
        request: InferRequest,
        outputs: Arrays,
    ) -> Written:
        work = partial(write, request, outputs, self.signature)
        if self._in_text(request) > LARGE_ANSWER:
            return await self.model.prepare(ticket, work)
        return work()

    def _in_text(self, request: InferRequest) -> int:
        """Numbers of its answer that are written in JSON."""
        names = {wanted.name for wanted in request.outputs if not wanted.binary}
        specs = [spec for spec in self.signature.outputs if spec.name in names]
        return sum(math.prod(spec.concrete(request.batch)) for spec in specs)

    def _timing(self, ticket: Ticket, answer: Answer) -> Timing:
        return Timing(
            prepare=answer.prepare,
            queue=answer.queue,
            infer=answer.infer,
            total=ticket.age(),
        )

    def _check_model(self, name: str, version: str | None) -> None:
        if name != self.signature.name or version not in (None, VERSION):
            raise unknown_model(name, version, self.signature.name)


def _is_large(size: int, header_length: int | None) -> bool:
    """Whether to read a body takes so long that it is done on a thread."""
    in_json = size if header_length is None else header_length
    return in_json > LARGE_JSON or size > LARGE_BINARY


def _has_files(request: InferRequest) -> bool:
    """Whether images are to be decoded."""
    return any(isinstance(value, EncodedImages) for value in request.inputs.values())
