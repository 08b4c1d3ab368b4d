"""Whether a tensor's shape is one that the model takes."""

from __future__ import annotations

from collections.abc import Sequence

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import RequestError
from parnet_deploy.serve.protocol.wording import quoted, shown
from parnet_deploy.spec import TensorSpec


def check_shape(shape: Sequence[int], spec: TensorSpec, batch: BatchRange) -> None:
    """Compare an input's shape with what the model reads; the first axis counts its images.

    Fewer images than ``batch.min`` are welcome: whoever runs the engine fills them up.

    Raises:
        RequestError: 400; the number of axes or a size differs, or there are no images or more
            than ``batch.max``.
    """
    expected = (_images(batch), *spec.shape[1:])
    if len(shape) != len(expected) or tuple(shape[1:]) != expected[1:]:
        raise RequestError(
            400,
            f"input {quoted(spec.name)} has shape {shown(shape)}, and {shown(expected)} is "
            f"expected{_hint(shape, spec.shape)}",
        )
    _check_images(shape, spec.name, batch)


def check_files(shape: Sequence[int], name: str, batch: BatchRange) -> None:
    """The same of encoded images: [N], or [N, 1].

    Raises:
        RequestError: 400; it is another shape, or there are no images or more than ``batch.max``.
    """
    if len(shape) not in (1, 2) or tuple(shape[1:]) not in ((), (1,)):
        expected = shown([_images(batch)])
        raise RequestError(
            400,
            f"input {quoted(name)} has shape {shown(shape)}, and encoded images are {expected}: "
            "one element each",
        )
    _check_images(shape, name, batch)


def _check_images(shape: Sequence[int], name: str, batch: BatchRange) -> None:
    if 1 <= shape[0] <= batch.max:
        return
    number = "1 image" if batch.max == 1 else f"1 to {batch.max} images"
    raise RequestError(
        400, f"input {quoted(name)} has shape {shown(shape)}, and {number} may be sent at once"
    )


def _images(batch: BatchRange) -> int | str:
    return "N" if batch.max > 1 else 1


def _hint(found: Sequence[int], expected: Sequence[int | str]) -> str:
    """What the client may have meant."""
    channels = expected[1:2]
    if len(expected) != 4:
        return ""
    if tuple(found) == tuple(expected[1:]):
        return "; the axis of images is missing"
    if len(found) == 4 and tuple(found[3:]) == channels != tuple(found[1:2]):
        return "; that looks like NHWC"
    if len(found) == 3 and tuple(found[2:]) == channels:
        return "; that looks like HWC without an axis of images"
    return ""
