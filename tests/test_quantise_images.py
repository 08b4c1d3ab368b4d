"""Calibration images: where they come from, which are taken, and which are refused."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_sets import colour_data, colour_folders
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from parnet_deploy.data.digits import LABELS
from parnet_deploy.errors import DataError, ImageError, UsageError
from parnet_deploy.images import load_images
from parnet_deploy.quantise.images import choose, open_images
from parnet_deploy.quantise.plausible import check_ranges
from parnet_deploy.spec import Preprocessing
from parnet_deploy.spec.quantisation import QuantisedType, Quantiser
from parnet_deploy.spec.ranges import Range, spanning

OUTSIDE = Preprocessing(size=(32, 40), crop_ratio=1.0)
IN_GRAPH = replace(OUTSIDE, in_graph=True)
DIGITS = Preprocessing(size=(32, 32), crop_ratio=1.0, mean=(0.3,) * 3, std=(0.37,) * 3)


def pixels(count: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3, *OUTSIDE.size), dtype=np.uint8)


def normalised(values: np.ndarray, preprocessing: Preprocessing = OUTSIDE) -> np.ndarray:
    mean, std = (np.array(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return ((values / 255 - mean) / std).astype(np.float32)


def saved(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def digest(images: np.ndarray) -> str:
    """Of a set of images, (N, 3, H, W), in whatever order."""
    each = sorted(hashlib.sha256(image.tobytes()).digest() for image in images)
    return hashlib.sha256(b"".join(each)).hexdigest()


def test_a_folder_s_images_are_prepared_as_for_prediction(tmp_path: Path) -> None:
    colour_folders(tmp_path / "pictures", count=2)
    told: list[tuple[int, int]] = []
    found = open_images(
        str(tmp_path / "pictures"), OUTSIDE, progress=lambda done, total: told.append((done, total))
    )
    paths = sorted((tmp_path / "pictures").glob("*/*.*"))
    expected = load_images(paths, OUTSIDE)
    assert found.count == 6
    np.testing.assert_array_equal(found.array(), expected)
    np.testing.assert_array_equal(np.concatenate([feed["images"] for feed in found]), expected)
    assert [len(feed["images"]) for feed in found.batches(4)] == [4, 2]
    assert found.sha256 == digest(expected)
    assert found.source == "6 images of the folder pictures"
    assert str(tmp_path) not in found.source
    assert found.labels is None
    assert "imagefolder:PATH" in found.unlabelled
    assert told == [(done, 6) for done in range(1, 7)]


def test_the_same_images_have_the_same_digest_wherever_they_lie(tmp_path: Path) -> None:
    colour_folders(tmp_path / "one", count=2)
    found = open_images(str(tmp_path / "one"), OUTSIDE)
    other = tmp_path / "other"
    for number, path in enumerate(sorted((tmp_path / "one").glob("*/*.*"), reverse=True)):
        place = other / f"{number % 2}" / "deep" / f"{number}{path.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    moved = open_images(str(other), OUTSIDE)
    assert not np.array_equal(moved.array(), found.array()), "in another order"
    assert moved.sha256 == found.sha256
    values = found.array()
    again = open_images(saved(tmp_path / "x.npz", images=values[::-1]), OUTSIDE)
    assert again.sha256 == found.sha256
    twice = open_images(saved(tmp_path / "y.npz", images=values[[0, *range(5)]]), OUTSIDE)
    assert twice.sha256 != found.sha256, "an image twice, and another not at all"


def test_a_graph_that_normalises_is_fed_pixels(tmp_path: Path) -> None:
    colour_folders(tmp_path, count=2)
    found = open_images(str(tmp_path), IN_GRAPH)
    (first, *_) = found
    assert first["images"].dtype == np.uint8
    assert found.sha256 == digest(found.array())


def test_an_npz_s_labels_are_the_network_s_outputs(tmp_path: Path) -> None:
    source = saved(tmp_path / "x.npz", images=pixels(), labels=np.arange(6))
    found = open_images(source, OUTSIDE, outputs=6)
    np.testing.assert_allclose(found.array(), normalised(pixels()), atol=1e-6)
    assert found.labels is not None
    assert found.labels.tolist() == list(range(6))
    assert found.source == "6 images of x.npz"
    with pytest.raises(DataError, match="labels from 0 to 5, and the network's classes are 0 to 4"):
        open_images(source, OUTSIDE, outputs=5)


def test_pixels_and_what_they_are_to_the_network_are_the_same_images(tmp_path: Path) -> None:
    values = normalised(pixels())
    as_values = open_images(saved(tmp_path / "v.npz", images=values), OUTSIDE)
    np.testing.assert_array_equal(as_values.array(), values)
    as_pixels = open_images(saved(tmp_path / "p.npz", images=pixels()), OUTSIDE)
    np.testing.assert_allclose(as_pixels.array(), as_values.array(), atol=1e-6)


def test_digits_are_taken_from_what_is_learnt_from_with_their_labels() -> None:
    found = open_images("digits", DIGITS, limit=50, seed=3, classes=LABELS)
    assert found.source == "50 of 1198 images of digits, seed 3"
    assert found.labels is not None
    assert set(Counter(found.labels.tolist()).values()) == {5}
    turned = open_images("digits", DIGITS, limit=50, seed=3, classes=LABELS[::-1])
    assert turned.labels is not None
    assert turned.labels.tolist() == [9 - label for label in found.labels]
    assert turned.sha256 == found.sha256
    assert open_images("digits", DIGITS, limit=50, seed=4).sha256 != found.sha256


def test_classes_that_are_not_the_network_s_leave_images_without_labels() -> None:
    found = open_images("digits", DIGITS, limit=3, classes=("cat", "dog"))
    assert found.labels is None
    assert "none of the network's" in found.unlabelled


def test_of_a_data_set_that_is_split_the_training_split_is_taken(tmp_path: Path) -> None:
    root = colour_data(tmp_path)
    split = open_images(f"imagefolder:{root}", OUTSIDE)
    assert split.source.endswith(f"images of imagefolder {root.name}")
    assert str(tmp_path) not in split.source
    np.testing.assert_array_equal(
        split.array(), load_images(sorted((root / "train").glob("*/*.*")), OUTSIDE)
    )
    whole = open_images(f"imagefolder:{root}/train", OUTSIDE)
    assert whole.sha256 == split.sha256
    part = open_images(f"imagefolder:{root}/train", OUTSIDE, hold_out=0.5)
    assert part.count < whole.count


def test_some_of_them_are_images_of_their_own(tmp_path: Path) -> None:
    source = saved(tmp_path / "x.npz", images=pixels(), labels=np.arange(6))
    found = open_images(source, OUTSIDE)
    half = found.take(range(0, 6, 2), "every other image")
    np.testing.assert_array_equal(half.array(), found.array()[::2])
    assert half.labels is not None
    assert half.labels.tolist() == [0, 2, 4]
    assert half.source == "every other image of 6 images of x.npz"
    assert half.sha256 == digest(half.array())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 9))
def test_a_choice_is_spread_over_the_classes(strata: list[int], limit: int, seed: int) -> None:
    places = choose(strata, limit, seed)
    assert places == sorted(set(places)) == choose(strata, limit, seed)
    assert len(places) == min(limit, len(strata))
    there = Counter(strata)
    taken = Counter(strata[place] for place in places)
    for label, count in there.items():  # one that comes short has been used up
        assert taken[label] >= min(count, max(taken.values()) - 1)


def test_another_seed_chooses_others() -> None:
    strata = [0] * 100
    assert choose(strata, 10, 0) != choose(strata, 10, 1)
    assert choose(strata, 10, 0) != list(range(10))
    assert choose(strata, None, 0) == list(range(100))


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("no zip")
    for source, said in [
        (str(tmp_path / "nowhere"), "there are no calibration images at .*nowhere"),
        ("", "there are no calibration images at ''"),
        ("digit", "imagefolder:PATH, cifar10:PATH, cifar100:PATH or digits"),
        (str(tmp_path / "text.npz"), "is no .npz"),
    ]:
        with pytest.raises(DataError, match=said):
            open_images(source, OUTSIDE)
    with pytest.raises(UsageError, match="takes no path"):
        open_images("digits:/x", OUTSIDE)
    with pytest.raises(ImageError, match="there is no image in the folder"):
        open_images(str(tmp_path / "empty"), OUTSIDE)
    with pytest.raises(DataError, match="nowhere"):
        open_images(f"imagefolder:{tmp_path}/nowhere", OUTSIDE)
    with pytest.raises(UsageError, match="at least one calibration image is needed, not 0"):
        open_images("digits", DIGITS, limit=0)
    with pytest.raises(UsageError, match="only a data set has a part that is held out"):
        open_images(str(tmp_path), OUTSIDE, hold_out=0.2)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (10, 20, 30)])
def test_an_image_of_one_colour_is_refused_by_name(
    tmp_path: Path, colour: tuple[int, int, int]
) -> None:
    colour_folders(tmp_path, count=1)
    Image.new("RGB", (50, 50), colour).save(tmp_path / "blue" / "plain.png")
    with pytest.raises(DataError, match=r"plain\.png is of one colour, \["):
        open_images(str(tmp_path), OUTSIDE)
    images = pixels()
    images[4] = np.array(colour)[:, None, None]
    for name, values in {"p": images, "v": normalised(images)}.items():
        source = saved(tmp_path / f"{name}.npz", images=values)
        with pytest.raises(DataError, match=r"image 4 of .* is of one colour"):
            open_images(source, OUTSIDE)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((0, 3, 32, 40), np.uint8)}, "at least one image"),
        ({"images": np.zeros((2, 3, 40, 32), np.uint8)}, r"\[2, 3, 40, 32\]"),
        ({"images": np.zeros((2, 32, 40, 3), np.uint8)}, r"\[N, 3, 32, 40\]"),
        ({"images": np.full((1, 3, 32, 40), np.nan, np.float32)}, "not finite"),
        ({"images": np.full((1, 3, 32, 40), np.inf, np.float32)}, "not finite"),
        ({"images": np.full((1, 3, 32, 40), 1e300)}, "not finite"),
        ({"images": pixels(2), "labels": np.arange(3)}, "labels are int64 of shape"),
        ({"images": pixels(2), "labels": np.array([0.0, 1.0])}, "labels are float64"),
        ({"images": pixels(2), "labels": np.array([-1, 1])}, "labels start at 0"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(
    arrays: dict[str, np.ndarray], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        open_images(saved(tmp_path / "x.npz", **arrays), OUTSIDE)


CIFAR = Preprocessing(
    size=OUTSIDE.size, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)
)
HALVES = Preprocessing(size=OUTSIDE.size, mean=(0.5,) * 3, std=(0.5,) * 3)
MNIST = Preprocessing(size=OUTSIDE.size, mean=(0.1307,) * 3, std=(0.3081,) * 3)

WRONG = {
    "pixels as floats": pixels().astype(np.float32),
    "not normalised": (pixels() / 255).astype(np.float32),
    "minus one to one": normalised(pixels(), HALVES),
    "of another data set": normalised(pixels(), CIFAR),
    "of a grey data set": normalised(pixels(), MNIST),
}
"""Seeded faults: images that were normalised otherwise than the network's."""


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_normalisation_is_refused(fault: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "x.npz", images=WRONG[fault])
    with pytest.raises(DataError, match=r"this network reads -2\.118 \(black\) to 2\.64 \(white\)"):
        open_images(source, OUTSIDE)


@pytest.mark.parametrize("read", [OUTSIDE, CIFAR, HALVES, MNIST], ids=lambda read: read.mean[0])
def test_the_right_normalisation_is_not_refused(read: Preprocessing, tmp_path: Path) -> None:
    images = normalised(pixels(), read)
    assert open_images(saved(tmp_path / "x.npz", images=images), read).count == 6
    half = images.astype(np.float16)
    assert open_images(saved(tmp_path / "h.npz", images=half), read).count == 6


TYPES: tuple[QuantisedType, ...] = ("int8", "uint8", "float8_e4m3fn")


@pytest.mark.parametrize("read", [OUTSIDE, IN_GRAPH, CIFAR, HALVES, DIGITS])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_range_of_what_the_network_reads_is_in_order(
    dtype: QuantisedType, read: Preprocessing
) -> None:
    images = normalised(pixels(), read)
    how = spanning(Range(low=float(images.min()), high=float(images.max())), dtype)
    name = "preprocess" if read.in_graph else "images"
    assert check_ranges({name: how}, read) is None
    clipped = replace(how, scale=how.scale * 0.75)
    assert check_ranges({name: clipped}, read) is None
    assert check_ranges({}, read) is None
    for factor in (0.5, 2.0):  # a scale off by two
        found = check_ranges({name: replace(how, scale=how.scale * factor)}, read)
        assert found is not None
        assert f"the range of '{name}' is" in found


@pytest.mark.parametrize("fault", ["pixels as floats", "not normalised", "minus one to one"])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_range_of_another_normalisation_is_found(dtype: QuantisedType, fault: str) -> None:
    values = WRONG[fault]
    how = spanning(Range(low=float(values.min()), high=float(values.max())), dtype)
    found = check_ranges({"images": how}, OUTSIDE)
    assert found is not None
    assert "another normalisation" in found


def test_a_wrong_zero_point_is_found() -> None:
    right = spanning(Range(low=-2.118, high=2.64), "uint8")
    assert check_ranges({"images": right}, OUTSIDE) is None
    for shift in (-40, 40):
        wrong = Quantiser(dtype="uint8", scale=right.scale, zero_point=right.zero_point + shift)
        assert check_ranges({"images": wrong}, OUTSIDE) is not None
