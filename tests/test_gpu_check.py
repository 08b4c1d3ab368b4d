"""``scripts/gpu-check``: which steps it takes, that a failure ends nothing, and a rehearsal."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from parnet_deploy.bench.report.saving import read
from parnet_deploy.runtime.machine import CudaDriver, Gpu

ROOT = Path(__file__).parent.parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


script = load()


def driver(*names: str) -> CudaDriver:
    gpus = tuple(
        Gpu(index=index, name=name, compute_capability="9.0", memory=1 << 36)
        for index, name in enumerate(names)
    )
    return CudaDriver(version="600.0", cuda="13.0", gpus=gpus, problem=None)


@pytest.fixture
def every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "installed", lambda package: "1.0")
    monkeypatch.setattr(script, "provider_problem", lambda provider: None)


def commands(check: script.Check) -> list[tuple[str, ...]]:
    return [step.arguments for step in script.steps(check, Path("results"))]


def test_without_a_gpu_it_says_so_and_what_can_be_done() -> None:
    none = CudaDriver(version=None, cuda=None, gpus=(), problem="there is no NVIDIA driver here")
    found = script.gpu_check(None, none)
    assert isinstance(found, str)
    assert "there is no NVIDIA driver here" in found
    assert "--rehearse" in found


@pytest.mark.usefixtures("every_backend")
def test_every_backend_is_built_verified_planned_and_measured_in_both_precisions() -> None:
    check = script.gpu_check(None, driver("NVIDIA H200", "NVIDIA H200"))
    assert check.variant == "l"
    assert check.hardware == "2x NVIDIA H200"
    taken = commands(check)
    verbs = [command[0] for command in taken]
    backends = 4  # tensorrt, tensorrt-rtx for this GPU and for all, onnxruntime
    assert verbs[0] == "doctor"
    for verb, each in (("export", 1), ("build-engine", 2), ("verify", 1), ("plan", 1)):
        assert verbs.count(verb) == each * backends * 2, verb
    benches = [command for command in taken if command[0] == "bench"]
    assert len(benches) == 2
    for bench in benches:
        assert sum(argument.startswith("engines/") for argument in bench) == backends
        assert {"--floor", "--against"} <= set(bench)
        assert bench[bench.index("--devices") + 1] == "0,1"
        assert "torch-compile" in bench[bench.index("--against") + 1]
    verified = [command for command in taken if command[0] == "verify"]
    assert all(command.count("--require") == 2 for command in verified)
    halves = [c for c in taken if c[0] == "export" and "fp16" in c]
    assert len(halves) == backends


@pytest.mark.usefixtures("every_backend")
def test_names_of_results_tell_day_and_hardware() -> None:
    check = script.gpu_check("s", driver("NVIDIA H100 80GB HBM3"))
    assert check.stem.endswith("-gpu-check-1x-nvidia-h100-80gb-hbm3")
    (bench, _) = (command for command in commands(check) if command[0] == "bench")
    assert bench[bench.index("--output") + 1] == f"results/{check.stem}-s-fp32"


def test_a_backend_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        script, "installed", lambda package: "1.0" if package == "tensorrt-rtx" else None
    )
    monkeypatch.setattr(script, "provider_problem", lambda provider: "no cuDNN")
    check = script.gpu_check(None, driver("NVIDIA H200"))
    assert set(check.backends) == {"tensorrt-rtx", "tensorrt-rtx-portable"}


def test_a_step_that_fails_is_told_and_the_others_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = script.Step(purpose="say which this is", arguments=("--version",))
    bad = script.Step(purpose="ask for what is not there", arguments=("inspect", "nowhere"))
    monkeypatch.setattr(script, "steps", lambda check, results: [bad, good])
    status = script.main(["--rehearse", "--work", str(tmp_path), "--results", "found"])
    said = capsys.readouterr()
    assert status == 1
    assert "failed (1): ask for what is not there" in said.err
    (report,) = (tmp_path / "found").glob("*.md")
    text = report.read_text()
    assert "| ask for what is not there | 1 |" in text
    assert "| say which this is | 0 |" in text
    assert "there is no bundle at nowhere" in text


@pytest.mark.slow
def test_a_rehearsal_takes_every_step_on_the_cpu(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--rehearse"]
    done = subprocess.run(
        [*program, "--work", str(tmp_path), "--results", "found"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = (tmp_path / "found").glob("*.json")
    found = read(result)
    schedules = {o.contestant.settings.get("schedule") for o in found.outcomes}
    assert {"whole", "split-one-device"} <= schedules
    assert str(tmp_path) not in found.command
    (report,) = (tmp_path / "found").glob("*cores.md")
    assert str(tmp_path) not in report.read_text()
    assert list((tmp_path / "found").glob("*.html"))
