"""``parnet-deploy serve``: an engine that answers over HTTP."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from parnet_deploy.bundle import MANIFEST, find_bundles, is_engine, open_engine_bundle
from parnet_deploy.cli.options import parse_choice
from parnet_deploy.cli.packages import need
from parnet_deploy.errors import BundleError, ParnetDeployError, UsageError, os_reason
from parnet_deploy.serve.settings import LogFormat, ServeSettings

if TYPE_CHECKING:
    from parnet_deploy.bundle import EngineBundle
    from parnet_deploy.runtime import Runner
    from parnet_deploy.serve.http.server import Front
    from parnet_deploy.serve.http.sockets.listening import Listener

KEY_VARIABLE = "PARNET_DEPLOY_API_KEY"
"""Where an API key is looked for without ``--api-key-file``."""

EnginePath = Annotated[
    Path,
    typer.Argument(metavar="ENGINE", help="Engine bundle, or a folder with one engine in it."),
]
Host = Annotated[
    str, typer.Option(help="Name or address to listen on; 0.0.0.0 or :: for all networks.")
]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes any that is free.")]
GrpcPort = Annotated[
    int | None,
    typer.Option(help="Answer gRPC on this port, too; 0 takes any that is free.", max=65535, min=0),
]
Name = Annotated[
    str | None, typer.Option(help="What clients call the model [default: the engine's name].")
]
Contexts = Annotated[int, typer.Option(help="Runs of the engine at once.")]
Queue = Annotated[
    int, typer.Option(help="Requests that may wait for the engine; one more is refused (503).")
]
Timeout = Annotated[
    float,
    typer.Option(help="Seconds from a request to its answer; beyond them it is 504."),
]
MaxBatch = Annotated[
    int, typer.Option(help="Images of several requests that are put together; 1: none are.")
]
MaxDelay = Annotated[
    float, typer.Option(help="Seconds that an image waits for others to be put together with.")
]
WarmUp = Annotated[
    int, typer.Option(help="Runs before the server is ready; 0: it is ready without a run.")
]
MaxBody = Annotated[
    int | None,
    typer.Option(
        help="Bytes of a request's body at most, decompressed too [default: what the largest "
        "batch needs as JSON, or 16 MiB]."
    ),
]
MaxBuffered = Annotated[int, typer.Option(help="Bytes of all requests' bodies at once, at most.")]
MaxPixels = Annotated[int, typer.Option(help="Pixels of a request's images at most.")]
MaxHeader = Annotated[int, typer.Option(help="Bytes of a request's header at most.")]
HeaderTimeout = Annotated[float, typer.Option(help="Seconds for a request's header to come.")]
BodyTimeout = Annotated[float, typer.Option(help="Seconds for a request's body to come.")]
IdleTimeout = Annotated[float, typer.Option(help="Seconds that a connection may be idle.")]
MaxConnections = Annotated[
    int,
    typer.Option(help="Connections over HTTP at once, and as many over gRPC; one more is refused."),
]
Grace = Annotated[
    float,
    typer.Option(help="Seconds from SIGTERM to the end; what is in flight is answered meanwhile."),
]
InlineBelow = Annotated[
    float,
    typer.Option(
        help="Seconds; a lone request whose run is expected to take less is run without waking "
        "another thread; 0: none."
    ),
]
Stall = Annotated[
    float, typer.Option(help="Seconds of a run after which the server calls itself not live.")
]
DecodeThreads = Annotated[
    int, typer.Option(help="Threads that decode images and JSON; 0: one a core, at most 4.")
]
KeepAwake = Annotated[
    bool,
    typer.Option(
        "--keep-awake",
        help="Keep processors out of idle states meanwhile, from which some take longer to wake "
        "than a request takes. It costs power, and needs write access to /dev/cpu_dma_latency.",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the key that clients send as 'Authorization: Bearer KEY' [default: what "
        f"{KEY_VARIABLE} holds; without either, none]."
    ),
]
Format = Annotated[str, typer.Option(help="Lines of the log: text or json.")]

_DEFAULT = ServeSettings()


def command(
    engine: EnginePath,
    host: Host = _DEFAULT.host,
    port: Port = _DEFAULT.port,
    grpc_port: GrpcPort = None,
    name: Name = None,
    contexts: Contexts = _DEFAULT.contexts,
    queue: Queue = _DEFAULT.queue,
    timeout: Timeout = _DEFAULT.timeout,
    max_batch: MaxBatch = _DEFAULT.max_batch,
    max_delay: MaxDelay = _DEFAULT.max_delay,
    warm_up: WarmUp = _DEFAULT.warm_up,
    max_body: MaxBody = None,
    max_buffered: MaxBuffered = _DEFAULT.max_buffered,
    max_pixels: MaxPixels = _DEFAULT.max_pixels,
    max_header: MaxHeader = _DEFAULT.max_header,
    header_timeout: HeaderTimeout = _DEFAULT.header_timeout,
    body_timeout: BodyTimeout = _DEFAULT.body_timeout,
    idle_timeout: IdleTimeout = _DEFAULT.idle_timeout,
    max_connections: MaxConnections = _DEFAULT.max_connections,
    inline_below: InlineBelow = _DEFAULT.inline_below,
    grace: Grace = _DEFAULT.grace,
    stall: Stall = _DEFAULT.stall,
    decode_threads: DecodeThreads = _DEFAULT.decode_threads,
    keep_awake: KeepAwake = _DEFAULT.keep_awake,
    api_key_file: ApiKeyFile = None,
    log_format: Format = _DEFAULT.log_format,
) -> None:
    """Answer images over HTTP: the Open Inference Protocol, plain classification, and a page.

    SIGTERM and Ctrl-C end it when what is in flight has been answered. Nothing is written to disk.
    """
    settings = ServeSettings(
        host=host,
        port=port,
        name=name,
        contexts=contexts,
        queue=queue,
        timeout=timeout,
        max_batch=max_batch,
        max_delay=max_delay,
        warm_up=warm_up,
        max_body=max_body,
        max_buffered=max_buffered,
        max_pixels=max_pixels,
        max_header=max_header,
        header_timeout=header_timeout,
        body_timeout=body_timeout,
        idle_timeout=idle_timeout,
        max_connections=max_connections,
        inline_below=inline_below,
        grace=grace,
        stall=stall,
        decode_threads=decode_threads,
        keep_awake=keep_awake,
        api_key=_api_key(api_key_file),
        log_format=cast("LogFormat", parse_choice("--log-format", log_format, LogFormat)),
    )
    try:
        _run(engine, settings, grpc_port)
    except ParnetDeployError as exc:
        _tell(exc, settings.log_format)


def _tell(error: ParnetDeployError, log_format: LogFormat) -> NoReturn:
    """End with an error; whoever gathers lines of JSON is to see why there are no more."""
    if log_format == "text":
        raise error
    from parnet_deploy.serve.transport.log_lines import Said, in_json

    print(in_json(Said(time.time(), logging.ERROR, __name__, str(error), "", {})), file=sys.stderr)
    raise typer.Exit(error.exit_code) from error


def _run(engine: Path, settings: ServeSettings, grpc_port: int | None) -> None:
    need("serve")
    if grpc_port is not None:
        need("serve --grpc-port")
    from parnet_deploy.runtime.awake import kept_awake
    from parnet_deploy.serve.http.sockets.listening import bind

    listener = bind(settings.host, settings.port)  # one that is taken is told of before all else
    try:
        with kept_awake() if settings.keep_awake else contextlib.nullcontext():
            # Its files are looked through while liveness is answered: see the opener.
            status = _serve(find_engine(engine, check=False), settings, listener, grpc_port)
    finally:
        listener.close()
    if status:
        raise typer.Exit(status)


def _serve(
    bundle: EngineBundle, settings: ServeSettings, listener: Listener, grpc_port: int | None
) -> int:
    from parnet_deploy.runtime import open_runner
    from parnet_deploy.serve.engine.model import ServedModel
    from parnet_deploy.serve.http.server import serve
    from parnet_deploy.serve.plane import DataPlane
    from parnet_deploy.serve.recording import Recorder
    from parnet_deploy.serve.signature import signature_of
    from parnet_deploy.serve.transport.budget import Budget
    from parnet_deploy.serve.transport.traffic import Traffic

    def opener() -> Runner:
        return open_runner(open_engine_bundle(bundle.path), contexts=settings.contexts)

    async def grpc_front() -> Front:
        from parnet_deploy.serve.grpc import start

        return await start(plane, settings, grpc_port or 0, budget=budget, traffic=calls)

    signature = signature_of(bundle, settings.name)
    if not signature.name.isprintable() or any(each in "/\\%" for each in signature.name):
        raise UsageError(
            f"clients ask for a model in a path, where '{signature.name}' cannot stand; choose "
            "another name with --name"
        )
    recorder = Recorder(signature)
    model = ServedModel(signature, opener, settings, recorder)
    plane = DataPlane(model, recorder)
    budget = Budget(settings.max_buffered)
    calls = Traffic()
    return serve(
        plane,
        model,
        recorder,
        settings,
        listener,
        engine=str(bundle.path),
        warnings=bundle.manifest.warnings,
        beside=None if grpc_port is None else grpc_front,
        budget=budget,
        calls=None if grpc_port is None else calls,
    )


def find_engine(path: Path, *, check: bool = True) -> EngineBundle:
    """An engine bundle, or the only one in a folder.

    Args:
        path: it, or the folder.
        check: compare every file with the manifest's sha256 first.

    Raises:
        BundleError: it is neither, or damaged.
    """
    if not path.is_dir() or (path / MANIFEST).exists():
        return open_engine_bundle(path, check=check)
    engines = [bundle for bundle in find_bundles(path) if is_engine(bundle)]
    if len(engines) == 1:
        return open_engine_bundle(engines[0], check=check)
    if engines:
        names = ", ".join(engine.name for engine in engines)
        raise BundleError(f"{path} holds {len(engines)} engines ({names}); name one of them")
    raise BundleError(
        f"there is no engine at {path}, nor right below it; 'parnet-deploy build-engine' makes one"
    )


def _api_key(file: Path | None) -> str | None:
    """The key in a file, or that in the environment; None: there is none.

    Raises:
        UsageError: the file cannot be read, or holds no key.
    """
    if file is None:
        key = os.environ.get(KEY_VARIABLE)
        return key.strip() if key else None  # whether it is one, the settings say
    try:
        key = file.read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise UsageError(f"cannot read {file}: {os_reason(exc)}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{file} is no text, and an API key is") from exc
    if not key or len(key.split()) > 1:
        raise UsageError(f"{file} is to hold an API key, one word in one line")
    return key
