"""Samples written as image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parnet_deploy.data.base import Samples
from parnet_deploy.errors import DataError


def save_images(samples: Samples, labels: Sequence[str], folder: Path) -> None:
    """Write every image as ``LABEL/NNNN.png``, NNNN being its index.

    Opened again as ``imagefolder:FOLDER``, they are the same to the last pixel. A class without
    images gets no folder.

    Args:
        samples: what to write.
        labels: class names.
        folder: where to; made where it is missing.

    Raises:
        DataError: a label cannot be the name of a folder.
        ImageError: an image cannot be decoded; the message names it.
    """
    for label in labels:
        if not label or label.startswith(".") or {"/", "\0"} & set(label):
            raise DataError(f"images cannot be saved by class: no folder can be called {label!r}")
    for index in range(len(samples)):
        parent = folder / labels[samples.label(index)]
        parent.mkdir(parents=True, exist_ok=True)
        samples.image(index).save(parent / image_name(index, len(samples)))


def image_name(index: int, count: int) -> str:
    """``NNNN.png``, of as many digits as let `count` names sort as their numbers do."""
    return f"{index:0{max(4, len(str(count - 1)))}}.png"
