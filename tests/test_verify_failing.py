"""What failed: the clearest cause first, and what whole graph and stages have alike once."""

from __future__ import annotations

import itertools

import pytest

from parnet_deploy.verify import built, built_engine, ranges
from parnet_deploy.verify.failing import failures_of
from parnet_deploy.verify.result import CheckResult, ProbeResult, RungResult, Verdict
from parnet_deploy.verify.tolerances import RungName


def rung(name: RungName, verdict: Verdict = "failed", *, foreign: bool = False) -> RungResult:
    return RungResult(
        name=name, what="-", verdict=verdict, tolerance=0.1, reason=f"of {name}", foreign=foreign
    )


def check(rung: RungName, name: str, detail: str) -> CheckResult:
    return CheckResult(rung=rung, name=name, verdict="failed", detail=detail)


def test_causes_come_before_what_they_bring_about() -> None:
    checks = [
        check("onnx-whole", built.CONSTANTS, "model.onnx: stem1 is off"),
        check("fused-f32", ranges.RANGES, "off"),
        check("engine", built_engine.BUILT, "fp32"),
        check("onnx-whole", built.TYPES, "stem1 computes in fp32 in model.onnx"),
    ]
    rungs = [rung("fused-f64"), rung("onnx-whole"), rung("engine", foreign=True)]
    probe = ProbeResult(rung="engine", name="finite", verdict="failed", detail="NaN")
    found = failures_of(rungs, checks, [probe], ())
    assert [text.partition(":")[0] for text in found] == [
        "engine",
        "fused-f64",
        f"onnx-whole, {built.TYPES}",
        f"engine, {built_engine.BUILT}",
        f"onnx-whole, {built.CONSTANTS}",
        f"fused-f32, {ranges.RANGES}",
        "onnx-whole",
        "engine, finite",
    ]


def test_what_whole_and_stages_have_alike_is_said_once() -> None:
    whole = check("onnx-whole", built.CONSTANTS, "model.onnx: stem1 is off")
    stages = check("onnx-stages", built.CONSTANTS, "stages/a.onnx: stem1 is off; stages/b.onnx: x")
    other = check("onnx-stages", built.CONSTANTS, "stages/a.onnx: stem2 is off")
    (both,) = failures_of((), [whole, stages], (), ())
    assert both == f"onnx-whole and onnx-stages, {built.CONSTANTS}: model.onnx: stem1 is off"
    assert len(failures_of((), [whole, other], (), ())) == 2


def test_what_passed_is_no_failure_and_what_is_required_is() -> None:
    rungs = [rung("fused-f64", "passed"), rung("engine", "not verified")]
    assert failures_of(rungs, (), (), ()) == ()
    (found,) = failures_of(rungs, (), (), ("engine",))
    assert found == "engine is required and not verified: of engine"


@pytest.mark.parametrize("module", [built, built_engine, ranges])
def test_every_check_has_its_place(module: object) -> None:
    """One that has none would end in an error where it fails."""
    names = {
        value
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and " " in value and name != "UNSEEN"
    }
    assert names
    for one, other in itertools.pairwise([*names, *names]):
        failures_of((), [check("engine", one, "a"), check("engine", other, "b")], (), ())
