"""What a precision may round: one number for the export's gate, `verify` and `bench`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import tiny_spec
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.bench.tolerances import Graph, tolerance
from parnet_deploy.bundle import ModelBundle
from parnet_deploy.export import gate
from parnet_deploy.spec.precision import (
    QUANTISED,
    Precision,
    quantised_tolerance,
    rounding_tolerance,
)
from parnet_deploy.verify.tolerances import tolerances_of


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_what_is_allowed_has_one_source(precision: Precision, tiny_bundle: ModelBundle) -> None:
    manifest = replace(tiny_bundle.manifest, precision=precision)
    allowed = rounding_tolerance(precision, manifest.spec)
    assert gate.tolerances(manifest)[0] == allowed
    assert tolerances_of(manifest, {}, {})["onnx-whole"] == allowed
    assert tolerances_of(manifest, {}, {})["engine"] == allowed
    assert tolerance(Graph(spec=manifest.spec, precision=precision), precision) == allowed


@given(st.sampled_from([*QUANTISED]), st.integers(1, 100_000))
def test_noughts_are_never_allowed(precision: str, layers: int) -> None:
    """An answer of noughts is off by 1, exactly."""
    allowed = quantised_tolerance(precision, layers)
    assert 0 < allowed < 1
    assert quantised_tolerance(precision, layers + 1) >= allowed


def test_deep_networks_are_allowed_more() -> None:
    shallow, deep = tiny_spec(), tiny_spec(stream_blocks=(4, 4, 4))
    for precision in ("fp16", "bf16", "int8", "fp8"):
        assert rounding_tolerance(precision, shallow) < rounding_tolerance(precision, deep)
