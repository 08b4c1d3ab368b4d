"""What was built against what was asked for: types, scales, kernels and ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from parnet_deploy.bundle import EngineBundle, ModelManifest
from parnet_deploy.errors import EngineError, VerificationError
from parnet_deploy.net import DeployParNet
from parnet_deploy.verify.built import READABLE, block_types, check_model
from parnet_deploy.verify.built_engine import BUILT, check_engine, engine_types
from parnet_deploy.verify.graph_facts import look_into
from parnet_deploy.verify.inputs import Batch
from parnet_deploy.verify.ranges import check_ranges_of, observe_ranges, ranges_unseen
from parnet_deploy.verify.result import BlockTypes, CheckResult, TensorRange
from parnet_deploy.verify.subjects import Subjects
from parnet_deploy.verify.tolerances import RungName


@dataclass(frozen=True, kw_only=True, slots=True)
class Construction:
    """What was found of it.

    Attributes:
        types: what every layer computes in.
        checks: what must hold, and whether it does.
        ranges: quantised activations on what was fed; empty where that tells nothing.
    """

    types: tuple[BlockTypes, ...]
    checks: tuple[CheckResult, ...]
    ranges: tuple[TensorRange, ...]


def examine(
    subjects: Subjects,
    fused: DeployParNet,
    fed: Iterable[Batch] | None,
    *,
    same: bool,
) -> Construction:
    """Look into a model's graphs and its engines' files.

    Args:
        subjects: the bundles.
        fused: the checkpoint's network in deploy form, of the model's own form.
        fed: images such as the network is for, or None where noise is fed.
        same: whether those are the images that it was calibrated on.
    """
    manifest = subjects.model.manifest
    engines: dict[RungName, Mapping[str, str]] = {}
    checks: list[CheckResult] = []
    types: tuple[BlockTypes, ...] = ()
    try:
        facts = look_into(subjects.model, fused)
        checks += check_model(manifest, facts)
    except VerificationError as exc:
        facts = ()
        checks.append(_failed("onnx-whole", READABLE, str(exc)))
    for rung, engine in subjects.engines.items():
        if rung not in subjects.foreign:
            found, types_found = _engine(rung, engine, manifest)
            checks += found
            engines[rung] = types_found
    if facts:
        types = block_types(manifest, facts, engines)
    ranges: tuple[TensorRange, ...] = ()
    if manifest.quantisation is not None:
        if fed is None:
            checks += ranges_unseen(manifest)
        else:
            ranges = observe_ranges(fused, manifest, fed)
            checks += check_ranges_of(manifest, ranges, same=same)
    return Construction(types=types, checks=tuple(checks), ranges=ranges)


def _engine(
    rung: RungName, engine: EngineBundle, model: ModelManifest
) -> tuple[tuple[CheckResult, ...], Mapping[str, str]]:
    try:
        found = engine_types(engine)
    except (EngineError, VerificationError) as exc:
        return (_failed(rung, BUILT, f"its files cannot be read: {exc}"),), {}
    return check_engine(rung, engine.manifest, model, found), found.shown


def _failed(rung: RungName, name: str, detail: str) -> CheckResult:
    return CheckResult(rung=rung, name=name, verdict="failed", detail=detail)
