"""What is counted: pure functions over arrays.

Classes are ordered by probability, the likeliest first; among equals the class of the lower index
comes first, as `predict` has it. So a tie for first place counts as the first of the tied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from parnet_deploy.runtime.outputs import log_probabilities
from parnet_deploy.spec import Array

CONFIDENCE = 0.95
"""Of the intervals beside shares."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """How many of how many, and how sure that is.

    Attributes:
        right: how many.
        images: of how many.
        percent: their share in percent.
        low: lower end of its Wilson interval of 95 %, in percent.
        high: upper end.
    """

    right: int
    images: int
    percent: float
    low: float
    high: float


def predictions(probabilities: Array) -> Array:
    """The likeliest class of every image.

    Args:
        probabilities: (N, classes).

    Returns:
        (N,) int64.
    """
    likeliest: Array = probabilities.argmax(axis=1).astype(np.int64)
    return likeliest


def ranks(probabilities: Array, targets: Array) -> Array:
    """How many classes come before the true one; it is among the first k where that is below k.

    Args:
        probabilities: (N, classes).
        targets: (N,) index of the true class.

    Returns:
        (N,) int64, each from 0 to classes - 1.
    """
    true = np.take_along_axis(probabilities, targets[:, None], axis=1)
    before = np.arange(probabilities.shape[1]) < targets[:, None]
    ahead = (probabilities > true) | ((probabilities == true) & before)
    counted: Array = ahead.sum(axis=1)
    return counted


def cross_entropy(probabilities: Array, targets: Array) -> Array:
    """Minus the natural logarithm of the true class's probability.

    A probability below 1e-30 is taken for that, so an image's loss is at most 69.1: what has its
    softmax inside, in float32, cannot tell smaller ones apart.

    Args:
        probabilities: (N, classes).
        targets: (N,) index of the true class.

    Returns:
        (N,) float64.
    """
    true = np.take_along_axis(probabilities, targets[:, None], axis=1)[:, 0]
    return -log_probabilities(true)


def confusion(targets: Array, predicted: Array, classes: int) -> Array:
    """How often which class was taken for which.

    Args:
        targets: (N,) index of the true class.
        predicted: (N,) index of the predicted class.
        classes: how many there are.

    Returns:
        (classes, classes) int64: a row per true class, a column per predicted class.
    """
    places = targets * classes + predicted
    return np.bincount(places, minlength=classes * classes).reshape(classes, classes)


def share(right: int, images: int) -> Share:
    """A share with its Wilson score interval (Wilson 1927; Brown, Cai, DasGupta 2001).

    Unlike the plain one, the interval stays within 0 and 100 %, and is not empty where everything
    is right.

    Args:
        right: how many.
        images: of how many, at least 1.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    part, more = right / images, z * z / images
    centre = (part + more / 2) / (1 + more)
    half = math.sqrt(part * (1 - part) * more + more * more / 4) / (1 + more)
    return Share(
        right=right,
        images=images,
        percent=100 * right / images,
        low=0.0 if right == 0 else 100 * (centre - half),  # rounding would leave a trace of zero
        high=100.0 if right == images else 100 * (centre + half),
    )
