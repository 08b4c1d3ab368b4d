"""A model's graph in ONNX Runtime on the CPU, as it stands, whatever it computes in."""

from __future__ import annotations

from pathlib import Path

from parnet_deploy.bundle import MODEL_GRAPH, ModelBundle
from parnet_deploy.errors import EngineError, MissingDependencyError, ParnetDeployError
from parnet_deploy.runtime import OnnxRuntimeRunner, Runner
from parnet_deploy.spec import TensorSpec

Specs = tuple[TensorSpec, ...]


def open_graph(bundle: ModelBundle) -> tuple[str, Runner]:
    """The whole graph, run operator by operator, without rewrites.

    What is not quantised computes in the model's base. Where that is float32 (fp32, and int8 that
    was made for a CPU), the graph runs as it stands. Below, every value is computed in float32 and
    rounded to its type (`lowering.emulate`), as `verify` does: ONNX Runtime's CPU provider has no
    convolutions in bfloat16 and float8, and in float16 it leaves out roundings as it likes.

    Returns:
        What it runs on, in words, and the runner; its arrays have the bundle's types, but for
        inputs and outputs in a lower precision, which are float32.

    Raises:
        EngineError: the graph does not load.
        MissingDependencyError: the precision takes packages that are not installed.
    """
    manifest, path = bundle.manifest, bundle.file(MODEL_GRAPH)
    where = "its whole graph in ONNX Runtime, on cpu"
    inputs, outputs = manifest.inputs, manifest.outputs
    if manifest.base == "fp32":
        return where, OnnxRuntimeRunner(path, inputs=inputs, outputs=outputs, optimise=False)
    where += f", {manifest.precision} emulated: computed in float32, every rounding made"
    return where, _emulated(path, manifest.precision, inputs, outputs)


def _emulated(path: Path, precision: str, inputs: Specs, outputs: Specs) -> Runner:
    try:
        import onnx

        from parnet_deploy.lowering import EXACTLY, emulate
        from parnet_deploy.quantise.emulated import open_emulated
    except ImportError as exc:
        raise MissingDependencyError(
            f"a graph in {precision} is evaluated with {exc.name}, which is not installed: "
            "pip install 'parnet-deploy[export]'; an engine needs neither"
        ) from exc
    try:
        model = emulate(onnx.load(path), EXACTLY)
    except ParnetDeployError:  # which says itself what is wrong
        raise
    except Exception as exc:  # of its parser, its checker and its reader: they share no base class
        said = str(exc).strip().splitlines() or [type(exc).__name__]
        raise EngineError(f"cannot read {path} as an ONNX graph: {said[-1]}") from exc
    return open_emulated(model, inputs, outputs)
