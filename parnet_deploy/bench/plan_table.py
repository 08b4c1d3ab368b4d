"""Kernels and streams of TensorRT plans, form by form, precision by precision, part by part.

No plan is run: TensorRT RTX builds them without a GPU, and each plan's own text tells what it would
launch (`runtime.plan_text`). Fewer kernels, and a shorter chain of them, should mean less latency
at batch 1; how much only a measurement tells.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from parnet_deploy.bench.plan_parts import PlanPart, bundle_parts, network_parts
from parnet_deploy.bundle import ModelBundle, versions
from parnet_deploy.engine import BuildOptions
from parnet_deploy.engine.tensorrt.builder import TensorRTBuilder
from parnet_deploy.errors import BuildError, SpecError, UsageError
from parnet_deploy.pages.sheet import NONE, Column, Sheet
from parnet_deploy.runtime.plan_text import read_plan_text
from parnet_deploy.spec import DeployForm, ParNetSpec, StemMode, default_form
from parnet_deploy.spec.precision import Precision

Progress = Callable[[str], None]

BACKEND: Literal["tensorrt-rtx"] = "tensorrt-rtx"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions:
    """What is to be built and counted.

    Attributes:
        networks: networks to export with weights that mean nothing, in every form and precision.
        bundles: models that were exported; form and precision are theirs.
        forms: deploy forms of the networks.
        precisions: precisions of the networks.
        stems: ways to split; every stage is counted beside the whole network.
        compute_capability: the GPU that the plans are for.
    """

    networks: tuple[ParNetSpec, ...] = ()
    bundles: tuple[ModelBundle, ...] = ()
    forms: tuple[DeployForm, ...] = (default_form(BACKEND),)
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    stems: tuple[StemMode, ...] = ("replicate",)
    compute_capability: str = "8.6"

    def __post_init__(self) -> None:
        """Refuse a table without rows.

        Raises:
            UsageError: no network and no bundle, or networks without a form, precision or stem.
        """
        if not self.networks and not self.bundles:
            raise UsageError("plans of which network? give a variant or a model bundle")
        if self.networks and not (self.forms and self.precisions and self.stems):
            raise UsageError("networks need at least one form, one precision and one stem")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRow:
    """One plan.

    Attributes:
        network: name of the network.
        form: its deploy form.
        precision: what it computes in.
        part: ``whole``, or a stage's name.
        stem: how the network is split, or None for the whole.
        kernels: launches of a run.
        streams: streams that they are spread over.
        chain: launches that must run one after the other, None where the plan does not tell.
    """

    network: str
    form: DeployForm
    precision: str
    part: str
    stem: StemMode | None
    kernels: int
    streams: int
    chain: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanTable:
    """What was counted.

    Attributes:
        rows: plan by plan, in the order in which they were asked for.
        compute_capability: the GPU that they are for.
        versions: of what built them.
    """

    rows: tuple[PlanRow, ...]
    compute_capability: str
    versions: dict[str, str]


def run_plan_table(options: PlanOptions, progress: Progress = lambda step: None) -> PlanTable:
    """Build every plan in a temporary folder, and count.

    Args:
        options: which plans.
        progress: called with a line for each.

    Returns:
        The counts.

    Raises:
        MissingDependencyError: TensorRT RTX is not installed, or what exports networks.
        BuildError: a plan cannot be built, or tells nothing.
        EngineError: the GPU does not compute in a precision; nothing was built.
        ExportError: a network cannot be exported in a precision.
    """
    builder = TensorRTBuilder(
        BACKEND, BuildOptions(compute_capabilities=(options.compute_capability,))
    )
    precisions = options.precisions if options.networks else ()
    for precision in (*precisions, *(bundle.manifest.precision for bundle in options.bundles)):
        builder.computes(precision)
    rows = []
    for part in _parts(options):
        what = (part.network, form_name(part.form), part.precision, part.stage.name)
        progress(f"count: {', '.join(what)}")
        rows.append(_counted(builder, part))
    return PlanTable(
        rows=tuple(rows),
        compute_capability=options.compute_capability,
        versions={**versions("parnet-deploy"), **builder.tools()},
    )


def _parts(options: PlanOptions) -> Iterator[PlanPart]:
    for spec in options.networks:
        yield from network_parts(spec, options.forms, options.precisions, options.stems)
    for bundle in options.bundles:
        yield from bundle_parts(bundle)


def _counted(builder: TensorRTBuilder, part: PlanPart) -> PlanRow:
    with tempfile.TemporaryDirectory(prefix="parnet-plan-") as folder:
        built = builder.build(part.stage, Path(folder))
        text = read_plan_text(Path(folder) / built.file)
    if text is None:
        raise BuildError(
            f"the plan of '{part.stage.name}' does not tell its kernels: this version of TensorRT "
            "RTX writes plans in another way than 1.7 does"
        )
    return PlanRow(
        network=part.network,
        form=part.form,
        precision=part.precision,
        part=part.stage.name,
        stem=part.stem,
        kernels=len(text.kernels),
        streams=text.streams,
        chain=text.chain,
    )


def plan_sheet(table: PlanTable) -> Sheet:
    """The counts as a table, the fewest kernels of each network, precision and part in bold."""
    least: dict[tuple[str, str, str, StemMode | None], int] = {}
    for row in table.rows:
        least[_asked(row)] = min(row.kernels, least.get(_asked(row), row.kernels))
    version = table.versions.get(BACKEND, NONE)
    built = f"TensorRT RTX {version} for compute capability {table.compute_capability}"
    several = len({form_name(row.form) for row in table.rows}) > 1
    return Sheet(
        title="What TensorRT RTX plans would launch",
        columns=_COLUMNS,
        rows=tuple(_cells(row) for row in table.rows),
        emphasised=frozenset(
            number
            for number, row in enumerate(table.rows)
            if several and row.kernels == least[_asked(row)]
        ),
        notes=(
            f"{built}: counted in the plans' own text, nothing was run.",
            "Chain: kernels that must run one after the other, through all streams.",
        ),
    )


_COLUMNS = (
    Column(head="network", numeric=False),
    Column(head="form", numeric=False),
    Column(head="precision", numeric=False),
    Column(head="part", numeric=False),
    Column(head="stem", numeric=False),
    Column(head="kernels"),
    Column(head="streams"),
    Column(head="chain"),
)


def _asked(row: PlanRow) -> tuple[str, str, str, StemMode | None]:
    return row.network, row.precision, row.part, row.stem


def _cells(row: PlanRow) -> tuple[str, ...]:
    return (
        row.network,
        form_name(row.form),
        row.precision,
        row.part,
        row.stem or NONE,
        str(row.kernels),
        str(row.streams),
        NONE if row.chain is None else str(row.chain),
    )


def form_name(form: DeployForm) -> str:
    """A form in one word: its choices in their order, ``keep-gemm-view-nhwc``."""
    return "-".join(getattr(form, field.name) for field in fields(form))


def parse_form(text: str) -> DeployForm:
    """A form from what `form_name` gives.

    Raises:
        UsageError: it is none; the message shows one that is.
    """
    names = [field.name for field in fields(DeployForm)]
    words = text.split("-")
    if len(words) != len(names):
        raise UsageError(_no_form(text))
    try:
        return DeployForm(**dict(zip(names, words, strict=True)))  # type: ignore[arg-type]
    except SpecError as exc:
        raise UsageError(f"{_no_form(text)}: {exc}") from exc


def _no_form(text: str) -> str:
    names = "-".join(field.name.upper() for field in fields(DeployForm))
    return f"a form is {names}, such as {form_name(default_form(BACKEND))}, not '{text}'"
