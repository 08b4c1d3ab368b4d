"""A small network that was trained for a few steps, and images that it half recognises."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from conftest import tiny_spec
from PIL import Image

from parnet_deploy.data import ArraySamples, save_images
from parnet_deploy.images import preprocess
from parnet_deploy.net import ParNet, TrainingFacts, calibrate, initialise, save_checkpoint
from parnet_deploy.spec import Array, Preprocessing

LABELS = ("ash", "beech", "cedar", "elm", "fir", "larch", "oak")

PREPROCESSING = Preprocessing(
    size=(32, 32), crop_ratio=0.875, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)
)

# Red, green and blue of every class: none is the mirror of another, and the noise hides much.
_COLOURS = np.array(
    [
        (150, 120, 90),
        (120, 150, 100),
        (140, 100, 120),
        (110, 130, 140),
        (160, 140, 110),
        (130, 110, 80),
        (120, 120, 120),
    ]
)


def samples(each: int, seed: int) -> ArraySamples:
    """So many noisy images of 36x48 pixels of every class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(LABELS)), each)
    tints = _COLOURS[labels] + rng.normal(0, 14, (len(labels), 3))
    noise = rng.normal(0, 40, (len(labels), 3, 36, 48))
    images = np.clip(tints[:, :, None, None] + noise, 0, 255).astype(np.uint8)
    return ArraySamples(images, labels, "trees")


def pixels(of: ArraySamples) -> Array:
    """(N, 3, 32, 32) float32, as the network reads them."""
    return np.concatenate([preprocess(of.image(n), PREPROCESSING) for n in range(len(of))])


@functools.cache
def network() -> ParNet:
    """Trained for 30 steps: it recognises most of the images, and not all."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train = samples(12, seed=1)
    images, labels = torch.from_numpy(pixels(train)), torch.from_numpy(train.labels)
    model = initialise(tiny_spec(image_size=(32, 32)), seed=0).train()
    for step in range(30):
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))[:28]
        loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        weights = list(model.parameters())
        with torch.no_grad():
            for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= 0.1 * slope
    calibrate(model, images)
    return model


def write_checkpoint(path: Path) -> Path:
    """The network with its labels and its preprocessing."""
    save_checkpoint(network(), path, TrainingFacts(labels=LABELS, preprocessing=PREPROCESSING))
    return path


def write_images(folder: Path) -> Path:
    """Five images of every class, lossless, as class folders."""
    save_images(samples(5, seed=2), LABELS, folder)
    return folder


class Swapped:
    """Samples whose images have red and blue exchanged: a seeded fault."""

    def __init__(self, of: ArraySamples) -> None:
        self._of = of

    def __len__(self) -> int:
        return len(self._of)

    def image(self, index: int) -> Image.Image:
        red, green, blue = self._of.image(index).split()
        return Image.merge("RGB", (blue, green, red))

    def label(self, index: int) -> int:
        return self._of.label(index)

    def name(self, index: int) -> str:
        return self._of.name(index)
