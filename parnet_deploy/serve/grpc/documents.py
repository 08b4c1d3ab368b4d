"""What a server and a model say of themselves, as messages.

The values are those that HTTP encodes as JSON; protobuf reads that JSON by its own rules.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2 as messages

from parnet_deploy.serve.plane import DataPlane

Message = TypeVar("Message")


class Documents:
    """Answers from the data plane."""

    def __init__(self, plane: DataPlane) -> None:
        """Ask `plane`."""
        self._plane = plane

    async def live(self, request: Any, call: object) -> Any:
        """Whether the process need not be restarted."""
        return messages.ServerLiveResponse(live=self._plane.live)

    async def ready(self, request: Any, call: object) -> Any:
        """Whether requests are answered."""
        return messages.ServerReadyResponse(ready=self._plane.ready)

    async def model_ready(self, request: Any, call: object) -> Any:
        """Whether a model answers; as everywhere here, an empty version is any.

        Raises:
            RequestError: 404, it is unknown.
        """
        ready = self._plane.model_ready(request.name, request.version or None)
        return messages.ModelReadyResponse(ready=ready)

    async def server(self, request: Any, call: object) -> Any:
        """The server's name, version and extensions."""
        return _message(self._plane.server_metadata(), messages.ServerMetadataResponse())

    async def model(self, request: Any, call: object) -> Any:
        """A model's versions, inputs and outputs.

        Raises:
            RequestError: 404, it is unknown.
        """
        found = self._plane.model_metadata(request.name, request.version or None)
        return _message(found, messages.ModelMetadataResponse())

    async def config(self, request: Any, call: object) -> Any:
        """How a model is served, in Triton's words.

        Raises:
            RequestError: 404, it is unknown.
        """
        found = self._plane.model_config(request.name, request.version or None)
        return _message({"config": found}, messages.ModelConfigResponse())

    async def statistics(self, request: Any, call: object) -> Any:
        """What happened to a model's requests; without a name to all models'.

        Raises:
            RequestError: 404, it is unknown.
        """
        found = self._plane.statistics(request.name or None, request.version or None)
        return _message(found, messages.ModelStatisticsResponse())


def _message(value: object, message: Message) -> Message:
    """A value as a message; what that has no field for (older clients' have fewer) is left out."""
    ParseDict(msgspec.to_builtins(value), message, ignore_unknown_fields=True)
    return message
