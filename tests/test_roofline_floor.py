"""The floor against the table that was computed by hand before there was any code for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import specs

from parnet_deploy.roofline import (
    Cost,
    Device,
    Link,
    Precision,
    block_costs,
    critical_kernels,
    floor,
    gpu_kind,
    roofline_seconds,
)
from parnet_deploy.roofline.options import options
from parnet_deploy.roofline.predict import Assumptions
from parnet_deploy.spec import ParNetSpec, variant

COLUMNS: list[tuple[str, Precision]] = [
    ("RTX 3090", "fp32"),
    ("RTX 3090", "fp16"),
    ("RTX 3090", "int8"),
    ("H200", "tf32"),
    ("H200", "fp16"),
    ("H200", "fp8"),
]
# Microseconds: roofline part, and that with 24 dependent kernels of 1.5 us.
TABLE = {
    "s": [(281, 317), (141, 177), (39, 75), (26, 62), (13, 49), (7, 42)],
    "m": [(509, 545), (254, 290), (71, 107), (46, 82), (23, 59), (12, 47)],
    "l": [(785, 821), (393, 429), (108, 144), (70, 106), (35, 71), (17, 53)],
    "xl": [(1216, 1252), (608, 644), (167, 203), (106, 142), (53, 89), (27, 63)],
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table_to_the_microsecond(name: str) -> None:
    spec = variant(name).spec
    if name == "s":  # the table's is the authors' released one, whose first width is 92
        spec = spec.with_widths((92, *spec.widths[1:]))
    for (kind, precision), (roofline, both) in zip(COLUMNS, TABLE[name], strict=True):
        found = floor(spec, gpu_kind(kind), precision=precision)
        assert 1e6 * found.roofline == pytest.approx(roofline, abs=1), (kind, precision)
        assert 1e6 * found.total == pytest.approx(both, abs=1), (kind, precision)
        assert 1e6 * found.launches == pytest.approx(36)


def documented(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of docs/placement.md."""
    document = (Path(__file__).parents[1] / "docs" / "placement.md").read_text(encoding="utf-8")
    section = document.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_documents_table_is_what_is_computed() -> None:
    rows = documented("The floor")
    assert [row[0] for row in rows] == ["S", "M", "L", "XL"]
    for name, *cells in rows:
        spec = variant(name).spec
        bounds = [floor(spec, gpu_kind(kind), precision=p) for kind, p in COLUMNS]
        assert cells == [f"{1e6 * b.roofline:.0f} / {1e6 * b.total:.0f}" for b in bounds]


def test_the_documents_predictions_are_what_is_computed() -> None:
    devices = {f"cuda:{n}": gpu_kind("RTX 3090") for n in range(3)}
    found = options(variant("l").spec, devices, Assumptions())
    whole = found[0].latency
    ways = {
        "whole": "whole, on one",
        "split-one-device": "split, on one",
        "split": "split, on three",
    }
    stems = {None: "", "replicate": ", stem replicated", "share": ", stem shared"}
    computed = {
        ways[o.way] + stems[o.stem]: [f"{1e6 * o.latency:.0f} us", f"{o.latency / whole:.2f}"]
        for o in found
    }
    assert {name: cells for name, *cells in documented("The model")} == computed


@given(spec=specs(), batch=st.integers(1, 8))
def test_a_floor_is_above_both_bounds_and_grows_with_the_batch(
    spec: ParNetSpec, batch: int
) -> None:
    gpu = gpu_kind("RTX 3090")
    found = floor(spec, gpu, batch=batch)
    layers = [cost.layer for cost in block_costs(spec, batch=batch).values()]
    # Of a sum of maxima, whose parts were not added in the same order.
    assert found.roofline >= sum(c.operations for c in layers) / gpu.rate("fp32") * (1 - 1e-9)
    assert found.roofline >= sum(c.bytes for c in layers) / gpu.bandwidth * (1 - 1e-9)
    assert found.launches == critical_kernels(spec) * gpu.launch
    assert floor(spec, gpu, batch=batch + 1).roofline > found.roofline


def test_a_layer_is_bound_by_the_slower_of_the_two() -> None:
    nothing = Link(bandwidth=1.0, latency=0.0)
    toy = Device(
        name="toy",
        bandwidth=10.0,
        rates={"fp32": 100.0},
        launch=0.0,
        link=nothing,
        host=nothing,
        source="made up",
    )
    computes = Cost(operations=500, weight_bytes=10, read_bytes=5, written_bytes=5)
    moves = Cost(operations=100, weight_bytes=10, read_bytes=15, written_bytes=5)
    assert roofline_seconds([computes], toy, "fp32") == 5.0
    assert roofline_seconds([moves], toy, "fp32") == 3.0
    assert roofline_seconds([computes, moves], toy, "fp32") == 8.0
