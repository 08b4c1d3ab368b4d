"""What a recipe does to a training image, with torchvision's transforms."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2

from parnet_deploy.spec import Preprocessing
from parnet_deploy.train.recipe import Recipe

Transform = Callable[[Image.Image], Tensor]
"""An RGB image -> (3, H, W) uint8, at random, with torch's global generator."""

_INTERPOLATION = {
    "nearest": v2.InterpolationMode.NEAREST,
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
}


def training_transform(recipe: Recipe, preprocessing: Preprocessing) -> Transform:
    """The transform of a recipe for a network's input.

    Args:
        recipe: which changes, and how strong.
        preprocessing: size, filter, mean and standard deviation of the input.
    """
    size = list(preprocessing.size)
    interpolation = _INTERPOLATION[preprocessing.interpolation]
    steps: list[Callable[..., Any]] = []
    if recipe.crop == "random-resized":
        steps.append(
            v2.RandomResizedCrop(size, scale=recipe.crop_scale, interpolation=interpolation)
        )
    else:
        steps.append(v2.Resize(size, interpolation=interpolation))
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip(recipe.flip))
    if recipe.crop == "shift":
        height, width = (round(recipe.shift * side) for side in size)
        steps.append(v2.RandomCrop(size, padding=[width, height]))
    moved = 0.0 if recipe.crop == "shift" else recipe.shift
    if moved or recipe.rotation or recipe.zoom:
        steps.append(
            v2.RandomAffine(
                recipe.rotation,
                translate=(moved, moved),
                scale=(1 - recipe.zoom, 1 + recipe.zoom),
                interpolation=v2.InterpolationMode.BILINEAR,
            )
        )
    if recipe.colour_jitter:
        steps.append(v2.ColorJitter(*[recipe.colour_jitter] * 3))
    if recipe.rand_augment:
        steps.append(
            TimmRandAugment(
                f"rand-m{recipe.rand_augment_magnitude:g}-n{recipe.rand_augment}"
                f"-mstd{recipe.rand_augment_noise:g}",
                preprocessing,
            )
        )
    steps.append(v2.PILToTensor())
    if recipe.erasing:
        steps.append(RandomNoise(recipe.erasing, preprocessing))
    composed: Transform = v2.Compose(steps)
    return composed


class TimmRandAugment:
    """RandAugment (https://arxiv.org/abs/1909.13719) as timm has it, with which ParNet was trained.

    timm draws from Python's and numpy's global generators; here they are seeded from torch's for
    every image, and then left as they were.
    """

    def __init__(self, config: str, preprocessing: Preprocessing) -> None:
        """Take timm's words for it, such as ``rand-m9-n2-mstd0.5``."""
        colour = tuple(round(255 * mean) for mean in preprocessing.mean)
        smaller = min(preprocessing.size)
        # As timm's own factory of transforms sets them.
        limits = {"translate_const": int(smaller * 0.45), "img_mean": colour}
        self._augment = rand_augment_transform(config, limits)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Change an image at random, with torch's global generator."""
        seed = int(torch.randint(1 << 32, ()))
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm's own
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - likewise
        try:
            changed: Image.Image = self._augment(image)
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002 - likewise
        return changed


class RandomNoise(v2.RandomErasing):  # type: ignore[misc]  # torchvision has no types
    """Random erasing (https://arxiv.org/abs/1708.04896) with noise, on uint8 images.

    Every pixel of the rectangle is drawn from a normal distribution with the data's mean and
    standard deviation, as timm's mode ``pixel`` does after normalisation.
    """

    def __init__(self, probability: float, preprocessing: Preprocessing) -> None:
        """Erase with that probability; areas and aspects are torchvision's defaults."""
        super().__init__(probability)
        self._mean = 255 * torch.tensor(preprocessing.mean)[:, None, None]
        self._std = 255 * torch.tensor(preprocessing.std)[:, None, None]

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Where, how large, and with which pixels."""
        params: dict[str, Any] = super().make_params(flat_inputs)
        if params["v"] is not None:
            noise = torch.randn(3, params["h"], params["w"]) * self._std + self._mean
            params["v"] = noise.round().clamp(0, 255).to(torch.uint8)
        return params
