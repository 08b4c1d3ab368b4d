"""Kernels and streams of plans, counted without a GPU."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import tiny_spec
from strategies import FORMS

from parnet_deploy.bench import plan_table as tables
from parnet_deploy.bench.plan_table import (
    PlanOptions,
    PlanTable,
    form_name,
    parse_form,
    plan_sheet,
    run_plan_table,
)
from parnet_deploy.bundle import ModelBundle
from parnet_deploy.errors import BuildError, EngineError, UsageError
from parnet_deploy.runtime.plan_text import PlanText
from parnet_deploy.spec import DeployForm, decode, default_form, encode, variant

BEST = default_form("tensorrt-rtx")


def counts(table: PlanTable, precision: str) -> dict[str, tuple[int, int, int | None]]:
    return {
        row.part if row.stem is None else f"{row.part} ({row.stem})": (
            row.kernels,
            row.streams,
            row.chain,
        )
        for row in table.rows
        if row.precision == precision
    }


@pytest.mark.slow
def test_parnet_l_in_the_default_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of docs/kernel-counts.md: kernels, streams, and the longest chain.

    They do not depend on what the weights are, which one image is then enough for.
    """
    making = importlib.import_module("parnet_deploy.net.initialise")
    monkeypatch.setattr(making, "CALIBRATION_IMAGES", 1)
    table = run_plan_table(PlanOptions(networks=(variant("l").spec,), stems=("replicate", "share")))
    assert counts(table, "fp32") == {
        "whole": (75, 3, 59),
        "stream1 (replicate)": (24, 1, 24),
        "stream2 (replicate)": (27, 1, 27),
        "stream3 (replicate)": (30, 1, 30),
        "fusion (replicate)": (16, 2, 15),
        "stem (share)": (15, 1, 15),
        "stream1 (share)": (18, 1, 18),
        "stream2 (share)": (18, 1, 18),
        "stream3 (share)": (18, 1, 18),
        "fusion (share)": (16, 2, 15),
    }
    assert counts(table, "fp16") == {
        "whole": (73, 3, 57),
        "stream1 (replicate)": (24, 1, 24),
        "stream2 (replicate)": (27, 1, 27),
        "stream3 (replicate)": (29, 1, 29),
        "fusion (replicate)": (14, 2, 13),
        "stem (share)": (14, 1, 14),
        "stream1 (share)": (18, 1, 18),
        "stream2 (share)": (18, 1, 18),
        "stream3 (share)": (17, 1, 17),
        "fusion (share)": (14, 2, 13),
    }


@pytest.fixture(scope="module")
def small() -> PlanTable:
    """Two forms of one small network, one of its precisions, both ways to split it."""
    forms = (DeployForm(), BEST)
    options = PlanOptions(
        networks=(tiny_spec(),), forms=forms, precisions=("fp16",), stems=("replicate", "share")
    )
    return run_plan_table(options)


def test_a_row_for_every_form_precision_and_part(small: PlanTable) -> None:
    parts = [
        ("whole", None),
        *((part, "replicate") for part in ("stream1", "stream2", "stream3", "fusion")),
        *((part, "share") for part in ("stem", "stream1", "stream2", "stream3", "fusion")),
    ]
    assert [(row.form, row.part, row.stem) for row in small.rows] == [
        (form, *part) for form in (DeployForm(), BEST) for part in parts
    ]
    assert {(row.network, row.precision) for row in small.rows} == {("tiny", "fp16")}
    for row in small.rows:
        assert row.chain is not None
        assert 0 < row.chain <= row.kernels
        assert (row.chain == row.kernels) or row.streams > 1
    assert set(small.versions) >= {"parnet-deploy", "tensorrt-rtx"}


def test_nhwc_takes_fewer_kernels(small: PlanTable) -> None:
    whole = {row.form: row for row in small.rows if row.part == "whole"}
    assert whole[BEST].kernels < whole[DeployForm()].kernels
    assert (whole[BEST].chain or 0) < (whole[DeployForm()].chain or 0)


def test_a_bundles_graphs_are_counted_where_they_lie(tiny_bundle: ModelBundle) -> None:
    table = run_plan_table(PlanOptions(bundles=(tiny_bundle,)))
    (exported,) = {(row.network, row.form, row.precision) for row in table.rows}
    assert exported == ("tiny", tiny_bundle.manifest.form, "fp32")
    made = run_plan_table(
        PlanOptions(networks=(tiny_spec(),), forms=(DeployForm(),), precisions=("fp32",))
    )
    assert [(row.part, row.kernels, row.streams) for row in table.rows] == [
        (row.part, row.kernels, row.streams) for row in made.rows
    ]


def test_it_is_json_and_back(small: PlanTable) -> None:
    assert decode(encode(small), PlanTable) == small


def test_as_a_table(small: PlanTable) -> None:
    sheet = plan_sheet(small)
    assert [column.head for column in sheet.columns][-3:] == ["kernels", "streams", "chain"]
    first = small.rows[0]
    assert sheet.rows[0] == (
        "tiny", "keep-mixed-view-nchw", "fp16", "whole", "-",
        str(first.kernels), str(first.streams), str(first.chain),
    )  # fmt: skip
    best = next(n for n, row in enumerate(small.rows) if row.form == BEST and row.part == "whole")
    assert best in sheet.emphasised
    assert 0 not in sheet.emphasised
    assert "compute capability 8.6" in sheet.notes[0]


def test_one_form_alone_is_not_the_best_of_several(small: PlanTable) -> None:
    alone = replace(small, rows=tuple(row for row in small.rows if row.form == BEST))
    assert not plan_sheet(alone).emphasised
    untold = replace(alone, rows=(replace(alone.rows[0], chain=None),))
    assert plan_sheet(untold).rows[0][-1] == "-"


def test_the_names_of_forms() -> None:
    assert form_name(BEST) == "keep-gemm-view-nhwc"
    assert [parse_form(form_name(form)) for form in FORMS] == FORMS


@pytest.mark.parametrize("text", ["", "keep", "keep-gemm-view-nchw-x", "keep-gemm-view-chwn"])
def test_what_is_no_form(text: str) -> None:
    words = r"a form is IDENTITY_BN-SQUEEZE-JOIN-LAYOUT, such as keep-gemm-view-nhwc, not '"
    with pytest.raises(UsageError, match=words):
        parse_form(text)


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(UsageError, match="plans of which network"):
        PlanOptions()
    with pytest.raises(UsageError, match="at least one form"):
        PlanOptions(networks=(tiny_spec(),), forms=())


def test_what_the_gpu_does_not_compute_in_is_refused_before_anything_is_built() -> None:
    """For 7.5 TensorRT RTX builds int8 graphs, and computes their convolutions in float16."""
    said: list[str] = []
    options = PlanOptions(
        networks=(tiny_spec(),), precisions=("fp16", "int8"), compute_capability="7.5"
    )
    with pytest.raises(EngineError, match=r"int8 takes a GPU of compute capability 8\.0"):
        run_plan_table(options, said.append)
    assert not said


def test_a_plan_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(path: object) -> PlanText | None:
        return None

    monkeypatch.setattr(tables, "read_plan_text", silent)
    with pytest.raises(BuildError, match="the plan of 'whole' does not tell its kernels"):
        run_plan_table(PlanOptions(networks=(tiny_spec(),)))


def test_torch_comes_only_when_networks_are_exported() -> None:
    code = "import sys, parnet_deploy.bench.plan_table; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
