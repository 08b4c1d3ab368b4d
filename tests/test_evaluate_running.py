"""Images through a runner: order, batches, crops, and what is wrong with images and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_spec
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from parnet_deploy.bundle import BatchRange
from parnet_deploy.data import ArraySamples
from parnet_deploy.errors import DataError, ImageError, RunnerError, SpecError, UsageError
from parnet_deploy.evaluate import Options, Progress, Subject, answer, choose_batch
from parnet_deploy.evaluate.running import spread
from parnet_deploy.runtime import FunctionRunner
from parnet_deploy.spec import Array, Preprocessing, TensorSpec

SIDE, CLASSES = 8, 4
GREY = Preprocessing(size=(SIDE, SIDE), crop_ratio=1.0, mean=(0.0,) * 3, std=(1 / 255,) * 3)


def grey_samples(values: list[int], labels: list[int] | None = None) -> ArraySamples:
    """An image of one grey each; its class is that value unless it is said otherwise."""
    images = np.zeros((len(values), 3, SIDE, SIDE), np.uint8)
    images += np.array(values, np.uint8)[:, None, None, None]
    return ArraySamples(images, np.array(values if labels is None else labels, np.int64), "greys")


def subject(
    batch: BatchRange | None = None,
    fed: list[Array] | None = None,
    *,
    softmax: bool = False,
    preprocessing: Preprocessing = GREY,
) -> Subject:
    """What takes an image for the class that its mean grey says, with 10 more than the others."""
    batch = batch or BatchRange()

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        images = feeds["images"]
        if fed is not None:
            fed.append(images)
        seen = np.rint(images.mean((1, 2, 3))).astype(int) % CLASSES
        rows = np.full((len(images), CLASSES), 0.1 if softmax else 0.0, np.float32)
        rows[np.arange(len(images)), seen] = 0.7 if softmax else 10.0
        return {"logits": rows}

    return Subject(
        kind="engine",
        path=Path("engines/double"),
        sha256="",
        runs_on="a double",
        precision="fp32",
        spec=tiny_spec(classes=CLASSES),
        labels=("a", "b", "c", "d"),
        preprocessing=preprocessing,
        batch=batch,
        softmax=softmax,
        runner=FunctionRunner(
            run,
            inputs=(
                TensorSpec(
                    name="images", shape=(batch.axis, 3, SIDE, SIDE), dtype=preprocessing.dtype
                ),
            ),
            outputs=(TensorSpec(name="logits", shape=(batch.axis, CLASSES), dtype="float32"),),
        ),
    )


class Damaged(ArraySamples):
    """Some of whose images cannot be decoded."""

    bad: frozenset[int] = frozenset()

    def image(self, index: int) -> Image.Image:
        if index in self.bad:
            raise ImageError(f"{self.name(index)} is damaged")
        return super().image(index)


def damaged(values: list[int], *bad: int) -> Damaged:
    whole = grey_samples(values)
    made = Damaged(whole.images, whole.labels, "greys")
    made.bad = frozenset(bad)
    return made


SAME = range(CLASSES)


# --- order and batches --------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=17),
    st.sampled_from([(1, 1), (3, 3), (1, 4), (2, 5)]),
    st.sampled_from(["centre", "ten"]),
    st.integers(1, 3),
)
def test_every_image_gets_its_own_answer(
    values: list[int], sizes: tuple[int, int], crops: str, threads: int
) -> None:
    """Whatever the batches: the double recognises every image, and would no other one's answer."""
    batch = BatchRange(min=sizes[0], opt=sizes[0], max=sizes[1])
    labels = [(value + index) % CLASSES for index, value in enumerate(values)]
    options = Options(crops=crops, threads=threads)  # type: ignore[arg-type]
    found = answer(subject(batch), grey_samples(values, labels), SAME, options).answers
    assert found.places.tolist() == list(range(len(values)))
    assert found.targets.tolist() == labels
    assert found.predicted.tolist() == values
    assert found.right == sum(a == b for a, b in zip(values, labels, strict=True))


@pytest.mark.parametrize(("crops", "each"), [("centre", 1), ("ten", 10)])
def test_batches_are_full_but_the_last(crops: str, each: int) -> None:
    """An image that is left out leaves no gap in a batch."""
    fed: list[Array] = []
    images = damaged([0, 1, 2, 3] * 5, 2, 3, 9)
    options = Options(crops=crops, skip_bad=True)  # type: ignore[arg-type]
    outcome = answer(subject(BatchRange(min=1, opt=4, max=4), fed), images, SAME, options)
    assert len(outcome.answers.places) == 17
    sizes = [len(batch) for batch in fed]
    assert sum(sizes) == 17 * each
    assert set(sizes[:-1]) == {4}


def test_classes_are_the_networks() -> None:
    """The data's first class is the network's last."""
    images = grey_samples([3, 2, 1, 0], [0, 1, 2, 3])
    found = answer(subject(), images, [3, 2, 1, 0]).answers
    assert found.targets.tolist() == [3, 2, 1, 0]
    assert found.right == 4
    assert answer(subject(), images, SAME).answers.right == 0


@pytest.mark.parametrize("softmax", [False, True])
def test_loss_is_that_of_the_probabilities(softmax: bool) -> None:
    found = answer(subject(softmax=softmax), grey_samples([0, 1], [0, 2]), SAME).answers
    sure = 0.7 if softmax else np.exp(10) / (np.exp(10) + 3)
    other = 0.1 if softmax else 1 / (np.exp(10) + 3)
    assert found.losses == pytest.approx([-np.log(sure), -np.log(other)], rel=1e-6)
    assert found.chances == pytest.approx([sure, sure], rel=1e-6)


def test_a_tie_for_the_first_place_counts_as_the_first_class() -> None:
    made = subject()
    flat = FunctionRunner(
        lambda feeds: {"logits": np.zeros((len(feeds["images"]), CLASSES), np.float32)},
        inputs=made.runner.inputs,
        outputs=made.runner.outputs,
    )
    found = answer(replace(made, runner=flat), grey_samples([0, 1, 2, 3]), SAME).answers
    assert found.ranks.tolist() == [0, 1, 2, 3]
    assert found.predicted.tolist() == [0, 0, 0, 0]


def test_ten_crops_probabilities_are_averaged() -> None:
    """Of an image whose right half is class 1: 4 of 10 crops show it, 4 do not, 2 are between."""
    pixels = np.zeros((1, 3, SIDE, 2 * SIDE), np.uint8)
    pixels[..., SIDE:] = 1
    images = ArraySamples(pixels, np.array([1]), "halves")
    half = replace(GREY, crop_ratio=1.0)
    found = answer(subject(preprocessing=half), images, SAME, Options(crops="ten")).answers
    sure, other = np.exp(10) / (np.exp(10) + 3), 1 / (np.exp(10) + 3)
    # The mean of the middle crops is 0.5, which is rounded to 0: the even one.
    assert np.exp(-found.losses[0]) == pytest.approx((4 * sure + 6 * other) / 10, rel=1e-6)
    assert found.predicted.tolist() == [0]


def test_uint8_graphs_are_fed_pixels() -> None:
    fed: list[Array] = []
    made = subject(fed=fed, preprocessing=replace(GREY, in_graph=True))
    assert answer(made, grey_samples([3]), SAME).answers.right == 1
    assert fed[0].dtype == np.uint8


def test_images_are_taken_as_they_are_needed() -> None:
    """Memory is bounded: when the first batch runs, most of the images are not decoded yet."""
    decoded: list[int] = []

    class Watched(ArraySamples):
        def image(self, index: int) -> Image.Image:
            decoded.append(index)
            return super().image(index)

    whole = grey_samples([0, 1, 2, 3] * 50)
    seen: list[int] = []
    answer(
        subject(BatchRange(min=1, opt=8, max=8)),
        Watched(whole.images, whole.labels, "greys"),
        SAME,
        Options(threads=2),
        progress=lambda at: seen.append(len(decoded) - at.done),
    )
    assert len(decoded) == 200
    assert max(seen) <= 2 * 8 + 2


def test_progress_is_told() -> None:
    told: list[Progress] = []
    images = damaged([0, 1, 2, 3, 0, 1], 1)
    answer(
        subject(BatchRange(min=1, opt=2, max=2)),
        images,
        SAME,
        Options(skip_bad=True),
        progress=told.append,
    )
    assert [at.right for at in told] == [2, 4, 5]
    assert (told[-1].done, told[-1].total, told[-1].skipped) == (6, 6, 1)
    assert all(at.seconds >= 0 and at.images_per_second > 0 for at in told)


# --- limits -------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_limit_is_spread_evenly(images: int, limit: int) -> None:
    places = list(spread(images, limit))
    assert len(places) == min(images, limit)
    assert places == sorted(set(places))
    assert places[0] == 0
    assert places[-1] < images
    steps = np.diff([*places, images])
    assert steps.max() - steps.min() <= 1


def test_a_limit_sees_classes_that_come_one_after_another() -> None:
    images = grey_samples([0] * 10 + [1] * 10 + [2] * 10 + [3] * 10)
    found = answer(subject(), images, SAME, Options(limit=4)).answers
    assert found.targets.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("options", [{"limit": 0}, {"threads": 0}])
def test_options_that_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least one"):
        Options(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("taken", "asked", "runs"),
    [((1, 4, 8), None, (1, 8)), ((1, 4, 8), 2, (1, 2)), ((2, 2, 2), 2, (2, 2))],
)
def test_batches_that_are_taken(
    taken: tuple[int, int, int], asked: int | None, runs: tuple[int, int]
) -> None:
    low, best, high = taken
    got = choose_batch(BatchRange(min=low, opt=best, max=high), asked)
    assert (got.min, got.max) == runs


@pytest.mark.parametrize(
    ("low", "high", "asked", "said"), [(1, 8, 9, "1 to 8"), (4, 4, 1, "takes 4 a run")]
)
def test_batches_that_are_not_taken(low: int, high: int, asked: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose_batch(BatchRange(min=low, opt=low, max=high), asked)


# --- what is wrong ------------------------------------------------------------------------------


def test_a_bad_image_ends_it_with_its_name() -> None:
    with pytest.raises(ImageError, match=r"^greys\[2\] is damaged$"):
        answer(subject(), damaged([0, 1, 2, 3], 2), SAME)


def test_bad_images_are_left_out_and_counted() -> None:
    outcome = answer(subject(), damaged([0, 1, 2, 3], 0, 2), SAME, Options(skip_bad=True))
    assert outcome.answers.places.tolist() == [1, 3]
    assert [problem.image for problem in outcome.skipped] == ["greys[0]", "greys[2]"]
    assert outcome.skipped[0].error == "greys[0] is damaged"


def test_where_all_are_bad_there_is_nothing_to_count() -> None:
    with pytest.raises(
        ImageError, match=r"none of the 3 images can be used; the first: greys\[0\]"
    ):
        answer(subject(), damaged([0, 1, 2], 0, 1, 2), SAME, Options(skip_bad=True))


def test_an_image_that_cannot_be_resized_is_named() -> None:
    class Long(ArraySamples):
        def image(self, index: int) -> Image.Image:
            return Image.new("RGB", (1, 4000))

    whole = grey_samples([0])
    images = Long(whole.images, whole.labels, "long")
    large = replace(GREY, size=(256, 256))
    with pytest.raises(ImageError, match=r"^long\[0\]: an image of 1x4000 .* too long"):
        answer(subject(preprocessing=large), images, SAME)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="no image"):
        answer(subject(), grey_samples([]), SAME)


def test_a_label_out_of_range_is_named() -> None:
    with pytest.raises(DataError, match=r"greys\[1\] has label 4, and there are 4 classes"):
        answer(subject(), grey_samples([0, 1], [0, 4]), SAME)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("softmax", [False, True])
def test_an_answer_that_is_no_number_is_named(value: float, softmax: bool) -> None:
    made = subject(BatchRange(min=1, opt=4, max=4), softmax=softmax)

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = made.runner.run(feeds)["logits"]
        rows[feeds["images"].mean((1, 2, 3)) == 2, 3] = value
        return {"logits": rows}

    broken = FunctionRunner(run, inputs=made.runner.inputs, outputs=made.runner.outputs)
    with pytest.raises(RunnerError, match=r"engines/double gave .* not finite for greys\[2\]"):
        answer(replace(made, runner=broken), grey_samples([0, 1, 2, 3]), SAME)


def test_a_crop_ratio_that_cannot_be() -> None:
    with pytest.raises(SpecError, match="crop ratio"):
        replace(GREY, crop_ratio=1.5)
