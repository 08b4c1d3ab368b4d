"""Samples that lie in memory as one array."""

from __future__ import annotations

import numpy as np
from PIL import Image

from parnet_deploy.errors import DataError
from parnet_deploy.spec import Array


class ArraySamples:
    """Labelled images, held as one array.

    Attributes:
        images: (N, 3, H, W) uint8, RGB.
        labels: (N,) int64, index of the class.
    """

    __slots__ = ("_name", "_numbers", "images", "labels")

    def __init__(
        self, images: Array, labels: Array, name: str, *, numbers: Array | None = None
    ) -> None:
        """Hold the images as they are; nothing is copied.

        Args:
            images: (N, 3, H, W) uint8, RGB.
            labels: (N,) integers, index of the class.
            name: what they are called together: ``digits``.
            numbers: (N,) integers, each image's place in its source, which its name gives; counted
                from 0 where None.

        Raises:
            DataError: the arrays are of other shapes or types, or a label is negative.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise DataError(
                f"images of {name} are uint8 of shape (N, 3, H, W), "
                f"not {images.dtype} of shape {images.shape}"
            )
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise DataError(
                f"{len(images)} images of {name} need as many labels, which are integers, "
                f"not {labels.dtype} of shape {labels.shape}"
            )
        self._name = name
        self._numbers = np.arange(len(images)) if numbers is None else numbers
        self.images = images
        self.labels = labels.astype(np.int64)
        if len(negative := np.flatnonzero(labels < 0)):
            first = int(negative[0])
            raise DataError(f"{self.name(first)} has the label {labels[first]}; labels start at 0")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """One image, RGB."""
        return Image.fromarray(np.ascontiguousarray(self.images[index].transpose(1, 2, 0)))

    def label(self, index: int) -> int:
        """Index of its class."""
        return int(self.labels[index])

    def name(self, index: int) -> str:
        """``digits[17]``."""
        return f"{self._name}[{self._numbers[index]}]"
