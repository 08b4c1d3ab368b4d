"""Servers in processes of their own: started, stopped while others have their turn, ended."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parnet_deploy.bench.process_group import end_group, end_with_parent, signal_group
from serving_contest.network import Engine
from serving_contest.peers import PeerError

_START_SECONDS = 120.0
_END_SECONDS = 45.0
_GROUP = 2  # of the fields of /proc/PID/stat behind the name
_USER = 11


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How a server is started.

    Attributes:
        name: what it is called here.
        command: the program; ``{port}`` in it is its HTTP port, and a name of `more_ports` another.
        ready: a path that answers 200 once it serves.
        environment: variables beside this process's own.
        folder: where it is started.
        more_ports: what other ports it needs.
    """

    name: str
    command: Sequence[str]
    ready: str
    environment: Mapping[str, str]
    folder: Path
    more_ports: tuple[str, ...] = ()


class Server:
    """A server that rests (SIGSTOP, and all its processes with it) unless it has a turn."""

    def __init__(self, launch: Launch, log: Path) -> None:
        """Start it, wait until it is ready, and let it rest.

        Raises:
            PeerError: it is not ready in time.
        """
        names = ("port", *launch.more_ports)
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.port = ports["port"]
        self._name = launch.name
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [_with_ports(part, ports) for part in launch.command],
                cwd=launch.folder,
                env={**os.environ, **launch.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - no thread has been started by now
            )
        try:
            self._await(launch.ready)
        except BaseException:
            self.end()
            raise
        self.rest()

    def rest(self) -> None:
        """Take no time from others."""
        signal_group(self._process, signal.SIGSTOP)

    @contextlib.contextmanager
    def awake(self) -> object:
        """Inside the block it runs."""
        signal_group(self._process, signal.SIGCONT)
        try:
            yield
        finally:
            self.rest()

    def processor_seconds(self) -> float:
        """What it and all that it has started have computed so far. Reference: proc_pid_stat(5)."""
        ticks = 0
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[_GROUP]) == self._process.pid:
                    ticks += int(fields[_USER]) + int(fields[_USER + 1])
        return ticks / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """End it, and all that it has started; before, it may put away its shared memory."""
        signal_group(self._process, signal.SIGCONT)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        end_group(self._process)

    def _await(self, path: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    connection.close()
                    return
            connection.close()
            time.sleep(0.1)
        last = (self._log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise PeerError(f"{self._name} is not ready; the last it said is: {last}")


def _with_ports(part: str, ports: Mapping[str, int]) -> str:
    """A part of a command with ports in place of their names; other braces, of a path, stay."""
    for name, port in ports.items():
        part = part.replace(f"{{{name}}}", str(port))
    return part


def ours(name: str, engine: Engine, folder: Path) -> Launch:
    """``parnet-deploy serve`` as its user starts it."""
    program = Path(sys.executable).with_name("parnet-deploy")
    return Launch(
        name=name,
        command=[str(program), "serve", str(engine.path), "--port", "{port}"],
        ready="/v2/health/ready",
        environment={},
        folder=folder,
    )


def fastapi(python: Path, fp32: Engine, uint8: Engine) -> Launch:
    """An application on uvicorn, as FastAPI's documentation starts it."""
    return Launch(
        name="fastapi",
        command=[str(python), "-m", "uvicorn", "fastapi_app:app", "--port", "{port}"],
        ready="/openapi.json",
        environment={
            "GRAPH_FP32": str(fp32.graph),
            "GRAPH_UINT8": str(uint8.graph),
            "LABELS": str(fp32.path / "labels.txt"),
        },
        folder=Path(__file__).parent,
    )


def triton(
    binary: Path, backends: Path, libraries: Sequence[Path], python: Path, repository: Path
) -> Launch:
    """Triton with its defaults, on loopback."""
    command = [str(binary), f"--model-repository={repository}", f"--backend-directory={backends}"]
    command += ["--http-address=127.0.0.1", "--http-port={port}"]
    command += ["--grpc-address=127.0.0.1", "--grpc-port={grpc}"]
    command += ["--metrics-address=127.0.0.1", "--metrics-port={metrics}"]
    return Launch(
        name="triton",
        command=command,
        ready="/v2/health/ready",
        environment={
            "PATH": os.pathsep.join((str(python), os.environ["PATH"])),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        },
        folder=repository,
        more_ports=("grpc", "metrics"),
    )


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
