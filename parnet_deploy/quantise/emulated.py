"""An emulated graph, opened in ONNX Runtime on the CPU as it is written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from parnet_deploy.lowering import EXACTLY, emulated_spec
from parnet_deploy.runtime import OnnxRuntimeRunner
from parnet_deploy.spec import TensorSpec


def open_emulated(
    model: onnx.ModelProto, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> OnnxRuntimeRunner:
    """Open what `lowering.emulate` made of a graph, exactly, without rewrites.

    Args:
        model: the emulated graph.
        inputs: of the graph that it was made of.
        outputs: likewise.

    Raises:
        EngineError: it does not load.
    """
    with tempfile.TemporaryDirectory(prefix="parnet-deploy-") as folder:
        path = Path(folder) / "emulated.onnx"
        onnx.save(model, path)
        return OnnxRuntimeRunner(  # it has read the file when it is open
            path,
            inputs=tuple(emulated_spec(spec, EXACTLY) for spec in inputs),
            outputs=tuple(emulated_spec(spec, EXACTLY) for spec in outputs),
            optimise=False,
        )
