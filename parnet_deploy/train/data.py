"""Data sets as arrays of pixels, each with a test split that is always the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from parnet_deploy.errors import MissingDependencyError
from parnet_deploy.spec import Array, Preprocessing
from parnet_deploy.spec.lookup import lookup

TEST_PART = 0.25

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """Images and what they show.

    Attributes:
        images: (N, 3, H, W) uint8, RGB.
        labels: (N,) int64, index of the class.
    """

    images: Array
    labels: Array

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DataSet:
    """A data set, split.

    Attributes:
        name: what people call it.
        labels: class names.
        train: what is learnt from.
        test: what is never learnt from, nor used to choose anything.
        preprocessing: how an image file of this kind becomes what the network reads; mean and
            standard deviation are those of the training split.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    test: Split
    preprocessing: Preprocessing


def load_data(name: str, size: tuple[int, int]) -> DataSet:
    """Load a data set by name.

    Args:
        name: one of `DATA_SETS`.
        size: height and width in pixels to bring its images to.

    Raises:
        UsageError: there is none of that name; the nearest is suggested.
        MissingDependencyError: the package that carries it is not installed.
    """
    return lookup("data set", name, DATA_SETS)(size)


def load_digits(size: tuple[int, int]) -> DataSet:
    """Scikit-learn's handwritten digits: 1797 scans of 8x8 pixels in 17 greys, 10 classes.

    They come with the package. They are enlarged (bicubic) to `size`. The last quarter of every
    class, in the order of the file, is the test split: 450 images, whatever random generator or
    version of scikit-learn there is.
    """
    try:
        from sklearn import datasets
    except ImportError as exc:
        raise MissingDependencyError(
            "the digits need scikit-learn, which is not installed: "
            "pip install 'parnet-deploy[train]'"
        ) from exc
    scans = datasets.load_digits()
    grey = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    images = np.stack([_enlarge(image, size) for image in grey])
    train, test = split_by_class(images, scans.target.astype(np.int64))
    mean = round(float(train.images.mean()) / 255, 4)
    std = round(float(train.images.std()) / 255, 4)
    return DataSet(
        name="digits",
        labels=DIGITS,
        train=train,
        test=test,
        preprocessing=Preprocessing(size=size, crop_ratio=1.0, mean=(mean,) * 3, std=(std,) * 3),
    )


DATA_SETS: dict[str, Callable[[tuple[int, int]], DataSet]] = {"digits": load_digits}


def split_by_class(images: Array, labels: Array) -> tuple[Split, Split]:
    """The last `TEST_PART` of every class, rounded, is the test split; order is kept.

    Args:
        images: (N, 3, H, W).
        labels: (N,) index of the class.

    Returns:
        The training split and the test split.
    """
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        held_out[members[len(members) - round(TEST_PART * len(members)) :]] = True
    train, test = (
        Split(images=images[mask], labels=labels[mask]) for mask in (~held_out, held_out)
    )
    return train, test


def save_images(split: Split, labels: tuple[str, ...], folder: Path) -> None:
    """Write every image as ``LABEL/NNNN.png``, NNNN being its place in the split."""
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
    for index, (pixels, label) in enumerate(zip(split.images, split.labels, strict=True)):
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        image.save(folder / labels[label] / f"{index:04}.png")


def _enlarge(grey: Array, size: tuple[int, int]) -> Array:
    """(h, w) uint8 -> (3, H, W) uint8."""
    height, width = size
    image = Image.fromarray(grey).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
