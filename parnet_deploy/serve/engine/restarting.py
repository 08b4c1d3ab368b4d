"""An engine that is opened again when it has failed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from parnet_deploy.errors import EngineError, ParnetDeployError
from parnet_deploy.runtime.base import Runner
from parnet_deploy.serve.engine.unanswered import engine_down, engine_failed

_log = logging.getLogger("parnet_deploy.serve")

Found = TypeVar("Found")

BACKOFF = (0.1, 1.0, 5.0, 15.0, 30.0)
"""Seconds before each try to open a failed engine again; there are as many tries."""


class Engine:
    """Lends a runner to several threads, and replaces it when a run has failed.

    The first failure takes the runner away from everybody. Runs that are under way end as they
    may; then it is closed, and a thread opens another. After a run that went well the tries count
    from the beginning, so an engine that opens and fails in turn is given up as well.
    """

    def __init__(
        self,
        opener: Callable[[], Runner],
        warm_up: Callable[[Runner], None],
        *,
        down: Callable[[], None],
        up: Callable[[], None],
        backoff: Sequence[float] = BACKOFF,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Nothing is opened yet.

        Args:
            opener: opens a runner.
            warm_up: proves that it works.
            down: called, in the thread that saw it, when there is no runner any more.
            up: called, in the thread that opened it, when there is one again.
            backoff: seconds before each try.
            clock: tells seconds.
        """
        self._opener = opener
        self._warm_up = warm_up
        self._down = down
        self._up = up
        self._backoff = tuple(backoff)
        self._clock = clock
        self._lock = threading.RLock()
        self._runner: Runner | None = None
        self._broken: Runner | None = None
        self._runs: dict[int, float] = {}  # under way: by their threads, when they began
        self._tries = 0
        self._opening_since: float | None = None
        self._first = threading.Lock()  # held while it is opened for the first time
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.failures = 0
        self.given_up = False

    @property
    def is_open(self) -> bool:
        """Whether there is a runner."""
        return self._runner is not None

    @property
    def is_idle(self) -> bool:
        """Whether there is a runner, and no run is under way."""
        return self._runner is not None and not self._runs

    def open(self) -> None:
        """Open the runner for the first time.

        Raises:
            EngineError: it was closed meanwhile, or as the opener and the warm-up.
        """
        with self._first:
            runner = self._opened()
            with self._lock:
                if not self._ended.is_set():
                    self._runner = runner
                    return
            _close(runner)
        raise EngineError("the engine was closed while it was being opened")

    def use(self, run: Callable[[Runner], Found]) -> Found:
        """Run something on the runner.

        Raises:
            RequestError: 503 where there is no runner; 500 where it failed, whatever with.
        """
        with self._lock:
            runner = self._runner
            if runner is None:
                raise engine_down()
            self._runs[threading.get_ident()] = self._clock()
        try:
            found = run(runner)
        except BaseException as exc:
            self._leave(runner, exc)
            raise engine_failed() from exc
        self._leave(runner, None)
        return found

    def running_for(self) -> float:
        """Seconds that the longest run that is under way has taken; 0 where none is."""
        with self._lock:
            return self._clock() - min(self._runs.values()) if self._runs else 0.0

    def opening_for(self) -> float:
        """For how many seconds it has been opened again by now; 0 where it is not."""
        since = self._opening_since
        return 0.0 if since is None else self._clock() - since

    def close(self, patience: float) -> bool:
        """Open nothing any more, and free the runner unless a run of it does not end.

        Args:
            patience: seconds to wait for an opening that is under way.

        Returns:
            Whether no run and no opening is left.
        """
        self._ended.set()
        with self._lock:
            self._broken, self._runner = self._runner or self._broken, None
            thread = self._thread
            busy = bool(self._runs)
        if thread is not None:
            thread.join(patience)
        if not busy:  # else the last of them has it freed: its run works on that memory
            self._free()
        return not busy and not self._is_opening(thread)

    def _is_opening(self, thread: threading.Thread | None) -> bool:
        if thread is not None and thread.is_alive():
            return True
        return self._first.locked()

    def _free(self) -> None:
        with self._lock:
            broken, self._broken = self._broken, None
        if broken is not None:
            _close(broken)

    def _opened(self) -> Runner:
        runner = self._opener()
        try:
            self._warm_up(runner)
        except BaseException:
            _close(runner)
            raise
        return runner

    def _leave(self, runner: Runner, error: BaseException | None) -> None:
        """A run has ended. The last one to leave a broken runner has it replaced."""
        with self._lock:
            del self._runs[threading.get_ident()]
            if error is not None:
                self.failures += 1
            if self._runner is runner:  # else another run has failed before
                if error is None:
                    self._tries = 0
                else:
                    self._runner, self._broken = None, runner
                    self._down()
            if self._broken is not None and not self._runs:
                self._thread = threading.Thread(target=self._replace, name="reopen", daemon=True)
                self._thread.start()
        if error is not None:
            expected = isinstance(error, ParnetDeployError)
            _log.error("the engine failed: %s", error, exc_info=None if expected else error)

    def _replace(self) -> None:
        """Free the broken runner, and open another unless everything ends."""
        self._opening_since = self._clock()
        self._free()
        self._opening_since = None
        while self._tries < len(self._backoff):
            if self._ended.wait(self._backoff[self._tries]):
                return
            self._tries += 1
            if self._try():
                return
        self.given_up = True
        _log.error("the engine was not opened again after %d tries", len(self._backoff))

    def _try(self) -> bool:
        """Whether nothing is left to be done."""
        self._opening_since = self._clock()
        try:
            runner = self._opened()
        except BaseException as exc:  # noqa: BLE001  # there is another try, whatever it was
            _log.error("the engine could not be opened again: %s", exc)
            return False
        finally:
            self._opening_since = None
        with self._lock:
            if not self._ended.is_set():
                self._runner = runner
                self._up()
                _log.warning("the engine was opened again")
                return True
        _close(runner)
        return True


def _close(runner: Runner) -> None:
    try:
        runner.close()
    except Exception as exc:  # noqa: BLE001  # it may be broken in any way
        _log.error("the engine could not be closed: %s", exc)
