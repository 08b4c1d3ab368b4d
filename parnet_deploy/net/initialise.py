"""Seeded, untrained networks whose activations stay sane."""

from __future__ import annotations

import torch
from torch import nn

from parnet_deploy.net.parnet import ParNet
from parnet_deploy.spec import ParNetSpec

CALIBRATION_IMAGES = 8


def initialise(spec: ParNetSpec, *, seed: int) -> ParNet:
    """An untrained network with He initialisation and calibrated batch normalisations.

    The running statistics are those of seeded images that vary on every scale, as photographs do:
    every layer's output then has about unit variance for such images, as in a trained network, and
    for photographs, too. (White noise has no large areas: calibrated on it, activations on
    photographs grow a thousandfold.) The global random state is untouched.

    Args:
        spec: the network.
        seed: seed of weights and noise.

    Returns:
        The network in inference mode, float32.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ParNet(spec)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        calibrate(model, _scenes(CALIBRATION_IMAGES, spec.image_size))
    return model


def _scenes(count: int, size: tuple[int, int]) -> torch.Tensor:
    """Random images (count, 3, H, W) with the same power in every octave, unit variance in all.

    Photographs have that spectrum: Field, "Relations between the statistics of natural images and
    the response properties of cortical cells", 1987.
    """
    images = torch.zeros(count, 3, *size)
    cells = 1
    while cells <= min(size):
        octave = torch.randn(count, 3, cells, cells)
        images += nn.functional.interpolate(octave, size=size, mode="bilinear")
        cells *= 2
    return (images - images.mean()) / images.std()


def calibrate(model: nn.Module, images: torch.Tensor) -> None:
    """Set every batch normalisation's running statistics to those of `images`.

    Args:
        model: a network, which is left in inference mode.
        images: (N, 3, H, W).
    """
    model.eval()  # dropout would be in the statistics
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches seen: here, the one batch
        norm.train()
    with torch.no_grad():
        model(images)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
