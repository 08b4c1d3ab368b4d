"""The paper's networks and the small ones, by name.

Where the paper gives the widths, they are its own. It gives none for its networks of one, two and
four streams, nor for CIFAR; ours are chosen to meet its numbers of parameters (docs/networks.md
says how).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from parnet_deploy.spec.lookup import lookup
from parnet_deploy.spec.parnet import ParNetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A named network and the figures its paper gives for it.

    Attributes:
        spec: the network.
        tables: numbers of the paper's tables it is in, the one its figures are from first; empty
            for what is not in the paper.
        paper_parameters: parameters in millions, or None.
        paper_gflop: GFLOP at 224x224 (table 2), or None.
        paper_top1: top-1 accuracy in percent, of ImageNet at 224x224 or of CIFAR-10 (100 - error),
            or None.
        paper_top5: top-5 accuracy in percent of ImageNet, or None.
        paper_cifar100: top-1 accuracy in percent of CIFAR-100 (100 - error), or None.
    """

    spec: ParNetSpec
    tables: tuple[int, ...] = ()
    paper_parameters: float | None = None
    paper_gflop: float | None = None
    paper_top1: float | None = None
    paper_top5: float | None = None
    paper_cifar100: float | None = None


def _imagenet(name: str, *widths: int, dropout: float = 0.0) -> ParNetSpec:
    return ParNetSpec(
        name=name,
        stem_widths=(min(64, widths[0]),),
        stem_strides=(2, 2),
        stream_widths=widths[:-1],
        stream_blocks=(4, 5, 5),
        last_width=widths[-1],
        dropout=dropout,
    )


def _cifar(name: str, *widths: int, dropout: float = 0.0) -> ParNetSpec:
    """Paper, section 3.3: depth 1 to 3 at full resolution, streams of 3, 4, 4 blocks.

    Section 4, CIFAR: the same dropout in the convolutions and in the linear layer.
    """
    return ParNetSpec(
        name=name,
        stem_widths=(widths[0], widths[0]),
        stem_strides=(1, 1, 1),
        stream_widths=widths[:-1],
        stream_blocks=(3, 4, 4),
        last="pointwise",
        last_width=widths[-1],
        last_stride=1,
        classes=10,
        image_size=(32, 32),
        dropout=dropout,
        conv_dropout=dropout,
    )


_S = _imagenet("s", 96, 192, 384, 1280)
_M = _imagenet("m", 128, 256, 512, 2048)
_L = _imagenet("l", 160, 320, 640, 2560, dropout=0.1)
_XL = _imagenet("xl", 200, 400, 800, 3200, dropout=0.1)


def _streams(name: str, streams: int, *widths: int) -> ParNetSpec:
    """M with another number of streams, and widths that keep its number of parameters."""
    return replace(_M.with_streams(streams).with_widths(widths), name=name)


_ONE = _streams("m-one-stream", 1, 560, 2288)


def _deeper(spec: ParNetSpec, depth: int) -> ParNetSpec:
    return replace(spec.with_depth(depth), name=f"{spec.name}-depth{depth}")


_SCALED = (
    Variant(
        spec=_S,
        tables=(1, 2),
        paper_parameters=19.2,
        paper_gflop=9.7,
        paper_top1=75.19,
        paper_top5=92.29,
    ),
    Variant(
        spec=_M,
        tables=(1, 2, 7, 8, 9, 10, 11),
        paper_parameters=35.6,
        paper_gflop=17.2,
        paper_top1=76.60,
        paper_top5=93.02,
    ),
    Variant(
        spec=_L,
        tables=(1, 2, 3, 9, 11),
        paper_parameters=54.9,
        paper_gflop=26.7,
        paper_top1=77.66,
        paper_top5=93.60,
    ),
    Variant(
        spec=_XL,
        tables=(1, 2, 5, 9, 11),
        paper_parameters=85.0,
        paper_gflop=41.5,
        paper_top1=78.55,
        paper_top5=94.13,
    ),
)
_CIFAR = (
    Variant(
        spec=_cifar("cifar-s", 32, 64, 128, 128, dropout=0.2),
        tables=(6,),
        paper_parameters=1.3,
        paper_top1=95.0,
        paper_cifar100=75.38,
    ),
    Variant(
        spec=_cifar("cifar-m", 112, 224, 448, 640, dropout=0.2),
        tables=(6,),
        paper_parameters=15.5,
        paper_top1=96.10,
        paper_cifar100=79.98,
    ),
    Variant(
        spec=_cifar("cifar-l", 168, 336, 672, 1216, dropout=0.2),
        tables=(6,),
        paper_parameters=35.0,
        paper_top1=96.12,
        paper_cifar100=81.35,
    ),
)
_ABLATIONS = (
    Variant(
        spec=replace(_M, name="m-relu-no-sse", activation="relu", squeeze=False),
        tables=(7,),
        paper_parameters=32.4,
        paper_top1=75.12,
        paper_top5=92.00,
    ),
    Variant(
        spec=replace(_M, name="m-relu", activation="relu"),
        tables=(7,),
        paper_parameters=35.6,
        paper_top1=76.55,
        paper_top5=93.01,
    ),
)
_STREAMS = (
    Variant(spec=_ONE, tables=(8, 9, 10), paper_parameters=36.0, paper_top1=75.83),
    Variant(
        spec=_streams("m-two-streams", 2, 264, 528, 2000),
        tables=(10,),
        paper_top1=76.1,
    ),
    Variant(
        spec=_streams("m-four-streams", 4, 112, 224, 448, 448, 1632),
        tables=(10,),
        paper_top1=76.34,
    ),
)
_ENSEMBLES = (
    Variant(
        spec=replace(_ONE, name="ensemble-2", members=2),
        tables=(9,),
        paper_parameters=72.0,
        paper_top1=77.20,
    ),
    Variant(
        spec=replace(_ONE, name="ensemble-3", members=3),
        tables=(9,),
        paper_parameters=108.0,
        paper_top1=77.68,
    ),
)
_DEPTHS = tuple(
    Variant(spec=_deeper(spec, depth), tables=(11,), paper_top1=top1)
    for spec, depth, top1 in (
        (_M, 9, 73.9),
        (_M, 15, 77.0),
        (_L, 9, 75.1),
        (_L, 15, 78.4),
        (_XL, 9, 76.1),
        (_XL, 15, 79.4),
    )
)
_SMALL = (Variant(spec=_cifar("digits", 8, 16, 32, 64)),)

VARIANTS: dict[str, Variant] = {
    variant.spec.name: variant
    for group in (_SCALED, _CIFAR, _ABLATIONS, _STREAMS, _ENSEMBLES, _DEPTHS, _SMALL)
    for variant in group
}


def variant(name: str) -> Variant:
    """Look a variant up by name.

    Raises:
        UsageError: there is none of that name; the nearest is suggested.
    """
    return lookup("variant", name, VARIANTS, prefix="parnet-")
