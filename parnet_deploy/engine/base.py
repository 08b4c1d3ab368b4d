"""Building an engine bundle: what every backend shares.

A builder knows one backend; `build_engine` knows bundles. It hands the builder one graph at a time
and a staged folder to write into, and puts the whole in place, or nothing.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from parnet_deploy.bundle import (
    LABELS,
    MODEL_GRAPH,
    BatchRange,
    EngineBundle,
    EngineManifest,
    EngineStage,
    ModelBundle,
    ModelManifest,
    ModelReference,
    open_engine_bundle,
    open_model,
    seal,
    staged,
    versions,
)
from parnet_deploy.engine.cores import divide_cores
from parnet_deploy.engine.placement import check_placement, place
from parnet_deploy.errors import BundleError, EngineError, UsageError
from parnet_deploy.runtime.cpu import usable_cores
from parnet_deploy.spec import Backend, TensorSpec, count_block, layout
from parnet_deploy.spec.precision import PRECISIONS
from parnet_deploy.spec.quantisation import backends_of, takers

WHOLE = "whole"

ProviderChoice = Literal["auto", "cpu", "cuda"]
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """How to build. What is left at its default is left to the backend.

    Attributes:
        provider: ONNX Runtime's execution provider; ``auto`` takes the fastest that works here.
        devices: GPUs to spread the stages over; empty means the first.
        threads: CPU threads of one engine; 0 means one a core, and for stages that run at the
            same time a share of the cores (`engine.cores`).
        spin: whether ONNX Runtime's threads spin while they wait within a run, instead of
            sleeping; None: those of one engine of the whole network do, those of stages do not.
        narrow_weights: int8 weights in 7 bits where ONNX Runtime's products of 8 bits overflow:
            faster there, and less exact.
        compute_capabilities: GPUs that a TensorRT RTX plan is for, such as ``"8.6"``; empty means
            the backend's own default.
        tf32: allow TF32 in float32 matrix products and convolutions.
        optimization_level: TensorRT's builder optimization level, 0 to 5.
        workspace_mib: limit of the memory that a kernel may use while it runs, in MiB.
        aux_streams: greatest number of auxiliary streams in one plan.
        version_compatible: a plan that later versions of TensorRT can run.
        hardware_compatible: a plan that other GPU architectures can run.
        weight_stripped: a plan without weights, which are put in when it is opened.
        timing_cache: file of measured kernel timings, read and updated.
    """

    provider: ProviderChoice = "auto"
    devices: tuple[int, ...] = ()
    threads: int = 0
    spin: bool | None = None
    narrow_weights: bool = False
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = False
    optimization_level: int | None = None
    workspace_mib: int | None = None
    aux_streams: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    weight_stripped: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            UsageError: a negative number, a device named twice, or a compute capability that is
                not two numbers.
        """
        for name in ("threads", "workspace_mib", "aux_streams", "optimization_level"):
            if (getattr(self, name) or 0) < 0:
                raise UsageError(f"{flag(name)} is not negative, not {getattr(self, name)}")
        if any(device < 0 for device in self.devices) or len(set(self.devices)) < len(self.devices):
            raise UsageError(f"--devices are different numbers from 0, not {list(self.devices)}")
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", capability):
                raise UsageError(
                    f"a compute capability is a number such as 8.6, not '{capability}'"
                )

    def given(self) -> frozenset[str]:
        """Names of the fields that differ from their defaults."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name) != f.default)


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildStage:
    """What one engine is made of.

    Attributes:
        name: stage name, or ``whole``.
        graph: ONNX file, its weights below its own folder.
        inputs: what it reads.
        outputs: what it gives.
        batch: images per run it must take.
        device: where it will run: ``cpu`` or ``cuda:0`` ...
        threads: its share of this machine's cores, where stages run side by side on the CPU; 0
            where nobody shares them. Threads that were asked for come before it.
        precision: that of the graph.
    """

    name: str
    graph: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: BatchRange
    device: str
    threads: int = 0
    precision: str = "fp32"


class Builder(Protocol):
    """Builds engines of one kind."""

    @property
    def backend(self) -> Backend:
        """Its name."""
        ...

    @property
    def label(self) -> str:
        """What it builds for, as it stands in a bundle's name: ``onnxruntime-cpu`` ..."""
        ...

    @property
    def devices(self) -> tuple[str, ...]:
        """Where its engines run, in the order in which stages are spread over them."""
        ...

    def target(self) -> Mapping[str, Any]:
        """Names and versions that must match where the engine is opened (JSON values)."""
        ...

    def options(self) -> Mapping[str, Any]:
        """How it builds, with the names of the backend's own flags (JSON values)."""
        ...

    def tools(self) -> Mapping[str, str]:
        """Versions of what takes part."""
        ...

    def computes(self, precision: str) -> str:
        """What its engines compute in, given graphs of a precision.

        Raises:
            EngineError: it cannot run such graphs here; the message says what can.
        """
        ...

    def build(self, stage: BuildStage, folder: Path) -> EngineStage:
        """Build one engine.

        Args:
            stage: what of.
            folder: the staged bundle; the engine's files are written into it, named after the
                stage. Nothing else may be left there.

        Returns:
            The stage's record, its file relative to `folder`.

        Raises:
            BuildError: it cannot be built.
            BundleError: it cannot be written.
        """
        ...


def build_engine(
    model: ModelBundle,
    final: Path,
    builder: Builder,
    *,
    split: bool,
    placement: Mapping[str, str] | None = None,
    force: bool = False,
    progress: Progress = lambda step: None,
) -> EngineBundle:
    """Build an engine bundle from a model bundle: all of it, or nothing.

    Args:
        model: the model, every file of which is checked first.
        final: folder of the engine bundle, which must not exist unless `force` is set.
        builder: what builds.
        split: one engine per stage instead of one of the whole network.
        placement: a device of the builder's for every stage (``whole`` where not split); None
            leaves it to `engine.placement`.
        force: replace a bundle that stands there.
        progress: called with a line at each step.

    Returns:
        The engine bundle.

    Raises:
        OutputExistsError: something stands at `final`.
        BundleError: the model bundle is damaged or has changed since it was opened, or the engine
            bundle cannot be written.
        BuildError: an engine could not be built.
        EngineError: the builder's backend cannot run graphs of the model's precision; nothing was
            done.
        UsageError: a placement that does not name every stage once, or a device that the builder
            does not build for.
    """
    builder.computes(model.manifest.precision)
    _check_scheme(model, builder.backend)
    with staged(final, force=force) as work:
        progress(f"check: every file of {model.path} against its manifest")
        _check(model)
        stages = []
        for stage in build_stages(model, builder.devices, split=split, placement=placement):
            progress(f"build: {stage.name} for {stage.device}")
            stages.append(builder.build(stage, work))
        shutil.copyfile(model.file(LABELS), work / LABELS)
        seal(work, _manifest(model, final, builder, tuple(stages), split=split))
    return open_engine_bundle(final, check=False)


def build_stages(
    model: ModelBundle,
    devices: tuple[str, ...],
    *,
    split: bool,
    placement: Mapping[str, str] | None = None,
) -> tuple[BuildStage, ...]:
    """What is to be built of a model, and where each part will run."""
    manifest = model.manifest
    names = [stage.name for stage in manifest.stages] if split else [WHOLE]
    if placement is not None:
        check_placement(placement, names, devices)
    if not split:
        whole = BuildStage(
            name=WHOLE,
            graph=model.file(MODEL_GRAPH),
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            batch=manifest.batch,
            device=devices[0] if placement is None else placement[WHOLE],
            precision=manifest.precision,
        )
        return (whole,)
    placement = placement or place(manifest, devices)
    threads = _threads(manifest, placement)
    return tuple(
        BuildStage(
            name=stage.name,
            graph=model.file(stage.file),
            inputs=stage.inputs,
            outputs=stage.outputs,
            batch=manifest.batch,
            device=placement[stage.name],
            threads=threads.get(stage.name, 0),
            precision=manifest.precision,
        )
        for stage in manifest.stages
    )


def _threads(manifest: ModelManifest, placement: Mapping[str, str]) -> dict[str, int]:
    """Shares of this machine's cores for the stages that are placed on its CPU."""
    on_cpu = [stage for stage in manifest.stages if placement[stage.name] == "cpu"]
    costs = {
        block.name: count_block(manifest.spec, block).operations for block in layout(manifest.spec)
    }
    work = {stage.name: sum(costs[block] for block in stage.blocks) for stage in on_cpu}
    return divide_cores(on_cpu, work, usable_cores())


def flag(field: str) -> str:
    """The command line's name of a field of `BuildOptions`."""
    named = {"compute_capabilities": "--compute-capability", "workspace_mib": "--workspace"}
    return named.get(field, "--" + field.replace("_", "-"))


def _check_scheme(model: ModelBundle, backend: Backend) -> None:
    """Refuse graphs that are quantised as another backend takes them.

    They would be computed in float32 between conversions, or not be read at all.
    """
    quantisation, precision = model.manifest.quantisation, model.manifest.precision
    known = next((name for name in PRECISIONS if name == precision), None)
    if quantisation is None or known is None:
        return
    if backend in backends_of(known, quantisation.scheme):
        return
    raise EngineError(
        f"the graphs of {model.path} were quantised for {takers(known, quantisation.scheme)}: "
        f"export the model again with --precision {precision} --for {backend}"
    )


def _check(model: ModelBundle) -> None:
    if open_model(model.path).manifest_sha256 != model.manifest_sha256:
        raise BundleError(f"{model.path} was replaced by another bundle meanwhile; build again")


def _manifest(
    model: ModelBundle,
    final: Path,
    builder: Builder,
    stages: tuple[EngineStage, ...],
    *,
    split: bool,
) -> EngineManifest:
    source = model.manifest
    return EngineManifest(
        name=final.name,
        backend=builder.backend,
        split=split,
        model=ModelReference(
            name=source.name,
            manifest_sha256=model.manifest_sha256,
            path=_relative(model.path, final),
        ),
        spec=source.spec,
        form=source.form,
        precision=source.precision,
        quantisation=source.quantisation,
        batch=source.batch,
        softmax=source.softmax,
        preprocessing=source.preprocessing,
        target=builder.target(),
        options=builder.options(),
        computes=builder.computes(source.precision),
        source=source.source,
        inputs=source.inputs,
        outputs=source.outputs,
        stages=stages,
        tools={**versions("parnet-deploy", "numpy"), **builder.tools()},
        warnings=source.warnings,
    )


def _relative(model: Path, final: Path) -> str:
    try:
        return os.path.relpath(model.resolve(), final.resolve())
    except ValueError:  # another drive
        return str(model.resolve())
