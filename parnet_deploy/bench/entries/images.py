"""What contestants are fed: the same seeded images for all of one network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from parnet_deploy.errors import UsageError, os_reason
from parnet_deploy.images import normalise
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
