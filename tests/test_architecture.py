"""What serves images runs without torch, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import parnet_deploy

# Rooms that work without torch (docs/architecture.md).
TORCH_FREE = (
    "errors",
    "spec",
    "bundle",
    "images",
    "data",
    "diagram",
    "evaluate",
    "interrupts",
    "pages",
    "lowering",
    "quantise",
    "roofline",
    "engine",
    "runtime",
    "serve",
    "verify.compare",
    "train.recipe",
    "train.recipes",
    "train.settings",
    "train.metrics",
    "train.qat_options",
    "bench",
    "cli",
)
NEED_TORCH = ("net", "train", "export")


def modules(*rooms: str) -> list[str]:
    names = []
    for room in rooms:
        name = f"parnet_deploy.{room}"
        names.append(name)
        if (Path(parnet_deploy.__path__[0]) / room).is_dir():
            package = Path(parnet_deploy.__path__[0]) / room
            names += below(package, name)
    return names


def below(folder: Path, package: str) -> list[str]:
    """All modules of a package, at any depth. Nothing is imported to find them."""
    names = []
    for info in pkgutil.iter_modules([str(folder)]):
        names.append(f"{package}.{info.name}")
        if info.ispkg:
            names += below(folder / info.name, names[-1])
    return names


def test_every_room_is_spoken_for() -> None:
    """So that a new one is not forgotten here."""
    rooms = {info.name for info in pkgutil.iter_modules(parnet_deploy.__path__)}
    named = {room.split(".")[0] for room in (*TORCH_FREE, *NEED_TORCH)}
    assert rooms - {"__main__"} <= named


def imported(*names: str) -> set[str]:
    """What a fresh process has loaded after importing these modules."""
    program = (
        "import sys, importlib\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print('\\n'.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *names], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_torch_free_rooms_import_neither_torch_nor_rooms_that_need_it() -> None:
    names = modules(*TORCH_FREE)
    assert {
        "parnet_deploy.cli.export",
        "parnet_deploy.bench.contest.worker",
        "parnet_deploy.bench.peers.torch_compile",
        "parnet_deploy.engine.ncnn.convert",
        "parnet_deploy.runtime.cuda.runner",
        "parnet_deploy.runtime.simulated.driver",
    } <= set(names)
    loaded = imported(*names)
    assert set(names) <= loaded
    assert "torch" not in loaded
    needing = tuple(f"parnet_deploy.{room}." for room in NEED_TORCH)
    assert {name for name in loaded if name.startswith(needing)} <= set(names)


def test_the_check_can_fail() -> None:
    assert "torch" in imported("parnet_deploy.net")


@pytest.mark.parametrize(
    "name",
    [
        "torch",
        "torchvision",
        "timm",
        "onnx",
        "onnxruntime",
        "openvino",
        "ncnn",
        "MNN",
        "pnnx",
        "tensorrt",
        "tensorrt_rtx",
        "cuda",
        "pynvml",
        "jinja2",
        "matplotlib",
        "sklearn",
        "starlette",
        "uvicorn",
        "prometheus_client",
        "tritonclient",
    ],
)
def test_the_command_line_starts_light(name: str, started: set[str]) -> None:
    assert name not in started


@pytest.fixture(scope="module")
def started() -> set[str]:
    return imported("parnet_deploy.cli.main")
