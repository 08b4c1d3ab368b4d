"""The small values beside ParNetSpec: TensorSpec, DeployForm, Preprocessing, and JSON."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_spec
from hypothesis import given
from strategies import FORMS, specs

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import RunnerError, SpecError
from parnet_deploy.spec import (
    DeployForm,
    ParNetSpec,
    Preprocessing,
    TensorSpec,
    check_feeds,
    decode,
    default_form,
    encode,
)

SPEC = TensorSpec(name="x", shape=("N", 3, 2), dtype="float32")


def test_sizes_of_a_tensor() -> None:
    assert SPEC.nbytes(batch=4) == 4 * 3 * 2 * 4
    assert SPEC.image_nbytes == replace(SPEC, shape=(8, *SPEC.shape[1:])).image_nbytes == 3 * 2 * 4
    assert SPEC.concrete(5) == (5, 3, 2)
    assert TensorSpec(name="x", shape=(2, 3), dtype="uint8").nbytes(batch=9) == 6


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 3, 2), np.float64),
        np.zeros((1, 3, 3), np.float32),
        np.zeros((3, 2), np.float32),
        np.zeros((1, 3, 2, 1), np.float32),
    ],
)
def test_an_array_that_breaks_its_contract(array: np.ndarray) -> None:
    with pytest.raises(RunnerError, match=r"'x' is .* but float32\[N, 3, 2\] is expected"):
        SPEC.check(array)


def test_feeds_are_compared_by_name() -> None:
    good = np.zeros((7, 3, 2), np.float32)
    check_feeds([SPEC], {"x": good})
    with pytest.raises(RunnerError, match=r"missing \['x'\]; not inputs: \['y'\]"):
        check_feeds([SPEC], {"y": good})


@given(specs())
def test_a_spec_survives_json(spec: ParNetSpec) -> None:
    assert decode(encode(spec), ParNetSpec) == spec


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_form_survives_json(form: DeployForm) -> None:
    assert decode(encode(form), DeployForm) == form


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"classes": 7', b'"classes": "7"', "classes"),
        (b'"classes": 7', b'"kinds": 7, "classes": 0', "at least one class"),
        (b'"name": "tiny",', b"", "name"),
        (b"}", b"", "ParNetSpec"),
    ],
)
def test_damaged_json_names_the_field(old: bytes, new: bytes, words: str) -> None:
    data = encode(tiny_spec())
    assert old in data
    with pytest.raises(SpecError, match=words):
        decode(data.replace(old, new), ParNetSpec)


@pytest.mark.parametrize("wrong", [{"identity_bn": "drop"}, {"squeeze": "matmul"}, {"join": "sum"}])
def test_an_unknown_form(wrong: dict[str, str]) -> None:
    with pytest.raises(SpecError, match=next(iter(wrong))):
        DeployForm(**wrong)  # type: ignore[arg-type]


def test_the_default_forms_are_those_that_were_measured() -> None:
    """docs/kernel-counts.md and benchmarks/results say why."""
    assert default_form("tensorrt") == default_form("tensorrt-rtx")
    assert default_form("tensorrt") == DeployForm(
        identity_bn="keep", squeeze="gemm", join="view", layout="nhwc"
    )
    assert default_form("onnxruntime").squeeze == "gemm"


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_a_crop_outside_the_image(ratio: float) -> None:
    with pytest.raises(SpecError, match="crop ratio"):
        Preprocessing(size=(32, 32), crop_ratio=ratio)


@pytest.mark.parametrize("deviation", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deviation_that_cannot_be_divided_by(deviation: float) -> None:
    with pytest.raises(SpecError, match="standard deviation"):
        Preprocessing(size=(32, 32), std=(0.2, deviation, 0.2))


@pytest.mark.parametrize("mean", [float("nan"), float("-inf")])
def test_a_mean_that_is_not_a_number(mean: float) -> None:
    with pytest.raises(SpecError, match="a mean is finite"):
        Preprocessing(size=(32, 32), mean=(0.5, 0.5, mean))


def test_the_graphs_input_type_follows() -> None:
    assert Preprocessing(size=(32, 32)).dtype == "float32"
    assert Preprocessing(size=(32, 32), in_graph=True).dtype == "uint8"


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 4), (1, 5, 4), (-1, -1, -1)])
def test_what_is_no_batch_range(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(SpecError, match="1 <= MIN <= OPT <= MAX"):
        BatchRange(min=sizes[0], opt=sizes[1], max=sizes[2])


def test_the_batch_axis() -> None:
    assert BatchRange(min=3, opt=3, max=3).axis == 3
    assert BatchRange(min=1, opt=1, max=2).axis == "N"
