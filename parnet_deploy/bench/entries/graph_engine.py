"""Engines of graphs that are in no model bundle: peers' and other networks', built as ours are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parnet_deploy.bench.contest.opened import OpenedRunner
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bundle import (
    BatchRange,
    Bundle,
    EngineBundle,
    EngineManifest,
    EngineStage,
    FileRecord,
    ModelReference,
)
from parnet_deploy.engine import BuildOptions, make_builder
from parnet_deploy.engine.base import WHOLE, BuildStage
from parnet_deploy.errors import EngineError, os_reason
from parnet_deploy.runtime import open_runner
from parnet_deploy.spec import (
    VARIANTS,
    Backend,
    DeployForm,
    Preprocessing,
    TensorSpec,
    decode,
    encode,
)

OPENER = "graph"

DESCRIPTION = "graph-engine.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphEngine:
    """What it takes to open such an engine; it lies beside the engine's file.

    Attributes:
        backend: what built it, and runs it.
        stage: its file, inputs, outputs and device.
        batch: images per run, fixed.
        target: what must match where it is opened.
        options: how it was built.
        tools: versions of what runs it.
    """

    backend: Backend
    stage: EngineStage
    batch: int
    target: Mapping[str, Any]
    options: Mapping[str, Any]
    tools: Mapping[str, str]


def build_graph(
    graph: Path,
    folder: Path,
    *,
    backend: Backend,
    device: str,
    batch: int,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> None:
    """Build an engine of one graph with what builds this project's engines, at its defaults.

    Args:
        graph: ONNX file.
        folder: an empty folder, which the engine is written into.
        backend: what builds.
        device: ``cpu`` or ``cuda:N``.
        batch: images per run.
        inputs: the graph's inputs.
        outputs: the graph's outputs.

    Raises:
        BuildError: it cannot be built.
        EngineError: the backend does not run on that device here.
        MissingDependencyError: the backend is not installed.
    """
    builder = make_builder(backend, _options(backend, device), split=False)
    stage = BuildStage(
        name=WHOLE,
        graph=graph,
        inputs=inputs,
        outputs=outputs,
        batch=_fixed(batch),
        device=device,
    )
    engine = GraphEngine(
        backend=backend,
        stage=builder.build(stage, folder),
        batch=batch,
        target=builder.target(),
        options=builder.options(),
        tools=builder.tools(),
    )
    (folder / DESCRIPTION).write_bytes(encode(engine))


def open_graph(contestant: Contestant) -> OpenedRunner:
    """Open such an engine with what opens this project's engines.

    Raises:
        EngineError: it does not load.
        MissingDependencyError: its backend is not installed.
    """
    folder = Path(contestant.path)
    try:
        engine = decode((folder / DESCRIPTION).read_bytes(), GraphEngine)
        runner = open_runner(_as_bundle(folder, engine))
    except OSError as exc:
        raise EngineError(f"cannot read {folder / DESCRIPTION}: {os_reason(exc)}") from exc
    except EngineError as exc:  # it names the command that builds a ParNet's engine
        raise type(exc)(str(exc).partition("; build it again")[0]) from exc
    return OpenedRunner(runner=runner, versions=engine.tools, kernels=engine.stage.kernels)


def _options(backend: Backend, device: str) -> BuildOptions:
    kind, _, number = device.partition(":")
    devices = (int(number),) if number else ()
    if backend == "onnxruntime":
        return BuildOptions(provider="cpu" if kind == "cpu" else "cuda", devices=devices)
    return BuildOptions(devices=devices)


def _fixed(batch: int) -> BatchRange:
    return BatchRange(min=batch, opt=batch, max=batch)


def _as_bundle(folder: Path, engine: GraphEngine) -> EngineBundle:
    """The engine as what `open_runner` opens.

    It is never written: which ParNet it is of, and in which form, opening does not ask, and a
    network that is none has no answer to. Nor does it ask for the files' digests: it is timed until
    the first answer, and this project's engines are opened unchecked in a contest, too.
    """
    nobody = next(iter(VARIANTS.values())).spec
    stage = engine.stage
    files = {
        path.name: FileRecord(sha256="", bytes=path.stat().st_size)
        for path in folder.iterdir()
        if path.is_file()
    }
    manifest = EngineManifest(
        name=folder.name,
        backend=engine.backend,
        split=False,
        model=ModelReference(name=folder.name, manifest_sha256="", path="."),
        spec=nobody,
        form=DeployForm(),
        precision="fp32",
        batch=_fixed(engine.batch),
        softmax=False,
        preprocessing=Preprocessing(size=nobody.image_size),
        target=engine.target,
        options=engine.options,
        inputs=stage.inputs,
        outputs=stage.outputs,
        stages=(stage,),
        tools=engine.tools,
        files=files,
    )
    return Bundle(path=folder, manifest=manifest, manifest_sha256="")
