"""examine: calibrate a network, find what quantising costs, and do about it what is asked for."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from parnet_deploy.bundle import versions
from parnet_deploy.errors import UsageError
from parnet_deploy.lowering import keeping, layers, observed
from parnet_deploy.lowering.layers import check_kept
from parnet_deploy.quantise.bias import correct_bias
from parnet_deploy.quantise.calibrate import quantisation_of
from parnet_deploy.quantise.effect import Effect
from parnet_deploy.quantise.equalise import equalise
from parnet_deploy.quantise.histogram import Histogram
from parnet_deploy.quantise.images import CalibrationImages
from parnet_deploy.quantise.keep import Kept, auto_keep, check_budget
from parnet_deploy.quantise.kernels import LEAST, BlockKernels, BlockNoise, block_noise
from parnet_deploy.quantise.observe import observe
from parnet_deploy.quantise.ranges import check_method, squared_error
from parnet_deploy.quantise.result import (
    Activation,
    Blamed,
    LayerReport,
    OptionEffect,
    QuantisationReport,
)
from parnet_deploy.quantise.sensitivity import Sensitivity, sensitivity, to_blame
from parnet_deploy.quantise.trial import Progress, Trial, make_trial
from parnet_deploy.spec import IMAGES, LOGITS
from parnet_deploy.spec.precision import Precision
from parnet_deploy.spec.quantisation import CalibrationMethod, Quantisation, Quantiser, Scheme

TOOLS = ("parnet-deploy", "onnx", "onnx-graphsurgeon", "onnxruntime-gpu", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What is asked for.

    Attributes:
        method: how ranges are found.
        percentile: for ``percentile``.
        keep: blocks that are kept in any case.
        budget: keep what it takes to lose no more than so many points; None keeps no more.
        equalise: even out the ranges of channels, where that is exact.
        correct_bias: take off what quantising shifts on average.
    """

    method: CalibrationMethod = "mse"
    percentile: float | None = None
    keep: tuple[str, ...] = ()
    budget: float | None = None
    equalise: bool = False
    correct_bias: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Examined:
    """What is to be lowered, and what was found.

    Attributes:
        graph: in float32: the network's own, or an equalised or corrected one.
        quantisation: of that graph.
        report: what was found.
    """

    graph: gs.Graph
    quantisation: Quantisation
    report: QuantisationReport


def examine(
    graph: gs.Graph,
    precision: Precision,
    scheme: Scheme,
    calibrating: CalibrationImages,
    choices: Choices,
    *,
    name: str,
    judging: CalibrationImages | None = None,
    kernels: Iterable[BlockKernels] = (),
    learned: Quantisation | None = None,
    first: str = IMAGES,
    last: str = LOGITS,
    progress: Progress = lambda *step: None,
) -> Examined:
    """Quantise a network as it is asked for, and measure all that is decided on the way.

    Ranges are evened out before they are found; then every layer is quantised alone; then it is
    decided what is kept; and biases are corrected last, for what is really quantised.

    Args:
        graph: in float32, proven; it is left as it is.
        precision: ``int8`` or ``fp8``.
        scheme: what is quantised, and into what.
        calibrating: images that ranges are found on.
        choices: what is asked for.
        name: the network's.
        judging: images that answers are judged on; the former where None.
        kernels: the blocks' kernels branch by branch, for the report.
        learned: with quantisers that were learned in training, instead of those of the images.
        first: the tensor from which on the network may be quantised.
        last: its logits' name.
        progress: called behind each run.

    Raises:
        UsageError: a choice cannot be: a block that is not there, a budget below 0, a method.
        ExportError: a tensor cannot be quantised, or equalising changed the network.
        RunnerError: a run failed, or an answer is not finite.
    """
    _check(choices, learned, graph)
    trial = make_trial(graph, judging or calibrating, first=first, last=last)
    seen = _observe(trial.graph, scheme, calibrating, progress)
    naive = _naive(trial, scheme, calibrating, seen)
    quantisation = learned or quantisation_of(
        seen, scheme, calibrating, choices.method, choices.percentile
    )
    quantisation = keeping(graph, quantisation, choices.keep)
    options: list[OptionEffect] = []
    if choices.equalise:
        equalised = equalise(trial, calibrating, scheme)
        before = trial.effect(quantisation)
        trial = replace(trial, graph=equalised.graph)
        seen = _observe(trial.graph, scheme, calibrating, progress)
        quantisation = quantisation_of(
            seen, scheme, calibrating, choices.method, choices.percentile
        )
        quantisation = replace(keeping(trial.graph, quantisation, choices.keep), equalised=True)
        options.append(
            OptionEffect(
                option="equalise",
                before=before,
                after=trial.effect(quantisation),
                detail=equalised.verdict,
            )
        )
    costs = sensitivity(trial, quantisation, progress=progress)
    found = _Found(trial=trial, costs=costs, naive=naive, seen=seen, options=options)
    if choices.budget is not None:
        found.kept = auto_keep(trial, quantisation, costs, choices.budget, progress=progress)
        quantisation = keeping(trial.graph, quantisation, found.kept.blocks)
    final = costs.whole if found.kept is None else found.kept.effect
    graph = trial.graph
    if choices.correct_bias and final is not None:
        corrected = correct_bias(trial, quantisation, calibrating, progress=progress)
        graph, before = corrected.graph, final
        final = trial.effect(quantisation, graph)
        options.append(
            OptionEffect(
                option="correct-bias", before=before, after=final, detail=corrected.verdict
            )
        )
        quantisation = replace(quantisation, bias_corrected=True)
    report = _report(
        found, name, precision, quantisation, final, block_noise(kernels, scheme.weight)
    )
    return Examined(graph=graph, quantisation=quantisation, report=report)


@dataclass(kw_only=True)
class _Found:
    """What was found on the way to a report."""

    trial: Trial
    costs: Sensitivity
    naive: Effect
    seen: Mapping[str, Histogram]
    options: list[OptionEffect]
    kept: Kept | None = None


def _check(choices: Choices, learned: Quantisation | None, graph: gs.Graph) -> None:
    """Refuse what cannot be before anything is run."""
    check_budget(choices.budget)
    if learned is None:
        check_method(choices.method, choices.percentile)
    elif choices.equalise:
        raise UsageError(
            "ranges that were learned in training do not fit a network whose ranges are evened "
            "out: leave out --equalise"
        )
    check_kept(layers(graph), choices.keep)


def _observe(
    graph: gs.Graph, scheme: Scheme, images: CalibrationImages, progress: Progress
) -> Mapping[str, Histogram]:
    names = observed(graph, scheme)
    return observe(graph, names, images, progress=partial(progress, "calibration images"))


def _naive(
    trial: Trial, scheme: Scheme, images: CalibrationImages, seen: Mapping[str, Histogram]
) -> Effect:
    """Whole ranges, and one scale for all output channels of a kernel."""
    whole = quantisation_of(seen, scheme, images, "minmax")
    return trial.effect(replace(whole, per_channel=False))


def _report(
    found: _Found,
    name: str,
    precision: Precision,
    quantisation: Quantisation,
    final: Effect | None,
    noises: Sequence[BlockNoise],
) -> QuantisationReport:
    trial, costs = found.trial, found.costs
    return QuantisationReport(
        name=name,
        precision=precision,
        quantisation=quantisation,
        judged=trial.images.source,
        images=trial.images.count,
        accuracy=trial.accuracy,
        whole=costs.whole,
        naive=found.naive,
        final=final,
        layers=_layers(found, quantisation, {noise.block: noise for noise in noises}),
        blamed=tuple(Blamed(block=block, share=share) for block, share in to_blame(costs)),
        kept=found.kept,
        options=tuple(found.options),
        tools=versions(*TOOLS),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _layers(
    found: _Found, quantisation: Quantisation, noises: Mapping[str, BlockNoise]
) -> tuple[LayerReport, ...]:
    alone = {cost.block: cost.alone for cost in found.costs.layers}
    reports = []
    for layer in layers(found.trial.graph):
        seen, how = found.seen[layer.input], quantisation.tensors.get(layer.input)
        activation = Activation(
            tensor=layer.input,
            low=seen.low,
            high=seen.high,
            quantiser=how,
            snr=None if how is None else _snr(seen, how),
        )
        reports.append(
            LayerReport(
                block=layer.block,
                kernels=noises.get(layer.block),
                activation=activation,
                alone=alone.get(layer.block),
                kept=layer.block in quantisation.kept,
            )
        )
    return tuple(reports)


def _snr(seen: Histogram, how: Quantiser) -> float | None:
    """Signal-to-quantisation-noise ratio of a tensor's values in dB; None where nothing is lost."""
    values, counts = seen.filled()
    noise = squared_error(seen, how)
    if noise == 0.0:
        return None
    power = float(np.square(values) @ counts / counts.sum())
    return float(10 * np.log10(max(power / noise, LEAST)))
