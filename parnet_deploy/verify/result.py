"""What verification gives, as values: what the table, the JSON and the page show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from parnet_deploy.spec import ParNetSpec
from parnet_deploy.verify.compare import Comparison
from parnet_deploy.verify.tolerances import RungName

REPORT_FILE = "verify.json"
"""The report that has everything."""

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
class Agreement:
    """Whether images keep their class.

    Attributes:
        images: how many there were.
        alike: how many of them have the reference's class.
        decided: how many have a reference whose best two answers are further apart than the
            tolerance, so that what is allowed cannot turn them.
        kept: how many of the decided ones have the reference's class.
        needed: how many of all must have it; 0 where none must, or too few were fed to tell.
        share: of all images that must have it, from which that follows; None where none must.
    """

    images: int
    alike: int
    decided: int
    kept: int
    needed: int = 0
    share: float | None = None

    @property
    def judged(self) -> bool:
        """Whether it can fail: there is an image that must keep its class."""
        return self.decided > 0 or self.needed > 0

    @property
    def held(self) -> bool:
        """Whether all images that must keep their class do."""
        return self.kept == self.decided and self.alike >= self.needed


@dataclass(frozen=True, kw_only=True, slots=True)
class Against:
    """A rung against another one.

    Attributes:
        rung: the other one, the reference.
        comparison: of the outputs.
        blocks: of the values that both show, in the order in which they are computed.
        agreement: of the classes; None where the outputs cannot be compared.
    """

    rung: RungName
    comparison: Comparison
    blocks: tuple[BlockError, ...]
    agreement: Agreement | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepError:
    """How far what an engine makes of its own values is from what the graph makes of them.

    Attributes:
        stage: the stage in which it was seen, or None where the network was seen as one.
        block: the block's name.
        steps: root mean square over images and pixels, in steps of the block's quantiser (or of
            what a float is allowed), of the channel that differs most; None where the values
            cannot be compared.
        allowed: greatest that passes: 1, or more where blocks before it could not be seen.
        greatest: greatest difference, in steps.
    """

    stage: str | None
    block: str
    steps: float | None
    allowed: float
    greatest: float | None


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
        alone: of a quantised engine, each block by itself: against what the graph makes of the
            engine's own values before it.
        foreign: it failed since it is of another model than the one that is verified.
    """

    name: RungName
    what: str
    verdict: Verdict
    tolerance: float
    reason: str | None = None
    before: Against | None = None
    first: Against | None = None
    parted_at: str | None = None
    alone: tuple[StepError, ...] = ()
    foreign: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockTypes:
    """What a layer computes in.

    Attributes:
        block: its block.
        asked: the precision that it was to have, by the model's manifest.
        built: the one that it has, by rung; rungs that do not tell are left out.
    """

    block: str
    asked: str
    built: Mapping[RungName, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRange:
    """A quantised activation on the images that were fed.

    Attributes:
        tensor: its name in the float32 graph.
        low: least number that its quantiser has.
        high: greatest number that its quantiser has.
        least: least value in the network that is not quantised.
        greatest: greatest value in it.
        saturated: share of its values beyond the range.
        ratio: the range that the manifest's method finds on these images, in the manifest's.
        moved: how far that range lies beside the manifest's, in the manifest's (`ranges`);
            negative: below. 0 where it is only wider, narrower, or longer at one end.
        images: how many images.
    """

    tensor: str
    low: float
    high: float
    least: float
    greatest: float
    saturated: float
    ratio: float
    moved: float
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """One thing that must hold of what was built, and is read from its files or its ranges.

    Attributes:
        rung: what was looked at.
        name: what must hold.
        verdict: whether it does.
        detail: what was found, or why it could not be asked.
        problems: all that is wrong or could not be read, a sentence each; `detail` has the first.
    """

    rung: RungName
    name: str
    verdict: ProbeVerdict
    detail: str
    problems: tuple[str, ...] = ()


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
        precision: the model's.
        allowed: why the rungs are allowed what they are, in words.
        types: what every layer computes in.
        checks: what was built against what was asked for.
        ranges: quantised activations on what was fed; empty where noise was.
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
    precision: str = "fp32"
    allowed: str = ""
    types: tuple[BlockTypes, ...] = ()
    checks: tuple[CheckResult, ...] = ()
    ranges: tuple[TensorRange, ...] = ()
