"""What is fed to the ladder: images from a folder, arrays from an .npz, or seeded noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parnet_deploy.data.npz import prepare, read_npz
from parnet_deploy.errors import UsageError
from parnet_deploy.images import find_images, load_images
from parnet_deploy.spec import Array, Preprocessing


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Inputs:
    """Images, as graphs read them.

    Attributes:
        description: where they come from, in a few words.
        images: (N, 3, H, W): float32, normalised, or uint8 where the graph normalises.
    """

    description: str
    images: Array


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Images that are run at once.

    Attributes:
        images: (B, 3, H, W) as graphs and engines read them.
        normalised: (B, 3, H, W) float64, as networks in torch read them.
        count: how many of them are wanted; the rest fills up a batch of fixed size.
    """

    images: Array
    normalised: Array
    count: int


def from_noise(preprocessing: Preprocessing, *, seed: int, samples: int) -> Inputs:
    """Seeded noise: standard normal, or uniform pixels where the graph normalises.

    Raises:
        UsageError: fewer than one sample.
    """
    if samples < 1:
        raise UsageError(f"at least one sample is needed, not {samples}")
    rng = np.random.default_rng(seed)
    shape = (samples, 3, *preprocessing.size)
    if preprocessing.in_graph:
        images: Array = rng.integers(0, 256, shape, dtype=np.uint8)
    else:
        images = rng.standard_normal(shape, dtype=np.float32)
    return Inputs(description=f"{samples} images of noise, seed {seed}", images=images)


def from_folder(folder: Path, preprocessing: Preprocessing, *, samples: int) -> Inputs:
    """The first images of a folder, prepared as for prediction.

    Raises:
        ImageError: the folder has no image, or one that cannot be decoded.
    """
    paths = find_images(folder)
    taken = paths[:samples]
    images = load_images(taken, preprocessing)
    return Inputs(description=f"{len(taken)} of {len(paths)} images in {folder}", images=images)


def from_npz(path: Path, preprocessing: Preprocessing, *, samples: int) -> Inputs:
    """The first images of an .npz: its array ``images``, or the only one it has.

    (N, 3, H, W): uint8 pixels, which are normalised here unless the graph does it, or float
    values that are normalised already.

    Raises:
        DataError: the file cannot be read, or does not hold such an array.
    """
    found = read_npz(path, preprocessing)
    images = prepare(path, found.images[:samples], preprocessing)
    return Inputs(description=f"{len(images)} images of {found.called}{path}", images=images)


def batches(inputs: Inputs, preprocessing: Preprocessing, size: int) -> Iterator[Batch]:
    """Cut images into batches of one size; the last is filled up with its own last image."""
    for start in range(0, len(inputs.images), size):
        part = inputs.images[start : start + size]
        count = len(part)
        filled = np.concatenate([part, *[part[-1:]] * (size - count)])
        yield Batch(images=filled, normalised=normalised(filled, preprocessing), count=count)


def normalised(images: Array, preprocessing: Preprocessing) -> Array:
    """What a graph reads as float64, normalised: ``(x / 255 - mean) / std`` of uint8 pixels."""
    values: Array = images.astype(np.float64)
    if preprocessing.in_graph:
        mean, std = (
            np.asarray(value, np.float64)[:, None, None]
            for value in (preprocessing.mean, preprocessing.std)
        )
        values = (values / 255 - mean) / std
    return values
