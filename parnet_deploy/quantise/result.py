"""What examining a quantised network gives, as values: what the JSON and the page show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from parnet_deploy.quantise.effect import Effect
from parnet_deploy.quantise.keep import Kept
from parnet_deploy.quantise.kernels import BlockNoise
from parnet_deploy.spec.precision import Precision
from parnet_deploy.spec.quantisation import Quantisation, Quantiser


@dataclass(frozen=True, kw_only=True, slots=True)
class Activation:
    """What a convolution reads, on the calibration images.

    Attributes:
        tensor: its name in the float32 graph.
        low: the least value that was seen.
        high: the greatest.
        quantiser: how it is quantised; None where no quantised layer needs it.
        snr: signal-to-quantisation-noise ratio of its values in dB; None where it is not
            quantised, or nothing is lost.
    """

    tensor: str
    low: float
    high: float
    quantiser: Quantiser | None
    snr: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """One block's convolution.

    Attributes:
        block: the block.
        kernels: what quantising does to its kernels; None where they were not given.
        activation: what it reads.
        alone: the answers where it alone is quantised; None where it was to be kept anyway.
        kept: whether it is not quantised in the end.
    """

    block: str
    kernels: BlockNoise | None
    activation: Activation
    alone: Effect | None
    kept: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Blamed:
    """A layer from which much of the noise comes.

    Attributes:
        block: its block.
        share: of the noise that all layers make alone, 0 to 1.
    """

    block: str
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionEffect:
    """What an option changed.

    Attributes:
        option: its name on the command line, without dashes.
        before: the answers without it.
        after: the answers with it.
        detail: what was done, in a sentence.
    """

    option: str
    before: Effect
    after: Effect
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantisationReport:
    """All that was found.

    Attributes:
        name: the network's.
        precision: what it was quantised to.
        quantisation: how it is in the end.
        judged: what the answers were judged on, in words.
        images: how many that are.
        accuracy: of the float32 network on them, 0 to 1; None where there are no labels.
        whole: the answers with every layer quantised but those that were to be kept anyway.
        naive: the same with the whole range that was seen of each tensor, and one scale for all
            output channels of a kernel.
        final: the answers as the network is exported; None where nothing is quantised.
        layers: in the graph's order.
        blamed: the fewest layers that make half of the noise, the dearest first.
        kept: what was kept automatically, where that was asked for.
        options: what was asked for besides, in the order in which it was done.
        tools: versions of what took part.
        created: when, UTC.
    """

    format: Literal["parnet-deploy/quantisation"] = "parnet-deploy/quantisation"
    format_version: int = 1
    name: str
    precision: Precision
    quantisation: Quantisation
    judged: str
    images: int
    accuracy: float | None
    whole: Effect
    naive: Effect
    final: Effect | None
    layers: tuple[LayerReport, ...]
    blamed: tuple[Blamed, ...]
    kept: Kept | None
    options: tuple[OptionEffect, ...]
    tools: Mapping[str, str]
    created: str
