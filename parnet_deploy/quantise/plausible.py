"""What a network can read, judged by its preprocessing: the gate against wrong normalisation.

Pixels lie in [0, 255], so the values that a network reads of them lie in ``(0 - mean) / std`` to
``(1 - mean) / std``, and pictures use most of that. Values that were normalised otherwise, or not
at all, go beyond it or fill a small part of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parnet_deploy.errors import DataError
from parnet_deploy.spec import IMAGES, PREPROCESSED, Array, Preprocessing
from parnet_deploy.spec.quantisation import Quantiser
from parnet_deploy.spec.ranges import reach

SLACK = 0.05
"""How far beyond black and white values may go, in parts of the way between them."""

LEAST_SPAN = 0.6
"""What part of the way from black to white the values of a whole set must go."""

LEAST_REACH = 0.6
"""What part of the values that a network can read a recorded range must cover. Half of it is a
scale that is off by two; methods that clip leave more than this of pictures."""


def bounds(preprocessing: Preprocessing) -> tuple[Array, Array]:
    """What black and white are to the network, (3,) float64 each: its least and greatest values."""
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    return (0.0 - mean) / std, (1.0 - mean) / std


def check_values(values: Array, preprocessing: Preprocessing, name: str) -> None:
    """Refuse values that cannot be pictures as this network reads them.

    Args:
        values: (N, 3, H, W), finite, normalised by whoever made them.
        preprocessing: of the network.
        name: where they are from, for the message.

    Raises:
        DataError: they go beyond black or white, or leave most of what is between unused.
    """
    black, white = bounds(preprocessing)
    between = white - black
    least, greatest = values.min(axis=(0, 2, 3)), values.max(axis=(0, 2, 3))
    darkest = float(((least - black) / between).min())
    brightest = float(((greatest - black) / between).max())
    found = f"{name} holds values from {least.min():.4g} to {greatest.max():.4g}"
    read = (
        f"this network reads {black.min():.4g} (black) to {white.max():.4g} (white): "
        f"(x / 255 - mean) / std with mean {_listed(preprocessing.mean)} and std "
        f"{_listed(preprocessing.std)}; give the pixels as uint8, which are normalised here"
    )
    if darkest < -SLACK or brightest > 1.0 + SLACK:
        raise DataError(f"{found}, and {read}")
    if brightest - darkest < LEAST_SPAN:
        raise DataError(
            f"{found}, which is {100 * (brightest - darkest):.0f} % of the way from black to "
            f"white, as if they were normalised otherwise: {read}"
        )


def check_span(pixels: Array) -> str | None:
    """Look whether images use what lies between black and white.

    Args:
        pixels: (N, 3, H, W) uint8; of other types nothing is said (`check_values`).

    Returns:
        What is odd, in a sentence; None where nothing is. It may be right: of some cameras.
    """
    if pixels.dtype != np.uint8:
        return None
    least, greatest = int(pixels.min()), int(pixels.max())
    span = (greatest - least) / 255
    if span >= LEAST_SPAN:
        return None
    return (
        f"the calibration images are {least} to {greatest} of 255, {100 * span:.0f} % of the way "
        "from black to white: what is brighter or darker will be cut off"
    )


def check_ranges(tensors: Mapping[str, Quantiser], preprocessing: Preprocessing) -> str | None:
    """Compare the recorded range of what a network reads with what its preprocessing gives.

    Args:
        tensors: a quantisation's.
        preprocessing: of the network.

    Returns:
        What is wrong, in a sentence; None where nothing is, or where neither ``images`` nor
        ``preprocess`` is quantised.
    """
    name = PREPROCESSED if preprocessing.in_graph else IMAGES
    how = tensors.get(name)
    if how is None:
        return None
    blacks, whites = bounds(preprocessing)
    black, white = float(blacks.min()), float(whites.max())
    found = reach(how)
    slack = SLACK * (white - black)
    said = (
        f"the range of '{name}' is {found.low:.4g} to {found.high:.4g}, and with this network's "
        f"preprocessing it reads {black:.4g} to {white:.4g}"
    )
    if how.dtype == "uint8":
        outside = found.low < min(black, 0.0) - slack or found.high > max(white, 0.0) + slack
        covered = (found.high - found.low) / (max(white, 0.0) - min(black, 0.0))
    else:
        greatest = max(-black, white)
        outside = found.greatest > greatest + slack
        covered = found.greatest / greatest
    if outside:
        return f"{said}: it was calibrated with another normalisation, or its scale is wrong"
    if covered < LEAST_REACH:
        return (
            f"{said}, {100 * covered:.0f} % of it: it was calibrated with another normalisation, "
            "or its scale is wrong"
        )
    return None


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
