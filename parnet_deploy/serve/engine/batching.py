"""Requests' images put together into what an engine takes, and its answers taken apart again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from parnet_deploy.errors import RunnerError
from parnet_deploy.spec import Array

Arrays = Mapping[str, Array]


def rows_of(arrays: Arrays) -> int:
    """How many images arrays are of; one without axes is of none.

    Raises:
        RunnerError: there is no array, or they are of different numbers.
    """
    rows = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(rows) != 1:
        raise RunnerError(f"one number of images is needed, not {sorted(rows)}")
    return rows.pop()


def gather(parts: Sequence[Arrays], missing: int) -> Arrays:
    """Put the images of several requests together.

    What is fewer than the engine takes is filled up with its own last image, as `run_batches` does.

    Args:
        parts: each request's arrays, of the same names.
        missing: images to the least that the engine takes.

    Returns:
        Arrays of all images in order. Those of a single request that needs no filling are its own.
    """
    if len(parts) == 1 and not missing:
        return parts[0]
    return {
        name: np.concatenate(
            [part[name] for part in parts] + [parts[-1][name][-1:]] * missing  # views, no copies
        )
        for name in parts[0]
    }


def split(outputs: Arrays, rows: Sequence[int]) -> Iterator[dict[str, Array]]:
    """Take an engine's answers apart.

    Args:
        outputs: by name, an entry on the first axis for every image that was fed.
        rows: every request's number of images, in order; what is behind them is dropped.

    Yields:
        Every request's own rows, as views.
    """
    first = 0
    for count in rows:
        yield {name: array[first : first + count] for name, array in outputs.items()}
        first += count
