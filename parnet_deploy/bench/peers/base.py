"""What a peer is: another way to run the same network, as those who use it would."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.errors import UsageError
from parnet_deploy.runtime.machine import cuda_driver
from parnet_deploy.spec import IMAGES, LOGITS, TensorSpec

Precision = Literal["fp32", "fp16"]
Kind = Literal["cpu", "cuda"]

_MODULES: Mapping[str, str] = {
    "onnx-graphsurgeon": "onnx_graphsurgeon",
    "onnxruntime-gpu": "onnxruntime",
    "tensorrt-rtx": "tensorrt_rtx",
    "cuda-bindings": "cuda.bindings.driver",
}
"""Modules that have not the name of their package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """What a peer is to run. It crosses to the process that prepares it as JSON.

    Attributes:
        peer: its name, one of `PEERS`.
        network: name of the network, as contestants bear it.
        model: folder of the model bundle.
        workspace: folder for what is prepared; peers of the same network share it.
        images: the file that `bench.images.write_images` wrote.
        device: ``cpu`` or ``cuda:N``.
        batch: images per run.
        precision: what it computes in.
    """

    peer: str
    network: str
    model: str
    workspace: str
    images: str
    device: str = "cpu"
    batch: int = 1
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        """Refuse what no peer can run.

        Raises:
            UsageError: no image per run, or no such device.
        """
        if self.batch < 1:
            raise UsageError(f"a batch has at least one image, not {self.batch}")
        device_number(self.device)

    @property
    def folder(self) -> Path:
        """The workspace, made where it is missing."""
        folder = Path(self.workspace)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _nothing(device: str) -> str | None:
    """No further reason why a peer cannot take part."""
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """Another way to run the network.

    Attributes:
        name: what ``--against`` calls it.
        title: what its users would call it; it says what is not their default.
        packages: what it needs, by names in the registry.
        prepare: makes a contestant of it, in a process of its own; see `bench.preparing`.
        extra: that of parnet-deploy which brings the packages.
        devices: kinds of devices that it runs on.
        precisions: what it computes in on each of those.
        hindrance: whatever else may be in its way on a device, or None.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    prepare: Callable[[Preparation], Contestant]
    extra: str = "bench"
    devices: tuple[Kind, ...] = ("cpu", "cuda")
    precisions: Mapping[Kind, tuple[Precision, ...]]
    hindrance: Callable[[str], str | None] = _nothing

    def problem(self, device: str, precision: Precision = "fp32") -> str | None:
        """Why it cannot take part on a device, or None. Nothing is imported.

        Raises:
            UsageError: `device` is not ``cpu`` or ``cuda:N``.
        """
        number = device_number(device)
        kind: Kind = "cpu" if number is None else "cuda"
        if kind not in self.devices:
            return f"{self.title} runs on {' and '.join(self.devices)} only, not on {device}"
        if precision not in self.precisions[kind]:
            known = " and ".join(self.precisions[kind])
            return f"{self.title} takes part in {known} only on {kind}, not in {precision}"
        if lacking := packages_lacking(self.packages, self.extra):
            return lacking
        if number is not None and (lacking := gpu_lacking(number)):
            return lacking
        return self.hindrance(device)


def packages_lacking(packages: tuple[str, ...], extra: str) -> str | None:
    """Which of them are not installed and what brings them, or None. None is imported."""
    missing = [name for name in packages if not _importable(_MODULES.get(name, name))]
    if not missing:
        return None
    verb = "is" if len(missing) == 1 else "are"
    listed = ", ".join(missing)
    return f"{listed} {verb} not installed: pip install 'parnet-deploy[{extra}]'"


def device_number(device: str) -> int | None:
    """N of ``cuda:N``, None for ``cpu``.

    Raises:
        UsageError: neither of them.
    """
    kind, _, number = device.partition(":")
    if device == "cpu":
        return None
    if kind == "cuda" and number.isdigit():
        return int(number)
    raise UsageError(f"a device is cpu or cuda:N, not '{device}'")


def gpu_lacking(number: int) -> str | None:
    """Why there is no GPU of that number here, or None where there is."""
    driver = cuda_driver()
    if driver.problem is not None:
        return driver.problem
    there = len(driver.gpus)
    return None if number < there else f"there is no cuda:{number}: the driver finds {there}"


def contestant_of(
    asked: Preparation, title: str, opener: str, path: Path, settings: Mapping[str, Any]
) -> Contestant:
    """A prepared peer as a contestant; `settings` are added to those of the asked."""
    return Contestant(
        name=title if asked.device == "cpu" else f"{title}, {asked.device}",
        group="peer",
        network=asked.network,
        opener=opener,
        path=str(path),
        images=asked.images,
        devices=(asked.device,),
        settings={"batch": asked.batch, "precision": asked.precision, **settings},
    )


def contracts(
    batch: int, size: tuple[int, int], classes: int
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of every peer: float32 images, as the network reads them, and logits."""
    images = TensorSpec(name=IMAGES, shape=(batch, 3, *size), dtype="float32")
    logits = TensorSpec(name=LOGITS, shape=(batch, classes), dtype="float32")
    return (images,), (logits,)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False
