"""Which images of a data set cannot be decoded, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from parnet_deploy.data.base import Samples
from parnet_deploy.errors import ImageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Bad:
    """An image that cannot be used.

    Attributes:
        index: which sample.
        name: the file's path, or what else it is called.
        reason: what is wrong, in a sentence.
    """

    index: int
    name: str
    reason: str


def scan(
    samples: Samples, *, progress: Callable[[int], None] = lambda done: None
) -> tuple[Bad, ...]:
    """Decode everything once.

    Args:
        samples: what to decode.
        progress: called after every image with how many are done.

    Returns:
        What is bad, in the order of the samples.
    """
    bad = []
    for index in range(len(samples)):
        try:
            samples.image(index)
        except ImageError as exc:
            bad.append(Bad(index=index, name=samples.name(index), reason=str(exc)))
        progress(index + 1)
    return tuple(bad)
