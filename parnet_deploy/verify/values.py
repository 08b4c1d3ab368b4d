"""Blocks' values as the numbers that they stand for, whatever type a graph holds them in."""

from __future__ import annotations

import ml_dtypes  # noqa: F401  # numpy knows bfloat16 and float8_e4m3fn by their names from here on
import numpy as np

from parnet_deploy.bundle import EngineManifest, ModelManifest
from parnet_deploy.spec import LOGITS, Array
from parnet_deploy.spec.precision import Precision, arithmetic

NATIVE = ("float16", "float32", "float64")


def value_type(name: str, manifest: ModelManifest | EngineManifest) -> str:
    """Numpy's name of the element type that a block's value has in a graph.

    Args:
        name: the tensor's name: the block's, or ``logits``.
        manifest: of the graph.
    """
    if name == LOGITS:
        return "float32"
    quantisation = manifest.quantisation
    if quantisation is not None and name in quantisation.tensors:
        return quantisation.tensors[name].dtype
    return arithmetic(manifest.base).dtype


def step_of(name: str, manifest: ModelManifest | EngineManifest) -> float | None:
    """The scale of a quantised block's value, as its graph has it; None where it is a float."""
    quantisation = manifest.quantisation
    if quantisation is None or name not in quantisation.tensors:
        return None
    base: Precision = quantisation.scheme.base
    dtype = np.dtype(arithmetic(base).dtype)
    return float(np.asarray(quantisation.tensors[name].scale).astype(dtype))


def real(name: str, value: Array, manifest: ModelManifest | EngineManifest) -> Array:
    """The numbers that a block's value stands for: dequantised, and in a type that numpy knows.

    Args:
        name: the tensor's name.
        value: as a graph gave it; float8 may have been cast to float32 already.
        manifest: of the graph.
    """
    step = step_of(name, manifest)
    if step is not None and manifest.quantisation is not None:
        zero = manifest.quantisation.tensors[name].zero_point
        dequantised: Array = (value.astype(np.float64) - zero) * step
        return dequantised
    return value if value.dtype.name in NATIVE else value.astype(np.float32)
