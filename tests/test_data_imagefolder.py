"""Folders of class folders: what is found in them, which split is where, and what is refused."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_sets import COLOURS, colour_data, colour_folders
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.data import FolderSamples, open_data, open_samples
from parnet_deploy.data.holdout import held_out
from parnet_deploy.data.paths import Paths
from parnet_deploy.errors import DataError, ImageError, UsageError
from parnet_deploy.spec.images import IMAGENET_MEAN, IMAGENET_STD

NAMES = st.text("ab.-_Zé1", min_size=1, max_size=4).filter(lambda name: name[0] != ".")
SUFFIX = st.sampled_from([".jpg", ".JPEG", ".png", ".Tiff"])


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def below(samples: object, root: Path) -> list[str]:
    paths = samples.paths  # type: ignore[attr-defined]
    return [os.path.relpath(path, root) for path in paths]


# --- what is found ------------------------------------------------------------------------------


def test_train_and_val(tmp_path: Path) -> None:
    data = open_data(f"imagefolder:{colour_data(tmp_path, train=3, test=2)}")
    assert data.labels == ("blue", "green", "red")
    assert (len(data.train), len(data.test)) == (9, 6)
    assert below(data.test, tmp_path)[:3] == [
        "val/blue/000.png",
        "val/blue/001.jpg",
        "val/green/000.png",
    ]
    assert data.test.name(2) == str(tmp_path / "val/green/000.png")
    assert (data.mean, data.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert data.interpolation == "bilinear"
    for samples in (data.train, data.test):
        for index in range(len(samples)):
            image = samples.image(index)
            assert (image.mode, image.size) == ("RGB", (40, 32))
            expected = COLOURS[data.labels[samples.label(index)]]
            assert np.abs(np.asarray(image).mean((0, 1)) - expected).max() < 12


@pytest.mark.parametrize("name", ["val", "validation", "valid", "test"])
def test_names_of_the_test_split(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "train/a/1.png", f"{name}/a/2.png")
    assert below(open_data(f"imagefolder:{tmp_path}").test, tmp_path) == [f"{name}/a/2.png"]


def test_of_several_test_splits_the_first_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "val/a/2.png", "test/a/3.png")
    assert below(open_samples(f"imagefolder:{tmp_path}").samples, tmp_path) == ["val/a/2.png"]
    other = open_samples(f"imagefolder:{tmp_path}/test")
    assert below(other.samples, tmp_path) == ["test/a/3.png"]


def test_a_test_split_alone(tmp_path: Path) -> None:
    """To evaluate, nothing else need be there; to train, it must."""
    touch(tmp_path, "val/a/1.png", "val/b/1.png")
    for source in (f"imagefolder:{tmp_path}", f"imagefolder:{tmp_path}/val"):
        assert len(open_samples(source).samples) == 2
    with pytest.raises(DataError, match=r"has no folder train with class folders in it$"):
        open_data(f"imagefolder:{tmp_path}")


def test_hidden_files_and_other_files_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/.2.png", "a/.hidden/3.png", "a/notes.txt", ".git/4.png", "5.png")
    opened = open_samples(f"imagefolder:{tmp_path}")
    assert opened.labels == ("a",)
    assert below(opened.samples, tmp_path) == ["a/1.png"]


@given(
    files=st.lists(
        st.tuples(NAMES, st.lists(NAMES, max_size=2), NAMES, SUFFIX), min_size=1, max_size=12
    )
)
def test_classes_and_order_are_torchvision_s(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[str, list[str], str, str]],
) -> None:
    from torchvision.datasets import ImageFolder

    root = tmp_path_factory.mktemp("layout")
    for name, between, file, suffix in files:
        touch(root, "/".join([f"class-{name}", *(f"in-{part}" for part in between), file + suffix]))
    opened = open_samples(f"imagefolder:{root}")
    theirs = ImageFolder(str(root))
    assert list(opened.labels) == theirs.classes
    ours = [
        (opened.samples.name(index), opened.samples.label(index))
        for index in range(len(opened.samples))
    ]
    assert ours == theirs.samples


def test_links_are_followed(tmp_path: Path) -> None:
    store = touch(tmp_path / "store", "night/1.png", "2.png")
    root = touch(tmp_path / "data", "cat/0.png")
    (root / "cat/night").symlink_to(store / "night")
    (root / "cat/2.png").symlink_to(store / "2.png")
    (root / "dog").symlink_to(store)
    opened = open_samples(f"imagefolder:{root}")
    assert below(opened.samples, root) == [
        "cat/0.png",
        "cat/2.png",
        "cat/night/1.png",
        "dog/2.png",
        "dog/night/1.png",
    ]


def test_a_link_that_goes_in_a_circle(tmp_path: Path) -> None:
    root = touch(tmp_path, "cat/a/0.png", "dog/0.png")
    (root / "cat/a/again").symlink_to(root / "cat")
    with pytest.raises(DataError, match=r"the link .*cat/a/again leads to .*cat, where this class"):
        open_samples(f"imagefolder:{root}")
    (root / "cat/a/again").unlink()
    (root / "cat/other").symlink_to(root / "dog")
    (root / "dog/other").symlink_to(root / "cat")
    with pytest.raises(DataError, match=r"the link .*other leads to"):
        open_samples(f"imagefolder:{root}")


def test_two_links_of_a_class_to_one_folder(tmp_path: Path) -> None:
    """Its images would be there twice; and one that holds a link to itself has no end."""
    store = touch(tmp_path / "store", "1.png")
    root = touch(tmp_path / "data", "cat/0.png", "dog/0.png")
    for link in ("cat/a", "dog/a", "dog/b"):
        (root / link).symlink_to(store)
    with pytest.raises(DataError, match=r"the link .*dog/[ab] leads to .*store, where this class"):
        open_samples(f"imagefolder:{root}")
    (root / "dog/b").unlink()
    assert len(open_samples(f"imagefolder:{root}").samples) == 4
    (store / "again").symlink_to(store)
    with pytest.raises(DataError, match=r"the link .*cat/a/again leads to"):
        open_samples(f"imagefolder:{root}")


def test_class_folders_called_as_splits_are(tmp_path: Path) -> None:
    """Vehicles: a folder of trains holds images, not class folders."""
    touch(tmp_path, "car/1.png", "car/2.png", "train/1.png", "train/2.png", "val/1.png")
    assert open_samples(f"imagefolder:{tmp_path}").labels == ("car", "train", "val")
    shutil.rmtree(tmp_path / "train")
    touch(tmp_path, "val/deep/1.png")
    assert open_samples(f"imagefolder:{tmp_path}").labels == ("car", "val")


# --- many paths ---------------------------------------------------------------------------------


@given(names=st.lists(st.text(min_size=1, alphabet="aé/ü€\udcff"), max_size=9))
def test_paths_are_kept_as_they_are(names: list[str]) -> None:
    """Also those that are no text: bytes of a disk that are no UTF-8."""
    paths = pickle.loads(pickle.dumps(Paths("/root", names)))
    assert list(paths) == [f"/root/{name}" for name in names]
    assert len(paths) == len(names)
    if names:
        assert paths[-1] == f"/root/{names[-1]}"
    with pytest.raises(IndexError):
        paths[len(names)]


def test_samples_go_to_other_processes(tmp_path: Path) -> None:
    samples = open_samples(f"imagefolder:{colour_folders(tmp_path)}").samples
    again = pickle.loads(pickle.dumps(samples))
    assert isinstance(again, FolderSamples)
    assert [again.name(i) for i in range(12)] == [samples.name(i) for i in range(12)]
    assert [again.label(i) for i in range(12)] == [0] * 4 + [1] * 4 + [2] * 4


# --- a part that is held out --------------------------------------------------------------------


def test_hold_out_splits_every_class(tmp_path: Path) -> None:
    names = [f"{name}/{index}.png" for name in "ab" for index in range(200)]
    source = f"imagefolder:{touch(tmp_path, *names)}"
    data = open_data(source, hold_out=0.25)
    train, test = (set(below(samples, tmp_path)) for samples in (data.train, data.test))
    assert train.isdisjoint(test)
    assert train | test == set(names)
    for name in "ab":
        assert 30 < sum(path.startswith(name) for path in test) < 70
    again = open_samples(source, "test", hold_out=0.25)
    assert below(again.samples, tmp_path) == below(data.test, tmp_path)
    assert open_samples(source, "train", hold_out=0.25).samples.label(0) == 0


def test_hold_out_of_a_training_split_without_a_test_split(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/{name}/{index}.png" for name in "ab" for index in range(9)))
    data = open_data(f"imagefolder:{tmp_path}", hold_out=0.3)
    assert len(data.train) + len(data.test) == 18
    moved = open_data(f"imagefolder:{tmp_path}/train", hold_out=0.3)
    assert below(moved.test, tmp_path) == below(data.test, tmp_path)


def test_hold_out_goes_by_the_path_below_the_data_set(tmp_path: Path) -> None:
    """The same images on another machine, in another folder, are split the same way."""
    names = [f"a/{index}.png" for index in range(50)]
    one, two = (touch(tmp_path / folder, *names) for folder in ("one", "elsewhere/two"))
    tests = [below(open_samples(f"imagefolder:{r}", hold_out=0.2).samples, r) for r in (one, two)]
    assert tests[0] == tests[1]


PATHS = st.lists(st.text("abc/", min_size=1, max_size=6), unique=True, min_size=2, max_size=40)


@given(paths=PATHS, part=st.floats(0.01, 0.99))
def test_held_out_leaves_something_on_both_sides(paths: list[str], part: float) -> None:
    chosen = held_out(paths, part)
    assert len(chosen) == len(paths)
    assert any(chosen)
    assert not all(chosen)


@given(paths=PATHS, more=PATHS, part=st.floats(0.01, 0.99))
def test_held_out_does_not_change_when_files_are_added(
    paths: list[str], more: list[str], part: float
) -> None:
    """But for one image of a class so small that the hash would take all of it or none."""
    every = list(dict.fromkeys([*paths, *more]))
    before = dict(zip(paths, held_out(paths, part), strict=True))
    after = dict(zip(every, held_out(every, part), strict=True))
    assert sum(after[path] != before[path] for path in paths) <= 1


def test_held_out_is_the_same_for_ever() -> None:
    """Pinned: another choice would mix the splits of networks that are trained already."""
    paths = [f"cat/{index}.jpg" for index in range(10)]
    chosen = [index for index, out in enumerate(held_out(paths, 0.3)) if out]
    assert chosen == [0, 1, 3, 5, 8]


def test_held_out_takes_the_part_that_is_asked_for() -> None:
    chosen = held_out([f"n01440764/{index}.JPEG" for index in range(20_000)], 0.1)
    assert 0.09 < sum(chosen) / len(chosen) < 0.11


# --- what is refused ----------------------------------------------------------------------------


def test_class_folders_alone_are_not_trained_on(tmp_path: Path) -> None:
    source = f"imagefolder:{colour_folders(tmp_path)}"
    with pytest.raises(
        DataError, match=r"is not split .* into train and val, or give --hold-out 0"
    ):
        open_data(source)
    with pytest.raises(DataError, match="is not split"):
        open_samples(source, "train")


def test_a_training_split_alone_is_not_trained_on(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png")
    with pytest.raises(DataError, match=r"no folder val or .* or test .* --hold-out 0\.2"):
        open_data(f"imagefolder:{tmp_path}")
    assert len(open_samples(f"imagefolder:{tmp_path}", "train").samples) == 1


def test_nothing_is_held_out_where_there_is_no_training_split(tmp_path: Path) -> None:
    touch(tmp_path, "val/a/1.png")
    with pytest.raises(UsageError, match="has a test split of its own"):
        open_data(f"imagefolder:{tmp_path}", hold_out=0.2)


def _nothing(root: Path) -> None:
    root.mkdir()


def _file(root: Path) -> None:
    root.touch()


def _loose(root: Path) -> None:
    touch(root, "1.png", "2.jpg", "notes.txt")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: None, "data does not exist; a folder is expected that holds train/CLASS"),
        (_file, "data is no folder; a folder is expected"),
        (_nothing, "there are no class folders in .*data; a folder for each class"),
        (_loose, "there are 2 images but no class folders in .*data"),
    ],
    ids=["missing", "file", "nothing", "loose"],
)
def test_folders_that_are_no_data_set(
    tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path / "data")
    for opened in (open_data, open_samples):
        with pytest.raises(DataError, match=said):
            opened(f"imagefolder:{tmp_path}/data")


def test_an_empty_class_folder_to_learn_from(tmp_path: Path) -> None:
    touch(
        tmp_path, "train/a/1.png", "train/b/1.heic", "train/b/2.txt", "val/a/1.png", "val/b/1.png"
    )
    said = (
        "class folder .*train/b holds no image, only 2 files of other kinds; nothing can be learnt"
    )
    for skip in (False, True):
        with pytest.raises(DataError, match=said):
            open_data(f"imagefolder:{tmp_path}", skip_bad=skip)


def test_an_empty_class_folder_to_test_on(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "val/b/1.png", "val/a/.hidden.png")
    source = f"imagefolder:{tmp_path}"
    for opened in (open_data, open_samples):
        with pytest.raises(DataError, match=r"folder .*val/a holds no image; .* give --skip-bad"):
            opened(source)
    data = open_data(source, skip_bad=True)
    assert data.empty == ("a",)
    assert data.labels == ("a", "b")
    assert [data.test.label(index) for index in range(len(data.test))] == [1]
    assert open_samples(source, skip_bad=True).empty == ("a",)


def test_only_empty_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.txt", "b/y.txt")
    with pytest.raises(DataError, match="there is no image in any class folder of"):
        open_samples(f"imagefolder:{tmp_path}", skip_bad=True)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a/x.txt", "b/1.png", "b/2.png"], "class folder .*/a holds no image"),
        (["a/1.png", "b/1.png", "b/2.png"], "class folder .*/a holds a single image; .* two are"),
    ],
)
def test_classes_too_small_to_hold_out_of(tmp_path: Path, names: list[str], said: str) -> None:
    touch(tmp_path, *names)
    for opened in (open_data, open_samples):
        with pytest.raises(DataError, match=said):
            opened(f"imagefolder:{tmp_path}", hold_out=0.5, skip_bad=True)


def test_splits_of_different_classes(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/{name}/1.png" for name in "abcdefgh"), "val/h/1.png", "val/x/1.png")
    said = "different classes: .*train has no x and .*val has no a, b, c, d, e and 2 more$"
    with pytest.raises(DataError, match=said):
        open_data(f"imagefolder:{tmp_path}")


def test_class_names_that_no_label_can_be(tmp_path: Path) -> None:
    touch(tmp_path, "one\nline/1.png")
    with pytest.raises(
        DataError, match=r"class folder 'one\\nline' in .* has no name that a label"
    ):
        open_samples(f"imagefolder:{tmp_path}")
    shutil.rmtree(tmp_path / "one\nline")
    touch(tmp_path, os.fsdecode(b"caf\xe9/1.png"))
    with pytest.raises(DataError, match=r"class folder 'caf\\udce9'"):
        open_samples(f"imagefolder:{tmp_path}")


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the refusal itself is simulated."""
    touch(tmp_path, "a/1.png", "a/secret/1.png")
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if folder.endswith("secret"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"folder .*a/secret may not be read: Permission denied"):
        open_samples(f"imagefolder:{tmp_path}")


def test_a_link_to_nowhere_is_a_bad_image(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    (tmp_path / "a/2.png").symlink_to("nowhere.png")
    samples = open_samples(f"imagefolder:{tmp_path}").samples
    with pytest.raises(ImageError, match=r"no image file at .*2\.png"):
        samples.image(1)
