"""Running a data set's images through a network, and keeping what it answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from parnet_deploy.bundle import BatchRange
from parnet_deploy.data import Samples
from parnet_deploy.errors import DataError, ImageError, RunnerError, UsageError
from parnet_deploy.evaluate.answers import Answers, answers_of, join
from parnet_deploy.evaluate.loading import ahead
from parnet_deploy.evaluate.result import Crops, Problem
from parnet_deploy.evaluate.subject import Subject
from parnet_deploy.images import preprocess, preprocess_ten
from parnet_deploy.runtime import run_batches
from parnet_deploy.runtime.outputs import softmax_rows
from parnet_deploy.spec import Array, Preprocessing

CROPS: dict[Crops, int] = {"centre": 1, "ten": 10}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a data set is evaluated.

    Attributes:
        crops: which crops of an image are run.
        limit: how many images at most, evenly spaced over the split; None takes all.
        skip_bad: leave out images that cannot be used, and count them.
        threads: how many images are decoded at once.
    """

    crops: Crops = "centre"
    limit: int | None = None
    skip_bad: bool = False
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: fewer than one image or thread.
        """
        if self.threads < 1 or (self.limit is not None and self.limit < 1):
            raise UsageError(
                f"at least one image and one thread are needed, not {self.limit} and {self.threads}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far it is.

    Attributes:
        done: images that were answered or skipped.
        total: images there are to be answered.
        right: images that were answered rightly.
        skipped: images that were left out.
        seconds: since the beginning.
    """

    done: int
    total: int
    right: int
    skipped: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Answered images by time."""
        return (self.done - self.skipped) / max(self.seconds, 1e-9)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """What a network answered, what was left out, and how long it took."""

    answers: Answers
    skipped: tuple[Problem, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Loaded:
    """An image's crops, ready to be run: (crops, 3, H, W)."""

    place: int
    pixels: Array


def answer(
    subject: Subject,
    samples: Samples,
    classes: Sequence[int],
    options: Options | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Run images and keep what is answered.

    Args:
        subject: the network.
        samples: the images.
        classes: for every class of the data, its place among the network's outputs.
        options: how.
        progress: told after every batch.

    Returns:
        One answer for every image that could be used.

    Raises:
        DataError: there is no image, or a label that is no class.
        ImageError: an image cannot be used and `skip_bad` is off, or none can be used; the message
            names it.
        RunnerError: a run failed, or gave values that are not finite.
    """
    options = options or Options()
    places = spread(len(samples), options.limit)
    targets = _targets(samples, classes, places)
    step = _images_per_step(subject.batch, CROPS[options.crops])
    started = time.perf_counter()
    parts: list[Answers] = []
    skipped: list[Problem] = []
    done = right = 0
    with closing(_load(subject, samples, places, options, step)) as loading:
        for batch in _batches(loading, step, skipped):
            found = [item.place for item in batch]
            rows = _probabilities(subject, samples, batch)
            parts.append(answers_of(found, [targets[place] for place in found], rows))
            done, right = done + len(found), right + parts[-1].right
            if progress:
                progress(
                    Progress(
                        done=done + len(skipped),
                        total=len(places),
                        right=right,
                        skipped=len(skipped),
                        seconds=time.perf_counter() - started,
                    )
                )
    seconds = time.perf_counter() - started
    if not parts:
        raise ImageError(
            f"none of the {len(places)} images can be used; the first: {skipped[0].error}"
        )
    return Outcome(answers=join(parts), skipped=tuple(skipped), seconds=seconds)


def spread(images: int, limit: int | None) -> range | list[int]:
    """Places of `limit` images, evenly spaced; of all where there are not more.

    Data sets often go by class: the first ones would be of a few classes only.
    """
    if limit is None or limit >= images:
        return range(images)
    return [place * images // limit for place in range(limit)]


def choose_batch(taken: BatchRange, asked: int | None) -> BatchRange:
    """The batches to run: of the size that was asked for, else as large as is taken.

    Raises:
        UsageError: it does not take that size.
    """
    if asked is None:
        return taken
    if not taken.min <= asked <= taken.max:
        sizes = f"{taken.min} to {taken.max} images" if taken.dynamic else f"{taken.min}"
        raise UsageError(
            f"it takes {sizes} a run, and --batch is {asked}; 'parnet-deploy export --batch "
            "MIN:OPT:MAX' makes one that takes others"
        )
    return replace(taken, opt=asked, max=asked)


def _targets(samples: Samples, classes: Sequence[int], places: Sequence[int]) -> dict[int, int]:
    """True classes by place, as the network's outputs have them."""
    if not len(samples):
        raise DataError("there is no image to evaluate in this split")
    targets = {}
    for place in places:
        label = samples.label(place)
        if not 0 <= label < len(classes):
            raise DataError(
                f"{samples.name(place)} has label {label}, and there are {len(classes)} classes"
            )
        targets[place] = classes[label]
    return targets


def _load(
    subject: Subject, samples: Samples, places: Sequence[int], options: Options, step: int
) -> Generator[_Loaded | Problem]:
    """Images, decoded and cropped in threads, in order."""
    crops = preprocess if options.crops == "centre" else preprocess_ten

    def load(place: int) -> _Loaded | Problem:
        try:
            pixels = _pixels(samples, place, crops, subject.preprocessing)
        except ImageError as exc:
            if not options.skip_bad:
                raise
            return Problem(image=samples.name(place), error=str(exc))
        return _Loaded(place=place, pixels=pixels)

    return ahead(load, places, threads=options.threads, window=2 * step + options.threads)


def _pixels(
    samples: Samples,
    place: int,
    crops: Callable[[Image.Image, Preprocessing], Array],
    preprocessing: Preprocessing,
) -> Array:
    image = samples.image(place)
    try:
        return crops(image, preprocessing)
    except ImageError as exc:  # it does not know the image's name
        raise ImageError(f"{samples.name(place)}: {exc}") from exc


def _images_per_step(batch: BatchRange, crops: int) -> int:
    """How many images' crops fill whole batches."""
    return batch.max // math.gcd(batch.max, crops)


def _batches(
    loading: Iterable[_Loaded | Problem], step: int, skipped: list[Problem]
) -> Iterator[list[_Loaded]]:
    """Images that can be used, `step` at a time; the others are put into `skipped`."""
    batch: list[_Loaded] = []
    for item in loading:
        if isinstance(item, Problem):
            skipped.append(item)
            continue
        batch.append(item)
        if len(batch) == step:
            yield batch
            batch = []
    if batch:
        yield batch


def _probabilities(subject: Subject, samples: Samples, batch: Sequence[_Loaded]) -> Array:
    """(N, classes) float64: what is answered of N images, the mean over their crops."""
    pixels = np.concatenate([item.pixels for item in batch])
    rows = run_batches(subject.runner, pixels, subject.batch).reshape(
        len(batch), -1, subject.spec.classes
    )
    if len(bad := np.flatnonzero(~np.isfinite(rows).all(axis=(1, 2)))):
        name = samples.name(batch[int(bad[0])].place)
        raise RunnerError(
            f"{subject.path} gave values that are not finite for {name}; 'parnet-deploy verify' "
            "says where they arise"
        )
    flat = rows.reshape(-1, subject.spec.classes)
    chances = flat.astype(np.float64) if subject.softmax else softmax_rows(flat)
    mean: Array = chances.reshape(rows.shape).mean(axis=1)
    return mean
