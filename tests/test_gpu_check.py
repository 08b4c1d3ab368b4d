"""``scripts/gpu-check``: which steps it takes, that a failure ends nothing, and a rehearsal."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
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
    assert len(benches) == 3
    for bench in benches[:2]:
        assert sum(argument.startswith("engines/") for argument in bench) == backends
        assert {"--floor", "--against"} <= set(bench)
        assert bench[bench.index("--devices") + 1] == "0,1"
        assert "torch-compile" in bench[bench.index("--against") + 1]
    verified = [command for command in taken if command[0] == "verify"]
    assert all(command.count("--require") == 2 for command in verified)
    halves = [c for c in taken if c[0] == "export" and "fp16" in c]
    assert len(halves) == backends
    paper = taken[-1]
    assert paper[:2] == ("bench", "--paper")
    assert paper[paper.index("--backends") + 1] == "tensorrt,tensorrt-rtx,onnxruntime"
    assert paper[paper.index("--precisions") + 1] == "fp32,fp16"
    assert paper[paper.index("--output") + 1] == f"results/{check.stem}-paper"


@pytest.mark.usefixtures("every_backend")
def test_names_of_results_tell_day_and_hardware() -> None:
    check = script.gpu_check("s", driver("NVIDIA H100 80GB HBM3"))
    assert check.stem.endswith("-gpu-check-1x-nvidia-h100-80gb-hbm3")
    bench, *_ = (command for command in commands(check) if command[0] == "bench")
    assert bench[bench.index("--output") + 1] == f"results/{check.stem}-s-fp32"


def test_a_backend_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        script, "installed", lambda package: "1.0" if package == "tensorrt-rtx" else None
    )
    monkeypatch.setattr(script, "provider_problem", lambda provider: "no cuDNN")
    check = script.gpu_check(None, driver("NVIDIA H200"))
    assert set(check.backends) == {"tensorrt-rtx", "tensorrt-rtx-portable"}
    assert "tensorrt-rtx" in check.peers
    assert "tensorrt" not in check.peers


@pytest.mark.usefixtures("every_backend")
def test_all_that_is_asked_for_is_a_command_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers, backends and options, as the command line reads them."""
    from parnet_deploy.cli.bench_asked import parse_backends, parse_peers

    check = script.gpu_check(None, driver("NVIDIA H200"))
    for command in commands(check):
        if command[0] == "bench":
            for option, parse in (("--against", parse_peers), ("--backends", parse_backends)):
                if option in command:
                    value = command[command.index(option) + 1]
                    assert ",".join(parse(value)) == value
    isolating = {"tensorrt", "tensorrt-rtx", "onnxruntime"}
    assert isolating <= set(check.peers)


def test_the_papers_tables_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, ...]] = []

    def take(step: script.Step, work: Path, limit: float) -> script.Done:
        assert limit == min(step.limit, 1000)
        taken.append(step.arguments)
        return script.Done(step=step, status=0)

    monkeypatch.setattr(script, "take", take)
    arguments = ["--rehearse", "--work", str(tmp_path), "--results", "found", "--limit", "1000"]
    assert script.main(arguments) == 0
    assert taken.pop()[:2] == ("bench", "--paper")
    assert taken
    whole = len(taken)
    assert script.main([*arguments, "--no-paper"]) == 0
    assert len(taken) == 2 * whole
    assert not any("--paper" in command for command in taken)


HANGING = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("started", child.pid, flush=True)
time.sleep(600)
"""


def test_a_step_that_does_not_end_is_stopped_with_all_that_it_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child holds on to the pipe as long as it lives."""
    package = tmp_path / "parnet_deploy"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(HANGING)  # taken first: it lies in the working folder
    hanging = script.Step(purpose="wait for ever", arguments=("doctor",))
    monkeypatch.setattr(script, "steps", lambda check, results: [hanging])
    arguments = ["--rehearse", "--work", str(tmp_path), "--results", "found", "--limit", "2"]
    assert script.main(arguments) == 1
    said = capsys.readouterr()
    assert "failed (stopped, its time was over): wait for ever" in said.err
    (report,) = (tmp_path / "found").glob("*.md")
    assert "| wait for ever | stopped, its time was over | " in report.read_text()
    assert "stopped after 2 s, its time was over" in report.read_text()
    (child,) = (line.split()[1] for line in said.out.splitlines() if line.startswith("started"))
    for _ in range(100):  # its new parent may need a moment to take note of its end
        if not alive(int(child)):
            break
        time.sleep(0.05)
    assert not alive(int(child))


def alive(process: int) -> bool:
    """Whether it runs; one that has ended is listed until somebody asks for its status."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_step_that_fails_is_told_and_the_others_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = script.Step(purpose="say which this is", arguments=("--version",))
    place = tmp_path / "models" / "nowhere"
    elsewhere = script.Step(purpose="name a place in full", arguments=("inspect", str(place)))
    bad = script.Step(purpose="ask for what is not there", arguments=("inspect", "nowhere"))
    monkeypatch.setattr(script, "steps", lambda check, results: [bad, good, elsewhere])
    status = script.main(["--rehearse", "--work", str(tmp_path), "--results", "found"])
    said = capsys.readouterr()
    assert status == 1
    assert "failed (1): ask for what is not there" in said.err
    (report,) = (tmp_path / "found").glob("*.md")
    text = report.read_text()
    assert "| ask for what is not there | 1 |" in text
    assert "| say which this is | 0 |" in text
    assert "there is no bundle at nowhere" in text
    assert f"$ parnet-deploy inspect {place}" in text  # as it was asked for
    assert "there is no bundle at models/nowhere" in text


@pytest.mark.slow
def test_a_rehearsal_takes_every_step_on_the_cpu(tmp_path: Path) -> None:
    """But for the paper's tables, whose networks take minutes here."""
    program = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--rehearse", "--no-paper"]
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
