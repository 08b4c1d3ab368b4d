"""Small data sets, made up: folders of coloured images, and files in the form of CIFAR's."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 220),
    "white": (240, 240, 240),
    "black": (15, 15, 15),
    "yellow": (230, 220, 20),
}
"""Names of classes, and what their images look like: any network can learn them."""

CIFAR10_LABELS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def coloured(colour: tuple[int, int, int], size: tuple[int, int], seed: int) -> Image.Image:
    """An image of nearly one colour; `size` is width and height."""
    noise = np.random.default_rng(seed).integers(-12, 13, (size[1], size[0], 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def write_class(
    folder: Path, colour: tuple[int, int, int], count: int, size: tuple[int, int], seed: int = 0
) -> None:
    """Write ``000.png``, ``001.jpg``, ``002.png``, ..., each of its own noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = coloured(colour, size, seed + index)
        image.save(folder / f"{index:03}{('.png', '.jpg')[index % 2]}", quality=95)


def colour_folders(
    root: Path,
    classes: Sequence[str] = ("blue", "green", "red"),
    *,
    count: int = 4,
    size: tuple[int, int] = (40, 32),
    seed: int = 0,
) -> Path:
    """Write ``root/CLASS/*``: a folder of class folders, such as ImageNet's val."""
    for place, name in enumerate(classes):
        write_class(root / name, COLOURS[name], count, size, seed + 1000 * place)
    return root


def colour_data(
    root: Path,
    classes: Sequence[str] = ("blue", "green", "red"),
    *,
    train: int = 8,
    test: int = 4,
    size: tuple[int, int] = (40, 32),
) -> Path:
    """Write ``root/train/CLASS/*`` and ``root/val/CLASS/*``: no image is in both."""
    colour_folders(root / "train", classes, count=train, size=size)
    colour_folders(root / "val", classes, count=test, size=size, seed=500_000)
    return root


def fake_cifar10(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    per_file: int = 20,
    change: Mapping[str, Mapping[str, object]] | None = None,
) -> Path:
    """Write ``root/cifar-10-batches-py`` and have torchvision take it for the real one.

    Args:
        root: where to.
        monkeypatch: what makes torchvision expect these files' md5s, in this process.
        per_file: images in each of the five training files and in the test file.
        change: by file name, entries that are put into it.
    """
    from torchvision.datasets import CIFAR10

    names = [name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]]
    files = {name: cifar_batch(per_file, 10, "labels", seed) for seed, name in enumerate(names)}
    files["batches.meta"] = {"label_names": list(CIFAR10_LABELS), "num_vis": 3072}
    _write_cifar(root, monkeypatch, CIFAR10, files, change or {})
    return root


def fake_cifar100(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    per_file: int = 200,
    change: Mapping[str, Mapping[str, object]] | None = None,
) -> Path:
    """Write ``root/cifar-100-python``; see `fake_cifar10`."""
    from torchvision.datasets import CIFAR100

    files = {
        name: cifar_batch(per_file, 100, "fine_labels", seed)
        for seed, name in enumerate(("train", "test"))
    }
    files["meta"] = {"fine_label_names": [f"thing_{index:02}" for index in range(100)]}
    _write_cifar(root, monkeypatch, CIFAR100, files, change or {})
    return root


def cifar_batch(count: int, classes: int, key: str, seed: int) -> dict[str, object]:
    """One file's content: every class in turn, each of its own colour, with noise."""
    labels = np.arange(count) % classes
    colours = np.random.default_rng(0).integers(0, 256, (classes, 3, 1))
    noise = np.random.default_rng(seed + 1).integers(-20, 21, (count, 3, 32 * 32))
    data = (colours[labels] + noise).clip(0, 255).astype(np.uint8).reshape(count, 3072)
    return {"data": data, key: labels.tolist()}


def _write_cifar(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    reader: type,
    files: dict[str, dict[str, object]],
    change: Mapping[str, Mapping[str, object]],
) -> None:
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    md5s = {}
    for name, content in files.items():
        data = pickle.dumps(content | dict(change.get(name, {})))
        (folder / name).write_bytes(data)
        md5s[name] = hashlib.md5(data).hexdigest()
    for attribute in ("train_list", "test_list"):
        listed = [[name, md5s[name]] for name, _ in getattr(reader, attribute)]
        monkeypatch.setattr(reader, attribute, listed)
    meta = reader.meta
    monkeypatch.setattr(reader, "meta", {**meta, "md5": md5s[meta["filename"]]})
