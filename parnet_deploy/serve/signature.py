"""What a served model reads and gives."""

from __future__ import annotations

from dataclasses import dataclass

from parnet_deploy.bundle import BatchRange, EngineBundle
from parnet_deploy.spec import Preprocessing, TensorSpec

VERSION = "1"
"""The only version of a served model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """A model as its clients see it.

    Attributes:
        name: what clients call it.
        inputs: what it reads; a network's only one is its images (N, 3, H, W).
        outputs: what it gives; a network's only one is (N, classes).
        batch: images per run that its engine takes.
        labels: class names, in the order of the outputs.
        preprocessing: how an encoded image becomes its input.
        softmax: whether its output holds probabilities instead of logits.
        backend: what runs it, such as ``onnxruntime``.
        precision: what it computes in, such as ``fp32``.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: BatchRange
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    softmax: bool
    backend: str
    precision: str

    def __hash__(self) -> int:
        """Of the name alone: what is remembered for a model is looked up for every request."""
        return hash(self.name)

    @property
    def image(self) -> TensorSpec:
        """The input that holds the images."""
        return self.inputs[0]

    @property
    def scores(self) -> TensorSpec:
        """The output that holds a number for each class."""
        return self.outputs[0]


def signature_of(bundle: EngineBundle, name: str | None = None) -> Signature:
    """What an engine bundle's engine reads and gives, under its own name unless told otherwise."""
    manifest = bundle.manifest
    return Signature(
        name=name or manifest.name,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        batch=manifest.batch,
        labels=bundle.labels,
        preprocessing=manifest.preprocessing,
        softmax=manifest.softmax,
        backend=manifest.backend,
        precision=manifest.arithmetic,
    )
