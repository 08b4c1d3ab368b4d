"""What verification gives, as values: what the table, the JSON and the page show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from parnet_deploy.spec import ParNetSpec
from parnet_deploy.verify.compare import Comparison
from parnet_deploy.verify.tolerances import RungName

Verdict = Literal["passed", "failed", "not verified"]
ProbeVerdict = Literal["passed", "failed", "not verified", "not applicable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockError:
    """How far one block's values are from the reference's, over all images.

    Attributes:
        stage: the stage in which it was seen, or None where the network was seen as one.
        block: the block's name.
        max_abs: greatest absolute error, or None where the values cannot be compared.
        max_rel: that, relative to the greatest magnitude in the reference's values.
        problem: what keeps them from being compared, or None.
    """

    stage: str | None
    block: str
    max_abs: float | None
    max_rel: float | None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Against:
    """A rung against another one.

    Attributes:
        rung: the other one, the reference.
        comparison: of the outputs.
        blocks: of the values that both show, in the order in which they are computed.
    """

    rung: RungName
    comparison: Comparison
    blocks: tuple[BlockError, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RungResult:
    """One rung of the ladder.

    Attributes:
        name: its name.
        what: what was run, in a few words.
        verdict: passed, failed or not verified.
        reason: why it is not verified, or what it failed by; None where it passed.
        tolerance: greatest relative error that passes.
        before: against the rung before it, or None.
        first: against the first rung, or None.
        parted_at: the first block at which it and its reference part company, in words; None
            where they do not, or nothing can be seen.
    """

    name: RungName
    what: str
    verdict: Verdict
    tolerance: float
    reason: str | None = None
    before: Against | None = None
    first: Against | None = None
    parted_at: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeResult:
    """One property that an engine must have whatever its weights are.

    Attributes:
        rung: what was probed.
        name: the property.
        verdict: whether it has it.
        detail: what was found, or why it could not be asked.
        error: greatest relative difference found, where there is one.
    """

    rung: RungName
    name: str
    verdict: ProbeVerdict
    detail: str
    error: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """All that was found.

    Attributes:
        bundle: folder of what was verified.
        model: folder of the model bundle whose checkpoint is the reference.
        name: the network's name.
        spec: the network.
        inputs: what was fed, in words.
        images: number of images.
        rungs: the ladder, all of it, in order.
        probes: the probes of each engine.
        required: rungs that had to be verified.
        notes: what else a reader must know.
        tools: versions of what took part.
        created: when, UTC.
        passed: nothing failed, and what was required was verified.
        failures: what failed, one sentence each.
    """

    bundle: str
    model: str
    name: str
    spec: ParNetSpec
    inputs: str
    images: int
    rungs: tuple[RungResult, ...]
    probes: tuple[ProbeResult, ...]
    required: tuple[RungName, ...]
    notes: tuple[str, ...]
    tools: Mapping[str, str]
    created: str
    passed: bool
    failures: tuple[str, ...]
