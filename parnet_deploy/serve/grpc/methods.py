"""Which method is answered by what."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as messages

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.grpc.call import Call
from parnet_deploy.serve.grpc.documents import Documents
from parnet_deploy.serve.grpc.guard import QUESTION, Guard, Method
from parnet_deploy.serve.grpc.translate import request_of, response_of
from parnet_deploy.serve.grpc.wire import check_parts
from parnet_deploy.serve.plane import LARGE_BINARY, LARGE_JSON, DataPlane

_SERVICE = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"]


class Infer:
    """``ModelInfer``."""

    def __init__(self, plane: DataPlane) -> None:
        """Ask `plane`."""
        self._plane = plane

    async def __call__(self, request: Any, call: Call) -> bytes:
        """Answer one request.

        Raises:
            RequestError: it is refused.
        """
        large = LARGE_BINARY if request.raw_input_contents else LARGE_JSON
        answer, call.timing = await self._plane.answer(
            request.model_name,
            request.model_version or None,
            partial(request_of, request),
            response_of,
            is_large=call.received > large,
        )
        return answer


def service(plane: DataPlane, guard: Guard, limit: int) -> grpc.GenericRpcHandler:
    """Every method of the service, those that are refused among them.

    Args:
        plane: what answers.
        guard: what stands around them.
        limit: the largest inference request in bytes.
    """
    documents = Documents(plane)
    answers: dict[str, Callable[..., Any]] = {
        "ServerLive": documents.live,
        "ServerReady": documents.ready,
        "ModelReady": documents.model_ready,
        "ServerMetadata": documents.server,
        "ModelMetadata": documents.model,
        "ModelConfig": documents.config,
        "ModelStatistics": documents.statistics,
    }
    infer = Method(
        name="ModelInfer",
        parse=_parse_request,
        largest=limit,
        answer=Infer(plane),
        check=partial(plane.check, None, None),
    )
    questions = [
        Method(
            name=method.name,
            parse=getattr(messages, method.input_type.name).FromString,
            largest=QUESTION,
            is_question=True,
            answer=answers.get(method.name, _refuse),
            is_open=method.name in ("ServerLive", "ServerReady"),
        )
        for method in _SERVICE.methods
        if method.name != infer.name
    ]
    handlers = {method.name: guard.handler(method) for method in (infer, *questions)}
    return grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers)


def _parse_request(data: bytes) -> Any:
    check_parts(data)
    return messages.ModelInferRequest.FromString(data)


async def _refuse(request: Any, call: Call) -> bytes:
    """Answer what is not offered.

    Raises:
        RequestError: always.
    """
    raise RequestError(501, f"{call.method} is not offered here")
