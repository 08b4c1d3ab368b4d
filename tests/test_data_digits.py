"""The digits: real scans, always the same test split, nothing of it in the training split."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from parnet_deploy.data import DataSet, open_data, open_samples, save_images
from parnet_deploy.data.digits import last_of_every_class
from parnet_deploy.errors import MissingDependencyError


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return open_data("digits")


def test_digits_are_all_there(digits: DataSet) -> None:
    assert (len(digits.train), len(digits.test)) == (1198, 599)
    assert digits.labels[0] == "zero"
    assert len(digits.labels) == 10
    assert digits.empty == ()
    for samples in (digits.train, digits.test):
        assert samples.image(0).size == (32, 32)
        assert samples.images.shape == (len(samples), 3, 32, 32)


def test_every_scan_is_in_one_split_with_its_label(digits: DataSet) -> None:
    from sklearn.datasets import load_digits

    target = load_digits().target
    found = {}
    for samples in (digits.train, digits.test):
        for index in range(len(samples)):
            found[samples.name(index)] = samples.label(index)
    assert found == {f"digits[{number}]": label for number, label in enumerate(target)}


def test_digits_are_the_scans_enlarged(digits: DataSet) -> None:
    """Shrunk back by averaging, each is close to its own scan and not to another."""
    from sklearn.datasets import load_digits

    scans = load_digits().images * (255 / 16)
    shrunk = digits.train.images[0, 0].reshape(8, 4, 8, 4).mean((1, 3))
    assert digits.train.name(0) == "digits[0]"
    assert np.abs(shrunk - scans[0]).mean() < 20
    assert np.abs(shrunk - scans[1]).mean() > 40


def test_a_third_of_every_class_is_held_out(digits: DataSet) -> None:
    train, test = (np.bincount(split.labels) for split in (digits.train, digits.test))
    assert np.array_equal(test, np.rint((train + test) / 3))
    seen = {image.tobytes() for image in digits.train.images}
    assert not any(image.tobytes() in seen for image in digits.test.images)


def test_the_last_of_the_file_are_held_out(digits: DataSet) -> None:
    """So that hardly a writer is in both: the splits overlap for 36 of the file's 1797 scans."""
    numbers = {
        name: [int(samples.name(index)[7:-1]) for index in range(len(samples))]
        for name, samples in (("train", digits.train), ("test", digits.test))
    }
    assert (min(numbers["test"]), max(numbers["train"])) == (1185, 1221)
    assert numbers["train"] == sorted(numbers["train"])


def test_the_test_split_never_changes(digits: DataSet) -> None:
    again = open_samples("digits")
    assert np.array_equal(again.samples.images, digits.test.images)
    assert np.array_equal(again.samples.labels, digits.test.labels)
    assert (again.mean, again.std, again.labels) == (digits.mean, digits.std, digits.labels)
    assert again.name == digits.name == "digits"


def test_last_of_every_class() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1, 1, 1])
    chosen = last_of_every_class(labels, 1 / 3)
    assert np.flatnonzero(chosen).tolist() == [6, 8, 9]
    assert not last_of_every_class(np.array([0, 1]), 1 / 3).any()


def test_mean_and_deviation_are_the_training_split_s(digits: DataSet) -> None:
    values = digits.train.images / 255
    assert digits.mean == pytest.approx([values.mean()] * 3, abs=5e-5)
    assert digits.std == pytest.approx([values.std()] * 3, abs=5e-5)
    assert digits.mean[0] == round(digits.mean[0], 4)


def test_saved_digits_read_back_the_same_to_the_bit(digits: DataSet, tmp_path: Path) -> None:
    save_images(digits.test, digits.labels, tmp_path)
    again = open_samples(f"imagefolder:{tmp_path}")
    assert sorted(again.labels) == sorted(digits.labels)
    for index in range(len(again.samples)):
        path = Path(again.samples.name(index))
        number = int(path.stem)
        assert path.parent.name == digits.labels[digits.test.label(number)]
        saved = np.asarray(again.samples.image(index))
        assert np.array_equal(saved, np.asarray(digits.test.image(number)))


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'parnet-deploy\[train\]'"):
        open_data("digits")
