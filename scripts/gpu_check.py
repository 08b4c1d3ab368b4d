"""The steps of ``scripts/gpu-check``: every path that needs a GPU, one command after the other.

A step that fails is told and does not end the others, and neither does one that does not end: it
is stopped when its time is over. Time on a machine with a GPU is precious.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from parnet_deploy.bench.report.saving import slug
from parnet_deploy.runtime.cpu import read_cpu
from parnet_deploy.runtime.machine import CudaDriver, cuda_driver, installed, provider_problem

ROOT = Path(__file__).parent.parent
RESULTS = Path("benchmarks") / "results"
"""From the project's folder, in which the script is run: no path of the machine is in a result."""

GPU_PEERS = (
    *("torch", "torch-fused", "torch-compile", "torch-compile-fused"),
    *("onnxruntime", "torch-onnx"),
)
CPU_PEERS = ("torch-fused", "onnxruntime")
FLAVOURS = ("tensorrt", "tensorrt-rtx")
"""Packages, each of which is a peer, too: the unfused export, so that what folding gains is told
from what the backend does by itself."""

LIMITS = {"doctor": 300.0, "bench": 7200.0}
LIMIT = 1800.0
"""Seconds after which a command is stopped, by its name and otherwise."""

GRACE = 20.0
"""Seconds for a command that is stopped to put away what it has begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What is checked, and where.

    Attributes:
        hardware: its name.
        variant: the network.
        backends: `parnet-deploy build-engine`'s options that choose each backend.
        precisions: of the graphs.
        devices: GPUs by number; none on a CPU.
        peers: what `bench` compares with.
        extra: further options of `bench`.
        paper: options of the benchmark of the paper's tables; None leaves it out.
    """

    hardware: str
    variant: str
    backends: dict[str, tuple[str, ...]]
    precisions: tuple[str, ...]
    devices: tuple[int, ...]
    peers: tuple[str, ...]
    extra: tuple[str, ...] = ()
    paper: tuple[str, ...] | None = ()

    @property
    def stem(self) -> str:
        """How its results' names begin."""
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        what = "gpu-check" if self.devices else "rehearsal"
        return f"{today}-{what}-{slug(self.hardware)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command of parnet-deploy, and why it is run."""

    purpose: str
    arguments: tuple[str, ...]

    @property
    def limit(self) -> float:
        """Seconds that it may take."""
        return LIMITS.get(self.arguments[0], LIMIT)


@dataclass(kw_only=True, slots=True)
class Done:
    """A step that was taken.

    Attributes:
        step: which.
        status: its exit status; None where it was stopped when its time was over.
        seconds: how long it took.
        lines: what it said.
    """

    step: Step
    status: int | None = None
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)

    @property
    def ending(self) -> str:
        """How it ended."""
        return f"{self.status}" if self.status is not None else "stopped, its time was over"


def main(arguments: Sequence[str] | None = None) -> int:
    """Take all steps; the exit status is 1 when one failed, or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, a small network")
    parser.add_argument("--variant", default=None, help="[default: l; digits to rehearse]")
    parser.add_argument("--precisions", default=None, help="[default: fp32,fp16]")
    parser.add_argument("--no-paper", action="store_true", help="leave out the paper's tables")
    parser.add_argument("--limit", type=float, default=None, help="seconds a step, at most")
    parser.add_argument("--work", type=Path, default=ROOT, help="where models/, engines/ are")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    check = rehearsal(options.variant) if options.rehearse else gpu_check(options.variant)
    if isinstance(check, str):
        print(f"error: {check}", file=sys.stderr)
        return 1
    if options.precisions:
        check = replace(check, precisions=tuple(options.precisions.split(",")))
    if options.no_paper:
        check = replace(check, paper=None)
    results = options.work / options.results
    results.mkdir(parents=True, exist_ok=True)
    most = float("inf") if options.limit is None else options.limit
    done = [
        take(step, options.work, min(step.limit, most)) for step in steps(check, options.results)
    ]
    report = results / f"{check.stem}.md"
    report.write_text(describe(check, done), encoding="utf-8")
    print(f"\nwritten: {report}")
    failed = [each for each in done if each.status != 0]
    for each in failed:
        print(f"failed ({each.ending}): {each.step.purpose}", file=sys.stderr)
    return 1 if failed else 0


def gpu_check(variant: str | None, driver: CudaDriver | None = None) -> Check | str:
    """What there is to check with this machine's GPUs, or why there is nothing."""
    driver = driver or cuda_driver()
    if driver.problem is not None or not driver.gpus:
        return (
            f"no NVIDIA GPU can be used here: {driver.problem or 'the driver finds none'}; "
            "--rehearse takes the same steps on the CPU"
        )
    backends: dict[str, tuple[str, ...]] = {}
    if installed("tensorrt"):
        backends["tensorrt"] = ("--backend", "tensorrt")
    if installed("tensorrt-rtx"):
        capabilities = ",".join(sorted({gpu.compute_capability for gpu in driver.gpus}))
        rtx = ("--backend", "tensorrt-rtx")
        backends["tensorrt-rtx"] = (*rtx, "--compute-capability", capabilities)
        backends["tensorrt-rtx-portable"] = rtx
    if provider_problem("cuda") is None:
        backends["onnxruntime"] = ("--backend", "onnxruntime", "--provider", "cuda")
    names = sorted({gpu.name for gpu in driver.gpus})
    return Check(
        hardware=f"{len(driver.gpus)}x {', '.join(names)}",
        variant=variant or "l",
        backends=backends,
        precisions=("fp32", "fp16"),
        devices=tuple(gpu.index for gpu in driver.gpus),
        peers=(*GPU_PEERS, *(flavour for flavour in FLAVOURS if installed(flavour))),
    )


def rehearsal(variant: str | None) -> Check:
    """The same steps on a CPU."""
    cpu = read_cpu()
    return Check(
        hardware=f"{cpu.name} {cpu.cores} cores",
        variant=variant or "digits",
        backends={"onnxruntime": ("--backend", "onnxruntime", "--provider", "cpu")},
        precisions=("fp32",),
        devices=(),
        peers=CPU_PEERS,
        extra=(
            *("--rounds", "2", "--processes", "1", "--iterations", "4", "--seconds", "0"),
            *("--warm-up-seconds", "0"),
        ),
        paper=("--variants", variant or "digits"),
    )


def steps(check: Check, results: Path) -> Iterator[Step]:
    """All commands, in order."""
    yield Step(purpose="what works here", arguments=("doctor",))
    for precision in check.precisions:
        engines: list[str] = []
        for backend, build in check.backends.items():
            yield from _make(check, backend, build, precision)
            engines.append(_engine(backend, precision))
        if engines:
            yield Step(
                purpose=f"every schedule beside its peers and the floor, {precision}",
                arguments=(
                    *("bench", *engines, "--against", ",".join(check.peers), "--floor"),
                    *_numbers(check),
                    *check.extra,
                    *("--output", str(results / f"{check.stem}-{check.variant}-{precision}")),
                    "--force",
                ),
            )
    if check.paper is not None and check.backends:
        backends = dict.fromkeys(build[1] for build in check.backends.values())
        yield Step(
            purpose="the paper's tables, its figures beside what was found here",
            arguments=(
                *("bench", "--paper", *check.paper, "--backends", ",".join(backends)),
                *("--precisions", ",".join(check.precisions)),
                *_numbers(check),
                *check.extra,
                *("--output", str(results / f"{check.stem}-paper"), "--force"),
            ),
        )


def _make(check: Check, backend: str, build: tuple[str, ...], precision: str) -> Iterator[Step]:
    """Export, build, verify and plan one backend's engines."""
    model = f"models/gpu-check-{backend}-{precision}"
    whole, split = (_engine(backend, precision, split=split) for split in (False, True))
    export = ("export", "--variant", check.variant, "--for", build[1], "--output", model, "--force")
    precisely = () if precision == "fp32" else ("--precision", precision)
    named = f"{backend}, {precision}"
    yield Step(purpose=f"export for {named}", arguments=(*export, *precisely))
    yield Step(
        purpose=f"build the whole engine: {named}",
        arguments=("build-engine", model, *build, "--output", whole, "--force"),
    )
    yield Step(
        purpose=f"build an engine per stage: {named}",
        arguments=(
            *("build-engine", model, *build, "--split-streams", *_numbers(check)),
            *("--output", split, "--force"),
        ),
    )
    yield Step(
        purpose=f"verify both up to the engines: {named}",
        arguments=(
            *("verify", split, "--with", whole),
            *("--require", "engine", "--require", "split-engine"),
        ),
    )
    devices = ",".join(map(str, check.devices)) or "cpu"
    yield Step(
        purpose=f"predict and measure the split: {named}",
        arguments=("plan", split, "--devices", devices, "--measure"),
    )


def _engine(backend: str, precision: str, *, split: bool = False) -> str:
    return f"engines/gpu-check-{backend}-{precision}{'-split' * split}"


def _numbers(check: Check) -> tuple[str, ...]:
    return ("--devices", ",".join(map(str, check.devices))) if check.devices else ()


def take(step: Step, work: Path, limit: float) -> Done:
    """Run a step in a folder; what it says is shown as it comes, and kept.

    Args:
        step: which.
        work: the folder.
        limit: seconds after which it is stopped, with all that it has started.
    """
    command = [sys.executable, "-m", "parnet_deploy", *step.arguments]
    print(f"\n== {step.purpose}\n$ parnet-deploy {shlex.join(step.arguments)}", flush=True)
    start = time.monotonic()
    done = Done(step=step)
    process = subprocess.Popen(
        command,
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    reader = threading.Thread(target=_show, args=(process, done.lines, work), daemon=True)
    reader.start()
    try:
        done.status = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        done.lines.append(f"stopped after {limit:.0f} s, its time was over")
        print(done.lines[-1], flush=True)
    finally:  # also at Ctrl-C, which a session of its own does not hear
        if done.status is None:
            _stop(process)
        # What it has started may have left its group, and hold on to the pipe.
        reader.join(timeout=GRACE)
    done.seconds = time.monotonic() - start
    return done


def _show(process: subprocess.Popen[str], lines: list[str], work: Path) -> None:
    here = f"{work.resolve()}{os.sep}"
    with process.stdout or contextlib.nullcontext(()) as said:
        for line in said:
            print(line, end="", flush=True)
            lines.append(line.rstrip().replace(here, ""))  # no path of the machine is kept


def _stop(process: subprocess.Popen[str]) -> None:
    """End a process and its group: by asking, then by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter: macOS
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)


def describe(check: Check, done: Sequence[Done]) -> str:
    """A report: every step, how it ended, and all it said."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    backends, precisions = ", ".join(check.backends) or "none", ", ".join(check.precisions)
    what = "GPU check" if check.devices else "Rehearsal without a GPU"
    lines = [
        f"# {what}: {check.hardware}, ParNet-{check.variant.upper()}",
        "",
        f"{when}; backends: {backends}; precisions: {precisions}; GPUs: {len(check.devices)}.",
        "",
        "| step | status | seconds |",
        "|---|---|---|",
        *(f"| {each.step.purpose} | {each.ending} | {each.seconds:.0f} |" for each in done),
        "",
    ]
    for each in done:
        lines += [f"## {each.step.purpose}", "", "```"]
        lines += [f"$ parnet-deploy {shlex.join(each.step.arguments)}", *each.lines, "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
