"""What is evaluated: a network in whatever form, as something that runs and what it says of itself.

A checkpoint becomes one elsewhere, as that takes torch; bundles become one here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard, cast

from parnet_deploy.bundle import (
    BatchRange,
    EngineBundle,
    EngineManifest,
    ModelBundle,
    open_bundle,
)
from parnet_deploy.evaluate.graphs import open_graph
from parnet_deploy.runtime import Runner, open_runner
from parnet_deploy.spec import ParNetSpec, Preprocessing

Kind = Literal["checkpoint", "model", "engine"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Subject:
    """A network that can be run.

    Attributes:
        kind: the form that it is in.
        path: the file or folder.
        sha256: digest of the checkpoint, or of the bundle's manifest, which names every file.
        runs_on: what runs it, in words.
        precision: what it computes in.
        spec: the network.
        labels: class names, in the order of its outputs; numbered where they are not known.
        preprocessing: how an image becomes what it reads.
        own_preprocessing: whether it says so itself; otherwise it is ImageNet's.
        batch: images per run that it takes.
        softmax: whether it gives probabilities, not logits.
        runner: what runs it; it belongs to who opened it.
        warnings: what who reads its numbers must know.
    """

    kind: Kind
    path: Path
    sha256: str
    runs_on: str
    precision: str
    spec: ParNetSpec
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    batch: BatchRange
    softmax: bool
    runner: Runner
    own_preprocessing: bool = True
    warnings: tuple[str, ...] = ()


def open_subject(path: Path) -> Subject:
    """A model or engine bundle, opened; close its runner after use.

    A model's graph is run by ONNX Runtime on the CPU operator by operator, as `verify` does: as it
    stands where what is not quantised computes in float32, and below that with every rounding made
    (`evaluate.graphs`).

    Raises:
        BundleError: there is no bundle, or it is damaged.
        EngineError: it cannot run on this machine; the message says what to do.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    kind, runs_on, runner = _open(bundle)
    return Subject(
        kind=kind,
        path=path,
        sha256=bundle.manifest_sha256,
        runs_on=runs_on,
        precision=manifest.precision,
        spec=manifest.spec,
        labels=bundle.labels,
        preprocessing=manifest.preprocessing,
        batch=manifest.batch,
        softmax=manifest.softmax,
        runner=runner,
        warnings=manifest.warnings,
    )


def _open(bundle: ModelBundle | EngineBundle) -> tuple[Kind, str, Runner]:
    if _is_engine(bundle):
        return "engine", _engine_words(bundle.manifest), open_runner(bundle)
    return "model", *open_graph(cast("ModelBundle", bundle))


def _is_engine(bundle: ModelBundle | EngineBundle) -> TypeGuard[EngineBundle]:
    return isinstance(bundle.manifest, EngineManifest)


def _engine_words(manifest: EngineManifest) -> str:
    devices = sorted({stage.device for stage in manifest.stages})
    engines = f"split into {len(manifest.stages)} engines" if manifest.split else "one engine"
    other = manifest.computes not in ("", manifest.precision)
    computed = f", computed in {manifest.computes}" if other else ""
    return f"{manifest.backend}, {engines}, on {', '.join(devices)}{computed}"
