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
    work = _Work(trial, scheme, calibrating, choices, progress)
    work.calibrate(learned)
    if choices.equalise:
        work.equalise()
    work.measure()
    if choices.budget is not None:
        work.keep(choices.budget)
    if choices.correct_bias:
        work.correct_bias()
    report = _report(work, name, precision, block_noise(kernels, scheme.weight))
    return Examined(graph=work.graph, quantisation=work.quantisation, report=report)


class _Work:
    """What is to be quantised, and what was found so far; its steps, in the order they are taken.

    Attributes:
        trial: the float32 graph, evened out or not, and the images that it is judged on.
        seen: the values of its activations.
        naive: what whole ranges and one scale a kernel make of the answers.
        quantisation: how it is to be quantised, as far as that is decided.
        costs: what each layer costs alone.
        kept: what the budget keeps.
        final: what it makes of the answers in the end; None where all is kept from the start.
        graph: what is to be lowered: the trial's own, or one with other biases.
        options: what the options have changed.
    """

    seen: Mapping[str, Histogram]
    naive: Effect
    quantisation: Quantisation
    costs: Sensitivity
    kept: Kept | None = None
    final: Effect | None

    def __init__(
        self,
        trial: Trial,
        scheme: Scheme,
        images: CalibrationImages,
        choices: Choices,
        progress: Progress,
    ) -> None:
        self.trial, self.graph = trial, trial.graph
        self.scheme, self.images, self.choices = scheme, images, choices
        self.progress = progress
        self.options: list[OptionEffect] = []

    def calibrate(self, learned: Quantisation | None) -> None:
        """See which values occur, and find ranges, or take those that were learned."""
        self.seen = self._observe()
        whole = quantisation_of(self.seen, self.scheme, self.images, "minmax")
        self.naive = self.trial.effect(replace(whole, per_channel=False))
        found = learned or self._quantisation()
        self.quantisation = keeping(self.trial.graph, found, self.choices.keep)

    def equalise(self) -> None:
        """Even out channels' ranges, and find them again."""
        found = equalise(self.trial, self.images, self.scheme)
        before = self.trial.effect(self.quantisation)
        self.trial, self.graph = replace(self.trial, graph=found.graph), found.graph
        self.seen = self._observe()
        evened = replace(self._quantisation(), equalised=True)
        self.quantisation = keeping(self.trial.graph, evened, self.choices.keep)
        self._tell("equalise", before, self.trial.effect(self.quantisation), found.verdict)

    def measure(self) -> None:
        """Quantise every layer alone."""
        self.costs = sensitivity(self.trial, self.quantisation, progress=self.progress)
        self.final = self.costs.whole

    def keep(self, budget: float) -> None:
        """Decide what is kept, so that no more is lost than so many points."""
        found = auto_keep(self.trial, self.quantisation, self.costs, budget, progress=self.progress)
        self.quantisation = keeping(self.trial.graph, self.quantisation, found.blocks)
        self.kept, self.final = found, found.effect

    def correct_bias(self) -> None:
        """Take off what is shifted by what is really quantised, if anything is."""
        if self.final is None:
            return
        found = correct_bias(self.trial, self.quantisation, self.images, progress=self.progress)
        before, self.graph = self.final, found.graph
        self.final = self.trial.effect(self.quantisation, self.graph)
        self._tell("correct-bias", before, self.final, found.verdict)
        shifts = found.greatest
        self.quantisation = replace(self.quantisation, bias_corrected=True, shifts=shifts)

    def _observe(self) -> Mapping[str, Histogram]:
        names = observed(self.trial.graph, self.scheme)
        progress = partial(self.progress, "calibration images")
        return observe(self.trial.graph, names, self.images, progress=progress)

    def _quantisation(self) -> Quantisation:
        how = self.choices.method, self.choices.percentile
        return quantisation_of(self.seen, self.scheme, self.images, *how)

    def _tell(self, option: str, before: Effect, after: Effect, verdict: str) -> None:
        effect = OptionEffect(option=option, before=before, after=after, detail=verdict)
        self.options.append(effect)


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


def _report(
    work: _Work, name: str, precision: Precision, noises: Sequence[BlockNoise]
) -> QuantisationReport:
    trial, costs = work.trial, work.costs
    return QuantisationReport(
        name=name,
        precision=precision,
        quantisation=work.quantisation,
        judged=trial.images.source,
        images=trial.images.count,
        accuracy=trial.accuracy,
        whole=costs.whole,
        naive=work.naive,
        final=work.final,
        layers=_layers(work, {noise.block: noise for noise in noises}),
        blamed=tuple(Blamed(block=block, share=share) for block, share in to_blame(costs)),
        kept=work.kept,
        options=tuple(work.options),
        tools=versions(*TOOLS),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _layers(work: _Work, noises: Mapping[str, BlockNoise]) -> tuple[LayerReport, ...]:
    quantisation = work.quantisation
    alone = {cost.block: cost.alone for cost in work.costs.layers}
    reports = []
    for layer in layers(work.trial.graph):
        seen, how = work.seen[layer.input], quantisation.tensors.get(layer.input)
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
