"""A graph of one operator, to try whether an execution provider really runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from parnet_deploy.errors import EngineError
from parnet_deploy.runtime.onnxruntime import OnnxRuntimeRunner, Provider
from parnet_deploy.spec import TensorSpec

TRIAL_GRAPH = (
    b'\x08\x08:7\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x05trialZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12'
    b"\x04\n\x02\x08\x02b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02B\x04\n\x00\x10\x12"
)
"""An ONNX file, opset 18: ``y = Relu(x)``, float32 of shape (2,). It needs no onnx to be made."""


def try_provider(provider: Provider) -> None:
    """Run that graph with the runner that engines use.

    Raises:
        EngineError: the provider is missing, fell back to the CPU, failed, or computed wrongly.
        RunnerError: the run failed.
        MissingDependencyError: ONNX Runtime cannot be imported.
    """
    x, y = (TensorSpec(name=name, shape=(2,), dtype="float32") for name in ("x", "y"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.onnx"
        path.write_bytes(TRIAL_GRAPH)
        with OnnxRuntimeRunner(path, inputs=(x,), outputs=(y,), provider=provider) as runner:
            given = runner.run({"x": np.array([-1.0, 2.0], dtype=np.float32)})["y"]
    if given.tolist() != [0.0, 2.0]:
        raise EngineError(f"ONNX Runtime's {provider} provider says Relu([-1, 2]) is {given}")
