"""Name, shape and dtype of an array that crosses a boundary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parnet_deploy.errors import MissingDependencyError, RunnerError

Array = np.ndarray[Any, np.dtype[Any]]

_NOT_NUMPYS = frozenset({"bfloat16", "float8_e4m3fn"})


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The element type of a name; numpy knows some only once ml_dtypes is imported.

    Raises:
        MissingDependencyError: it is not installed, and the name is one of those.
    """
    if name in _NOT_NUMPYS:
        try:
            import ml_dtypes  # noqa: F401  # registers them
        except ImportError as exc:
            raise MissingDependencyError(
                f"arrays of {name} need ml-dtypes: pip install ml-dtypes"
            ) from exc
    return np.dtype(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """An array's contract.

    Attributes:
        name: the tensor's name in every graph it appears in.
        shape: one entry an axis; a string is a symbolic size (the batch, ``"N"``).
        dtype: numpy's name of the element type, such as ``"float32"``.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def nbytes(self, batch: int = 1) -> int:
        """Size in bytes with every symbolic axis set to `batch`."""
        items = 1
        for size in self.shape:
            items *= batch if isinstance(size, str) else size
        return items * numpy_dtype(self.dtype).itemsize

    @property
    def image_nbytes(self) -> int:
        """Size in bytes for one image, whatever the batch on the first axis."""
        return replace(self, shape=(1, *self.shape[1:])).nbytes()

    def concrete(self, batch: int) -> tuple[int, ...]:
        """The shape with every symbolic axis set to `batch`."""
        return tuple(batch if isinstance(size, str) else size for size in self.shape)

    def check(self, array: Array) -> None:
        """Compare an array with the contract.

        Raises:
            RunnerError: dtype, number of axes or a fixed size differs.
        """
        shape = array.shape
        if len(shape) == len(self.shape) and array.dtype == numpy_dtype(self.dtype):
            for want, got in zip(self.shape, shape, strict=True):
                if want != got and not isinstance(want, str):
                    break
            else:
                return
        raise RunnerError(
            f"tensor '{self.name}' is {array.dtype.name}{list(shape)}, "
            f"but {self.dtype}[{', '.join(map(str, self.shape))}] is expected"
        )


def check_feeds(specs: Iterable[TensorSpec], feeds: Mapping[str, Array]) -> None:
    """Compare the arrays fed to a runner with its inputs.

    Raises:
        RunnerError: an array is missing, is not an input, or does not fit its contract.
    """
    wanted = {spec.name: spec for spec in specs}
    if wanted.keys() == feeds.keys():
        for name, spec in wanted.items():
            spec.check(feeds[name])
        return
    missing = sorted(wanted.keys() - feeds.keys())
    extra = sorted(feeds.keys() - wanted.keys())
    parts = [f"missing {missing}"] * bool(missing) + [f"not inputs: {extra}"] * bool(extra)
    raise RunnerError(f"the inputs are {sorted(wanted)}; {'; '.join(parts)}")
