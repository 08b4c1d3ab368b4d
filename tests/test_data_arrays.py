"""Samples in memory, and samples written to files and read again."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.data import ArraySamples, DataSet, Split, open_samples, save_images
from parnet_deploy.data.saving import image_name
from parnet_deploy.errors import DataError


def noise(count: int, height: int = 5, width: int = 7, classes: int = 3) -> ArraySamples:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    return ArraySamples(images, np.arange(count) % classes, "noise")


def pixels(samples: object, index: int) -> np.ndarray:
    return np.asarray(samples.image(index))  # type: ignore[attr-defined]


def test_samples_are_the_arrays() -> None:
    samples = noise(4)
    assert len(samples) == 4
    assert samples.image(2).mode == "RGB"
    assert samples.image(2).size == (7, 5)
    assert np.array_equal(pixels(samples, 2).transpose(2, 0, 1), samples.images[2])
    assert [samples.label(index) for index in range(4)] == [0, 1, 2, 0]
    assert samples.name(3) == "noise[3]"


def test_samples_keep_their_place_in_the_source() -> None:
    some = ArraySamples(noise(2).images, np.array([0, 1]), "digits", numbers=np.array([17, 3]))
    assert some.name(0) == "digits[17]"


def test_samples_go_to_other_processes() -> None:
    samples = noise(3)
    again = pickle.loads(pickle.dumps(samples))
    assert np.array_equal(again.images, samples.images)
    assert again.name(2) == "noise[2]"


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (np.zeros((2, 3, 4, 4), np.float32), np.zeros(2, int), "float32"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, int), r"\(2, 4, 4, 3\)"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros(3, int), r"\(N, 3, H, W\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(3, int), "2 images of fake need as many"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2), "integers, not float64"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.array([0, -1]), r"fake\[1\] has the label -1"),
    ],
    ids=["float", "channels-last", "no-batch", "count", "float-labels", "negative"],
)
def test_arrays_that_are_no_samples(images: np.ndarray, labels: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ArraySamples(images, labels, "fake")


@pytest.mark.parametrize(
    ("labels", "said"), [((), "has no classes"), (("a", "b", "a"), "several classes .* name: a$")]
)
def test_classes_must_be_told_apart(labels: tuple[str, ...], said: str) -> None:
    how = {"name": "x", "labels": labels, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    with pytest.raises(DataError, match=said):
        Split(samples=noise(1), **how)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=said):
        DataSet(train=noise(1), test=noise(1), **how)  # type: ignore[arg-type]


@given(count=st.integers(1, 12), height=st.integers(1, 9), width=st.integers(1, 9))
def test_saved_images_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, count: int, height: int, width: int
) -> None:
    samples = noise(count, height, width)
    labels = ("zebra", "ant", "owl")  # not sorted: the folders will be
    folder = tmp_path_factory.mktemp("saved")
    save_images(samples, labels, folder)
    again = open_samples(f"imagefolder:{folder}")
    found = {
        (again.labels[again.samples.label(index)], Path(again.samples.name(index)).name): index
        for index in range(len(again.samples))
    }
    assert len(found) == count
    for index in range(count):
        place = found[labels[samples.label(index)], f"{index:04}.png"]
        assert np.array_equal(pixels(again.samples, place), pixels(samples, index))


@pytest.mark.parametrize(
    ("index", "count", "name"),
    [
        (7, 8, "0007.png"),
        (7, 10_000, "0007.png"),
        (7, 10_001, "00007.png"),
        (10_000, 10_001, "10000.png"),
    ],
)
def test_saved_names_sort_as_the_samples_do(index: int, count: int, name: str) -> None:
    assert image_name(index, count) == name


@pytest.mark.parametrize("label", ["", ".", "..", ".hidden", "a/b", "a\0b"])
def test_labels_that_no_folder_can_have(tmp_path: Path, label: str) -> None:
    with pytest.raises(DataError, match="no folder can be called"):
        save_images(noise(1), (label, "b", "c"), tmp_path)
    assert list(tmp_path.iterdir()) == []
