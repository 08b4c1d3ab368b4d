"""Data sets by what is written after ``--data``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parnet_deploy.data.base import DataSet, Part, Split
from parnet_deploy.data.cifar import CIFARS
from parnet_deploy.data.digits import open_digits
from parnet_deploy.data.imagefolder import is_unsplit, open_folder
from parnet_deploy.data.options import DataOptions
from parnet_deploy.errors import UsageError
from parnet_deploy.spec.lookup import lookup


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A kind of data set.

    Attributes:
        place: what PATH is, for messages; empty where there is none.
        open: gives its splits.
        unsplit: it may come without a test split, so that a part can be held out.
    """

    place: str
    open: Callable[[Path, Sequence[Part], DataOptions], tuple[Split, ...]]
    unsplit: bool = False


SOURCES: Mapping[str, Source] = {
    "imagefolder": Source(
        place="a folder with train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg, in it",
        open=open_folder,
        unsplit=True,
    ),
    "cifar10": Source(
        place="the folder with cifar-10-batches-py in it",
        open=lambda path, parts, _: CIFARS["cifar10"].open(path, parts),
    ),
    "cifar100": Source(
        place="the folder with cifar-100-python in it",
        open=lambda path, parts, _: CIFARS["cifar100"].open(path, parts),
    ),
    "digits": Source(place="", open=lambda _, parts, __: open_digits(parts)),
}


def open_data(source: str, *, hold_out: float | None = None, skip_bad: bool = False) -> DataSet:
    """Open both splits of a data set.

    Args:
        source: ``imagefolder:PATH``, ``cifar10:PATH``, ``cifar100:PATH`` or ``digits``.
        hold_out: part of each class that becomes the test split, in (0, 1), for a folder of class
            folders that is not split.
        skip_bad: let classes without images pass in the test split.

    Raises:
        UsageError: the source is unknown, its path is missing or superfluous, or nothing can be
            held out.
        DataError: what stands at the path cannot be used.
        MissingDependencyError: a package is not installed.
    """
    train, test = _open(source, ("train", "test"), hold_out, skip_bad)
    return DataSet(
        name=train.name,
        labels=train.labels,
        train=train.samples,
        test=test.samples,
        mean=train.mean,
        std=train.std,
        interpolation=train.interpolation,
        empty=test.empty,
    )


def open_samples(
    source: str, split: Part = "test", *, hold_out: float | None = None, skip_bad: bool = False
) -> Split:
    """Open one split of a data set, without looking at the other.

    A folder of class folders, such as ImageNet's ``val``, is a test split as it stands.

    Args:
        source: as for `open_data`.
        split: which.
        hold_out: as for `open_data`; the same part gives the same splits.
        skip_bad: as for `open_data`.

    Raises:
        UsageError: as for `open_data`.
        DataError: as for `open_data`.
        MissingDependencyError: as for `open_data`.
    """
    (opened,) = _open(source, (split,), hold_out, skip_bad)
    return opened


def open_learnt(source: str, *, hold_out: float | None = None) -> Split:
    """Open the images that a network may learn something from.

    That is the training split, or all of a folder of class folders that is not split.

    Args:
        source: as for `open_data`.
        hold_out: as for `open_data`; what is held out is not among them.

    Raises:
        UsageError: as for `open_data`.
        DataError: as for `open_data`.
        MissingDependencyError: as for `open_data`.
    """
    kind, path = _parse(source)
    whole = kind.unsplit and hold_out is None and is_unsplit(path)
    return open_samples(source, "test" if whole else "train", hold_out=hold_out)


def is_source(written: str) -> bool:
    """Whether a text names a data set, as ``--data`` takes it, rather than a path."""
    return written.partition(":")[0].lower() in SOURCES


def _open(
    source: str, parts: Sequence[Part], hold_out: float | None, skip_bad: bool
) -> tuple[Split, ...]:
    options = DataOptions(hold_out=hold_out, skip_bad=skip_bad)
    kind, path = _parse(source)
    if hold_out is not None and not kind.unsplit:
        raise UsageError(f"'{source}' has a test split of its own; leave --hold-out away")
    return kind.open(path, parts, options)


def _parse(source: str) -> tuple[Source, Path]:
    name, colon, path = source.partition(":")
    unknown = name.lower() not in SOURCES
    if source and not colon and unknown and Path(source).expanduser().is_dir():
        raise UsageError(
            f"the kind of a data set stands before its path: "
            f"for a folder of images write imagefolder:{source}"
        )
    kind = lookup("data set", name, SOURCES)
    if kind.place and not path:
        raise UsageError(f"'{source}' lacks a path: {name}:PATH, PATH being {kind.place}")
    if not kind.place and colon:
        raise UsageError(f"the data set '{name}' takes no path: write {name}, not '{source}'")
    return kind, Path(path).expanduser()
