"""What is counted, against slow and plain references and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score

from parnet_deploy.evaluate.answers import answers_of, join, measure
from parnet_deploy.evaluate.evaluating import reaches
from parnet_deploy.evaluate.measures import (
    confusion,
    cross_entropy,
    predictions,
    ranks,
    share,
)
from parnet_deploy.spec import Array


@st.composite
def answered(draw: st.DrawFn) -> tuple[Array, Array]:
    """Probabilities (N, classes), with many ties, and true classes (N,)."""
    images, classes = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = rng.integers(1, draw(st.sampled_from([2, 4, 1000])), (images, classes))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    return probabilities, rng.integers(0, classes, images)


def order(row: Array) -> list[int]:
    """Classes, the likeliest first, and among equals that of the lower index."""
    return sorted(range(len(row)), key=lambda index: (-row[index], index))


@given(answered())
def test_ranks_and_predictions_equal_a_sorted_list(case: tuple[Array, Array]) -> None:
    probabilities, targets = case
    orders = [order(row) for row in probabilities]
    assert predictions(probabilities).tolist() == [places[0] for places in orders]
    assert ranks(probabilities, targets).tolist() == [
        places.index(target) for places, target in zip(orders, targets, strict=True)
    ]


@given(answered())
def test_confusion_equals_counting(case: tuple[Array, Array]) -> None:
    probabilities, targets = case
    classes, predicted = probabilities.shape[1], predictions(probabilities)
    counted = [[0] * classes for _ in range(classes)]
    for true, seen in zip(targets, predicted, strict=True):
        counted[true][seen] += 1
    assert confusion(targets, predicted, classes).tolist() == counted


@given(answered())
def test_measures_hang_together(case: tuple[Array, Array]) -> None:
    probabilities, targets = case
    images, classes = probabilities.shape
    labels = [f"class {index}" for index in range(classes)]
    found = measure(answers_of(range(images), targets.tolist(), probabilities), labels)
    matrix = np.array(found.confusion)
    assert found.k == min(5, classes)
    assert found.top1.right == np.trace(matrix) == sum(c.right for c in found.classes)
    assert found.top1.images == matrix.sum() == images
    assert found.top1.right <= found.topk.right
    assert found.topk.right == images or classes > 5
    assert [c.images for c in found.classes] == np.bincount(targets, minlength=classes).tolist()
    for result in found.classes:
        assert (result.percent is None) == (result.images == 0)
        assert (result.taken_for is None) == (result.right == result.images)
    shares = [result.right / result.images for result in found.worst]
    assert shares == sorted(shares)
    assert all(value < 1 for value in shares)


def test_measures_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    classes, images = 9, 400
    targets = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), targets] += 1.0
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = [f"class {index}" for index in range(classes)]
    found = measure(answers_of(range(images), targets.tolist(), probabilities), names)
    for k, got in ((1, found.top1), (5, found.topk)):
        expected = top_k_accuracy_score(targets, probabilities, k=k, labels=range(classes))
        assert got.percent == pytest.approx(100 * expected, abs=1e-9)
    assert found.loss == pytest.approx(log_loss(targets, probabilities, labels=range(classes)))
    assert np.array_equal(found.confusion, confusion_matrix(targets, predictions(probabilities)))


def test_a_class_is_taken_for_the_one_it_is_most_often_taken_for() -> None:
    probabilities = np.eye(3)[[0, 1, 2, 2, 1, 0]]
    found = measure(answers_of(range(6), [0, 0, 0, 0, 1, 2], probabilities), ["a", "b", "c"])
    first, second, third = found.classes
    assert (first.images, first.right, first.percent) == (4, 1, 25.0)
    assert first.taken_for is not None
    assert (first.taken_for.label, first.taken_for.images) == ("c", 2)
    assert second.taken_for is None
    assert [result.label for result in found.worst] == ["c", "a"]
    assert third.percent == 0.0


def test_an_impossible_answer_has_the_greatest_loss_that_float32_can_tell() -> None:
    got = cross_entropy(np.array([[1.0, 0.0], [0.25, 0.75]]), np.array([1, 0]))
    assert got == pytest.approx([30 * math.log(10), math.log(4)])


def test_a_matrix_of_many_classes_is_left_out() -> None:
    labels = [str(index) for index in range(51)]
    rows = np.eye(51)
    assert measure(answers_of(range(51), range(51), rows), labels).confusion is None
    fewer = measure(answers_of(range(50), range(50), rows[:50, :50]), labels[:50])
    assert fewer.confusion is not None


@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_interval_is_wilsons(images: int, part: float) -> None:
    right = round(part * images)
    got = share(right, images)
    expected = binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert (got.right, got.images, got.percent) == (right, images, 100 * right / images)
    assert got.low == pytest.approx(100 * expected.low, abs=1e-9)
    assert got.high == pytest.approx(100 * expected.high, abs=1e-9)
    assert 0.0 <= got.low <= got.percent <= got.high <= 100.0


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_reaches_what_it_is_and_not_more(case: tuple[int, int]) -> None:
    right, images = case
    got = share(right, images)
    tenths = right * 1000 // images
    assert reaches(got, tenths / 10)
    assert not reaches(got, (tenths + 1) / 10)


def test_batches_joined_are_one_batch() -> None:
    rng = np.random.default_rng(1)
    rows, targets = rng.dirichlet(np.ones(4), 10), rng.integers(0, 4, 10).tolist()
    whole = answers_of(range(10), targets, rows)
    parts = [
        answers_of(range(low, high), targets[low:high], rows[low:high])
        for low, high in ((0, 3), (3, 4), (4, 10))
    ]
    joined = join(parts)
    for field in ("places", "targets", "predicted", "ranks", "losses", "chances"):
        assert np.array_equal(getattr(joined, field), getattr(whole, field)), field
    assert joined.right == sum(part.right for part in parts)
