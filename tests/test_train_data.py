"""The digits: real scans, always the same test split, nothing of it in the training split."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from parnet_deploy.errors import MissingDependencyError, UsageError
from parnet_deploy.images import find_images, load_images, normalise
from parnet_deploy.train import DataSet, load_data, save_images
from parnet_deploy.train.data import split_by_class


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data("digits", (32, 32))


def test_digits_are_all_there(digits: DataSet) -> None:
    assert (len(digits.train), len(digits.test)) == (1347, 450)
    for split in (digits.train, digits.test):
        assert split.images.shape == (len(split), 3, 32, 32)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
    assert digits.labels[0] == "zero"
    assert len(digits.labels) == 10


def test_digits_are_the_scans_enlarged(digits: DataSet) -> None:
    """Shrunk back by averaging, each is close to a scan of the same digit."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    first = scans.images[0] * (255 / 16)
    shrunk = digits.train.images[0, 0].reshape(8, 4, 8, 4).mean((1, 3))
    assert digits.train.labels[0] == scans.target[0] == 0
    assert np.abs(shrunk - first).mean() < 20
    assert np.abs(shrunk - scans.images[1] * (255 / 16)).mean() > 40


def test_test_split_is_stratified_and_apart(digits: DataSet) -> None:
    train, test = (np.bincount(split.labels) for split in (digits.train, digits.test))
    assert np.all(np.abs(test / (train + test) - 0.25) < 0.005)
    seen = {image.tobytes() for image in digits.train.images}
    assert not any(image.tobytes() in seen for image in digits.test.images)


def test_test_split_never_changes(digits: DataSet) -> None:
    again = load_data("digits", (32, 32))
    assert np.array_equal(again.test.images, digits.test.images)
    assert np.array_equal(again.test.labels, digits.test.labels)


def test_split_by_class_takes_the_last_quarter_of_every_class() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    images = np.arange(8)
    train, test = split_by_class(images, labels)
    assert test.images.tolist() == [6, 7]
    assert test.labels.tolist() == [0, 1]
    assert train.images.tolist() == [0, 1, 2, 3, 4, 5]


def test_split_by_class_of_few_images_leaves_all_for_training() -> None:
    train, test = split_by_class(np.arange(2), np.array([0, 1]))
    assert (len(train), len(test)) == (2, 0)


def test_preprocessing_normalises_the_training_split(digits: DataSet) -> None:
    values = normalise(digits.train.images, digits.preprocessing)
    assert abs(float(values.mean())) < 1e-3
    assert float(values.std()) == pytest.approx(1.0, abs=1e-3)


def test_saved_images_read_back_the_same_to_the_bit(digits: DataSet, tmp_path: Path) -> None:
    """What the command line predicts from files is what training evaluated from memory."""
    save_images(digits.test, digits.labels, tmp_path)
    paths = sorted(find_images(tmp_path), key=lambda path: path.stem)
    assert len(paths) == len(digits.test)
    assert [path.parent.name for path in paths] == [digits.labels[n] for n in digits.test.labels]
    loaded = load_images(paths, digits.preprocessing)
    assert np.array_equal(loaded, normalise(digits.test.images, digits.preprocessing))


def test_other_sizes() -> None:
    assert load_data("digits", (16, 48)).test.images.shape == (450, 3, 16, 48)


def test_unknown_data_set_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="no data set 'digit'; did you mean 'digits'"):
        load_data("digit", (32, 32))


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'parnet-deploy\[train\]'"):
        load_data("digits", (32, 32))
