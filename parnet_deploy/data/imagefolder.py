"""A folder of images, a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from parnet_deploy.data.base import Part, Split
from parnet_deploy.data.folders import ClassFolder, class_names, holds_folders, list_class
from parnet_deploy.data.holdout import held_out
from parnet_deploy.data.naming import enumerate_names
from parnet_deploy.data.options import DataOptions
from parnet_deploy.data.paths import Paths
from parnet_deploy.errors import DataError, UsageError
from parnet_deploy.images import decode
from parnet_deploy.spec import Array
from parnet_deploy.spec.images import IMAGENET_MEAN, IMAGENET_STD

TRAIN = "train"

TESTS = ("val", "validation", "valid", "test")
"""Names that a test split's folder may have; the first that is there is taken."""


class FolderSamples:
    """Image files, decoded when they are asked for.

    Attributes:
        paths: (N,) where they are.
        labels: (N,) int64, index of the class.
    """

    __slots__ = ("labels", "paths")

    def __init__(self, paths: Paths, labels: Array) -> None:
        """Say where the images are; nothing is read."""
        self.paths = paths
        self.labels = labels

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """Decode one image. See `images.decode`."""
        return decode(Path(self.paths[index]))

    def label(self, index: int) -> int:
        """Index of its class."""
        return int(self.labels[index])

    def name(self, index: int) -> str:
        """Its path."""
        return self.paths[index]


def open_folder(place: Path, parts: Sequence[Part], options: DataOptions) -> tuple[Split, ...]:
    """Find the images of some splits; none is read.

    Mean and standard deviation are those of ImageNet.

    Args:
        place: ``place/train/CLASS/*.jpg`` and ``place/val/CLASS/*.jpg`` (see `TESTS`), or
            ``place/CLASS/*.jpg``.
        parts: which splits.
        options: what is held out, and whether empty classes of the test split are let pass.

    Raises:
        UsageError: a part is to be held out of what is split already.
        DataError: the layout is another one, the splits' classes differ, or a class is empty.
    """
    _check_folder(place)
    roots = [_root(place, part, options.hold_out) for part in parts]
    classes = [class_names(root) for root in roots]
    for root, names in zip(roots, classes, strict=True):
        _check_same(roots[0], classes[0], root, names)
    return tuple(
        _split(f"imagefolder:{place}", root, labels, part, options)
        for root, labels, part in zip(roots, classes, parts, strict=True)
    )


def _check_folder(place: Path) -> None:
    if place.is_dir():
        return
    found = "is no folder" if place.exists() else "does not exist"
    raise DataError(
        f"{place} {found}; a folder is expected that holds train/CLASS/*.jpg and val/CLASS/*.jpg, "
        f"or CLASS/*.jpg"
    )


def is_unsplit(place: Path) -> bool:
    """Whether a folder holds class folders that nobody has split.

    Raises:
        DataError: it is missing or cannot be read.
    """
    _check_folder(place)
    return _splits(place) == (None, None)


def _splits(place: Path) -> tuple[Path | None, Path | None]:
    """The folders of what is learnt from and of what is tested on, where there are such."""
    train = place / TRAIN if holds_folders(place / TRAIN) else None
    test = next((place / name for name in TESTS if holds_folders(place / name)), None)
    if train is None and test is not None and not _only_splits(place):
        test = None  # class folders, one of which happens to be called so
    return train, test


def _root(place: Path, part: Part, hold_out: float | None) -> Path:
    """The folder of class folders of a split."""
    train, test = _splits(place)
    if train is None and test is None:
        return _root_unsplit(place, part, hold_out)
    if hold_out is not None:
        return _root_held_out(place, train, test)
    root = train if part == "train" else test
    if root is None:
        wanted = TRAIN if part == "train" else " or ".join(TESTS)
        raise DataError(
            f"{place} has no folder {wanted} with class folders in it"
            + ("; to hold a part of train out instead, give --hold-out 0.2" if train else "")
        )
    return root


def _root_unsplit(place: Path, part: Part, hold_out: float | None) -> Path:
    """Where there are only class folders, they are a test split, unless a part is held out."""
    if part == "train" and hold_out is None:
        class_names(place)  # speaks first where there are no class folders either
        raise DataError(
            f"{place} is not split into what is learnt from and what is tested on: move the class "
            f"folders into {TRAIN} and {TESTS[0]}, or give --hold-out 0.2 to test on a fifth"
        )
    return place


def _root_held_out(place: Path, train: Path | None, test: Path | None) -> Path:
    if train is None or test is not None:
        raise UsageError(
            f"{place} has a test split of its own, {test}; leave --hold-out away, or name a "
            f"folder of class folders instead"
        )
    return train


def _only_splits(place: Path) -> bool:
    return set(class_names(place)) <= {TRAIN, *TESTS}


def _check_same(
    first: Path, expected: tuple[str, ...], second: Path, found: tuple[str, ...]
) -> None:
    """Refuse splits of different classes."""
    lacks = [
        f"{root} has no {enumerate_names(sorted(missing))}"
        for root, missing in (
            (first, set(found) - set(expected)),
            (second, set(expected) - set(found)),
        )
        if missing
    ]
    if lacks:
        raise DataError(f"the splits have different classes: {' and '.join(lacks)}")


def _split(
    name: str, root: Path, labels: tuple[str, ...], part: Part, options: DataOptions
) -> Split:
    chosen: list[str] = []
    counts = []
    learnt = part == "train" or options.hold_out is not None
    for label in labels:
        found = list_class(root, label)
        if not found.images and (learnt or not options.skip_bad):
            raise DataError(_said_empty(root / label, found, learnt=learnt))
        images = found.images
        if options.hold_out is not None:
            images = _part(root / label, images, part, options.hold_out)
        chosen += images
        counts.append(len(images))
    if not chosen:
        raise DataError(f"there is no image in any class folder of {root}")
    return Split(
        name=name,
        labels=labels,
        samples=FolderSamples(Paths(str(root), chosen), np.repeat(np.arange(len(labels)), counts)),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        empty=tuple(label for label, images in zip(labels, counts, strict=True) if images == 0),
    )


def _part(folder: Path, images: list[str], part: Part, hold_out: float) -> list[str]:
    """Of one class's images those that are held out, or the others."""
    if len(images) < 2:
        raise DataError(
            f"the class folder {folder} holds a single image; to hold out a part of each class, "
            f"two are needed"
        )
    drawn = held_out(images, hold_out)
    return [image for image, out in zip(images, drawn, strict=True) if out == (part == "test")]


def _said_empty(folder: Path, found: ClassFolder, *, learnt: bool) -> str:
    others = f", only {found.others} files of other kinds" if found.others else ""
    advice = (
        "nothing can be learnt of such a class: put images there or remove the folder"
        if learnt
        else "put images there, or give --skip-bad to leave the class out"
    )
    return f"the class folder {folder} holds no image{others}; {advice}"
