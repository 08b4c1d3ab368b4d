"""How great a network's values become: what a narrow precision cannot hold is found here.

ONNX Runtime on a CPU computes float16 in float32 and leaves out what it need not round, so it does
not show what would overflow on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from parnet_deploy.errors import ExportError
from parnet_deploy.net import BlockGraph
from parnet_deploy.spec.precision import Precision, arithmetic


def check_range(model: BlockGraph, inputs: Iterable[Tensor], precision: Precision) -> None:
    """Refuse a network whose values go beyond a precision.

    Args:
        model: the network in deploy form, in float32.
        inputs: normalised images, (N, 3, H, W) each.
        precision: what it is to compute in.

    Raises:
        ExportError: a value is too great; the message names the greatest.
    """
    limit = arithmetic(precision).greatest
    found: dict[str, float] = {}
    for images in inputs:
        for name, value in magnitudes(model, images).items():
            found[name] = max(value, found.get(name, 0.0))
    name = max(found, key=found.__getitem__)
    if not found[name] <= limit:
        raise ExportError(
            f"on noise '{name}' reaches {found[name]:.3g}, and {precision} ends at {limit:.0f}: "
            "export this network with --precision fp32; nothing was written"
        )


def magnitudes(model: nn.Module, images: Tensor) -> dict[str, float]:
    """The greatest magnitude of what every layer reads and gives, by the layer's name."""
    found: dict[str, float] = {}

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def see(_: nn.Module, read: tuple[Tensor, ...], given: Tensor) -> None:
            found[name] = max(float(value.abs().max()) for value in (*read, given))

        return layer.register_forward_hook(see)

    leaves = ((name, layer) for name, layer in model.named_modules() if not any(layer.children()))
    hooks = [watch(name, layer) for name, layer in leaves]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
