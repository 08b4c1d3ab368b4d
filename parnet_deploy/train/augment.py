"""Random shifts, turns and zooms of a batch of images."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from parnet_deploy.train.recipe import Augmentation


def augment(images: Tensor, how: Augmentation) -> Tensor:
    """Change every image at random, with torch's global generator; what comes in is black (0).

    Args:
        images: (N, 3, H, W), 0 being black.
        how: the greatest amounts.

    Returns:
        (N, 3, H, W).
    """
    if how == Augmentation():
        return images
    n, _, height, width = images.shape
    angle = _uniform(n, math.radians(how.rotation))
    scale = 1 + _uniform(n, how.zoom)
    # Coordinates run from -1 to 1, so a side is 2 long; `aspect` keeps turns from shearing.
    shift_x, shift_y = _uniform(n, 2 * how.shift), _uniform(n, 2 * how.shift)
    aspect = height / width
    cos, sin = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack(
        (
            torch.stack((cos, -sin * aspect, shift_x), dim=1),
            torch.stack((sin / aspect, cos, shift_y), dim=1),
        ),
        dim=1,
    )
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _uniform(n: int, limit: float) -> Tensor:
    """(N,) in [-limit, limit)."""
    return (2 * torch.rand(n) - 1) * limit
