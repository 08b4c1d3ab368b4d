"""The gate: stages joined together must equal the whole graph, or nothing is exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from parnet_deploy.bundle import MODEL_GRAPH, ModelManifest
from parnet_deploy.errors import ExportError
from parnet_deploy.runtime import OnnxRuntimeRunner, Runner, SplitRunner, StageRunner
from parnet_deploy.spec import IMAGES, Array

TOLERANCE = 1e-5  # relative to the greatest absolute value of the whole graph's output
TRIALS = 3


def check_stages(folder: Path, manifest: ModelManifest) -> float:
    """Run the whole graph and the joined stages on several inputs.

    Args:
        folder: where the graphs lie.
        manifest: what they are.

    Returns:
        The greatest relative error.

    Raises:
        ExportError: they differ by more than `TOLERANCE`, or an output is not finite.
    """
    whole = OnnxRuntimeRunner(
        folder / MODEL_GRAPH, inputs=manifest.inputs, outputs=manifest.outputs
    )
    stages = [
        StageRunner(
            name=stage.name,
            device="cpu",
            runner=OnnxRuntimeRunner(
                folder / stage.file, inputs=stage.inputs, outputs=stage.outputs
            ),
        )
        for stage in manifest.stages
    ]
    joined = SplitRunner(stages, inputs=manifest.inputs, outputs=manifest.outputs)
    with whole, joined:
        return max(_compare(whole, joined, manifest, seed) for seed in range(TRIALS))


def _compare(whole: Runner, joined: Runner, manifest: ModelManifest, seed: int) -> float:
    feeds = {IMAGES: _trial(manifest, seed)}
    (name,) = (spec.name for spec in manifest.outputs)
    expected, actual = whole.run(feeds)[name], joined.run(feeds)[name]
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        raise ExportError(
            f"'{name}' is not finite on noise (seed {seed}): "
            "the weights hold, or lead to, infinities or NaN; nothing was written"
        )
    error = float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))
    if error > TOLERANCE:
        raise ExportError(
            f"the stages joined together differ from the whole graph by {error:.1e} relative "
            f"(allowed is {TOLERANCE:.0e}); nothing was written"
        )
    return error


def _trial(manifest: ModelManifest, seed: int) -> Array:
    """Noise in the shape and type of the input; batches from the smallest to the greatest."""
    batch = (manifest.batch.min, manifest.batch.opt, manifest.batch.max)[seed % 3]
    (spec,) = manifest.inputs
    rng = np.random.default_rng(seed)
    shape = spec.concrete(batch)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape).astype(spec.dtype)
