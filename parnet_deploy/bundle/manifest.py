"""What a bundle's manifest says."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from parnet_deploy.errors import SpecError
from parnet_deploy.spec import (
    Backend,
    DeployForm,
    ParNetSpec,
    Preprocessing,
    StemMode,
    TensorSpec,
)
from parnet_deploy.spec.quantisation import Quantisation, base_of

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_SUM = "manifest.sha256"

MODEL_GRAPH = "model.onnx"
CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "stages/weights.safetensors"
LABELS = "labels.txt"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRange:
    """Images per run that a graph or engine takes; all three equal means fixed."""

    min: int = 1
    opt: int = 1
    max: int = 1

    def __post_init__(self) -> None:
        """Refuse what is not a range.

        Raises:
            SpecError: not 1 <= min <= opt <= max.
        """
        if not 1 <= self.min <= self.opt <= self.max:
            raise SpecError(
                f"a batch range is 1 <= MIN <= OPT <= MAX, not {self.min}:{self.opt}:{self.max}"
            )

    @property
    def dynamic(self) -> bool:
        """Whether more than one size is allowed."""
        return self.min != self.max

    @property
    def axis(self) -> int | str:
        """The batch axis in a tensor's shape: a number, or ``"N"``."""
        return "N" if self.dynamic else self.min


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """A file's digest and size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a model bundle's weights came from.

    Attributes:
        kind: ``official`` (authors' release), ``parnet-deploy`` (own checkpoint) or ``untrained``.
        file: name of the file they were read from, or None.
        sha256: digest of that file, or None.
        ema: whether the exponential moving average of the weights was taken.
        seed: seed of untrained weights, or None.
    """

    kind: Literal["official", "parnet-deploy", "untrained"]
    file: str | None = None
    sha256: str | None = None
    ema: bool | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphStage:
    """One stage's graph in a model bundle.

    Attributes:
        name: stage name.
        file: path of its ONNX file inside the bundle.
        blocks: names of the blocks in it.
        inputs: what it reads.
        outputs: what it gives.
    """

    name: str
    file: str
    blocks: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CutContract:
    """A tensor that crosses from one stage to another; `bytes` is its size for one image."""

    tensor: TensorSpec
    bytes: int
    source: str
    target: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelManifest:
    """What a model bundle is."""

    format: Literal["parnet-deploy/model"] = "parnet-deploy/model"
    format_version: int = FORMAT_VERSION
    name: str
    spec: ParNetSpec
    form: DeployForm
    source: Source
    opset: int
    precision: str = "fp32"
    quantisation: Quantisation | None = None
    stem: StemMode
    batch: BatchRange
    softmax: bool
    preprocessing: Preprocessing
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    stages: tuple[GraphStage, ...]
    cuts: tuple[CutContract, ...]
    tools: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    created: str = field(default_factory=_now)
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The precision of what is not quantised."""
        return base_of(self.precision, self.quantisation)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStage:
    """One engine in an engine bundle.

    Attributes:
        name: stage name, or ``whole``.
        file: path of the plan or optimised graph inside the bundle.
        device: ``cpu`` or ``cuda:0`` ...
        inputs: what it reads.
        outputs: what it gives.
        kernels: kernels in the plan, where it tells.
        streams: streams those kernels are spread over, where it tells.
        threads: CPU threads that it runs on; None where that is left to the backend.
    """

    name: str
    file: str
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kernels: int | None = None
    streams: int | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReference:
    """The model bundle that an engine was built from.

    Attributes:
        name: its name.
        manifest_sha256: digest of its manifest, which itself names every file.
        path: where it lay, relative to the engine bundle's folder where that is possible.
    """

    name: str
    manifest_sha256: str
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineManifest:
    """What an engine bundle is.

    Attributes:
        target: what the engine runs on, as the backend wrote it: names and versions that must
            match where it is opened (compute capabilities, provider, versions).
        options: how it was built, with the names of the backend's own flags.
        source: where the model's weights came from.
        precision: that of the graphs it was built from.
        quantisation: of those graphs; None where they are not quantised.
        computes: what its engines compute in: a precision, or ``tf32``; backends on a CPU run
            graphs in float16 in float32. Empty where the bundle is older than this entry.
    """

    format: Literal["parnet-deploy/engine"] = "parnet-deploy/engine"
    format_version: int = FORMAT_VERSION
    name: str
    backend: Backend
    split: bool
    model: ModelReference
    spec: ParNetSpec
    form: DeployForm
    precision: str
    quantisation: Quantisation | None = None
    batch: BatchRange
    softmax: bool
    preprocessing: Preprocessing
    target: Mapping[str, Any]
    options: Mapping[str, Any]
    computes: str = ""
    source: Source | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    stages: tuple[EngineStage, ...]
    tools: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    created: str = field(default_factory=_now)
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The precision of what is not quantised."""
        return base_of(self.precision, self.quantisation)

    @property
    def arithmetic(self) -> str:
        """Its precision in words: ``fp32``, or ``fp16, computed in fp32``."""
        if self.computes in ("", self.precision):
            return self.precision
        return f"{self.precision}, computed in {self.computes}"


Manifest = TypeVar("Manifest", ModelManifest, EngineManifest)
