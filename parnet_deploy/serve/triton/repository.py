"""A repository for Triton, written as a bundle is: beside its place, checked, renamed into it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from parnet_deploy.bundle import (
    LABELS,
    EngineBundle,
    FileRecord,
    ModelReference,
    open_engine_bundle,
    refuse_existing,
    sha256,
    staged,
    versions,
)
from parnet_deploy.errors import BundleError, ServingError
from parnet_deploy.serve.signature import VERSION
from parnet_deploy.serve.triton.checking import CONFIG, check_repository
from parnet_deploy.serve.triton.config import FILES, ModelConfig
from parnet_deploy.serve.triton.deploy import (
    COMPOSE,
    INFERENCE_SERVICE,
    compose_text,
    inference_service_text,
)
from parnet_deploy.serve.triton.graphs import WriteGraph, graph_writer
from parnet_deploy.serve.triton.models import models_of
from parnet_deploy.serve.triton.readme import README, readme_text
from parnet_deploy.serve.triton.settings import RepositorySettings
from parnet_deploy.spec import encode

MARKER = "triton-repository.json"
"""What says that a folder is a repository of ours, and may be replaced."""

PLACEHOLDER = "ensemble.txt"

_EMPTY = (
    "An ensemble has no file of its own. Object stores keep no empty folders, so this is here.\n"
)

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """What a repository is, as its marker says.

    Attributes:
        model: what clients ask for.
        models: all its models, the one that clients ask for last.
        engine: the engine's name.
        engine_manifest_sha256: digest of the engine's manifest.
        source: the model bundle that the engine was built from.
        warnings: those of the engine.
        files: every file but the marker.
    """

    format: Literal["parnet-deploy/triton-repository"] = "parnet-deploy/triton-repository"
    format_version: int = 1
    model: str
    models: tuple[str, ...]
    engine: str
    engine_manifest_sha256: str
    source: ModelReference
    warnings: tuple[str, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict, hash=False)
    files: Mapping[str, FileRecord] = field(default_factory=dict, hash=False)


def write_repository(
    bundle: EngineBundle,
    final: Path,
    settings: RepositorySettings,
    *,
    force: bool = False,
    progress: Progress = lambda step: None,
) -> tuple[Repository, tuple[ModelConfig, ...]]:
    """Write a model repository of an engine: all of it, or nothing.

    Args:
        bundle: the engine; every file is compared with its manifest first.
        final: the repository's folder, which must not exist unless `force` is set.
        settings: how it is to be served.
        force: replace a repository that stands there.
        progress: called with a line at each step.

    Returns:
        What was written, and the models in it, the one that clients ask for last.

    Raises:
        UsageError: the settings do not fit the engine.
        ServingError: Triton cannot serve it, its model bundle is not there, or what was written is
            not what the engine is.
        OutputExistsError: something stands at `final`, or it is no repository.
        BundleError: the engine is damaged or was replaced, or the repository cannot be written.
        MissingDependencyError: ``onnx`` is needed and not installed.
    """
    models = models_of(bundle, settings)
    with staged(final, force=force, marker=MARKER) as work:
        progress(f"check: every file of {bundle.path} against its manifest")
        if open_engine_bundle(bundle.path).manifest_sha256 != bundle.manifest_sha256:
            raise BundleError(f"{bundle.path} was replaced by another engine meanwhile; try again")
        write = graph_writer(bundle, settings.model)
        _write_models(work, models, bundle, write, progress)
        texts = {
            README: readme_text(models, bundle, settings),
            COMPOSE: compose_text(models, bundle.manifest),
            INFERENCE_SERVICE: inference_service_text(models, bundle.manifest, settings.storage),
        }
        for name, text in texts.items():
            (work / name).write_text(text, encoding="utf-8")
        progress("check: every model, file, tensor and weight against the engine and its model")
        check_repository(work, models, bundle, settings.model)
        repository = _seal(work, models, bundle)
    return repository, models


def refuse_output(final: Path, *, engine: Path, force: bool) -> None:
    """Refuse a place for a repository before anything is read.

    Raises:
        OutputExistsError: something stands there and `force` is off, or it is no repository.
        ServingError: it is inside the engine, which would no longer be what its manifest says.
    """
    if final.resolve().is_relative_to(engine.resolve()):
        raise ServingError(f"{final} is in the engine's own folder; choose another --output")
    refuse_existing(final, force=force, marker=MARKER)


def _write_models(
    work: Path,
    models: Sequence[ModelConfig],
    bundle: EngineBundle,
    write: WriteGraph,
    progress: Progress,
) -> None:
    for model in models:
        root = work / model.name
        (root / VERSION).mkdir(parents=True)
        (root / CONFIG).write_text(model.text(), encoding="utf-8")
        if any(tensor.label_filename for tensor in model.outputs):
            shutil.copyfile(bundle.file(LABELS), root / LABELS)
        if model.platform == "ensemble":
            (root / VERSION / PLACEHOLDER).write_text(_EMPTY, encoding="utf-8")
    for model, stage in zip(models, bundle.manifest.stages, strict=False):
        progress(f"write: {model.name}, {model.platform}")
        write(stage, work / model.name / VERSION / FILES[model.platform])


def _seal(work: Path, models: Sequence[ModelConfig], bundle: EngineBundle) -> Repository:
    manifest = bundle.manifest
    files = {
        path.relative_to(work).as_posix(): FileRecord(
            sha256=sha256(path), bytes=path.stat().st_size
        )
        for path in sorted(work.rglob("*"))
        if path.is_file()
    }
    repository = Repository(
        model=models[-1].name,
        models=tuple(model.name for model in models),
        engine=manifest.name,
        engine_manifest_sha256=bundle.manifest_sha256,
        source=manifest.model,
        warnings=manifest.warnings,
        tools=versions("parnet-deploy", "onnx"),
        files=files,
    )
    (work / MARKER).write_bytes(encode(repository))
    return repository
