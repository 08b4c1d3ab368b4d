"""CIFAR: files in its form are read as torchvision does; any other is refused before it is."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_sets import CIFAR10_LABELS, cifar_batch, fake_cifar10, fake_cifar100

from parnet_deploy.data import open_data, open_samples
from parnet_deploy.errors import DataError, MissingDependencyError, UsageError


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(f"cifar10:{fake_cifar10(tmp_path, monkeypatch)}")
    assert data.labels == CIFAR10_LABELS
    assert (len(data.train), len(data.test)) == (100, 20)
    assert data.name == f"cifar10:{tmp_path}/cifar-10-batches-py"
    assert data.mean == (0.4914, 0.4822, 0.4465)
    assert data.std == (0.2470, 0.2435, 0.2616)
    assert data.train.name(3) == "cifar10-train[3]"
    third = cifar_batch(20, 10, "labels", 2)  # of data_batch_3
    assert data.train.label(47) == third["labels"][7]
    pixels = np.asarray(data.train.image(47))
    assert pixels.shape == (32, 32, 3)
    assert np.array_equal(pixels.transpose(2, 0, 1).ravel(), third["data"][7])


def test_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"cifar100:{fake_cifar100(tmp_path, monkeypatch)}"
    test = open_samples(source)
    assert len(test.labels) == 100
    assert test.labels[7] == "thing_07"
    assert (test.mean, test.std) == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    assert len(test.samples) == 200
    assert test.samples.label(123) == 23
    assert test.samples.name(123) == "cifar100-test[123]"


def test_the_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cifar10(tmp_path, monkeypatch)
    assert len(open_samples(f"cifar10:{tmp_path}/cifar-10-batches-py").samples) == 20
    monkeypatch.chdir(tmp_path / "cifar-10-batches-py")
    assert len(open_samples("cifar10:.").samples) == 20


def test_without_a_pickle_that_is_not_the_authors(tmp_path: Path) -> None:
    """With the real md5s, what would run on being unpickled is not unpickled."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    class Harm:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.mkdir, (tmp_path / "harm",)

    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(Harm()))
    (folder / "test_batch").write_bytes(pickle.dumps(Harm()))
    (folder / "batches.meta").write_bytes(pickle.dumps(Harm()))
    said = (
        r"data_batch_1 is damaged .* its md5 is not c99c.*; unpack cifar-10-python\.tar\.gz again"
    )
    with pytest.raises(DataError, match=said):
        open_samples(f"cifar10:{tmp_path}")
    assert not (tmp_path / "harm").exists()
    pickle.loads((folder / "test_batch").read_bytes())
    assert (tmp_path / "harm").exists(), "the test's own pickle is harmless"


@pytest.mark.parametrize("name", ["data_batch_4", "test_batch", "batches.meta"])
@pytest.mark.parametrize("opened", [open_data, open_samples])
def test_a_file_that_is_missing_or_corrupt(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    opened: Callable[[str], object],
) -> None:
    path = fake_cifar10(tmp_path, monkeypatch) / "cifar-10-batches-py" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=f"{name} is damaged or another file: its md5 is not [0-9a-f]{{32}}"
    ):
        opened(f"cifar10:{tmp_path}")
    path.unlink()
    with pytest.raises(
        DataError, match=rf"{name} is missing; unpack cifar-10-python\.tar\.gz again"
    ):
        opened(f"cifar10:{tmp_path}")


@pytest.mark.parametrize("label", [10, -1])
@pytest.mark.parametrize(
    ("file", "opened"), [("data_batch_2", open_data), ("test_batch", open_samples)]
)
def test_a_label_out_of_range(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    label: int,
    file: str,
    opened: Callable[[str], object],
) -> None:
    labels = [3] * 17 + [label] + [3] * 2
    fake_cifar10(tmp_path, monkeypatch, change={file: {"labels": labels}})
    said = f"{file} gives image 17 the label {label}; there are labels 0 to 9"
    with pytest.raises(DataError, match=said):
        opened(f"cifar10:{tmp_path}")


def test_an_archive_that_is_not_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-100-python.tar.gz"
    archive.touch()
    said = f"is not unpacked: tar xzf {archive} -C {tmp_path}, then --data cifar100:{tmp_path}"
    for place in (tmp_path, archive):
        with pytest.raises(DataError, match=said):
            open_samples(f"cifar100:{place}")


def test_a_folder_without_it(tmp_path: Path) -> None:
    said = f"no folder cifar-10-batches-py in {tmp_path}, such as cifar-10-python.tar.gz unpacks"
    with pytest.raises(DataError, match=said):
        open_samples(f"cifar10:{tmp_path}")
    (tmp_path / "cifar-10-batches-py").touch()
    with pytest.raises(DataError, match=said):
        open_samples(f"cifar10:{tmp_path}")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the refusal itself is simulated."""
    from torchvision.datasets import utils

    fake_cifar10(tmp_path, monkeypatch)

    def refuse(path: Path, md5: str) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(utils, "check_integrity", refuse)
    with pytest.raises(DataError, match="data_batch_1 may not be read: Permission denied"):
        open_samples(f"cifar10:{tmp_path}")


def test_nothing_is_held_out_of_cifar(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has a test split of its own"):
        open_data(f"cifar10:{tmp_path}", hold_out=0.2)


def test_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'parnet-deploy\[train\]'"):
        open_samples(f"cifar10:{tmp_path}")


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    def refuse(self: object) -> None:
        raise AssertionError("a download was tried")

    root = fake_cifar10(tmp_path, monkeypatch)
    monkeypatch.setattr(CIFAR10, "download", refuse)
    assert len(open_samples(f"cifar10:{root}").samples) == 20
    shutil.rmtree(root / "cifar-10-batches-py")
    with pytest.raises(DataError, match="there is no folder cifar-10-batches-py"):
        open_samples(f"cifar10:{root}")
