"""What networks give, as it is compared."""

from __future__ import annotations

import numpy as np

from parnet_deploy.spec import Array

SMALLEST_PROBABILITY = 1e-30
"""Smaller ones are taken for this: float32 rounds them away, differently on every backend."""


def log_probabilities(probabilities: Array) -> Array:
    """Logarithms, float64.

    A sure network's probabilities are 0 and 1 whatever its logits are; their logarithms still tell
    the logits' differences.
    """
    logarithms: Array = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST_PROBABILITY))
    return logarithms


def softmax(logits: Array) -> Array:
    """Logits (N, classes), finite, as probabilities: float64, each row adding up to 1."""
    values = logits.astype(np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    result: Array = powers / powers.sum(axis=1, keepdims=True)
    return result
