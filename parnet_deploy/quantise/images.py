"""Calibration images: what is run to see which values occur.

They come from a folder of images, an .npz, or a data set by its name, and are prepared as the
network's own preprocessing says. What could only give wrong ranges is refused before any work.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from parnet_deploy.data import Split, is_source, match_labels, open_learnt, read_npz
from parnet_deploy.data.npz import check_npz, prepare
from parnet_deploy.data.opening import SOURCES
from parnet_deploy.errors import DataError, ImageError, UsageError
from parnet_deploy.images import find_images, load_image, normalise, preprocess
from parnet_deploy.quantise.names import LIMIT
from parnet_deploy.quantise.plausible import check_values
from parnet_deploy.spec import IMAGES, Array, Preprocessing

Progress = Callable[[int, int], None]
"""Told how many are done, and how many there are."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CalibrationImages:
    """Images, as graphs read them; iterating gives them one at a time.

    Pixels stay uint8 until they are fed: a quarter of the memory.

    Attributes:
        values: (N, 3, H, W): uint8 pixels, or float32 as the network reads them.
        preprocessing: of the network.
        sha256: of the set, wherever its images lie and in whatever order: over the images' own
            digests, sorted, each that of the bytes (little endian, C order) of the array that the
            graph reads.
        source: where they came from, in a few words, without a path of this machine.
        labels: (N,) int64, each image's class as an index into the network's outputs; None where
            it is not known.
        unlabelled: why there are no labels, in a sentence; empty where there are.
    """

    values: Array
    preprocessing: Preprocessing
    sha256: str
    source: str
    labels: Array | None = None
    unlabelled: str = ""

    @property
    def count(self) -> int:
        """How many."""
        return len(self.values)

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        """``{"images": (1, 3, H, W)}``, one image after the other."""
        return self.batches(1)

    def batches(self, size: int) -> Iterator[Mapping[str, Array]]:
        """``{"images": (B, 3, H, W)}`` with B images, in the last batch perhaps fewer."""
        for start in range(0, self.count, size):
            yield {IMAGES: _fed(self.values[start : start + size], self.preprocessing)}

    def array(self) -> Array:
        """(N, 3, H, W): all of them as the graph reads them, float32 or uint8."""
        return _fed(self.values, self.preprocessing)

    def take(self, places: Sequence[int], what: str) -> CalibrationImages:
        """Some of them.

        Args:
            places: which, from 0.
            what: how their `source` begins: ``the first half``.
        """
        chosen = list(places)
        values = self.values[chosen]
        return replace(
            self,
            values=values,
            labels=None if self.labels is None else self.labels[chosen],
            sha256=_digest(values, self.preprocessing),
            source=f"{what} of {self.source}",
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """Calibration images that are there, and not read yet: one of three kinds.

    Attributes:
        split: of a data set.
        folder: a folder of images.
        paths: the images in it.
        npz: a file of arrays.
    """

    split: Split | None = None
    folder: Path | None = None
    paths: tuple[Path, ...] = ()
    npz: Path | None = None


def find_images_of(source: str, *, hold_out: float | None = None) -> Found:
    """Find calibration images by what is written after ``--calibrate``; none is decoded.

    It takes no network, so that what is not there is known before one is read.

    Args:
        source: a folder of images, an .npz (see `data.npz`), or a data set as ``--data`` takes it,
            of which the training split is read, or all where nobody has split it.
        hold_out: for a data set: what was held out in training is not taken.

    Raises:
        UsageError: no such data set, or a part is held out of what is none.
        DataError: there is nothing at the source, or it cannot be used.
        ImageError: there is no image in the folder.
        MissingDependencyError: a package is not installed.
    """
    if is_source(source):
        return Found(split=open_learnt(source, hold_out=hold_out))
    if hold_out is not None:
        raise UsageError(f"only a data set has a part that is held out, and '{source}' is none")
    place = Path(source).expanduser()
    if source and place.is_dir():
        return Found(folder=place, paths=tuple(find_images(place)))
    if place.is_file():
        check_npz(place)
        return Found(npz=place)
    raise DataError(
        f"there are no calibration images at '{source}'; give a folder of images, an .npz, or a "
        "data set: imagefolder:PATH, cifar10:PATH, cifar100:PATH or digits"
    )


def named_source(recorded: str) -> str | None:
    """The data set that a calibration's source names, as `find_images_of` takes it.

    Args:
        recorded: `CalibrationImages.source` of a manifest, or what a training with fake quantisers
            wrote there.

    Returns:
        Its name; None for what lies at a path, which is not recorded.
    """
    said = re.fullmatch(r"(?:\d+(?: of \d+)? images of|training on) (\w+)(?:, seed \d+)?", recorded)
    kind = None if said is None else SOURCES.get(said[1])
    return said[1] if said is not None and kind is not None and not kind.place else None


def open_images(
    source: str | Found,
    preprocessing: Preprocessing,
    *,
    limit: int | None = LIMIT,
    seed: int = 0,
    hold_out: float | None = None,
    classes: Sequence[str] = (),
    outputs: int | None = None,
    progress: Progress | None = None,
) -> CalibrationImages:
    """Read calibration images.

    Args:
        source: what `find_images_of` found, or what it takes.
        preprocessing: of the network.
        limit: how many images at most, spread over the classes (over the folders, for a folder of
            images); None takes all.
        seed: decides which.
        hold_out: see `find_images_of`; for a source that is still to be found.
        classes: class names in the order of the network's outputs; empty where they are not known.
        outputs: how many outputs the network has; as many as `classes` where None.
        progress: called after every image that was decoded.

    Raises:
        UsageError: no such data set, or fewer than one image is asked for.
        DataError: there is nothing at the source; an array does not fit, or holds what the network
            can never read; every pixel of an image is the same; the data set cannot be used.
        ImageError: there is no image in the folder, or one cannot be decoded.
        MissingDependencyError: a package is not installed.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"at least one calibration image is needed, not {limit}")
    wanted = _Wanted(
        preprocessing=preprocessing,
        limit=limit,
        seed=seed,
        classes=tuple(classes),
        outputs=len(classes) if outputs is None else outputs,
        progress=progress or (lambda done, total: None),
    )
    found = find_images_of(source, hold_out=hold_out) if isinstance(source, str) else source
    if found.split is not None:
        return _of_split(found.split, wanted)
    if found.npz is not None:
        return _of_npz(found.npz, wanted)
    if found.folder is None:
        raise ValueError("nothing was found")
    return _of_folder(found.folder, found.paths, wanted)


def choose(strata: Sequence[object], limit: int | None, seed: int) -> list[int]:
    """Places of at most `limit` images, spread over classes as evenly as they allow.

    Args:
        strata: each image's class, or whatever they are to be spread over.
        limit: how many at most; None takes all.
        seed: decides which of a class, and which classes come short.

    Returns:
        Ascending places.
    """
    if limit is None or limit >= len(strata):
        return list(range(len(strata)))
    rng = np.random.default_rng(seed)
    members: dict[object, list[int]] = defaultdict(list)
    for place in rng.permutation(len(strata)).tolist():
        members[strata[place]].append(place)  # the classes, too, are in a random order
    rounds = [(turn, place) for found in members.values() for turn, place in enumerate(found)]
    rounds.sort(key=lambda item: item[0])  # stable: class after class in each turn
    return sorted(place for _, place in rounds[:limit])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Wanted:
    """What is asked for, whatever the source."""

    preprocessing: Preprocessing
    limit: int | None
    seed: int
    classes: tuple[str, ...]
    outputs: int
    progress: Progress

    def chosen(self, strata: Sequence[object]) -> list[int]:
        return choose(strata, self.limit, self.seed)

    def said(self, taken: int, total: int, what: str) -> str:
        """``12 of 40 images of digits, seed 0``."""
        if taken == total:
            return f"{total} images of {what}"
        return f"{taken} of {total} images of {what}, seed {self.seed}"

    def pixels(
        self, places: Sequence[int], load: Callable[[int], Array], name: Callable[[int], str]
    ) -> Array:
        """Load images; refuse those that are of one colour."""
        shape = (len(places), 3, *self.preprocessing.size)
        values = np.empty(shape, np.uint8)
        for done, place in enumerate(places):
            values[done] = load(place)[0]
            _check_varied(values[done], name(place))
            self.progress(done + 1, len(places))
        return values

    def made(
        self, values: Array, source: str, labels: Array | None = None, unlabelled: str = ""
    ) -> CalibrationImages:
        return CalibrationImages(
            values=values,
            preprocessing=self.preprocessing,
            sha256=_digest(values, self.preprocessing),
            source=source,
            labels=labels,
            unlabelled=unlabelled,
        )


def _of_folder(folder: Path, paths: Sequence[Path], wanted: _Wanted) -> CalibrationImages:
    places = wanted.chosen([path.parent for path in paths])
    as_pixels = replace(wanted.preprocessing, in_graph=True)
    values = wanted.pixels(
        places, lambda place: load_image(paths[place], as_pixels), lambda place: str(paths[place])
    )
    return wanted.made(
        values,
        wanted.said(len(places), len(paths), f"the folder {folder.resolve().name}"),
        unlabelled="images of a folder have no labels; imagefolder:PATH has",
    )


def _of_split(split: Split, wanted: _Wanted) -> CalibrationImages:
    samples = split.samples
    if not len(samples):
        raise DataError(f"there is no image in {split.name} to calibrate with")
    every = [samples.label(place) for place in range(len(samples))]
    places = wanted.chosen(every)
    as_pixels = replace(wanted.preprocessing, in_graph=True)

    def load(place: int) -> Array:
        image = samples.image(place)
        try:
            return preprocess(image, as_pixels)
        except ImageError as exc:  # it does not know the image's name
            raise ImageError(f"{samples.name(place)}: {exc}") from exc

    values = wanted.pixels(places, load, samples.name)
    source = wanted.said(len(places), len(samples), _without_path(split.name))
    try:
        logits = match_labels(split.labels, wanted.classes, logits=wanted.outputs).logits
    except DataError as exc:
        return wanted.made(values, source, unlabelled=str(exc))
    labels = np.array([logits[every[place]] for place in places], np.int64)
    return wanted.made(values, source, labels)


def _of_npz(path: Path, wanted: _Wanted) -> CalibrationImages:
    found = read_npz(path, wanted.preprocessing)
    total = len(found.images)
    labels = _checked_labels(path, found.labels, total, wanted.outputs)
    places = wanted.chosen([0] * total if labels is None else labels.tolist())
    values = found.images[places]
    if values.dtype != np.uint8:
        values = prepare(path, values, wanted.preprocessing)
    for place, image in zip(places, values, strict=True):
        _check_varied(image, f"image {place} of {path}")
    if values.dtype != np.uint8:
        check_values(values, wanted.preprocessing, str(path))
    source = wanted.said(len(places), total, found.called + path.name)
    if labels is None:
        return wanted.made(values, source, unlabelled=f"{path.name} has no array 'labels'")
    return wanted.made(values, source, labels[places])


def _checked_labels(path: Path, labels: Array | None, total: int, outputs: int) -> Array | None:
    if labels is None:
        return None
    if labels.shape != (total,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path} has {total} images, and its labels are {labels.dtype.name} of shape "
            f"{list(labels.shape)}; an integer for each image is needed"
        )
    if labels.min() < 0 or (outputs and labels.max() >= outputs):
        raise DataError(
            f"{path} has labels from {labels.min()} to {labels.max()}, and the network's classes "
            f"are 0 to {outputs - 1}"
            if outputs
            else f"{path} has the label {labels.min()}; labels start at 0"
        )
    return labels.astype(np.int64)


def _check_varied(image: Array, name: str) -> None:
    """Refuse an image, (3, H, W), of one colour: all black, for one."""
    flat = image.reshape(len(image), -1)
    if (flat == flat[:, :1]).all():
        raise DataError(
            f"{name} is of one colour, {flat[:, 0].tolist()} everywhere, and says nothing about "
            "the values that occur; take it out of the calibration images"
        )


def _without_path(name: str) -> str:
    """``imagefolder:/data/birds`` as ``imagefolder birds``."""
    kind, colon, path = name.partition(":")
    return f"{kind} {Path(path).resolve().name}" if colon else kind


def _fed(values: Array, preprocessing: Preprocessing) -> Array:
    return normalise(values, preprocessing) if values.dtype == np.uint8 else values


def _digest(values: Array, preprocessing: Preprocessing) -> str:
    """Of a set of images as the graph reads them: see `CalibrationImages.sha256`."""
    each = []
    for image in values:
        fed = _fed(image[None], preprocessing)
        data = np.ascontiguousarray(fed, fed.dtype.newbyteorder("<")).data
        each.append(hashlib.sha256(data).digest())
    return hashlib.sha256(b"".join(sorted(each))).hexdigest()
