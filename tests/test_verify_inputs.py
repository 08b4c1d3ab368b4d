"""What is fed: noise, folders, .npz files; batches; and the options that name rungs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from parnet_deploy.errors import DataError, ImageError, UsageError
from parnet_deploy.images import load_images
from parnet_deploy.spec import Preprocessing
from parnet_deploy.verify.inputs import Inputs, batches, from_folder, from_noise, from_npz
from parnet_deploy.verify.tolerances import (
    DEFAULTS,
    RUNGS,
    parse_rung,
    parse_tolerances,
)

OUTSIDE = Preprocessing(size=(32, 64), crop_ratio=1.0)
IN_GRAPH = Preprocessing(size=(32, 64), crop_ratio=1.0, in_graph=True)


def test_noise_is_seeded_and_of_the_graph_s_type() -> None:
    once, again = (from_noise(OUTSIDE, seed=3, samples=5).images for _ in range(2))
    other = from_noise(OUTSIDE, seed=4, samples=5).images
    assert once.shape == (5, 3, 32, 64)
    assert once.dtype == np.float32
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    pixels = from_noise(IN_GRAPH, seed=3, samples=5).images
    assert pixels.dtype == np.uint8
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_more_noise_begins_with_the_same_images() -> None:
    few = from_noise(OUTSIDE, seed=0, samples=2).images
    many = from_noise(OUTSIDE, seed=0, samples=6).images
    np.testing.assert_array_equal(few, many[:2])


def test_a_folder_s_images_are_prepared_as_for_prediction(tmp_path: Path) -> None:
    for index in range(3):
        Image.new("RGB", (80, 40), (10 * index, 20, 30)).save(tmp_path / f"{index}.png")
    found = from_folder(tmp_path, OUTSIDE, samples=2)
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    np.testing.assert_array_equal(found.images, load_images(paths, OUTSIDE))
    assert found.description == f"2 of 3 images in {tmp_path}"
    assert from_folder(tmp_path, IN_GRAPH, samples=9).images.dtype == np.uint8


def test_a_folder_with_a_broken_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ImageError, match=r"a\.png"):
        from_folder(tmp_path, OUTSIDE, samples=2)


def test_an_npz_of_pixels_is_normalised_unless_the_graph_does_it(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 64), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.arange(3))
    np.testing.assert_array_equal(from_npz(tmp_path / "x.npz", IN_GRAPH, samples=9).images, pixels)
    images = from_npz(tmp_path / "x.npz", OUTSIDE, samples=2).images
    mean, std = np.array(OUTSIDE.mean)[:, None, None], np.array(OUTSIDE.std)[:, None, None]
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, (pixels[:2] / 255 - mean) / std, atol=1e-6)


def test_an_npz_of_floats_is_taken_as_it_is(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 32, 64))
    np.savez(tmp_path / "x.npz", anything=values)
    found = from_npz(tmp_path / "x.npz", OUTSIDE, samples=9)
    np.testing.assert_array_equal(found.images, values.astype(np.float32))
    assert found.description == f"2 images of the array 'anything' of {tmp_path / 'x.npz'}"
    np.savez(tmp_path / "x.npz", images=values, labels=np.arange(2))
    named = from_npz(tmp_path / "x.npz", OUTSIDE, samples=9).description
    assert named == f"2 images of {tmp_path / 'x.npz'}"
    with pytest.raises(DataError, match="reads uint8"):
        from_npz(tmp_path / "x.npz", IN_GRAPH, samples=9)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 3, 64, 32), np.float32)}, r"\[2, 3, 64, 32\]"),
        ({"images": np.zeros((0, 3, 32, 64), np.float32)}, "at least one image"),
        ({"images": np.zeros((3, 32, 64), np.float32)}, "3, 32, 64"),
        ({"images": np.zeros((1, 3, 32, 64), np.int64)}, "int64"),
        ({"images": np.full((1, 3, 32, 64), np.nan, np.float32)}, "not finite"),
        ({"a": np.zeros(1), "b": np.zeros(1)}, "it has a, b"),
        ({}, "none"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        from_npz(tmp_path / "x.npz", OUTSIDE, samples=9)


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"not a zip")
    np.save(tmp_path / "x.npy", np.zeros(3))
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], dtype=object))
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    for name in ("x.npz", "x.npy", "pickled.npz", "missing.npz"):
        with pytest.raises(DataError, match=name):
            from_npz(tmp_path / name, OUTSIDE, samples=9)
    with pytest.raises(DataError) as caught:
        from_npz(tmp_path / "picture.png", OUTSIDE, samples=9)
    assert str(caught.value) == (
        f"{tmp_path / 'picture.png'} is no .npz, which numpy.savez writes; "
        "pictures are given as a folder"
    )


@given(st.integers(1, 9), st.integers(1, 5))
def test_batches_hold_every_image_once_and_are_all_of_one_size(count: int, size: int) -> None:
    small = Preprocessing(size=(1, 1), in_graph=True)
    images = np.arange(3 * count, dtype=np.uint8).reshape(count, 3, 1, 1)
    parts = list(batches(Inputs(description="", images=images), small, size))
    assert {len(part.images) for part in parts} == {size}
    np.testing.assert_array_equal(
        np.concatenate([part.images[: part.count] for part in parts]), images
    )


def test_torch_reads_what_the_graph_normalises_for_itself() -> None:
    images = from_noise(IN_GRAPH, seed=0, samples=2)
    (batch,) = batches(images, IN_GRAPH, 2)
    mean, std = np.array(IN_GRAPH.mean)[:, None, None], np.array(IN_GRAPH.std)[:, None, None]
    assert batch.normalised.dtype == np.float64
    np.testing.assert_allclose(batch.normalised, (images.images / 255 - mean) / std, rtol=1e-14)
    floats = from_noise(OUTSIDE, seed=0, samples=2)
    (batch,) = batches(floats, OUTSIDE, 2)
    np.testing.assert_array_equal(batch.normalised, floats.images.astype(np.float64))


def test_rungs_and_tolerances_are_parsed() -> None:
    assert parse_rung("--require", "split-engine") == "split-engine"
    assert parse_tolerances(["engine=1e-3", "onnx-whole=0"]) == {"engine": 1e-3, "onnx-whole": 0}
    assert set(DEFAULTS) == set(RUNGS)


@pytest.mark.parametrize("text", ["engine", "engine=", "engine=x", "engine=-1", "engine=nan"])
def test_a_tolerance_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="RUNG=VALUE"):
        parse_tolerances([text])


def test_a_rung_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="training-f64, fused-f64"):
        parse_rung("--require", "engines")
    with pytest.raises(UsageError, match="no rung 'whole'"):
        parse_tolerances(["whole=1"])
