"""The paper's networks and the small ones, by name."""

from __future__ import annotations

from dataclasses import dataclass

from parnet_deploy.spec.lookup import lookup
from parnet_deploy.spec.parnet import ParNetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A named network and the figures its paper gives for it.

    Attributes:
        spec: the network.
        paper_parameters: parameters in millions (tables 2 and 6), or None.
        paper_gflop: GFLOP at 224x224 (table 2), or None.
        paper_top1: top-1 accuracy in percent: ImageNet (table 1), CIFAR-10 (100 - error,
            table 6), or None.
    """

    spec: ParNetSpec
    paper_parameters: float | None = None
    paper_gflop: float | None = None
    paper_top1: float | None = None


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
    """Paper, section 3.3: depth 1 to 3 at full resolution, streams of 3, 4, 4 blocks."""
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
    )


VARIANTS: dict[str, Variant] = {
    variant.spec.name: variant
    for variant in (
        Variant(
            spec=_imagenet("s", 96, 192, 384, 1280),
            paper_parameters=19.2,
            paper_gflop=9.7,
            paper_top1=75.19,
        ),
        Variant(
            spec=_imagenet("m", 128, 256, 512, 2048),
            paper_parameters=35.6,
            paper_gflop=17.2,
            paper_top1=76.60,
        ),
        Variant(
            spec=_imagenet("l", 160, 320, 640, 2560, dropout=0.1),
            paper_parameters=54.9,
            paper_gflop=26.7,
            paper_top1=77.66,
        ),
        Variant(
            spec=_imagenet("xl", 200, 400, 800, 3200, dropout=0.1),
            paper_parameters=85.0,
            paper_gflop=41.5,
            paper_top1=78.55,
        ),
        # Widths are not given in the paper: these round to its parameter counts.
        Variant(
            spec=_cifar("cifar-s", 32, 64, 128, 128, dropout=0.2),
            paper_parameters=1.3,
            paper_top1=95.0,
        ),
        Variant(
            spec=_cifar("cifar-m", 112, 224, 448, 640, dropout=0.2),
            paper_parameters=15.5,
            paper_top1=96.10,
        ),
        Variant(
            spec=_cifar("cifar-l", 168, 336, 672, 1216, dropout=0.2),
            paper_parameters=35.0,
            paper_top1=96.12,
        ),
        Variant(spec=_cifar("digits", 8, 16, 32, 64)),
    )
}


def variant(name: str) -> Variant:
    """Look a variant up by name.

    Raises:
        UsageError: there is none of that name; the nearest is suggested.
    """
    return lookup("variant", name, VARIANTS, prefix="parnet-")
