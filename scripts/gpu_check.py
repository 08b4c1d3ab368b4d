"""The steps of ``scripts/gpu-check``: every path that needs a GPU, one command after the other.

A step that fails is told and does not end the others: time on a machine with a GPU is precious.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import subprocess
import sys
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

GPU_PEERS = "torch,torch-fused,torch-compile,torch-compile-fused,onnxruntime,torch-onnx"
CPU_PEERS = "torch-fused,onnxruntime"


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
    """

    hardware: str
    variant: str
    backends: dict[str, tuple[str, ...]]
    precisions: tuple[str, ...]
    devices: tuple[int, ...]
    peers: str
    extra: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """How its results' names begin."""
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        return f"{today}-gpu-check-{slug(self.hardware)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command of parnet-deploy, and why it is run."""

    purpose: str
    arguments: tuple[str, ...]


@dataclass(kw_only=True, slots=True)
class Done:
    """A step that was taken."""

    step: Step
    status: int
    seconds: float
    lines: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Take all steps; the exit status is 1 when one failed, or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, a small network")
    parser.add_argument("--variant", default=None, help="[default: l; digits to rehearse]")
    parser.add_argument("--precisions", default=None, help="[default: fp32,fp16]")
    parser.add_argument("--work", type=Path, default=ROOT, help="where models/, engines/ are")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    check = rehearsal(options.variant) if options.rehearse else gpu_check(options.variant)
    if isinstance(check, str):
        print(f"error: {check}", file=sys.stderr)
        return 1
    if options.precisions:
        check = replace(check, precisions=tuple(options.precisions.split(",")))
    results = options.work / options.results
    results.mkdir(parents=True, exist_ok=True)
    done = [take(step, options.work) for step in steps(check, options.results)]
    report = results / f"{check.stem}.md"
    report.write_text(describe(check, done), encoding="utf-8")
    print(f"\nwritten: {report}")
    failed = [each for each in done if each.status]
    for each in failed:
        print(f"failed ({each.status}): {each.step.purpose}", file=sys.stderr)
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
        peers=GPU_PEERS,
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
        extra=("--rounds", "2", "--processes", "1", "--iterations", "4", "--seconds", "0"),
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
                    *("bench", *engines, "--against", check.peers, "--floor"),
                    *_numbers(check),
                    *check.extra,
                    *("--output", str(results / f"{check.stem}-{check.variant}-{precision}")),
                    "--force",
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


def take(step: Step, work: Path) -> Done:
    """Run a step in a folder; what it says is shown as it comes, and kept."""
    command = [sys.executable, "-m", "parnet_deploy", *step.arguments]
    print(f"\n== {step.purpose}\n$ parnet-deploy {shlex.join(step.arguments)}", flush=True)
    start = time.monotonic()
    done = Done(step=step, status=1, seconds=0.0)
    with subprocess.Popen(
        command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            done.lines.append(line.rstrip())
    done.status = process.returncode
    done.seconds = time.monotonic() - start
    return done


def describe(check: Check, done: Sequence[Done]) -> str:
    """A report: every step, how it ended, and all it said."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    backends, precisions = ", ".join(check.backends) or "none", ", ".join(check.precisions)
    lines = [
        f"# GPU check: {check.hardware}, ParNet-{check.variant.upper()}",
        "",
        f"{when}; backends: {backends}; precisions: {precisions}; GPUs: {len(check.devices)}.",
        "",
        "| step | status | seconds |",
        "|---|---|---|",
        *(f"| {each.step.purpose} | {each.status} | {each.seconds:.0f} |" for each in done),
        "",
    ]
    for each in done:
        lines += [f"## {each.step.purpose}", "", "```"]
        lines += [f"$ parnet-deploy {shlex.join(each.step.arguments)}", *each.lines, "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
