"""Images, and perhaps their labels, as arrays in an .npz, which ``numpy.savez`` writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.lib.npyio import NpzFile

from parnet_deploy.errors import DataError, os_reason
from parnet_deploy.images import normalise
from parnet_deploy.spec import IMAGES, Array, Preprocessing

T = TypeVar("T")

LABELS = "labels"

_ZIP, _NPY = b"PK", b"\x93NUMPY"
"""How an .npz, which is a zip archive, and an .npy begin."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NpzImages:
    """What an .npz holds.

    Attributes:
        images: (N, 3, H, W), N at least 1: uint8 pixels, or values of a float type as the network
            reads them.
        name: what that array is called.
        labels: its array ``labels``, whatever that is; None where it has none.
    """

    images: Array
    name: str = IMAGES
    labels: Array | None = None

    @property
    def called(self) -> str:
        """What is to be said of the array's name: nothing where it is ``images``."""
        return "" if self.name == IMAGES else f"the array '{self.name}' of "


def check_npz(path: Path) -> None:
    """Refuse what is no .npz with one array of images, without reading that.

    Raises:
        DataError: the file cannot be read, or does not say which array is meant.
    """
    _open(path, lambda file: _array_of(path, file))


def read_npz(path: Path, preprocessing: Preprocessing) -> NpzImages:
    """Read images: the array ``images``, or the only one there is besides ``labels``.

    Args:
        path: an .npz.
        preprocessing: of the network; images have its size, and are pixels where the graph
            normalises.

    Raises:
        DataError: the file cannot be read, or does not hold such an array.
    """
    found = _read(path)
    array = found.images
    wanted = (3, *preprocessing.size)
    if array.ndim != 4 or array.shape[1:] != wanted or not len(array):
        raise DataError(
            f"{path} holds an array of shape {list(array.shape)}, and "
            f"[N, {', '.join(map(str, wanted))}] with at least one image is needed"
        )
    if array.dtype != np.uint8 and (preprocessing.in_graph or array.dtype.kind != "f"):
        needed = "uint8" if preprocessing.in_graph else "uint8 or a float type"
        raise DataError(f"{path} holds {array.dtype.name}, and this network reads {needed}")
    return found


def prepare(path: Path, array: Array, preprocessing: Preprocessing) -> Array:
    """Images of an .npz as graphs read them.

    Args:
        path: where they are from, for messages.
        array: (N, 3, H, W), all or some of what `read_npz` gave.
        preprocessing: of the network.

    Returns:
        (N, 3, H, W): float32, normalised, or uint8 where the graph normalises.

    Raises:
        DataError: there are values that are not finite.
    """
    if array.dtype == np.uint8:
        return normalise(array, preprocessing)
    with np.errstate(over="ignore"):  # of float64; what becomes infinite is refused
        images: Array = array.astype(np.float32)
    if not np.isfinite(images).all():
        raise DataError(f"{path} holds values that are not finite")
    return images


def _check_kind(path: Path, start: bytes) -> None:
    """Refuse what is no .npz: numpy's own words for it are about pickles."""
    if start == _NPY:
        raise DataError(f"{path} is one array (.npy), and an .npz is needed")
    if not start.startswith(_ZIP):
        raise DataError(
            f"{path} is no .npz, which numpy.savez writes; pictures are given as a folder"
        )


def _read(path: Path) -> NpzImages:
    def read(file: NpzFile) -> NpzImages:
        name = _array_of(path, file)
        labels = file[LABELS] if LABELS in file.files else None
        return NpzImages(images=file[name], name=name, labels=labels)

    return _open(path, read)


def _open(path: Path, use: Callable[[NpzFile], T]) -> T:
    try:
        with path.open("rb") as stream:
            _check_kind(path, stream.read(len(_NPY)))
        with np.load(path, allow_pickle=False) as file:
            return use(file)
    except DataError:
        raise
    except OSError as exc:
        raise DataError(f"cannot read {path}: {os_reason(exc)}") from exc
    except Exception as exc:  # zip, zlib and numpy raise almost anything on damaged files
        raise DataError(f"cannot read {path} as an .npz of plain arrays: {exc}") from exc


def _array_of(path: Path, file: NpzFile) -> str:
    """The name of the array of images: ``images``, or that of the only one besides the labels."""
    others = [name for name in file.files if name != LABELS]
    if IMAGES in others:
        return IMAGES
    if len(others) != 1:
        raise DataError(
            f"{path} has no array '{IMAGES}'; it has {', '.join(file.files) or 'none'}: save the "
            f"array of images under the name '{IMAGES}', or as the only one besides '{LABELS}'"
        )
    return others[0]
