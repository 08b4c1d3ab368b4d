"""CIFAR-10 and CIFAR-100, as their authors' archives for Python hold them.

torchvision reads them. Every file is compared with the md5 that torchvision knows for it before any
is unpickled, since a pickle can run whatever it says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parnet_deploy.data.arrays import ArraySamples
from parnet_deploy.data.base import Part, Split
from parnet_deploy.errors import DataError, MissingDependencyError, os_reason
from parnet_deploy.spec.images import Triple


@dataclass(frozen=True, kw_only=True, slots=True)
class Cifar:
    """One of the two data sets.

    Attributes:
        name: what it is called after ``--data``.
        reader: name of torchvision's class for it.
        mean: per-channel mean of the training images, in units of [0, 1].
        std: per-channel standard deviation over all their pixels.
    """

    name: str
    reader: str
    mean: Triple
    std: Triple

    def open(self, place: Path, parts: Sequence[Part]) -> tuple[Split, ...]:
        """Read splits into memory.

        Args:
            place: the folder that the archive unpacks, or the one that it is in.
            parts: which splits.

        Raises:
            MissingDependencyError: torchvision is not installed.
            DataError: a file is missing or is not the authors'; the message names it.
        """
        reader = _torchvision_class(self.reader)
        folder = _locate(place, reader, self.name)
        _check_files(folder, reader)
        return tuple(self._read(folder, reader, part) for part in parts)

    def _read(self, folder: Path, reader: Any, part: Part) -> Split:
        read = reader(folder.parent, train=part == "train", download=False)
        labels = tuple(read.classes)
        listed = reader.train_list if part == "train" else reader.test_list
        _check_labels(read.targets, len(labels), [folder / name for name, _ in listed])
        images = read.data.transpose(0, 3, 1, 2)
        return Split(
            name=f"{self.name}:{folder}",
            labels=labels,
            samples=ArraySamples(images, np.array(read.targets, np.int64), f"{self.name}-{part}"),
            mean=self.mean,
            std=self.std,
        )


# Means and deviations over all pixels of the 50,000 training images, as published: for CIFAR-10 as
# 125.3, 123.0, 113.9 and 63.0, 62.1, 66.7 of 255 with Wide Residual Networks (Zagoruyko and
# Komodakis), for CIFAR-100 to more digits in weiaicunzai/pytorch-cifar100. The deviations 0.2023,
# 0.1994, 0.2010 that are often seen for CIFAR-10 are means of each image's own.
CIFARS: Mapping[str, Cifar] = {
    "cifar10": Cifar(
        name="cifar10",
        reader="CIFAR10",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Cifar(
        name="cifar100",
        reader="CIFAR100",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}


def _torchvision_class(name: str) -> Any:  # torchvision has no types
    try:
        from torchvision import datasets
    except ImportError as exc:
        raise MissingDependencyError(
            "CIFAR is read by torchvision, which is not installed: "
            "pip install 'parnet-deploy[train]'"
        ) from exc
    return getattr(datasets, name)


def _locate(place: Path, reader: Any, name: str) -> Path:
    """The folder with the files in it."""
    place = Path(os.path.abspath(place))  # so that '.' has a name
    for folder in (place / reader.base_folder, place):
        if folder.name == reader.base_folder and folder.is_dir():
            return folder
    for archive in (place / reader.filename, place):
        if archive.name == reader.filename and archive.is_file():
            raise DataError(
                f"{archive} is not unpacked: tar xzf {archive} -C {archive.parent}, "
                f"then --data {name}:{archive.parent}"
            )
    found = "in" if place.is_dir() else "at"
    raise DataError(
        f"there is no folder {reader.base_folder} {found} {place}, such as {reader.filename} "
        f"unpacks; it can be had from {reader.url}"
    )


def _check_files(folder: Path, reader: Any) -> None:
    """Refuse files that are missing or are not the authors' to the last byte."""
    from torchvision.datasets.utils import check_integrity

    meta = [(reader.meta["filename"], reader.meta["md5"])]
    for name, md5 in [*reader.train_list, *reader.test_list, *meta]:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing; unpack {reader.filename} again")
        try:
            sound = check_integrity(path, md5)
        except OSError as exc:
            raise DataError(f"{path} may not be read: {os_reason(exc)}") from exc
        if not sound:
            raise DataError(
                f"{path} is damaged or another file: its md5 is not {md5}; "
                f"unpack {reader.filename} again (md5 {reader.tgz_md5})"
            )


def _check_labels(labels: Sequence[int], classes: int, files: Sequence[Path]) -> None:
    """Refuse labels of no class; the files are equally long."""
    for index, label in enumerate(labels):
        if not 0 <= label < classes:
            file, place = divmod(index, len(labels) // len(files))
            raise DataError(
                f"{files[file]} gives image {place} the label {label}; "
                f"there are labels 0 to {classes - 1}"
            )
