"""What contestants are fed: the same seeded images for all of one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from parnet_deploy.data import Split
from parnet_deploy.errors import UsageError, os_reason
from parnet_deploy.evaluate.running import spread
from parnet_deploy.images import normalise, preprocess
from parnet_deploy.spec import Array, Preprocessing

COMPARED = 8
"""Images whose answers are compared with what is right, at least."""


def images_for(batch: int) -> int:
    """How many images a contest takes whose runs take `batch` of them: some full runs."""
    return batch * -(-COMPARED // batch)


def write_images(path: Path, preprocessing: Preprocessing, *, count: int, seed: int) -> Path:
    """Write pixels, and the same as a network reads them: arrays ``uint8`` and ``float32``.

    Args:
        path: an ``.npz`` that is written, or written anew.
        preprocessing: of the network: size, mean and standard deviation.
        count: how many images.
        seed: of the pixels, which are uniform noise.

    Returns:
        The path.

    Raises:
        UsageError: no image, or the file cannot be written.
    """
    if count < 1:
        raise UsageError(f"at least one image is needed, not {count}")
    shape = (count, 3, *preprocessing.size)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    outside = Preprocessing(size=preprocessing.size, mean=preprocessing.mean, std=preprocessing.std)
    try:
        np.savez(path, uint8=pixels, float32=normalise(pixels, outside))
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {os_reason(exc)}") from exc
    return path


def write_labelled(
    path: Path, preprocessing: Preprocessing, split: Split, logits: Sequence[int], *, count: int
) -> Path:
    """Write images of a data set, evenly spread over it, and their labels: an array ``labels``.

    Args:
        path: an ``.npz`` that is written, or written anew.
        preprocessing: of the network.
        split: the data set.
        logits: for every class of it, its place among the network's outputs.
        count: how many images at most.

    Returns:
        The path.

    Raises:
        ImageError: an image cannot be used.
        UsageError: there is no image, or the file cannot be written.
    """
    places = spread(len(split.samples), count)
    if not places:
        raise UsageError(f"{split.name} has no image in this split")
    whole = replace(preprocessing, in_graph=True)
    pixels = np.concatenate([preprocess(split.samples.image(n), whole) for n in places])
    labels = np.array([logits[split.samples.label(n)] for n in places])
    try:
        np.savez(
            path,
            uint8=pixels,
            float32=normalise(pixels, replace(preprocessing, in_graph=False)),
            labels=labels,
        )
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {os_reason(exc)}") from exc
    return path


def read_labels(path: Path) -> Array | None:
    """Labels (N,) of such a file's images, or None where they have none, or there is no file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            labels: Array | None = file["labels"] if "labels" in file.files else None
    except OSError:
        return None
    return labels


def read_images(path: Path, dtype: str) -> Array:
    """Images (N, 3, H, W) of one dtype, ``uint8`` or ``float32``.

    Raises:
        UsageError: the file cannot be read, or holds no images of that dtype.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if dtype not in file.files:
                there = ", ".join(file.files) or "none"
                raise UsageError(f"{path} holds no images of {dtype}; it holds {there}")
            images: Array = file[dtype]
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {os_reason(exc)}") from exc
    return images
