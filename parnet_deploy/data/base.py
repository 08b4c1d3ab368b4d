"""What every source of labelled images gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from parnet_deploy.spec.images import Interpolation, Triple


class Samples(Protocol):
    """Labelled images in a fixed order, each decoded when it is asked for."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def image(self, index: int) -> Image.Image:
        """One image: RGB, upright, of whatever size it has.

        Raises:
            ImageError: it cannot be decoded; the message names the file.
        """
        ...

    def label(self, index: int) -> int:
        """Index of its class."""
        ...

    def name(self, index: int) -> str:
        """What people find it by: a file's path, or ``digits[17]``."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DataSet:
    """A data set, split.

    Attributes:
        name: what people call it, as ``--data`` takes it.
        labels: class names; a sample's label is an index into them.
        train: what is learnt from.
        test: what is never learnt from.
        mean: per-channel (RGB) mean, in units of [0, 1], by which the network's input is
            normalised.
        std: per-channel standard deviation, likewise.
        interpolation: the filter its images are resized with.
    """

    name: str
    labels: tuple[str, ...]
    train: Samples
    test: Samples
    mean: Triple
    std: Triple
    interpolation: Interpolation = "bilinear"
