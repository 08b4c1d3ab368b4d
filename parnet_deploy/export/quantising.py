"""From a float32 graph to what int8 and fp8 make of it: ranges, what is kept, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from parnet_deploy.errors import ExportError
from parnet_deploy.lowering import keeping, observed
from parnet_deploy.quantise.bias import correct_bias
from parnet_deploy.quantise.calibrate import calibrate
from parnet_deploy.quantise.effect import Effect
from parnet_deploy.quantise.equalise import equalise
from parnet_deploy.quantise.examine import Choices, examine
from parnet_deploy.quantise.images import CalibrationImages
from parnet_deploy.quantise.kernels import BlockKernels
from parnet_deploy.quantise.names import (
    ALLOW_DOUBTFUL,
    check_needs_images,
    check_per_tensor,
    refuse_without_ranges,
)
from parnet_deploy.quantise.plausible import check_ranges, check_span
from parnet_deploy.quantise.result import QuantisationReport
from parnet_deploy.quantise.trial import Trial, make_trial
from parnet_deploy.spec import Preprocessing
from parnet_deploy.spec.learned import LearnedRanges, quantisation_of
from parnet_deploy.spec.precision import Precision
from parnet_deploy.spec.quantisation import CalibrationMethod, Quantisation, Scheme

Counted = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many steps are."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantiseOptions:
    """How a network is quantised.

    Attributes:
        name: the network's.
        precision: ``int8`` or ``fp8``.
        scheme: what is quantised, and into what.
        images: to calibrate and to judge on; None where ranges were learned in training.
        learned: those ranges, where the network has any; images, if there are some, come first.
        method: how ranges are found on images.
        percentile: for ``percentile``.
        kept: blocks that are not to be quantised.
        budget: keep as many more as it takes to lose no more than so many points; None: no more.
        equalise: even out channels' ranges first, where that is exact.
        correct_bias: take off what quantising shifts on average.
        per_channel: a scale for each output channel of a kernel, or one for all.
        costs: measure what each layer costs alone, even where no budget asks for it: it takes a run
            over all images for each.
        doubtful: go on where the images are unlike those of the training, their range is not what
            the preprocessing gives, or the answers on them are others than float32's.
    """

    name: str
    precision: Precision
    scheme: Scheme
    images: CalibrationImages | None = None
    learned: LearnedRanges | None = None
    method: CalibrationMethod = "mse"
    percentile: float | None = None
    kept: tuple[str, ...] = ()
    budget: float | None = None
    equalise: bool = False
    correct_bias: bool = False
    per_channel: bool = True
    costs: bool = False
    doubtful: bool = False

    def __post_init__(self) -> None:
        """Refuse what takes images where there are none.

        Raises:
            UsageError: no images and no learned ranges, no images for what needs some, or one scale
                for a whole kernel where that is measured anyway.
        """
        check_per_tensor(per_channel=self.per_channel, costs=self.costs, budget=self.budget)
        if self.images is not None:
            return
        if self.learned is None:
            refuse_without_ranges()
        check_needs_images(
            equalise=self.equalise,
            correct_bias=self.correct_bias,
            costs=self.costs,
            budget=self.budget,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Quantised:
    """A network that is ready to be lowered.

    Attributes:
        graph: in float32, perhaps with other scales and biases; its answers are the network's but
            for what bias correction takes off.
        quantisation: how it is to be quantised.
        accuracy: the float32 network's on the images, 0 to 1; None where there are no labels.
        effect: its answers beside float32; None where there were no images.
        report: what each layer costs, where that was measured.
        warnings: what is odd about its ranges.
    """

    graph: gs.Graph
    quantisation: Quantisation
    accuracy: float | None = None
    effect: Effect | None = None
    report: QuantisationReport | None = None
    warnings: tuple[str, ...] = ()


def quantise_graph(
    graph: gs.Graph,
    options: QuantiseOptions,
    *,
    first: str,
    kernels: Callable[[], Iterable[BlockKernels]] = tuple,
    progress: Counted = lambda *step: None,
) -> Quantised:
    """Find out how a graph is to be quantised.

    Ranges, costs and what is kept are found on the same images: there are far fewer figures to
    find than images, and whoever wants to know how it fares on others runs `evaluate` or `verify`.

    Args:
        graph: in float32, proven; it is left as it is.
        options: how.
        first: the tensor that the network reads.
        kernels: the blocks' kernels branch by branch, for the report.
        progress: called at every step.

    Raises:
        UsageError: a layer to keep that is not there; a tensor that is zero on all images.
        ExportError: a tensor is not finite, or the same everywhere.
        RunnerError: a run failed.
        SpecError: learned ranges are of another network.
    """
    observed(graph, options.scheme, options.kept)  # there are such layers, or no work is done
    if options.images is None:
        return _learned(graph, options, first)
    if options.costs or options.budget is not None:
        return _examined(graph, options, options.images, first, kernels(), progress)
    trial = make_trial(graph, options.images, first=first)
    if options.equalise:
        trial = replace(trial, graph=equalise(trial, options.images, options.scheme).graph)
    quantisation = _calibrated(trial, options, options.images, progress)
    result = trial.graph
    if options.correct_bias:
        corrected = correct_bias(trial, quantisation, options.images, progress=progress)
        result, shifts = corrected.graph, corrected.greatest
        quantisation = replace(quantisation, bias_corrected=True, shifts=shifts)
    return Quantised(
        graph=result,
        quantisation=quantisation,
        accuracy=trial.accuracy,
        effect=trial.effect(quantisation, result),
    )


def check_reads(
    found: Quantised, options: QuantiseOptions, preprocessing: Preprocessing
) -> str | None:
    """Refuse a range of what the network reads that its preprocessing does not give.

    It says nothing of the weights, so that it is asked of untrained ones, too. Images that are dark
    or pale use little of that range, and are named instead. Of a range that was learned in training
    it is warned: it is of the network's own normalisation.

    Args:
        found: what was made of it.
        options: how.
        preprocessing: of the network.

    Returns:
        A warning, in a sentence; None where there is nothing to be said.

    Raises:
        ExportError: the range was found on images that were normalised otherwise, or is off by a
            factor, and `doubtful` is off.
    """
    images = options.images
    if images is not None and (span := check_span(images.values)):
        return span
    odd = check_ranges(found.quantisation.tensors, preprocessing)
    if odd is None or images is None or options.doubtful:
        return odd
    raise ExportError(
        f"{odd}; give --calibrate the pixels as uint8, which are normalised here, or "
        f"{ALLOW_DOUBTFUL} to go on; nothing was written"
    )


LEAST_AGREEMENT = 0.8
"""Share of the calibration images that must have float32's top-1 class: one in five that has
another is no rounding. Digits, sane and made to quantise badly, were at 88 % and above, naive
scales included."""

LEAST_LOST = 2
"""Images that must be lost as well: of four a single one is a quarter, and sound networks at 98 %
agreement lose that one in 8 % of all cases."""


def check_agreement(found: Quantised, options: QuantiseOptions) -> str | None:
    """Refuse a quantised network whose answers are others than float32's on its own images.

    Args:
        found: what was made of it.
        options: how.

    Returns:
        A warning, in a sentence, where that is allowed or the images are too few to tell; None
        where there is nothing to be said.

    Raises:
        ExportError: fewer than `LEAST_AGREEMENT` of the images have float32's top-1 class, at
            least `LEAST_LOST` have another, and `doubtful` is off.
    """
    effect, images = found.effect, options.images
    if effect is None or images is None or effect.agreement >= LEAST_AGREEMENT:
        return None
    lost = round((1.0 - effect.agreement) * images.count)
    said = (
        f"in {options.precision} only {effect.agreement:.2%} of the calibration images have "
        "float32's top-1 class"
    )
    if lost < LEAST_LOST:
        return f"{said}: {lost} of {images.count}, and so few images do not tell"
    if options.doubtful:
        return f"{said}, where {LEAST_AGREEMENT:.0%} is asked for"
    raise ExportError(
        f"{said}, and {LEAST_AGREEMENT:.0%} is asked for: --quantisation-report tells which layers "
        f"are to blame, --auto-keep keeps them, and {ALLOW_DOUBTFUL} goes on; nothing was written"
    )


def _learned(graph: gs.Graph, options: QuantiseOptions, first: str) -> Quantised:
    if options.learned is None:
        raise ValueError("neither images nor ranges")
    names = observed(graph, options.scheme)
    found = quantisation_of(options.learned, options.scheme, names, first=first)
    found = replace(found, per_channel=options.per_channel)
    return Quantised(graph=graph, quantisation=keeping(graph, found, options.kept))


def _examined(
    graph: gs.Graph,
    options: QuantiseOptions,
    images: CalibrationImages,
    first: str,
    kernels: Iterable[BlockKernels],
    progress: Counted,
) -> Quantised:
    found = examine(
        graph,
        options.precision,
        options.scheme,
        images,
        Choices(
            method=options.method,
            percentile=options.percentile,
            keep=options.kept,
            budget=options.budget,
            equalise=options.equalise,
            correct_bias=options.correct_bias,
        ),
        name=options.name,
        kernels=kernels,
        first=first,
        progress=progress,
    )
    return Quantised(
        graph=found.graph,
        quantisation=found.quantisation,
        accuracy=found.report.accuracy,
        effect=found.report.final,
        report=found.report,
    )


def _calibrated(
    trial: Trial, options: QuantiseOptions, images: CalibrationImages, progress: Counted
) -> Quantisation:
    found = calibrate(
        trial.graph,
        options.scheme,
        images,
        tensors=observed(trial.graph, options.scheme),
        method=options.method,
        percentile=options.percentile,
        progress=lambda done, total: progress("calibrate", done, total),
    )
    found = replace(found, per_channel=options.per_channel, equalised=options.equalise)
    return keeping(trial.graph, found, options.kept)
