"""Engines of networks that nobody has exported yet: by name, untrained, on any backend.

Latency does not depend on the weights' values.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from parnet_deploy.bundle import EngineBundle, ModelBundle, open_model
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.errors import BuildError
from parnet_deploy.spec import Backend
from parnet_deploy.spec.precision import QUANTISED

Progress = Callable[[str], None]


def variant_engines(
    names: Sequence[str],
    backends: Sequence[Backend],
    folder: Path,
    *,
    batch: int = 1,
    precision: str = "fp32",
    calibrate: str | None = None,
    progress: Progress = lambda step: None,
) -> tuple[EngineBundle, ...]:
    """Export variants, each in the form that serves a backend best, and build their engines.

    The export runs in a process of its own, so that this one carries no training framework.

    Args:
        names: of variants.
        backends: one engine for each.
        folder: where models and engines are made.
        batch: images per run, fixed.
        precision: that of the graphs.
        calibrate: images to quantise on, for a precision that takes some.
        progress: called with a line at each step.

    Raises:
        BuildError: an export or a build failed.
        UsageError: there is no such variant.
    """
    engines: list[EngineBundle] = []
    for name in names:
        for backend in backends:
            progress(f"export: {name} for {backend}")
            images = calibrate if precision in QUANTISED else None
            model = _export(name, backend, folder, batch, precision, images)
            engines += model_engines(model, (backend,), folder, progress=progress)
    return tuple(engines)


def model_engines(
    model: ModelBundle,
    backends: Sequence[Backend],
    folder: Path,
    *,
    options: BuildOptions | None = None,
    progress: Progress = lambda step: None,
) -> tuple[EngineBundle, ...]:
    """The whole network of a model as one engine for each backend.

    Raises:
        BuildError: it cannot be built.
    """
    engines: list[EngineBundle] = []
    for backend in backends:
        builder = make_builder(
            backend,
            options or BuildOptions(),
            split=False,
            precision=model.manifest.precision,
        )
        progress(f"build: {model.manifest.name} with {backend}")
        final = folder / f"{model.path.resolve().name}-{builder.label}"
        engines.append(build_engine(model, final, builder, split=False, force=True))
    return tuple(engines)


def _export(
    name: str, backend: Backend, folder: Path, batch: int, precision: str, calibrate: str | None
) -> ModelBundle:
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{name}-for-{backend}"
    command = [sys.executable, "-m", "parnet_deploy", "export", "--variant", name]
    command += ["--for", backend, "--batch", str(batch), "--output", str(final), "--force"]
    command += ["--precision", precision] * (precision != "fp32")
    command += ["--calibrate", calibrate] if calibrate is not None else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise BuildError(f"'{name}' cannot be exported: {lines[-1].removeprefix('error: ')}")
    return open_model(final, check=False)
