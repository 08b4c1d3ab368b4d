"""What quantising changed in a network's answers, as figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parnet_deploy.errors import RunnerError
from parnet_deploy.quantise.kernels import decibels
from parnet_deploy.spec import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A quantised network's answers beside those of the float32 network.

    Attributes:
        agreement: share of images, 0 to 1, of which both find the same class likeliest.
        relative: the greatest error of a logit, relative to the greatest magnitude of the float32
            network's.
        snr: signal-to-noise ratio of all logits in dB; None where nothing changed.
        accuracy: share of images of which the class is right; None where there are no labels.
    """

    agreement: float
    relative: float
    snr: float | None
    accuracy: float | None


def effect_of(expected: Array, answers: Array, labels: Array | None = None) -> Effect:
    """Compare answers.

    Among equally likely classes the one of the lower index counts.

    Args:
        expected: the float32 network's logits, (N, classes).
        answers: the quantised one's, of the same shape.
        labels: (N,) index of the true class, where it is known.

    Raises:
        RunnerError: an answer is infinite or not a number.
    """
    for what, logits in (("float32", expected), ("quantised", answers)):
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            raise RunnerError(
                f"the {what} network's logits are not finite for {len(bad)} of {len(logits)} "
                f"images, first for number {bad[0]}"
            )
    expected, answers = expected.astype(np.float64), answers.astype(np.float64)
    greatest = max(float(np.abs(expected).max()), 1e-30)
    return Effect(
        agreement=float((expected.argmax(axis=1) == answers.argmax(axis=1)).mean()),
        relative=float(np.abs(answers - expected).max()) / greatest,
        snr=decibels(expected, answers),
        accuracy=accuracy_of(answers, labels),
    )


def accuracy_of(answers: Array, labels: Array | None) -> float | None:
    """Share of images of which the class is right; None where there are no labels."""
    return None if labels is None else float((answers.argmax(axis=1) == labels).mean())
