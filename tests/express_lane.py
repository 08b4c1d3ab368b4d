"""What tests of the express lane share."""

from __future__ import annotations

from typing import Any

import numpy as np
from serve_http import Plane, Running

from parnet_deploy.serve.http import express
from parnet_deploy.serve.transport.budget import Budget

ECHO = "Inference-Header-Content-Length: 7"


def prompt(**attributes: Any) -> Plane:
    """A plane that answers within the call."""
    plane = Plane()
    plane.now = lambda: None
    for name, value in attributes.items():
        setattr(plane, name, value)
    return plane


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def budget_of(server: Running) -> Budget:
    lane: express.Express = server.server.config.app.express  # type: ignore[union-attr]
    return lane._budget
