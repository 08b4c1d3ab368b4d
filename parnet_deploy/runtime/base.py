"""The runner protocol: named arrays in, named arrays out, whatever is behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from parnet_deploy.spec import Array, TensorSpec, check_feeds


@runtime_checkable
class Runner(Protocol):
    """Runs a network, or a part of one.

    Attributes:
        inputs: the arrays it reads.
        outputs: the arrays it gives.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. The arrays given back belong to the caller.

        Raises:
            RunnerError: the arrays do not fit `inputs`, or the run failed.
        """
        ...

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        ...


@runtime_checkable
class ShowsCuts(Protocol):
    """A runner of several stages that can show what went from one to another."""

    def run_all(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """As `Runner.run`, with every stage's outputs beside the caller's.

        Raises:
            RunnerError: as `Runner.run`.
        """
        ...


class ClosingRunner:
    """``with`` for runners: closed at the end of the block."""

    def close(self) -> None:
        """Free everything; a second call does nothing."""

    def __enter__(self) -> Self:
        """The runner itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the runner."""
        self.close()


class FunctionRunner(ClosingRunner):
    """A Python function as a runner: the double that stands in for an engine."""

    def __init__(
        self,
        function: Callable[[Mapping[str, Array]], Mapping[str, Array]],
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        """Wrap `function`, which takes and gives arrays by name."""
        self.inputs = inputs
        self.outputs = outputs
        self._function = function

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Call the function.

        Raises:
            RunnerError: the arrays do not fit `inputs`, or what came back does not fit `outputs`.
        """
        check_feeds(self.inputs, feeds)
        results = dict(self._function(feeds))
        check_feeds(self.outputs, results)
        return results
