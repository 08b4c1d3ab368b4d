"""Whether calibration images are like those that a network was trained on.

Every batch normalisation of a trained network knows mean and variance of what it saw in training.
Images that it was not made for (noise, another camera, a wrong crop) show it something else, and
ranges that are found on them cut off what real images reach: a quantised network may agree with
float32 on all of them, and be wrong on half of all others. So agreement on the calibration images
themselves does not find it; this does.

`unlikeness`, a factor, was measured on images of the training set (digits, digits made to quantise
badly and trained with fake quantisers, twelve draws each; ParNet-S on photographs is within them)
as 1.04 to 1.14 for 32 of them, to 1.19 for 8, to 1.34 for 2 and to 1.57 for a single one; 1.33 and
1.55 on 2 and 6 images of one class alone; 1.78 to 3.0 on noise that was made smaller, and so
dimmed, by the preprocessing; 2.4 to 4.5 on noise of whole range and on dark noise. Of 32 images one
or two may be noise: 1.06 to 1.17.

A network that has learned few images by heart makes more of others: the tests' one, of 84 images,
1.11 to 1.92 of new ones (24 draws, of which 3 would be refused). Nor can it tell where statistics
are not of the network's last training, such as those of normalisations that were frozen while it
was fine-tuned: sound images are refused, then, too.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from parnet_deploy.errors import ExportError
from parnet_deploy.export.gate import normalised
from parnet_deploy.quantise.images import CalibrationImages
from parnet_deploy.quantise.names import ALLOW_DOUBTFUL
from parnet_deploy.spec import Array

MOST = 1.7
"""Images that are further off are refused."""

NEAR = 1.4
"""Of images that are further off it is warned."""

LOOKED_AT = 32
"""Images, evenly spread, that are run through the training form: enough for sums over pixels."""


def check_likeness(model: nn.Module, images: CalibrationImages, *, doubtful: bool) -> str | None:
    """Refuse calibration images that are unlike what a network was trained on.

    Args:
        model: in training form, in inference mode, float32, trained.
        images: that it is to be calibrated on.
        doubtful: go on all the same.

    Returns:
        A warning, in a sentence; None where there is nothing to be said.

    Raises:
        ExportError: they are further off than `MOST`, and `doubtful` is off.
    """
    found = unlikeness(model, images)
    if found <= NEAR:
        return None
    said = (
        "the calibration images are unlike those that this network was trained on: the power of "
        f"what its batch normalisations see differs from training's by a factor of {found:.1f} on "
        "average"
    )
    if not found <= MOST and not doubtful:  # so written, NaN fails too
        raise ExportError(
            f"{said}, and {MOST:g} is accepted; give --calibrate with images like those it will "
            f"see, or {ALLOW_DOUBTFUL} to go on; nothing was written"
        )
    return f"{said}; ranges that are found on them may cut off what others reach"


def unlikeness(model: nn.Module, images: CalibrationImages) -> float:
    """By which factor a network's activations differ in power from those of its training.

    Of every channel of a batch normalisation: the mean square of what it reads, about its running
    mean, over its running variance, which is 1 for the images of the training. Of each layer the
    middle channel counts, since few images leave single ones to chance. What is given is 2 to the
    mean magnitude of the layers' binary logarithms: 1 where all are alike.

    Args:
        model: in training form, in inference mode, float32, trained.
        images: of which `LOOKED_AT` are run.
    """
    count = min(LOOKED_AT, images.count)
    places = [place * images.count // count for place in range(count)]
    fed = normalised(images.take(places, "some").array(), images.preprocessing)
    powers: dict[nn.BatchNorm2d, Tensor] = {}

    def see(norm: nn.Module, read: tuple[Tensor, ...]) -> None:
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            offset = read[0] - norm.running_mean.reshape(-1, 1, 1)
            power = offset.square().double().mean(dim=(0, 2, 3)) / count
            powers[norm] = powers.get(norm, torch.zeros_like(power)) + power

    norms = [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(see) for norm in norms]
    try:
        with torch.inference_mode():
            for place in range(count):
                model(fed[place : place + 1])
    finally:
        for hook in hooks:
            hook.remove()
    logarithms = [float(np.median(_logarithms(norm, power))) for norm, power in powers.items()]
    return float(2.0 ** np.abs(logarithms).mean())


def _logarithms(norm: nn.BatchNorm2d, power: Tensor) -> Array:
    if norm.running_var is None:
        raise ValueError("a batch normalisation without running statistics")
    # The epsilon on both sides: of a channel that is always the same, the ratio is 1.
    ratio = (power + norm.eps) / (norm.running_var.double() + norm.eps)
    found: Array = torch.log2(ratio).numpy()
    return found
