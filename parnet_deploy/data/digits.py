"""Scikit-learn's handwritten digits: 1797 scans of 8x8 pixels in 17 greys, 10 classes.

They come with the package, so nothing is downloaded. They are the test set of UCI's *Optical
Recognition of Handwritten Digits*, written by 13 people (the package's own description says so).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from parnet_deploy.data.arrays import ArraySamples
from parnet_deploy.data.base import Part, Split
from parnet_deploy.errors import MissingDependencyError
from parnet_deploy.spec import Array

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TEST_PART = 1 / 3

SIDE = 32
"""Height and width in pixels of the enlarged scans: the least that a ParNet takes."""

_WHITE = 16


def open_digits(parts: Sequence[Part]) -> tuple[Split, ...]:
    """Splits of the digits, enlarged (bicubic) to `SIDE` pixels.

    The last third of every class, in the order of the file, is the test split: whatever random
    generator or version of scikit-learn there is. The file goes by writers, as far as is known, so
    that most of the test split's writers are not in the training split; whose each scan is the
    package does not tell, and a writer on the boundary is in both.

    Mean and standard deviation are those of the training split, rounded to 4 digits.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as exc:
        raise MissingDependencyError(
            "the digits need scikit-learn, which is not installed: "
            "pip install 'parnet-deploy[train]'"
        ) from exc
    scans = datasets.load_digits()
    grey = np.rint(scans.images * (255 / _WHITE)).astype(np.uint8)
    images = np.stack([_enlarge(scan) for scan in grey])
    held_out = last_of_every_class(scans.target, TEST_PART)
    learnt = images[~held_out]
    mean = round(float(learnt.mean()) / 255, 4)
    std = round(float(learnt.std()) / 255, 4)

    def split(part: Part) -> Split:
        numbers = np.flatnonzero(held_out == (part == "test"))
        return Split(
            name="digits",
            labels=LABELS,
            samples=ArraySamples(images[numbers], scans.target[numbers], "digits", numbers=numbers),
            mean=(mean, mean, mean),
            std=(std, std, std),
            interpolation="bicubic",
        )

    return tuple(map(split, parts))


def last_of_every_class(labels: Array, part: float) -> Array:
    """The last `part` of every class, rounded.

    Args:
        labels: (N,) index of the class.
        part: in [0, 1].

    Returns:
        (N,) bool.
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        chosen[members[len(members) - round(part * len(members)) :]] = True
    return chosen


def _enlarge(grey: Array) -> Array:
    """(h, w) uint8 -> (3, SIDE, SIDE) uint8."""
    image = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
