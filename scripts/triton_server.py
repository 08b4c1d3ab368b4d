"""The Triton that comes in a wheel: installed in a venv of its own, started on loopback, stopped.

The wheel of PyTriton carries NVIDIA's tritonserver with ensembles and the Python backend, and no
other backend. So a repository's ONNX Runtime models are served by ``triton_standin.py``: of their
configurations one line is replaced, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

WHEEL = "nvidia-pytriton==0.7.0"
PACKAGES = (WHEEL, "numpy<2", "onnxruntime>=1.19,<1.24")
INSTALLED = "installed"

INSTALL_SECONDS = 900
START_SECONDS = 120
STOP_SECONDS = 45

STAND_IN = Path(__file__).with_name("triton_standin.py")
PLATFORM = 'platform: "onnxruntime_onnx"\n'
BACKEND = 'backend: "python"\n'


class TritonError(Exception):
    """There is no Triton to be had here, or it does not start: one sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Triton:
    """A tritonserver.

    Attributes:
        binary: its program.
        backends: folder of its backends.
        libraries: folders of shared libraries, in the order in which they are searched.
        python: folder of the interpreter that runs Python models.
    """

    binary: Path
    backends: Path
    libraries: tuple[Path, ...]
    python: Path


def install(folder: Path) -> Triton:
    """Install Triton below a folder, where it is not there already.

    Raises:
        TritonError: the wheel cannot be had, or is not for this machine.
    """
    venv = folder / "venv"
    stamp = " ".join((*PACKAGES, sys.version.split()[0]))
    mark = folder / INSTALLED
    if not mark.is_file() or mark.read_text() != stamp:
        print(f"installing {WHEEL} into {venv}", flush=True)
        _make_venv(venv)
        _lay_backend(venv, folder / "backends" / "python")
        mark.write_text(stamp)
    package = _package(venv)
    return Triton(
        binary=package / "tritonserver" / "bin" / "tritonserver",
        backends=folder / "backends",
        # The Python backend's process is linked against this Python's own library.
        libraries=(Path(sysconfig.get_config_var("LIBDIR")), *_libraries(package)),
        python=venv / "bin",
    )


def stand_in(repository: Path, copy: Path) -> Path:
    """A copy of a repository whose graphs the Python backend runs.

    Of a model's configuration one line is another; everything else is the same, to the byte.

    Raises:
        TritonError: a model of it is for a backend that nothing stands in for.
    """
    shutil.copytree(repository, copy)
    for config in sorted(copy.glob("*/config.pbtxt")):
        text = config.read_text(encoding="ascii")
        if 'platform: "ensemble"\n' in text:
            continue
        if text.count(PLATFORM) != 1:
            raise TritonError(
                f"{config.parent.name} is no onnxruntime_onnx model; nothing stands in"
            )
        config.write_text(text.replace(PLATFORM, BACKEND), encoding="ascii")
        for version in config.parent.glob("[0-9]*"):
            shutil.copyfile(STAND_IN, version / "model.py")
    return copy


@contextlib.contextmanager
def running(
    triton: Triton,
    repositories: Sequence[Path],
    log: Path,
    *,
    options: Sequence[str] = (),
    notes: Path | None = None,
    ports: tuple[int, int, int] | None = None,
) -> Iterator[str]:
    """Triton on 127.0.0.1, ready; at the end it is told to stop, and has to stop by itself.

    Args:
        triton: which.
        repositories: its model repositories.
        log: file that it writes to.
        options: more of its options.
        notes: folder where stand-ins note their runs; None: they do not.
        ports: for HTTP, gRPC and metrics; any that are free where None.

    Yields:
        The address of its HTTP port, ``127.0.0.1:PORT``.

    Raises:
        TritonError: it does not start in time, or does not stop by itself with status 0.
    """
    http, grpc, metrics = ports or _free_ports()
    command = [str(triton.binary), *(f"--model-repository={path}" for path in repositories)]
    command += [f"--backend-directory={triton.backends}", *options]
    command += ["--http-address=127.0.0.1", f"--http-port={http}"]
    command += ["--grpc-address=127.0.0.1", f"--grpc-port={grpc}"]
    command += ["--metrics-address=127.0.0.1", f"--metrics-port={metrics}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=_environment(triton, notes),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its Python processes are ended with it
        )
    try:
        _await_ready(process, f"http://127.0.0.1:{http}", log)
        yield f"127.0.0.1:{http}"
        _stop(process, log)
    finally:
        _end(process)


def _make_venv(venv: Path) -> None:
    python = str(venv / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    for command in ([sys.executable, "-m", "venv", "--clear", str(venv)], [*pip, *PACKAGES]):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
            )
        except subprocess.TimeoutExpired as exc:
            raise TritonError(
                f"{WHEEL} could not be installed within {INSTALL_SECONDS} s; is the registry there?"
            ) from exc
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            reason = (said or done.stderr.splitlines() or ["no reason given"])[-1].strip()
            reason = reason.removeprefix("ERROR: ")
            raise TritonError(f"{WHEEL} cannot be had, and with it no Triton: {reason}")


def _lay_backend(venv: Path, backend: Path) -> None:
    """Put the Python backend together: its library, its utilities, and this Python's process."""
    package = _package(venv)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.rmtree(backend, ignore_errors=True)
    backend.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy2(_only(package.rglob(name), name), backend)
    stub = "triton_python_backend_stub"
    stubs = [p for p in package.rglob(stub) if version in p.parts]
    shutil.copy2(_only(stubs, f"{stub} of Python {version}"), backend)
    (backend / stub).chmod(0o755)


def _package(venv: Path) -> Path:
    return _only(venv.glob("lib/python*/site-packages/pytriton"), "the package pytriton")


def _libraries(package: Path) -> tuple[Path, ...]:
    """Folders with the shared libraries that the wheel brings."""
    found = [*package.parent.glob("*pytriton.libs"), package / "tritonserver" / "external_libs"]
    return (*(path for path in found if path.is_dir()), package / "tritonserver" / "lib")


def _only(paths: Iterator[Path] | Sequence[Path], what: str) -> Path:
    found = sorted(paths)
    if not found:
        raise TritonError(f"{WHEEL} is installed, and {what} is not in it")
    return found[0]


def _environment(triton: Triton, notes: Path | None) -> dict[str, str]:
    libraries = os.pathsep.join(map(str, triton.libraries))
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    noted = {} if notes is None else {"TRITON_STANDIN_LOG": str(notes)}
    path = os.pathsep.join((str(triton.python), os.environ["PATH"]))
    return {**kept, **noted, "PATH": path, "LD_LIBRARY_PATH": libraries}


def _free_ports() -> tuple[int, int, int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        first, second, third = (each.getsockname()[1] for each in sockets)
    return first, second, third


def _await_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise TritonError(
                f"Triton ended with status {process.returncode} before it was ready: {_reason(log)}"
            )
        try:
            with urllib.request.urlopen(f"{address}/v2/health/ready", timeout=2):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    raise TritonError(f"Triton is not ready after {START_SECONDS} s: {_reason(log)}")


def _stop(process: subprocess.Popen[bytes], log: Path) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired as exc:
        raise TritonError(f"Triton did not stop within {STOP_SECONDS} s of SIGTERM") from exc
    if status != 0:
        raise TritonError(f"Triton ended with status {status}: {_reason(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever happened: nothing of it stays."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _reason(log: Path) -> str:
    """The last error in Triton's log, or its last line; that there is no GPU is none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if re.match(r"E\d{4} ", line) and "Cuda" not in line]
    return (errors[-1:] or lines[-1:] or ["it said nothing"])[0].strip()
