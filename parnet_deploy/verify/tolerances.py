"""How far a rung may part from another, and why.

Errors are relative to the greatest magnitude in the reference output (`compare`). What was measured
on the tiny network of the tests and on digits, cifar-s, s and l, on noise; on s, on photographs;
"scrambled" networks have random batch normalisations, whose activations grow from block to block as
no trained network's do:

| arithmetic | error, noise | error, scrambled | error, photographs | allowed | least margin |
|---|---|---|---|---|---|
| float64 | 6e-16 to 5e-15 | up to 2.4e-14 | 3e-15 | 1e-10 | 4000 |
| float32 | 4e-7 to 2.2e-6 | up to 1.3e-5 | 3.7e-5 | 1e-4 | 2.7 |

On photographs most of the error comes from the squeezes' global average pools: ONNX Runtime adds up
the 50176 pixels of a map one after the other, and those of a photograph have one sign.

Float16 and bfloat16 are not in the table: they are allowed what one rounding after the other may
make (`spec.precision.rounding_tolerance`: 2.3e-2 and 1.9e-1 for 12 layers), and are compared with
the torch rungs, which are judged as ever. What is wrong by less than that is found at the export,
where the same graph must first agree in float32, and between whole graph and stages, which round at
the same places and are held to float32's tolerance.

Where it is quantised (int8, fp8) errors are of either sign and mostly cancel: with every rounding
as great as it can be, fp8 would be allowed three times the answers themselves. So they are allowed
the root of the number of roundings, `QUANTISED` times (`spec.precision.quantised_tolerance`).
Measured, relative to the greatest magnitude in the answers of 32 images, on 9 layers that were
calibrated on these by their greatest values, in a simulation in torch (the tests' networks, digits
untrained). Real graphs of the tests' network gave 0.04 to 0.06 in int8 and 0.09 in fp8, a trained
digits network 0.05 in int8, and one that was trained to quantise badly 0.39, without an image lost
(`benchmarks/precision_accuracy.py`):

| precision | sane | scrambled | allowed, 9 layers | least margin |
|---|---|---|---|---|
| int8 | 0.02 to 0.14 | 0.02 to 0.15 | 0.76 | 5.0 |
| fp8 | 0.02 to 0.25 | 0.06 to 0.26 | 0.75 | 2.9 |

On images that are nothing like those that were calibrated on, int8 was wrong by up to 0.94: noise
does not judge it. What such a tolerance cannot see (a scale, a zero point, a kernel that is not
quantised) is read from the files (`built`, `kernels`, `ranges`), and an engine's kernels are judged
block by block on its own values (`steps`).

Between 2.4e-14 and 1e-10 lies nothing: the smallest real fault that was tried, one block's biases
rounded to float32 in the fold, makes 4e-9. A float32 rung is told apart from a wrong epsilon of a
batch normalisation (1e-3 for 1e-5: 7e-3 to 7e-2), a plain bias for a fusion's shift (5e-3) and
anything of a lower precision (fp16, TF32 and bf16 round at 5e-4 to 4e-3).

A block's own values are allowed four times a rung's tolerance: the head averages a map of many
pixels, a block's greatest error is that of its worst pixel (measured: up to 1e-4 scrambled, 8e-6
sane, in float32).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from parnet_deploy.bundle import EngineManifest, ModelManifest
from parnet_deploy.errors import UsageError
from parnet_deploy.spec import ParNetSpec
from parnet_deploy.spec.counts import depth
from parnet_deploy.spec.precision import QUANTISED, ROUNDINGS, arithmetic, rounding_tolerance

RungName = Literal[
    "training-f64",
    "fused-f64",
    "fused-f32",
    "onnx-whole",
    "onnx-stages",
    "engine",
    "split-engine",
]

RUNGS: tuple[RungName, ...] = get_args(RungName)
"""The ladder, from the training form upwards."""

ENGINE_RUNGS: tuple[RungName, ...] = ("engine", "split-engine")

BLOCK_FACTOR = 4.0
"""A block's values may differ by this many times the rung's tolerance."""

FLOAT64, FLOAT32 = 1e-10, 1e-4

DEFAULTS: Mapping[RungName, float] = {
    "training-f64": 0.0,  # the first rung is compared with nothing
    "fused-f64": FLOAT64,
    "fused-f32": FLOAT32,
    "onnx-whole": FLOAT32,
    "onnx-stages": FLOAT32,
    "engine": FLOAT32,
    "split-engine": FLOAT32,
}

ROUNDED_RUNGS: tuple[RungName, ...] = ("onnx-whole", "onnx-stages", *ENGINE_RUNGS)
"""What computes in the model's own precision."""

TF32_ENGINE = 1e-2
"""For an engine that may use TF32, whose factors have 10 bits behind the point (2^-11 = 5e-4 each):
20 such roundings, in proportion to what float32 needs. Not measured: it takes a GPU."""


def tolerances_of(
    model: ModelManifest,
    engines: Mapping[RungName, EngineManifest],
    given: Mapping[RungName, float],
) -> dict[RungName, float]:
    """The tolerance of every rung.

    Args:
        model: manifest of the model. Below float32, its graphs and engines are allowed what the
            precision rounds; the torch rungs, which are in float64 and float32, are not.
        engines: manifests of the engines, by rung; one that may use TF32 is allowed more.
        given: what is to be used instead of the defaults.
    """
    tolerances = dict(DEFAULTS)
    if model.precision != "fp32":
        rounded = precision_tolerance(model.precision, model.spec)
        tolerances |= dict.fromkeys(ROUNDED_RUNGS, rounded)
        return tolerances | dict(given)
    for rung, manifest in engines.items():
        if "TF32" in manifest.options.get("builder_flags", ()):
            tolerances[rung] = TF32_ENGINE
    return tolerances | dict(given)


def precision_tolerance(precision: str, spec: ParNetSpec) -> float:
    """How far a network's answers may part because of the precision that it computes in.

    Args:
        precision: its name.
        spec: the network.

    Raises:
        SpecError: there is no such precision.
    """
    return max(FLOAT32, rounding_tolerance(precision, spec))


def near_of(model: ModelManifest, given: Mapping[RungName, float]) -> dict[RungName, float]:
    """Tolerances against the rung before, where they are not those against the first.

    The stages are the whole graph cut: below float32, both run with every rounding written out.

    Args:
        model: manifest of the model.
        given: what is to be used instead of the defaults.
    """
    if model.precision == "fp32" or "onnx-stages" in given:
        return {}
    return {"onnx-stages": FLOAT32}


def allowed_in_words(model: ModelManifest) -> str:
    """Why the model's graphs and engines are allowed what they are."""
    precision, spec = model.precision, model.spec
    roundoff = f"{arithmetic(precision).roundoff:.1e}"
    layers = depth(spec)
    if precision == "fp32":
        return f"fp32: measured errors with a margin, {FLOAT32:.0e}"
    allowed = f"{precision_tolerance(precision, spec):.1e}"
    if precision in QUANTISED:
        return (
            f"{precision}: a rounding errs by {roundoff} at most, {ROUNDINGS} a layer on "
            f"{layers} layers, of either sign: {QUANTISED[precision]:g} times {roundoff} times the "
            f"root of {ROUNDINGS * layers}: {allowed}"
        )
    return (
        f"{precision}: a rounding errs by {roundoff} at most, {ROUNDINGS} a layer on {layers} "
        f"layers: {allowed}"
    )


def parse_rung(option: str, text: str) -> RungName:
    """A rung's name.

    Raises:
        UsageError: there is no such rung.
    """
    for rung in RUNGS:
        if rung == text:
            return rung
    raise UsageError(f"{option}: there is no rung '{text}'; there are {', '.join(RUNGS)}")


def parse_tolerances(texts: Iterable[str]) -> dict[RungName, float]:
    """``RUNG=VALUE``, several of them.

    Raises:
        UsageError: no such rung, or not a number from 0 on.
    """
    tolerances: dict[RungName, float] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not equals or not 0.0 <= value < math.inf:
            raise UsageError(
                f"--tolerance takes RUNG=VALUE with a number from 0 on, such as engine=1e-4, "
                f"not '{text}'"
            )
        tolerances[parse_rung("--tolerance", name)] = value
    return tolerances
