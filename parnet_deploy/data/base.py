"""What every source of labelled images gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image

from parnet_deploy.errors import DataError
from parnet_deploy.spec.images import Interpolation, Triple

Part = Literal["train", "test"]
"""Which of the two splits: what is learnt from, or what is never learnt from."""


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
class Split:
    """One split of a data set, with what is needed to evaluate a network on it.

    Attributes:
        name: the data set, as ``--data`` takes it.
        labels: class names; a sample's label is an index into them.
        samples: the images.
        mean: per-channel (RGB) mean, in units of [0, 1], by which the network's input is
            normalised.
        std: per-channel standard deviation, likewise.
        interpolation: the filter its images are resized with.
        empty: the classes without a single image; more than none only where that was allowed.
    """

    name: str
    labels: tuple[str, ...]
    samples: Samples
    mean: Triple
    std: Triple
    interpolation: Interpolation = "bilinear"
    empty: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse classes that cannot be told apart.

        Raises:
            DataError: there is no class, or two have one name.
        """
        _check_labels(self.name, self.labels)


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
        empty: the classes without an image in the test split; more than none only where that was
            allowed. Every class has an image to learn from.
    """

    name: str
    labels: tuple[str, ...]
    train: Samples
    test: Samples
    mean: Triple
    std: Triple
    interpolation: Interpolation = "bilinear"
    empty: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse classes that cannot be told apart.

        Raises:
            DataError: there is no class, or two have one name.
        """
        _check_labels(self.name, self.labels)


def _check_labels(name: str, labels: tuple[str, ...]) -> None:
    if not labels:
        raise DataError(f"the data set {name} has no classes")
    if len(set(labels)) < len(labels):
        twice = sorted(label for label, times in Counter(labels).items() if times > 1)
        raise DataError(f"the data set {name} has several classes of one name: {', '.join(twice)}")
