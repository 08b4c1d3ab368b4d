"""The gate: the graphs must equal the network and each other, or nothing is exported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from parnet_deploy.bundle import MODEL_GRAPH, ModelManifest
from parnet_deploy.errors import ExportError
from parnet_deploy.lowering import EXACTLY, emulate, quantisation_faults
from parnet_deploy.lowering.faults import in_words
from parnet_deploy.net import ParNet
from parnet_deploy.quantise.emulated import open_emulated
from parnet_deploy.runtime import OnnxRuntimeRunner, Runner, SplitRunner, StageRunner
from parnet_deploy.runtime.outputs import log_probabilities, unresponsive
from parnet_deploy.spec import IMAGES, Array, Preprocessing, TensorSpec
from parnet_deploy.spec.precision import rounding_tolerance

STAGES_TOLERANCE = 1e-5
NETWORK_TOLERANCE = 1e-4
"""Of float32. Both are relative to the greatest absolute value of the output that is compared with;
of probabilities, their logarithms are compared, too."""

TRIALS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """The greatest relative errors that were found.

    Attributes:
        network: the whole graph in ONNX Runtime against the training form in torch; None where
            there was nothing to measure it on.
        stages: the stages joined together against the whole graph, both in ONNX Runtime.
    """

    network: float | None
    stages: float

    def __str__(self) -> str:
        """Both in words."""
        stages = f"stages within {self.stages:.1e} of the whole graph"
        if self.network is None:
            return (
                f"{stages}; how far the whole graph is from the network was not measured: its "
                "ranges were learned, and there are no images to measure it on"
            )
        return f"whole graph within {self.network:.1e} of the network, {stages}"


def prove(
    folder: Path, manifest: ModelManifest, model: ParNet, images: Sequence[Array] = ()
) -> Proof:
    """Run the network, the whole graph and the joined stages on several inputs.

    Below float32 the graphs are run as `emulate` writes them, so that they round where they say,
    and on a CPU: whole and stages then differ by nothing. Of a quantised network, what is beyond
    its ranges is cut off: it is compared with the network on `images` alone where there are any,
    since noise may lie outside of what it was calibrated for. Where ranges were learned in training
    and there are no images, its answers to noise need only follow the network's (`response`), as
    those to images must in every precision that is allowed much.

    Args:
        folder: where the graphs lie.
        manifest: what they are.
        model: the network in training form, in inference mode, that they were made from.
        images: what to run beside noise: arrays as the graph reads them, such as those of the
            calibration; their batches must be in the manifest's range.

    Raises:
        ExportError: they differ by more than the tolerances, an output is not finite, or a
            quantised graph is not what its quantisation says.
    """
    noise = [(f"noise (seed {seed})", trial(manifest, seed)) for seed in range(TRIALS)]
    given = [(f"image {index}", array) for index, array in enumerate(images)]
    quantisation = manifest.quantisation
    judged = given if quantisation is not None and given else [*noise, *given]
    pairs: list[tuple[Array, Array]] = []
    stages_errors: list[float] = []
    with _open_whole(folder, manifest) as whole, _open_stages(folder, manifest) as joined:
        for what, array in (*noise, *given):
            graph = _run(whole, array, f"of the whole graph on {what}")
            stages = _run(joined, array, f"of the joined stages on {what}")
            stages_errors.append(_error(stages, graph, softmax=manifest.softmax))
            if any(array is one for _, one in judged):
                network = run_network(
                    model, array, manifest.preprocessing, softmax=manifest.softmax
                )
                pairs.append((graph, network))
    learned = quantisation is not None and quantisation.calibration.method == "qat"
    errors = [] if learned and not given else [_error(*p, softmax=manifest.softmax) for p in pairs]
    proof = Proof(  # unlike max(), NaN wins
        network=float(np.max(errors)) if errors else None, stages=float(np.max(stages_errors))
    )
    network_tolerance, stages_tolerance = tolerances(manifest)
    if proof.network is not None:
        _require(proof.network, network_tolerance, "the whole graph differs from the network")
    _require(proof.stages, stages_tolerance, "the stages joined differ from the whole graph")
    _require_response(pairs, network_tolerance, softmax=manifest.softmax)
    return proof


def tolerances(manifest: ModelManifest) -> tuple[float, float]:
    """How far the whole graph may be from the network, and the joined stages from it.

    Below float32 the first is what the precision rounds. The second is that of float32, whatever
    the precision: both round at the same places.
    """
    if manifest.precision == "fp32":
        return NETWORK_TOLERANCE, STAGES_TOLERANCE
    return rounding_tolerance(manifest.precision, manifest.spec), STAGES_TOLERANCE


def check_quantised(folder: Path, manifest: ModelManifest, weights: Mapping[str, Array]) -> None:
    """Compare scales, zero points and weights of every graph with the manifest and the network.

    Args:
        folder: where the graphs lie.
        manifest: what they are.
        weights: the float32 kernels that the quantised ones were made from, by name.

    Raises:
        ExportError: a graph is not what its quantisation says; the message names the first faults.
    """
    if manifest.quantisation is None:
        return
    for file in (MODEL_GRAPH, *(stage.file for stage in manifest.stages)):
        faults = quantisation_faults(onnx.load(folder / file), manifest.quantisation, weights)
        if faults:
            raise ExportError(f"{file}: {in_words(faults)}; nothing was written")


def check_weights(model: ParNet) -> None:
    """Refuse a network with weights that are infinite or not a number.

    Raises:
        ExportError: there are such weights; the message names the first of them.
    """
    bad = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        raise ExportError(
            f"{len(bad)} of the network's tensors hold infinities or NaN, the first is '{bad[0]}'; "
            "nothing was written"
        )


def run_network(
    model: ParNet, images: Array, preprocessing: Preprocessing, *, softmax: bool
) -> Array:
    """What a graph is to give, computed by torch, with what the graph does around the network."""
    with torch.inference_mode():
        y = model(normalised(images, preprocessing))
    result: Array = (y.softmax(1) if softmax else y).numpy()
    return result


def normalised(images: Array, preprocessing: Preprocessing) -> Tensor:
    """What the network reads of the images that a graph reads, (N, 3, H, W) both."""
    x = torch.from_numpy(images)
    if not preprocessing.in_graph:
        return x
    mean = torch.tensor(preprocessing.mean)[:, None, None]
    std = torch.tensor(preprocessing.std)[:, None, None]
    return (x / 255 - mean) / std


def _open_whole(folder: Path, manifest: ModelManifest) -> OnnxRuntimeRunner:
    return _open(folder / MODEL_GRAPH, manifest.precision, manifest.inputs, manifest.outputs)


def _open_stages(folder: Path, manifest: ModelManifest) -> SplitRunner:
    stages = [
        StageRunner(
            name=stage.name,
            device="cpu",
            runner=_open(folder / stage.file, manifest.precision, stage.inputs, stage.outputs),
        )
        for stage in manifest.stages
    ]
    return SplitRunner(stages, inputs=manifest.inputs, outputs=manifest.outputs)


def _open(
    path: Path,
    precision: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> OnnxRuntimeRunner:
    """A graph as it stands in float32; below that emulated, and without rewrites."""
    if precision == "fp32":
        return OnnxRuntimeRunner(path, inputs=inputs, outputs=outputs)
    return open_emulated(emulate(onnx.load(path), EXACTLY), inputs, outputs)


def _run(runner: Runner, images: Array, what: str) -> Array:
    (output,) = runner.outputs
    result = runner.run({IMAGES: images})[output.name]
    if not np.isfinite(result).all():
        raise ExportError(f"the {output.name} {what} are not finite; nothing was written")
    return result


def _relative(actual: Array, expected: Array) -> float:
    if actual.shape != expected.shape:  # one row would be compared with every one
        return math.inf
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))


def _error(actual: Array, expected: Array, *, softmax: bool) -> float:
    """Relative; of probabilities the greater of their own and their logarithms'."""
    if not softmax:
        return _relative(actual, expected)
    logarithms = _relative(log_probabilities(actual), log_probabilities(expected))
    return float(np.max([_relative(actual, expected), logarithms]))


def _require_response(
    pairs: Sequence[tuple[Array, Array]], tolerance: float, *, softmax: bool
) -> None:
    """Refuse answers, (N, classes), that are about the same whatever the network's are."""
    graph, network = (np.concatenate(rows) for rows in zip(*pairs, strict=True))
    if problem := unresponsive(network, graph, tolerance, softmax=softmax):
        raise ExportError(f"the whole graph {problem}; nothing was written")


def _require(error: float, tolerance: float, what: str) -> None:
    if not error <= tolerance:  # so written, NaN fails too
        raise ExportError(
            f"{what} by {error:.1e} relative (allowed is {tolerance:.0e}); nothing was written"
        )


def trial(manifest: ModelManifest, seed: int) -> Array:
    """Noise in the shape and type of the input; batches from the smallest to the greatest."""
    batch = (manifest.batch.min, manifest.batch.opt, manifest.batch.max)[seed % 3]
    (spec,) = manifest.inputs
    rng = np.random.default_rng(seed)
    shape = spec.concrete(batch)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape).astype(spec.dtype)
