"""The application: which path is answered by what."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from parnet_deploy.serve.http.body import BodyReader
from parnet_deploy.serve.http.documents import Documents
from parnet_deploy.serve.http.express import Express
from parnet_deploy.serve.http.fields import POLICY
from parnet_deploy.serve.http.gate import Gate
from parnet_deploy.serve.http.guard import Guard
from parnet_deploy.serve.http.inference import Classify, Infer
from parnet_deploy.serve.http.page import CONTENT_TYPE, page
from parnet_deploy.serve.http.refusal import NOTHING_HERE, HttpError
from parnet_deploy.serve.metrics import exposition, registry_of
from parnet_deploy.serve.plane import DataPlane
from parnet_deploy.serve.recording import Recorder
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.signature import VERSION, Signature
from parnet_deploy.serve.transport.budget import Budget
from parnet_deploy.serve.transport.limits import body_limit
from parnet_deploy.serve.transport.metrics import TransportMetrics
from parnet_deploy.serve.transport.traffic import Traffic

_MODEL = "/v2/models/{name}"
_VERSION = f"{_MODEL}/versions/{{version}}"


def create_app(
    plane: DataPlane,
    recorder: Recorder,
    settings: ServeSettings,
    *,
    traffic: Traffic | None = None,
    budget: Budget | None = None,
    calls: Traffic | None = None,
) -> Application:
    """The application that serves a model.

    Args:
        plane: what answers; it need not be ready.
        recorder: the plane's own; it knows the model's signature, too.
        settings: limits and the API key.
        traffic: told of every request; None: nobody asks.
        budget: of bodies, shared with other transports; None: there are none.
        calls: gRPC's traffic, for the metrics; None: there is none.
    """
    traffic = traffic or Traffic()
    signature = recorder.signature
    budget = budget or Budget(settings.max_buffered)
    limit = body_limit(signature, settings)
    reader = BodyReader(limit, settings, budget, traffic)
    infer = Infer(plane, reader, traffic.is_lone)
    classify = Classify(plane, reader, traffic.is_lone, signature)
    work: list[BaseRoute] = [
        Route(path, endpoint, methods=["POST"])
        for path, endpoint in (
            (f"{_MODEL}/infer", infer),
            ("/classify", classify),
            (f"{_VERSION}/infer", infer),
        )
    ]
    pages = [_metrics(recorder, TransportMetrics(budget, traffic, calls)), _page(signature)]
    gate = Gate(traffic=traffic, limit=limit, api_key=settings.api_key)
    guarded = partial(Guard, gate=gate)
    app = Starlette(
        routes=[*work, *_documents(Documents(plane)), *pages],  # in the order they are looked at
        middleware=[Middleware(guarded)],
        exception_handlers={HTTPException: _refuse},
    )
    app.router.redirect_slashes = False
    paths = _paths(signature.name)
    straight = {
        path: guarded(partial(infer.answer, name=name, version=version))
        for path, (name, version) in paths.items()
    }
    express = Express(plane, gate, budget=budget, limit=limit, paths=paths)
    return Application(app, {**straight, "/classify": guarded(classify)}, express)


class Application:
    """The routes, and those that do the work before them.

    Starlette's layers would take longer than all that the guard does.

    Attributes:
        express: what is sooner than both, for connections to know of.
    """

    def __init__(self, app: ASGIApp, straight: Mapping[str, ASGIApp], express: Express) -> None:
        """What answers a POST at these paths, and what answers everything else."""
        self._app = app
        self._straight = straight
        self.express = express

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request."""
        found = self._straight.get(scope["path"]) if scope.get("method") == "POST" else None
        return (found or self._app)(scope, receive, send)


def _paths(name: str) -> dict[str, tuple[str, str | None]]:
    """Paths of inference, as the routes have them: the name and the version that they say."""
    model = f"/v2/models/{name}"
    return {
        f"{model}/infer": (name, None),
        f"{model}/versions/{VERSION}/infer": (name, VERSION),
    }


def _documents(documents: Documents) -> list[BaseRoute]:
    of_models = [
        Route(f"{path}{ending}", endpoint)
        for path in (_MODEL, _VERSION)
        for ending, endpoint in (
            ("", documents.model),
            ("/ready", documents.model_ready),
            ("/config", documents.config),
            ("/stats", documents.statistics),
        )
    ]
    return [
        Route("/v2/health/live", documents.live),
        Route("/v2/health/ready", documents.ready),
        Route("/v2", documents.server),
        Route("/v2/models/stats", documents.all_statistics),
        *of_models,
    ]


def _metrics(recorder: Recorder, transports: TransportMetrics) -> BaseRoute:
    registry = registry_of(recorder)
    registry.register(transports)

    async def metrics(request: Request) -> Response:
        body, content_type = exposition(registry, request.headers.get("accept", ""))
        return Response(body, media_type=content_type)

    return Route("/metrics", metrics)


def _page(signature: Signature) -> BaseRoute:
    made = page(signature)
    headers = {POLICY.decode(): made.policy, "referrer-policy": "no-referrer"}

    async def show(request: Request) -> Response:
        return Response(made.body, headers=headers, media_type=CONTENT_TYPE)

    return Route("/", show)


async def _refuse(request: Request, exc: Exception) -> Response:
    """What Starlette refuses, in our words: the guard sends it.

    Raises:
        HttpError: always.
    """
    if not isinstance(exc, HTTPException):
        raise exc
    if exc.status_code == 405:
        methods = (exc.headers or {}).get("Allow", "").split(", ")
        allowed = ", ".join(sorted(methods))
        message = f"{request.method} is not answered here, but {allowed}"
        raise HttpError(405, message, headers=[(b"allow", allowed.encode())]) from exc
    raise HttpError(
        exc.status_code, NOTHING_HERE if exc.status_code == 404 else exc.detail
    ) from exc
