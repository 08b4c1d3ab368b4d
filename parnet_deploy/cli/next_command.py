"""What follows an export: a command that works on this machine, for what it was made for.

And what follows the building of an engine.
"""

from __future__ import annotations

import shlex

from parnet_deploy.bundle import EngineBundle, ModelBundle
from parnet_deploy.engine import choose_backend
from parnet_deploy.engine.choose import buildable_for_gpus
from parnet_deploy.errors import EngineError
from parnet_deploy.runtime.machine import installed
from parnet_deploy.spec import Backend
from parnet_deploy.spec.targets import NAMES, ON_CPU


def next_command(bundle: ModelBundle, target: Backend) -> str:
    """The command that builds a model's engine, as a line to print.

    A target on the CPU is named. Of graphs for TensorRT ``auto`` finds what works here, where
    anything does; what is quantised for it, no other backend takes.

    Args:
        bundle: the model.
        target: the backend that it was exported for.
    """
    words = ["parnet-deploy", "build-engine", str(bundle.path), "--split-streams"]
    options = _options(bundle, target)
    if options is not None:
        return f"next: {shlex.join([*words, *options])}"
    elsewhere = shlex.join([*words, "--backend", target])
    lacks = "is installed, which it is not here"
    if target == "tensorrt" and installed(target) is not None:
        lacks = "runs, which it does not here"
    return f"next, where {NAMES[target]} {lacks}: {elsewhere}"


def next_verification(engine: EngineBundle) -> str:
    """The command that verifies an engine, as a line to print.

    What is quantised is not judged on noise: it names the images that it was calibrated on where
    they are known by name, and otherwise that a folder is needed.

    Args:
        engine: that was built.
    """
    command = f"next: {shlex.join(['parnet-deploy', 'verify', str(engine.path)])}"
    quantisation = engine.manifest.quantisation
    if quantisation is None:
        return command
    from parnet_deploy.quantise.images import named_source

    source = named_source(quantisation.calibration.source)
    return f"{command} --images FOLDER" if source is None else f"{command} --calibrate {source}"


def _options(bundle: ModelBundle, target: Backend) -> tuple[str, ...] | None:
    """What to add, or None where nothing does here."""
    if target in ON_CPU:
        # ONNX Runtime is always there, whichever of its packages it came in.
        here = target == "onnxruntime" or installed(target) is not None
        return ("--backend", target) if here else None
    quantisation, precision = bundle.manifest.quantisation, bundle.manifest.precision
    if target == "tensorrt":
        try:
            choose_backend(precision, None if quantisation is None else quantisation.scheme)
        except EngineError:
            pass  # nothing that runs here: what builds for elsewhere is left
        else:
            return () if quantisation is None else buildable_for_gpus(precision)
    return buildable_for_gpus(precision, target)
