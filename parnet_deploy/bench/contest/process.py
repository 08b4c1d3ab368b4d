"""A contestant's process as the benchmark holds it: started, stopped while others run, ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

from parnet_deploy.bench.contest.environment import environment_of
from parnet_deploy.bench.contest.messages import Assignment, Finished, Opened, Reply, Turn, Turned
from parnet_deploy.bench.process_group import end_group, signal_group
from parnet_deploy.errors import RunnerError, SpecError
from parnet_deploy.spec import decode
from parnet_deploy.spec.codec import encode_line

WORKER = (sys.executable, "-m", "parnet_deploy.bench.contest.worker")

OPENING_SECONDS = 900.0
"""A network may be compiled before it answers for the first time."""

TURN_SECONDS = 300.0
"""Beyond the seconds that a turn is asked to take."""

_SAID_BYTES = 2000


class WorkerProcess:
    """A contestant in a process of its own, which is stopped (SIGSTOP) while it has no turn.

    So nothing of it can take time from another's turn: no pool of threads that wait for work by
    spinning, and no process that it has started, which are stopped and ended with it.
    """

    def __init__(
        self,
        assignment: Assignment,
        *,
        command: Sequence[str] = WORKER,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Describe a process; `open` starts it.

        Args:
            assignment: whom it runs.
            command: the program.
            environment: its environment variables; this process's where None.
        """
        self._assignment = assignment
        self._command = command
        self._environment = dict(os.environ if environment is None else environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._said: BinaryIO | None = None
        self._pending = b""

    def open(self) -> tuple[Opened, float]:
        """Start it and wait for its first answer; then stop it.

        Returns:
            What it says of itself, and the seconds from its start to that answer.

        Raises:
            RunnerError: it did not give one; the message says why.
        """
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=self._environment,
            # A group of its own, and Ctrl-C is for the benchmark, which ends its processes.
            start_new_session=True,
        )
        self._send(self._assignment)
        reply = self._receive(OPENING_SECONDS).opened
        seconds = time.perf_counter() - begin
        if reply is None:
            self._fail("it gave no first answer")
        self._signal(signal.SIGSTOP)
        return reply, seconds

    def turn(self, turn: Turn) -> Turned:
        """Let it run for a turn.

        Raises:
            RunnerError: a run failed.
        """
        self._signal(signal.SIGCONT)
        self._send(turn)
        seconds = turn.warm_up_seconds + turn.seconds + TURN_SECONDS
        reply = self._receive(seconds).turned
        if reply is None:
            self._fail("it gave no latencies")
        self._signal(signal.SIGSTOP)
        return reply

    def finish(self) -> Finished:
        """Let it end.

        Raises:
            RunnerError: it failed.
        """
        self._signal(signal.SIGCONT)
        process = self._running()
        if process.stdin is not None:
            process.stdin.close()
        reply = self._receive(TURN_SECONDS).finished
        if reply is None:
            self._fail("it did not end")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TURN_SECONDS)
        self.kill()
        return reply

    def kill(self) -> None:
        """End it, whatever it does; a second call does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        end_group(process)
        if self._said is not None:
            self._said.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RunnerError("its process has ended")
        return self._process

    def _signal(self, number: signal.Signals) -> None:
        signal_group(self._running(), number)

    def _send(self, message: Assignment | Turn) -> None:
        stdin = self._running().stdin
        with contextlib.suppress(BrokenPipeError):  # why, `_receive` tells
            if stdin is not None:
                stdin.write(encode_line(message))
                stdin.flush()

    def _receive(self, seconds: float) -> Reply:
        """The next reply.

        Raises:
            RunnerError: it is an error, there is none, or it does not come.
        """
        line = self._read_line(seconds)
        try:
            reply = decode(line, Reply)
        except SpecError:
            self._fail("what it replied cannot be read")
        if reply.error is not None:
            self.kill()
            raise RunnerError(reply.error)
        return reply

    def _read_line(self, seconds: float) -> bytes:
        stdout = self._running().stdout
        if stdout is None:
            self._fail("it has no output")
        deadline = time.monotonic() + seconds
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                self._fail(f"no answer within {seconds:.0f} seconds")
            data = os.read(stdout.fileno(), 1 << 16)
            if not data:
                self._fail(self._ended())
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _ended(self) -> str:
        """How a process ended that said nothing more."""
        status = self._running().wait()
        said = self._last_words()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"its process ended with {how}" + (f": {said}" if said else "")

    def _last_words(self) -> str:
        if self._said is None:
            return ""
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - _SAID_BYTES))
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def _fail(self, reason: str) -> NoReturn:
        self.kill()
        raise RunnerError(reason)


def worker_of(assignment: Assignment) -> WorkerProcess:
    """The process of a contestant, with the environment that its users would have."""
    environment = environment_of(assignment.contestant.group, os.environ)
    return WorkerProcess(assignment, environment=environment)


def answers_file(folder: Path, number: int) -> Path:
    """Where a contestant's process writes its answers."""
    return folder / f"answers-{number}.npy"
