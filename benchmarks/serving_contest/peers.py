"""What the other servers need: packages in environments of their own, and Triton's models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

FASTAPI = ("fastapi", "uvicorn[standard]", "python-multipart", "pillow", "numpy")

SHOWN = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "onnxruntime", "numpy", "pillow")

_MODEL = Path(__file__).with_name("triton_model.py")
_DONE = "installed"


class PeerError(Exception):
    """A peer cannot be had here: one sentence."""


def install_fastapi(folder: Path, onnxruntime: str) -> Path:
    """A virtual environment with FastAPI; its Python.

    Args:
        folder: where; kept from one call to the next.
        onnxruntime: the version of ONNX Runtime: the engine's.

    Raises:
        PeerError: it cannot be installed.
    """
    python = folder / "bin" / "python"
    packages = (*FASTAPI, f"onnxruntime=={onnxruntime}")
    if not _is_done(folder, packages):
        venv.create(folder, clear=True, with_pip=True)
        _pip(python, *packages)
        _note(folder, packages)
    return python


def install_beside_triton(folder: Path, python: Path, onnxruntime: str) -> Path:
    """ONNX Runtime and Pillow in a folder of their own: Triton's environment keeps its own.

    Args:
        folder: where; kept from one call to the next.
        python: of Triton's environment.
        onnxruntime: the version of ONNX Runtime: the engine's.

    Raises:
        PeerError: they cannot be installed.
    """
    packages = (f"onnxruntime=={onnxruntime}", f"pillow=={version('pillow')}")
    if not _is_done(folder, packages):
        shutil.rmtree(folder, ignore_errors=True)
        _pip(python, "--no-deps", "--target", str(folder), *packages)
        _note(folder, packages)
    return folder


def versions(python: Path) -> dict[str, str]:
    """Of the packages that matter, as an environment has them."""
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "json"],
        check=True,
        capture_output=True,
        text=True,
    )
    found = {entry["name"]: entry["version"] for entry in json.loads(listed.stdout)}
    return {name: found[name] for name in SHOWN if name in found}


def write_model(
    repository: Path,
    name: str,
    *,
    datatype: str,
    dims: tuple[int, ...],
    classes: int,
    parameters: Mapping[str, str],
) -> None:
    """Write a model for Triton's Python backend, which reads one image.

    Args:
        repository: the model repository.
        name: the model's.
        datatype: of its input, in Triton's words.
        dims: of its input, the batch of one with it.
        classes: how many logits it gives.
        parameters: what its program reads.
    """
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    shutil.copyfile(_MODEL, folder / "model.py")
    entries = "".join(
        f'parameters {{ key: "{key}" value: {{ string_value: {json.dumps(value)} }} }}\n'
        for key, value in parameters.items()
    )
    (folder.parent / "config.pbtxt").write_text(
        f'name: "{name}"\n'
        'backend: "python"\n'
        "max_batch_size: 0\n"
        f'input {{ name: "images" data_type: {datatype} dims: {list(dims)} }}\n'
        f'output {{ name: "logits" data_type: TYPE_FP32 dims: [1, {classes}] }}\n'
        "instance_group { count: 1 kind: KIND_CPU }\n" + entries
    )


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    print(f"installing {' '.join(arguments)}", file=sys.stderr)
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PeerError(f"{' '.join(arguments)} cannot be installed: {last}")


def _is_done(folder: Path, packages: tuple[str, ...]) -> bool:
    mark = folder / _DONE
    return mark.is_file() and mark.read_text() == _stamp(packages)


def _note(folder: Path, packages: tuple[str, ...]) -> None:
    (folder / _DONE).write_text(_stamp(packages))


def _stamp(packages: tuple[str, ...]) -> str:
    return " ".join((*packages, sys.version.split()[0]))
