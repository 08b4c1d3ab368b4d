"""The graphs whose plans are counted: of networks that are exported for it, and of bundles."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parnet_deploy.bundle import GraphStage, ModelBundle
from parnet_deploy.engine import BuildStage
from parnet_deploy.engine.base import WHOLE, build_stages
from parnet_deploy.spec import DeployForm, ParNetSpec, Preprocessing, StemMode, stages
from parnet_deploy.spec.precision import Precision

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from parnet_deploy.export import ExportOptions

GPU = "cuda:0"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanPart:
    """A graph, and what it is.

    Attributes:
        network: name of the network.
        form: its deploy form.
        precision: what it computes in.
        stem: how the network is split, or None for the whole.
        stage: its file, and what a builder needs to know.
    """

    network: str
    form: DeployForm
    precision: str
    stem: StemMode | None
    stage: BuildStage


def network_parts(
    spec: ParNetSpec,
    forms: Sequence[DeployForm],
    precisions: Sequence[Precision],
    stems: Sequence[StemMode],
) -> Iterator[PlanPart]:
    """A network's graph and those of its stages, with weights that mean nothing.

    Each graph's file is gone when the next part is asked for.

    Args:
        spec: the network.
        forms: deploy forms.
        precisions: what to compute in, each in every form.
        stems: ways to split the network.

    Raises:
        MissingDependencyError: what exports networks is not installed.
    """
    from parnet_deploy.export import ExportOptions, whole_graph
    from parnet_deploy.net import fuse, initialise

    trained = initialise(spec, seed=0).eval()
    for form in forms:
        fused = fuse(trained, form)
        for precision in precisions:
            options = ExportOptions(
                name=spec.name,
                preprocessing=Preprocessing(size=spec.image_size),
                form=form,
                precision=precision,
            )
            yield from _graph_parts(whole_graph(fused, options), spec, options, stems)


def _graph_parts(
    whole: gs.Graph, spec: ParNetSpec, options: ExportOptions, stems: Sequence[StemMode]
) -> Iterator[PlanPart]:
    from parnet_deploy.export import save_with_weights
    from parnet_deploy.export.stages import contracts, cut_stage, describe_stage

    contract = contracts(spec, options)
    parts: list[tuple[StemMode | None, GraphStage | None]] = [(None, None)]
    for mode in stems:
        parts += [(mode, describe_stage(stage, contract)) for stage in stages(spec, mode)]
    for stem, described in parts:
        name = WHOLE if described is None else described.name
        graph = whole if described is None else cut_stage(whole, described)
        with tempfile.TemporaryDirectory(prefix="parnet-graph-") as folder:
            path = Path(folder) / f"{name}.onnx"
            save_with_weights(graph, path)
            yield PlanPart(
                network=spec.name,
                form=options.form,
                precision=options.precision,
                stem=stem,
                stage=BuildStage(
                    name=name, graph=path, inputs=(), outputs=(), batch=options.batch, device=GPU
                ),
            )


def bundle_parts(bundle: ModelBundle) -> Iterator[PlanPart]:
    """A bundle's graphs, where they lie."""
    manifest = bundle.manifest
    for split in (False, True):
        for stage in build_stages(bundle, (GPU,), split=split):
            yield PlanPart(
                network=manifest.name,
                form=manifest.form,
                precision=manifest.precision,
                stem=manifest.stem if split else None,
                stage=stage,
            )
