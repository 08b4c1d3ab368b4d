"""The routes that tell of a server and its model: health, metadata, configuration, statistics."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from parnet_deploy.serve.plane import DataPlane


class Documents:
    """Endpoints; each answers a JSON object."""

    def __init__(self, plane: DataPlane) -> None:
        """Tell of this."""
        self._plane = plane

    async def live(self, request: Request) -> Response:
        """Whether the process need not be restarted: 200 or 503."""
        return self._health({"live": self._plane.live}, good=self._plane.live)

    async def ready(self, request: Request) -> Response:
        """Whether requests are answered: 200 or 503."""
        return self._health({"ready": self._plane.ready}, good=self._plane.ready)

    async def model_ready(self, request: Request) -> Response:
        """Whether a model answers: 200 or 503."""
        name, version = _asked(request)
        is_ready = self._plane.model_ready(name, version)
        return self._health({"name": name, "ready": is_ready}, good=is_ready)

    async def server(self, request: Request) -> Response:
        """The server's name, version and extensions."""
        return _json(self._plane.server_metadata())

    async def model(self, request: Request) -> Response:
        """A model's inputs and outputs."""
        return _json(self._plane.model_metadata(*_asked(request)))

    async def config(self, request: Request) -> Response:
        """How a model is served."""
        return _json(self._plane.model_config(*_asked(request)))

    async def statistics(self, request: Request) -> Response:
        """What happened to a model's requests."""
        return _json(self._plane.statistics(*_asked(request)))

    async def all_statistics(self, request: Request) -> Response:
        """What happened to all models' requests."""
        return _json(self._plane.statistics())

    def _health(self, facts: dict[str, object], *, good: bool) -> Response:
        if good:
            return _json(facts)
        return _json({**facts, "error": self._plane.message}, status=503)


def _asked(request: Request) -> tuple[str, str | None]:
    """The name and the version of the model that the path names."""
    return request.path_params["name"], request.path_params.get("version")


def _json(value: object, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
