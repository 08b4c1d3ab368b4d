"""A server with a Python function for an engine, as a program: its signals are its own.

``python serve_program.py '{"settings": {...}, "gate": "PATH", ...}'`` prints its port, and serves.
Without ``gate`` a run takes no time; with it, runs wait until that file is there. With ``grpc``, a
port, it answers gRPC as well, and prints that port in a second line.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from serve_http import SIGNATURE

from parnet_deploy.errors import EngineError, ParnetDeployError
from parnet_deploy.runtime import FunctionRunner
from parnet_deploy.serve.engine.model import ServedModel
from parnet_deploy.serve.http.server import Front, serve
from parnet_deploy.serve.http.sockets.listening import bind
from parnet_deploy.serve.plane import DataPlane
from parnet_deploy.serve.recording import Recorder
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.transport.budget import Budget
from parnet_deploy.serve.transport.traffic import Traffic
from parnet_deploy.spec import Array


def fail(problem: str) -> bool:
    raise EngineError(problem)


def main(asked: dict) -> int:
    settings = ServeSettings(**{"port": 0, "warm_up": 1, **asked.get("settings", {})})
    gate = Path(asked["gate"]) if "gate" in asked else None
    warm = threading.Event()

    def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        while gate and warm.is_set() and not gate.exists():
            time.sleep(0.005)
        warm.set()
        (images,) = feeds.values()
        return {"logits": images.reshape(len(images), -1)[:, :3].astype(np.float32)}

    def opener() -> FunctionRunner:
        if asked.get("start") == "never":
            threading.Event().wait()
        if problem := asked.get("problem"):
            raise EngineError(problem)
        return FunctionRunner(run, inputs=SIGNATURE.inputs, outputs=SIGNATURE.outputs)

    async def beside() -> Front:
        from parnet_deploy.serve.grpc import start

        front = await start(plane, settings, asked["grpc"], budget=budget, traffic=calls)
        print(front.port, flush=True)
        return front

    recorder = Recorder(SIGNATURE)
    model = ServedModel(SIGNATURE, opener, settings, recorder)
    if "end" in asked:
        model.close = partial(fail, asked["end"])  # type: ignore[method-assign]
    plane = DataPlane(model, recorder)
    budget, calls = Budget(settings.max_buffered), Traffic()
    listener = bind(settings.host, settings.port)
    print(listener.port, flush=True)
    try:
        return serve(
            plane,
            model,
            recorder,
            settings,
            listener,
            engine="engines/tiny",
            beside=beside if "grpc" in asked else None,
            budget=budget,
            calls=calls,
        )
    except ParnetDeployError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
