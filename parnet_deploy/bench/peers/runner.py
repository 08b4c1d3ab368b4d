"""A peer's function of its images as a runner."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from parnet_deploy.errors import ParnetDeployError, RunnerError
from parnet_deploy.runtime.base import ClosingRunner
from parnet_deploy.spec import Array, TensorSpec, check_feeds

Call = Callable[[Array], Array]
T = TypeVar("T")


class CallRunner(ClosingRunner):
    """A function of images as a runner. Safe to run from several threads: they take turns."""

    def __init__(
        self,
        call: Call,
        *,
        title: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        """Take a function; what it holds is let go of when the runner is closed.

        Args:
            call: images (N, 3, H, W) -> logits (N, classes), as an array that is new.
            title: what runs it, as errors name it.
            inputs: its one input.
            outputs: its one output.
        """
        self.inputs = inputs
        self.outputs = outputs
        self._title = title
        self._call: Call | None = call
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; the array given back is new.

        Raises:
            RunnerError: the array does not fit `inputs`, the run failed, or the runner is closed.
        """
        check_feeds(self.inputs, feeds)
        with self._lock:
            answer = self._guarded(self._call, feeds)
        return {self.outputs[0].name: answer}

    def close(self) -> None:
        """Let go of what is behind it; a second call does nothing."""
        self._call = None

    def _guarded(self, function: Callable[[Array], T] | None, feeds: Mapping[str, Array]) -> T:
        if function is None:
            raise RunnerError("this runner is closed; open it again")
        try:
            return function(feeds[self.inputs[0].name])
        except ParnetDeployError:
            raise
        except Exception as exc:  # whatever a peer raises
            raise RunnerError(f"{self._title} failed: {first_line(exc)}") from exc


class TimedCallRunner(CallRunner):
    """One that can also tell what its compute takes alone."""

    def __init__(
        self,
        call: Call,
        timed: Callable[[Array], float],
        *,
        title: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        """Take a function of images that gives seconds, beside what `CallRunner` takes."""
        super().__init__(call, title=title, inputs=inputs, outputs=outputs)
        self._timed: Callable[[Array], float] | None = timed

    def time_compute(self, feeds: Mapping[str, Array]) -> float:
        """Run once. Seconds from the first kernel's start to the last one's end.

        Raises:
            RunnerError: as `run`.
        """
        check_feeds(self.inputs, feeds)
        with self._lock:
            return self._guarded(self._timed, feeds)

    def close(self) -> None:
        """Let go of what is behind it; a second call does nothing."""
        super().close()
        self._timed = None


def first_line(exc: Exception) -> str:
    """What an exception says, in one line."""
    text = str(exc).strip()
    return text.splitlines()[0] if text else type(exc).__name__
