"""What a checkpoint says of itself, and what is usual where it does not say it.

What `export` and `evaluate` share.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING

from parnet_deploy.bundle import Source
from parnet_deploy.spec import ParNetSpec, Preprocessing, default_crop_ratio

if TYPE_CHECKING:
    from parnet_deploy.net import Checkpoint

_IMAGENET_CLASSES = 1000


def labels_of(found: Checkpoint) -> tuple[str, ...]:
    """Class names; ImageNet's for an authors' checkpoint of as many classes; else none."""
    known = found.facts.labels
    if known or found.source.kind != "official" or found.model.spec.classes != _IMAGENET_CLASSES:
        return known
    return imagenet_labels()


def preprocessing_of(found: Checkpoint) -> Preprocessing:
    """How images were prepared, at the network's size; the usual way where it is not said."""
    spec = found.model.spec
    return replace(found.facts.preprocessing or default_preprocessing(spec), size=spec.image_size)


def default_preprocessing(spec: ParNetSpec) -> Preprocessing:
    """ImageNet's: mean, deviation and, for larger images, a crop of 224 out of 256."""
    return Preprocessing(size=spec.image_size, crop_ratio=default_crop_ratio(spec.image_size))


def imagenet_labels() -> tuple[str, ...]:
    """Names of the 1000 ImageNet classes, in the usual order."""
    data = resources.files("parnet_deploy") / "data" / "imagenet_labels.txt"
    return tuple(data.read_text(encoding="utf-8").splitlines())


def origin(source: Source) -> str:
    """Where a checkpoint's weights are from, in words."""
    if source.kind == "parnet-deploy":
        return "a checkpoint of parnet-deploy"
    weights = "the moving average of its weights" if source.ema else "its weights as they are"
    return f"a checkpoint of the authors' form, {weights}"
