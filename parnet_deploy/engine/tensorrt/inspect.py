"""Kernels and streams of a plan as TensorRT's engine inspector tells them."""

from __future__ import annotations

import json
from typing import Any

from parnet_deploy.runtime.tensorrt_api import message_log

_NOT_LAUNCHED = frozenset({"signal", "wait", "constant", "noop", "shapehosttodevice"})
"""Layer types without a kernel, in lower case: events, and what is computed before the run."""


def count_layers(api: Any, plan: Any) -> tuple[int | None, int | None]:
    """How many layers of a plan launch something, and in how many streams.

    The plan must have been built with detailed profiling verbosity, on this GPU.

    Args:
        api: TensorRT's module.
        plan: the plan, as bytes.

    Returns:
        Kernels and streams, None for what it does not tell.
    """
    log = message_log(api)
    try:
        engine = api.Runtime(log).deserialize_cuda_engine(bytes(plan))
    except (RuntimeError, TypeError):  # how its bindings report a failed constructor
        return None, None  # the plan stands; only its counts are not known
    if engine is None:  # a version-compatible plan may not be loaded unasked
        return None, None
    text = engine.create_engine_inspector().get_engine_information(api.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None, None
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        return None, None
    launched = [
        layer for layer in layers if str(layer.get("LayerType")).lower() not in _NOT_LAUNCHED
    ]
    told = {layer["StreamId"] for layer in launched if "StreamId" in layer}
    streams = len(told) if told else int(engine.num_aux_streams) + 1
    return len(launched) or None, streams
