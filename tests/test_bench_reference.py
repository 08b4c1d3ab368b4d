"""What is right, and whether a wrong answer is seen."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_network
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.bench.entries.images import read_images, write_images
from parnet_deploy.bench.entries.reference import (
    Question,
    answer_question,
    compare_answers,
    read_answers,
)
from parnet_deploy.bundle import ModelBundle
from parnet_deploy.errors import UsageError
from parnet_deploy.images import normalise
from parnet_deploy.runtime.outputs import softmax_rows
from parnet_deploy.spec import Array, Preprocessing

SMALL = Preprocessing(size=(8, 6), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))


@pytest.fixture
def logits(rng: np.random.Generator) -> Array:
    return rng.standard_normal((4, 7))


def test_images_are_the_same_pixels_raw_and_normalised(tmp_path: Path) -> None:
    path = write_images(tmp_path / "images.npz", SMALL, count=3, seed=1)
    pixels, values = read_images(path, "uint8"), read_images(path, "float32")
    assert pixels.shape == values.shape == (3, 3, 8, 6)
    assert (pixels.dtype, values.dtype) == (np.uint8, np.float32)
    np.testing.assert_array_equal(values, normalise(pixels, SMALL))
    again = write_images(tmp_path / "again.npz", SMALL, count=3, seed=1)
    np.testing.assert_array_equal(read_images(again, "uint8"), pixels)
    other = write_images(tmp_path / "other.npz", SMALL, count=3, seed=2)
    assert (read_images(other, "uint8") != pixels).any()


def test_images_are_normalised_where_the_graph_would_do_it_as_well(tmp_path: Path) -> None:
    path = write_images(tmp_path / "images.npz", replace(SMALL, in_graph=True), count=1, seed=0)
    values = read_images(path, "float32")
    np.testing.assert_array_equal(values, normalise(read_images(path, "uint8"), SMALL))


def test_images_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one image"):
        write_images(tmp_path / "images.npz", SMALL, count=0, seed=0)
    with pytest.raises(UsageError, match="cannot write"):
        write_images(tmp_path / "nowhere" / "images.npz", SMALL, count=1, seed=0)
    with pytest.raises(UsageError, match="cannot read"):
        read_images(tmp_path / "images.npz", "float32")
    path = write_images(tmp_path / "images.npz", SMALL, count=1, seed=0)
    with pytest.raises(UsageError, match="no images of float16; it holds uint8, float32"):
        read_images(path, "float16")


def test_what_is_right_is_the_training_form_in_float64(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    path = write_images(
        tmp_path / "images.npz", tiny_bundle.manifest.preprocessing, count=3, seed=0
    )
    question = Question(
        model=str(tiny_bundle.path),
        images=str(path),
        count=2,
        answers=str(tmp_path / "reference.npy"),
    )
    found = read_answers(Path(answer_question(question).path))
    assert found is not None
    assert found.dtype == np.float64
    images = torch.from_numpy(read_images(path, "float32")[:2]).double()
    with torch.inference_mode():
        wanted = tiny_network().double()(images).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)
    with pytest.raises(UsageError, match="4 images are asked for, and there are 3"):
        answer_question(replace(question, count=4))
    with pytest.raises(UsageError, match="cannot write"):
        answer_question(replace(question, answers=str(tmp_path / "nowhere" / "a.npy")))


def test_an_equal_answer(logits: Array) -> None:
    parity = compare_answers(logits.copy(), logits)
    assert (parity.max_abs, parity.max_rel) == (0, 0)
    assert (parity.same_top1, parity.images) == (4, 4)


@given(error=st.floats(1e-9, 1e-2), place=st.integers(0, 27))
def test_the_greatest_difference_counts(error: float, place: int) -> None:
    logits = np.random.default_rng(3).standard_normal((4, 7))
    answer = logits.copy()
    answer.flat[place] += error
    parity = compare_answers(answer, logits)
    assert parity.max_abs == pytest.approx(error, rel=1e-5)
    assert parity.max_rel == pytest.approx(error / np.abs(logits).max(), rel=1e-5)


def test_probabilities_are_compared_with_probabilities(logits: Array) -> None:
    probabilities = softmax_rows(logits).astype(np.float32)
    assert compare_answers(probabilities, logits, softmax=True).max_abs < 1e-7
    assert compare_answers(probabilities, logits).max_abs > 0.1


def nan(answer: Array) -> Array:
    answer[2, 3] = np.nan
    return answer


def infinity(answer: Array) -> Array:
    answer[0, 0] = -np.inf
    return answer


FAULTS = {
    "nan": (nan, 3),
    "infinity": (infinity, 3),
    "a row is missing": (lambda answer: answer[:-1], 0),
    "a class is missing": (lambda answer: answer[:, :-1], 0),
    "flat": (lambda answer: answer.ravel(), 0),
    "whole numbers": (lambda answer: answer.astype(np.int64), 0),
    "nothing": (lambda answer: None, 0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_no_answer_is_infinitely_wrong(name: str, logits: Array) -> None:
    fault, same = FAULTS[name]
    parity = compare_answers(fault(logits.copy()), logits)
    assert (parity.max_abs, parity.max_rel) == (math.inf, math.inf)
    assert parity.same_top1 == same
    assert parity.images == 4


def test_swapped_classes_and_swapped_images_are_seen(logits: Array) -> None:
    logits = 3 * np.eye(4, 7) + 0.01 * logits
    for wrong in (logits[:, ::-1], logits[::-1]):
        parity = compare_answers(wrong, logits)
        assert parity.max_rel > 0.5
        assert parity.same_top1 < 4


def test_an_answer_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert read_answers(tmp_path / "none.npy") is None
    for damage in (b"", b"no array", b"\x93NUMPY\x01\x00"):
        (tmp_path / "damaged.npy").write_bytes(damage)
        assert read_answers(tmp_path / "damaged.npy") is None
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    assert read_answers(tmp_path / "object.npy") is None
