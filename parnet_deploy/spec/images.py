"""Preprocessing: how an image becomes the array that a network reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from parnet_deploy.errors import SpecError

Interpolation = Literal["nearest", "bilinear", "bicubic"]

Triple = tuple[float, float, float]
"""A number for each of red, green and blue."""

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


def default_crop_ratio(size: tuple[int, int]) -> float:
    """The crop by the resized image where nothing is said of it.

    224 of 256 is usual for photographs; small images, under 128 pixels, are taken whole.
    """
    return 0.875 if min(size) >= 128 else 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1], normalise per channel.

    Attributes:
        size: height and width of the crop in pixels: the network's input size.
        crop_ratio: size of the crop relative to the resized image (224 of 256 is 0.875).
        interpolation: resampling filter.
        mean: per-channel (RGB) mean that is subtracted, in units of [0, 1].
        std: per-channel standard deviation that is divided by.
        in_graph: the graph itself scales and normalises, and its input is uint8 in [0, 255].
    """

    size: tuple[int, int]
    crop_ratio: float = 0.875
    interpolation: Interpolation = "bilinear"
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    in_graph: bool = False

    def __post_init__(self) -> None:
        """Refuse what would divide by zero or crop outside the image.

        Raises:
            SpecError: a ratio outside (0, 1], a standard deviation that is not positive, or a mean
                or deviation that is not finite.
        """
        if not 0.0 < self.crop_ratio <= 1.0:
            raise SpecError(f"a crop ratio lies in (0, 1], not {self.crop_ratio}")
        if not all(0.0 < deviation < math.inf for deviation in self.std):
            raise SpecError(f"a standard deviation is positive and finite, not {self.std}")
        if not all(math.isfinite(mean) for mean in self.mean):
            raise SpecError(f"a mean is finite, not {self.mean}")

    @property
    def dtype(self) -> str:
        """Element type of the graph's input."""
        return "uint8" if self.in_graph else "float32"
