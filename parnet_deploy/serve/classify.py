"""From image files to rows that an engine reads, and from its answer to labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from parnet_deploy.errors import ImageError
from parnet_deploy.images import decode_bytes, preprocess
from parnet_deploy.runtime.outputs import Guess, likeliest, probabilities
from parnet_deploy.runtime.timeline import Span
from parnet_deploy.serve.engine.batching import Arrays
from parnet_deploy.serve.engine.unanswered import invalid
from parnet_deploy.serve.protocol.request import EncodedImages
from parnet_deploy.serve.recording import Timing
from parnet_deploy.serve.signature import Signature
from parnet_deploy.spec import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Classification:
    """What a model sees in an image.

    Attributes:
        guesses: the likeliest classes, the likeliest first.
        timing: what it took.
        spans: when each stage worked, in a second run; empty where nobody asked or can tell.
    """

    guesses: tuple[Guess, ...]
    timing: Timing
    spans: tuple[Span, ...] = ()


def decode_files(
    files: Sequence[bytes], signature: Signature, max_pixels: int, check: Callable[[], None]
) -> Array:
    """Make image files what a model reads.

    Args:
        files: at least one, of the formats that `images` reads.
        signature: how they are prepared.
        max_pixels: how many pixels all of them may have together, looked at before each is decoded.
        check: called before each; raises where nobody waits for them any more.

    Returns:
        (N, 3, H, W), of the dtype of the model's images.

    Raises:
        RequestError: 400; one of them is not an image that can be used, or as `check`.
    """
    rows, spent = [], 0
    for number, data in enumerate(files, start=1):
        check()
        name = "the image" if len(files) == 1 else f"image {number} of {len(files)}"
        try:
            image = decode_bytes(data, name=name, max_pixels=max_pixels, spent=spent)
            rows.append(preprocess(image, signature.preprocessing))
        except ImageError as exc:
            raise invalid(str(exc)) from exc
        spent += image.width * image.height
    array = rows[0] if len(rows) == 1 else np.concatenate(rows)
    return array.astype(signature.image.dtype, copy=False)


def decode_inputs(
    inputs: Mapping[str, Array | EncodedImages],
    signature: Signature,
    max_pixels: int,
    check: Callable[[], None],
) -> dict[str, Array]:
    """A request's inputs, with arrays in place of image files.

    Raises:
        RequestError: as `decode_files`.
    """
    return {
        name: decode_files(value.files, signature, max_pixels, check)
        if isinstance(value, EncodedImages)
        else value
        for name, value in inputs.items()
    }


def guess(outputs: Arrays, signature: Signature, top: int) -> tuple[Guess, ...]:
    """The likeliest classes of one image.

    Args:
        outputs: finite, of one image.
        signature: which of them are scores, and of which labels.
        top: how many classes.
    """
    rows = probabilities(outputs[signature.scores.name], softmax=signature.softmax)
    return likeliest(rows[0], signature.labels, top)
