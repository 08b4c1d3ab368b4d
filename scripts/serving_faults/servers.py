"""Servers on loopback: ours as its users start it, in a process of its own, and a real Triton."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serving_faults.model import NAME
from serving_faults.wire import Answer, WireError, ask, head

START_SECONDS = 90.0
STOP_SECONDS = 60.0


class StartError(Exception):
    """A server did not start: what it said last."""


@dataclass(kw_only=True)
class Server:
    """A server that was started.

    Attributes:
        port: of its HTTP on 127.0.0.1; 0 while it is not known.
        process: it; None where somebody else began it.
        pids: its process, and those that belong to it.
        log: what it said, by lines.
    """

    port: int = 0
    process: subprocess.Popen[str] | None = None
    pids: tuple[int, ...] = ()
    log: list[str] = field(default_factory=list)

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        if self.process is not None:
            return self.process.poll() is None
        return all(_status(pid, "State") not in ("", "Z (zombie)") for pid in self.pids[:1])

    def get(self, path: str) -> Answer | None:
        """What is answered at a path."""
        return ask(self.port, head("GET", path))

    def status_of(self, path: str) -> int:
        """The status at a path; 0 where there is no answer."""
        try:
            answer = self.get(path)
        except (OSError, WireError):
            return 0
        return 0 if answer is None else answer.status

    def metric(self, name: str) -> float:
        """The sum of a metric's series."""
        answer = self.get("/metrics")
        if answer is None:
            raise WireError("there are no metrics")
        lines = [line for line in answer.body.decode().splitlines() if not line.startswith("#")]
        named = [line for line in lines if line.partition("{")[0].partition(" ")[0] == name]
        if not named:
            raise WireError(f"there is no metric {name}")
        return sum(float(line.rpartition(" ")[2]) for line in named)

    def wait_for_metric(self, name: str, value: float) -> bool:
        """Whether a metric has a value before long."""
        return wait(lambda: self.metric(name) == value)

    def memory(self) -> int:
        """Bytes that it has resident."""
        return sum(_kilobytes(pid, "VmRSS") for pid in self.pids)

    def peak(self) -> int:
        """Bytes that it had resident at most since `forget_peak`."""
        return sum(_kilobytes(pid, "VmHWM") for pid in self.pids)

    def forget_peak(self) -> None:
        """Begin to look for a new peak (proc(5), clear_refs)."""
        for pid in self.pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def files(self) -> int:
        """Files and sockets that it has open."""
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.pids)

    def stop(self) -> None:
        """Send SIGTERM."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> int:
        """Its exit status, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it does not end.
        """
        if self.process is None:
            raise ValueError("this server was begun by somebody else")
        return self.process.wait(STOP_SECONDS)

    def wait_until_ready(self) -> None:
        """Wait for it, and for its port where that is not known.

        Raises:
            StartError: it ended before, or is not ready in time.
        """

        def is_ready() -> bool:
            if not self.is_alive:
                raise StartError(self.last_words())
            line = next((line for line in self.log if "ready: " in line), "")
            if line:
                self.port = int(line.partition("http://127.0.0.1:")[2].partition(";")[0])
            return bool(line)

        if not wait(is_ready, START_SECONDS):
            raise StartError(f"it is not ready after {START_SECONDS:g} s: {self.last_words()}")

    def last_words(self) -> str:
        """The last line of its log."""
        return self.log[-1] if self.log else "it said nothing"


def wait(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether something becomes so within some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def command_of(engine: Path, *options: object) -> list[str]:
    """Our server, as its users start it; any free port unless told otherwise."""
    port = [] if "--port" in options else ["--port", "0"]
    words = ["-m", "parnet_deploy", "serve", engine, "--name", NAME, *port, *options]
    return [sys.executable, *map(str, words)]


@contextlib.contextmanager
def begun(
    command: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None
) -> Iterator[Server]:
    """A program, not waited for; what is left of it at the end of the block is killed."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # what it starts is ended with it
    )
    server = Server(process=process, pids=(process.pid,))

    def read() -> None:
        for line in process.stderr or ():
            server.log.append(line.rstrip("\n"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join()
        if process.stderr is not None:
            process.stderr.close()


@contextlib.contextmanager
def ours(engine: Path, *options: object) -> Iterator[Server]:
    """Our server, ready.

    Raises:
        StartError: it does not start.
    """
    with begun(command_of(engine, *options)) as server:
        server.wait_until_ready()
        yield server


def family(pid: int) -> tuple[int, ...]:
    """A process and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _status(int(entry.name), "PPid")):
            parents.setdefault(int(parent), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return tuple(found)


def _kilobytes(pid: int, field_name: str) -> int:
    """A size in bytes; 0 of a process that has gone."""
    words = _status(pid, field_name).split()
    return 1024 * int(words[0]) if words else 0


def _status(pid: int, field_name: str) -> str:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith(field_name)), ""
    )
