"""What a network answered, image by image, and what is counted of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parnet_deploy.evaluate.measures import (
    confusion,
    cross_entropy,
    predictions,
    ranks,
    share,
)
from parnet_deploy.evaluate.result import MATRIX_CLASSES, ClassResult, Measures, Mistake
from parnet_deploy.spec import Array

TOP = 5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answers:
    """One entry an image, in the order in which they were run.

    Attributes:
        places: (N,) int64, each image's place in the data set's split.
        targets: (N,) int64, index of the true class.
        predicted: (N,) int64, index of the likeliest class.
        ranks: (N,) int64, how many classes came before the true one.
        losses: (N,) float64, cross-entropy in nats.
        chances: (N,) float64, probability of the predicted class.
    """

    places: Array
    targets: Array
    predicted: Array
    ranks: Array
    losses: Array
    chances: Array

    @property
    def right(self) -> int:
        """Images whose true class is the likeliest."""
        return int((self.ranks == 0).sum())


def answers_of(places: Sequence[int], targets: Sequence[int], probabilities: Array) -> Answers:
    """What a batch of probabilities says.

    Args:
        places: N images' places in the split.
        targets: their true classes.
        probabilities: (N, classes).
    """
    true = np.asarray(targets, np.int64)
    return Answers(
        places=np.asarray(places, np.int64),
        targets=true,
        predicted=predictions(probabilities),
        ranks=ranks(probabilities, true),
        losses=cross_entropy(probabilities, true),
        chances=probabilities.max(axis=1),
    )


def join(parts: Sequence[Answers]) -> Answers:
    """Several batches as one."""
    fields = ("places", "targets", "predicted", "ranks", "losses", "chances")
    return Answers(
        **{field: np.concatenate([getattr(part, field) for part in parts]) for field in fields}
    )


def measure(answers: Answers, labels: Sequence[str]) -> Measures:
    """Count.

    Args:
        answers: at least one.
        labels: the network's class names.
    """
    classes, images = len(labels), len(answers.targets)
    matrix = confusion(answers.targets, answers.predicted, classes)
    k = min(TOP, classes)
    return Measures(
        top1=share(answers.right, images),
        k=k,
        topk=share(int((answers.ranks < k).sum()), images),
        loss=float(answers.losses.mean()),
        classes=tuple(_class_result(index, labels, matrix[index]) for index in range(classes)),
        confusion=tuple(map(tuple, matrix.tolist())) if classes <= MATRIX_CLASSES else None,
    )


def _class_result(index: int, labels: Sequence[str], row: Array) -> ClassResult:
    """One class, by its row of the confusion matrix."""
    images, right = int(row.sum()), int(row[index])
    others = row.copy()
    others[index] = 0
    first = int(others.argmax())
    mistake = Mistake(label=labels[first], images=int(others[first])) if right < images else None
    return ClassResult(
        index=index,
        label=labels[index],
        images=images,
        right=right,
        percent=100 * right / images if images else None,
        taken_for=mistake,
    )
