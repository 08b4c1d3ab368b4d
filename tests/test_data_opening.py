"""What may be written after --data."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_sets import colour_data, colour_folders

from parnet_deploy.data import open_data, open_samples
from parnet_deploy.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("digit", "no data set 'digit'; did you mean 'digits'"),
        ("imagefolders:/x", "did you mean 'imagefolder'"),
        ("cifar:/x", "did you mean 'cifar10.*'"),
        ("", "no data set ''"),
        (":/x", "no data set ''"),
        ("digits:", "'digits' takes no path: write digits"),
        ("digits:/x", "'digits' takes no path: write digits"),
        ("imagefolder", "lacks a path: imagefolder:PATH, PATH being a folder with train/CLASS"),
        ("imagefolder:", "lacks a path"),
        ("cifar10", "cifar10:PATH, PATH being the folder with cifar-10-batches-py in it"),
        ("cifar100:", "cifar100:PATH, PATH being the folder with cifar-100-python in it"),
    ],
)
def test_sources_that_are_none(source: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        open_data(source)
    with pytest.raises(UsageError, match=said):
        open_samples(source)


def test_a_folder_alone_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"for a folder of images write imagefolder:{tmp_path}"):
        open_data(str(tmp_path))


def test_a_folder_called_as_a_source_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(open_samples("digits").samples) == 599


def test_a_path_may_have_colons_and_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colour_folders(tmp_path / "a:b")
    monkeypatch.setenv("HOME", str(tmp_path))
    opened = open_samples("ImageFolder:~/a:b")
    assert opened.name == f"imagefolder:{tmp_path}/a:b"
    assert len(opened.samples) == 12


@pytest.mark.parametrize("source", ["imagefolder:{}", "cifar10:{}", "cifar100:{}"])
def test_a_path_that_leads_nowhere(tmp_path: Path, source: str) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(DataError, match=str(nowhere)):
        open_data(source.format(nowhere))


@pytest.mark.parametrize("part", [0.0, 1.0, -0.1, 20.0, float("nan")])
def test_parts_that_cannot_be_held_out(tmp_path: Path, part: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1 can be held out"):
        open_data(f"imagefolder:{tmp_path}", hold_out=part)


def test_nothing_is_held_out_of_what_is_split(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'digits' has a test split of its own"):
        open_data("digits", hold_out=0.2)
    root = colour_data(tmp_path)
    with pytest.raises(UsageError, match=f"test split of its own, {root}/val; leave --hold-out"):
        open_data(f"imagefolder:{root}", hold_out=0.2)


def test_both_splits_and_one_alone_are_the_same(tmp_path: Path) -> None:
    source = f"imagefolder:{colour_data(tmp_path)}"
    both = open_data(source)
    assert both.name == source
    for part, samples in (("train", both.train), ("test", both.test)):
        alone = open_samples(source, part)  # type: ignore[arg-type]
        assert list(alone.samples.paths) == list(samples.paths)  # type: ignore[attr-defined]
        assert alone.labels == both.labels == ("blue", "green", "red")
        assert (alone.mean, alone.std) == (both.mean, both.std)
