"""The same faults for a real Triton, with the same graph and the same bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from triton_server import Triton, stand_in

from parnet_deploy.serve.triton.deploy import OPTIONS
from serving_faults.model import NAME, Model
from serving_faults.scenario import Do, Scenario, Side, WrongError
from serving_faults.servers import START_SECONDS, Server, StartError, begun, family, wait
from serving_faults.trick import add_trick

CUT = "the engine's graph cut short"
PORT = "the port in use"


@dataclass(kw_only=True)
class Tritons:
    """Tritons, as `Side` has it; they take none of our options.

    Attributes:
        repository: whose only model does as its images tell it.
    """

    model: Model
    triton: Triton
    repository: Path
    folder: Path
    is_ours: bool = False
    look: float = 10.0
    _opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _server: Server | None = None

    def serve(self, *options: object) -> Server:
        """The one that runs, or a new one."""
        del options
        if self._server is None or not self._server.is_alive:
            self._server = self._opened.enter_context(self.fresh())
        return self._server

    @contextlib.contextmanager
    def fresh(self, *options: object) -> Iterator[Server]:
        """Another one, ready."""
        del options
        with served(self.triton, self.repository) as server:
            yield server

    def close(self) -> None:
        """End the one that runs."""
        self._server = None
        self._opened.close()


def make_repository(engine: Path, folder: Path) -> Path:
    """A repository of an engine, for the backend that the wheel has."""
    repository = folder / "repository"
    command = [sys.executable, "-m", "parnet_deploy", "triton-repo", str(engine), "--name", NAME]
    subprocess.run([*command, "--output", str(repository)], check=True, capture_output=True)
    return stand_in(repository, folder / "served")


def make_tricky(repository: Path, folder: Path) -> Path:
    """A copy of such a repository whose images tell the model what to do."""
    copy = folder / "tricky"
    shutil.copytree(repository, copy)
    add_trick(copy / NAME / "1" / "model.onnx")
    return copy


@contextlib.contextmanager
def served(triton: Triton, repository: Path) -> Iterator[Server]:
    """Triton on loopback, ready; it may die.

    Raises:
        StartError: it does not start.
    """
    ports = _free_ports()
    with begun(_command(triton, repository, ports), env=_environment(triton)) as server:
        server.port = ports[0]

        def is_ready() -> bool:
            if not server.is_alive:
                raise StartError(server.last_words())
            return server.status_of("/v2/health/ready") == 200

        if not wait(is_ready, START_SECONDS):
            raise StartError(f"Triton is not ready after {START_SECONDS:g} s")
        server.pids = family(server.pids[0])
        yield server


def triton_scenarios(scenarios: Sequence[Scenario]) -> tuple[Scenario, ...]:
    """Those that have a meaning for Triton, some of them in its own words."""
    own: dict[str, Do] = {CUT: _cut, PORT: _port_in_use}
    return tuple(
        Scenario(
            title=each.title,
            group=each.group,
            expected=each.expected,
            do=own.get(each.title, each.do),
        )
        for each in scenarios
        if not each.alone or each.title in own
    )


def _cut(side: Side) -> str:
    assert isinstance(side, Tritons)
    with tempfile.TemporaryDirectory(dir=side.folder) as scratch:
        repository = Path(scratch) / "repository"
        shutil.copytree(side.repository, repository)
        file = repository / NAME / "1" / "model.onnx"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return _ends(side, repository, _free_ports())


def _port_in_use(side: Side) -> str:
    assert isinstance(side, Tritons)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, grpc, metrics = _free_ports()
        return _ends(side, side.repository, (port, grpc, metrics))


def _ends(side: Tritons, repository: Path, ports: tuple[int, int, int]) -> str:
    command = _command(side.triton, repository, ports)
    with begun(command, env=_environment(side.triton)) as server:
        try:
            status = server.end()
        except subprocess.TimeoutExpired as exc:
            raise WrongError("it goes on", "its end") from exc
    if status == 0:
        raise WrongError("exit 0", "1")
    return f"exit {status}"


def _command(triton: Triton, repository: Path, ports: tuple[int, int, int]) -> list[str]:
    http, grpc, metrics = ports
    command = [str(triton.binary), f"--model-repository={repository}", *OPTIONS]
    command += [f"--backend-directory={triton.backends}"]
    command += ["--http-address=127.0.0.1", f"--http-port={http}"]
    command += ["--grpc-address=127.0.0.1", f"--grpc-port={grpc}"]
    return [*command, "--metrics-address=127.0.0.1", f"--metrics-port={metrics}"]


def _environment(triton: Triton) -> dict[str, str]:
    return {
        "PATH": os.pathsep.join((str(triton.python), os.environ["PATH"])),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, triton.libraries)),
    }


def _free_ports() -> tuple[int, int, int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        first, second, third = (each.getsockname()[1] for each in sockets)
    return first, second, third
