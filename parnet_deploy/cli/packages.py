"""The packages that a command needs beyond those always there, and the extra that brings them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from parnet_deploy.errors import MissingDependencyError

MODULES: Mapping[str, str] = {
    "onnx-graphsurgeon": "onnx_graphsurgeon",
    "prometheus-client": "prometheus_client",
    "scikit-learn": "sklearn",
    "tensorrt-rtx": "tensorrt_rtx",
    "tritonclient": "tritonclient.grpc",
    "cuda-bindings": "cuda.bindings.driver",
}
"""Modules that have not the name of their package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a command needs.

    Attributes:
        packages: by their names in the registry.
        extra: that of parnet-deploy which brings them.
    """

    packages: tuple[str, ...]
    extra: str


NEEDS: Mapping[str, Needs] = {
    "export": Needs(packages=("torch", "onnx", "onnx-graphsurgeon", "safetensors"), extra="export"),
    "ensemble": Needs(packages=("torch", "safetensors"), extra="export"),
    "verify": Needs(
        packages=("torch", "onnx", "safetensors", "matplotlib", "jinja2"), extra="export"
    ),
    "serve": Needs(
        packages=("starlette", "uvicorn", "httptools", "uvloop", "prometheus-client"),
        extra="serve",
    ),
    "serve --grpc-port": Needs(packages=("tritonclient",), extra="grpc"),
    "train": Needs(
        packages=(
            "torch",
            "torchvision",
            "timm",
            "safetensors",
            "scikit-learn",
            "tensorboard",
            "matplotlib",
        ),
        extra="train",
    ),
}
"""By command. ``doctor`` says from this, too, what works."""


def module_of(package: str) -> str:
    """The module that a package is imported as."""
    return MODULES.get(package, package)


def need(command: str) -> None:
    """Say what to install before anything is done. Nothing is imported.

    Args:
        command: one of `NEEDS`.

    Raises:
        MissingDependencyError: a package that the command needs is not installed.
    """
    needs = NEEDS[command]
    if missing := [name for name in needs.packages if not _is_there(module_of(name))]:
        which = "which is" if len(missing) == 1 else "which are"
        raise MissingDependencyError(
            f"{command} needs {', '.join(missing)}, {which} not installed: "
            f"pip install 'parnet-deploy[{needs.extra}]'"
        )


def _is_there(module: str) -> bool:
    """Whether a module can be found; of one inside a package, the package is imported for that."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package itself is not there
        return False
