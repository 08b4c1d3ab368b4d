"""Folders of class folders: what is in them, found without looking at any file itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parnet_deploy.errors import DataError, os_reason
from parnet_deploy.images import SUFFIXES


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassFolder:
    """The files of one class.

    Attributes:
        images: paths of its images relative to the folder of class folders, such as
            ``cat/night/3.jpg``, in the order of torchvision's ImageFolder.
        others: number of files that are no images by their suffix.
    """

    images: list[str]
    others: int


def class_names(root: Path) -> tuple[str, ...]:
    """Names of the class folders in a folder, sorted; hidden ones are left out.

    Raises:
        DataError: the folder cannot be read or holds no class folder, or a class folder's name
            cannot be a label.
    """
    names = sorted(entry.name for entry in _entries(str(root)) if entry.is_dir())
    if not names:
        loose = sum(_is_image(entry.name) for entry in _entries(str(root)))
        found = f"{loose} images but no" if loose else "no"
        raise DataError(
            f"there are {found} class folders in {root}; a folder for each class, "
            f"with its images in it, is expected"
        )
    for name in names:
        if name.splitlines() != [name] or not _is_text(name):
            raise DataError(f"the class folder {name!r} in {root} has no name that a label can be")
    return tuple(names)


def holds_folders(folder: Path) -> bool:
    """Whether it is a folder with folders in it, hidden ones left out.

    Raises:
        DataError: it cannot be read.
    """
    return folder.is_dir() and any(entry.is_dir() for entry in _entries(str(folder)))


def list_class(root: Path, name: str) -> ClassFolder:
    """Find a class's files, in its folder and the folders below it; hidden ones are left out.

    Links are followed.

    Args:
        root: the folder of class folders.
        name: the class.

    Raises:
        DataError: a folder cannot be read, or a link leads to where another one led already.
    """
    top = str(root)
    pending, found, others = [name], [], 0
    reached = {os.path.realpath(f"{top}/{name}")}
    while pending:
        folder = pending.pop()
        files = []
        for entry in _entries(f"{top}/{folder}"):
            image = _is_image(entry.name)
            # Whether a link leads to a folder takes a look at the disk; one called an image is one.
            if entry.is_dir(follow_symlinks=not image):
                if entry.is_symlink():
                    _check_new(entry, reached)
                pending.append(f"{folder}/{entry.name}")
            elif image:
                files.append(entry.name)
            else:
                others += 1
        found.append((folder, sorted(files)))
    images = [f"{folder}/{file}" for folder, files in sorted(found) for file in files]
    return ClassFolder(images=images, others=others)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, hidden files and folders left out, in no order."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    yield entry
    except OSError as exc:
        raise DataError(f"the folder {folder} may not be read: {os_reason(exc)}") from exc


def _is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in SUFFIXES  # a Path would cost much more


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8 on the disk; what is not comes as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _check_new(link: os.DirEntry[str], reached: set[str]) -> None:
    """Refuse a link in a circle, which could be followed without end, and images found twice."""
    target = os.path.realpath(link.path)
    if target in reached:
        raise DataError(
            f"the link {link.path} leads to {target}, where this class has been before; remove it"
        )
    reached.add(target)
