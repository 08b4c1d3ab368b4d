"""``parnet-deploy doctor``: what this machine can build and run, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from parnet_deploy.cli.checkup import (
    PREDICT,
    Machine,
    Obstacle,
    Package,
    Task,
    examine,
    judge,
)
from parnet_deploy.cli.console import console, human_bytes, new_table, print_json, print_table
from parnet_deploy.runtime.machine import Gpu

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_YES_NO = {True: "[green]yes[/]", False: "[red]no[/]"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A task, whether it works, and what is in its way."""

    task: str
    works: bool
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All of it, for programs. `works` is the exit status: whether predicting works at all."""

    works: bool
    machine: Machine
    tasks: tuple[Verdict, ...]


def command(as_json: AsJson = False) -> None:
    """Say what this machine can build and run, and what to install for what is missing.

    The exit status is 0 where engines of ONNX Runtime run on the CPU, otherwise 1.
    """
    machine = examine()
    tasks = judge(machine)
    works = all(task.works for task in tasks if task.name == PREDICT)
    if as_json:
        verdicts = tuple(
            Verdict(task=task.name, works=task.works, obstacles=task.obstacles) for task in tasks
        )
        print_json(Report(works=works, machine=machine, tasks=verdicts))
    else:
        for table in (_machine(machine), _packages(machine), _tasks(tasks)):
            print_table(table)
            console.print()
    if not works:
        raise typer.Exit(1)


def _machine(machine: Machine) -> Table:
    table = new_table("This machine", {"": "left", " ": "left"})
    table.show_header = False
    cpu, driver = machine.cpu, machine.driver
    cores = "1 core" if cpu.cores == 1 else f"{cpu.cores} cores"
    facts = {
        "Python": machine.python,
        "system": machine.system,
        "CPU": f"{cpu.name}, {cpu.architecture}, {cores}",
        "CPU features": ", ".join(cpu.features) or "none that matter here, or not told",
    }
    if driver.problem is not None:
        facts["GPU"] = f"none: {driver.problem}"
    facts |= {f"GPU cuda:{gpu.index}": _gpu(gpu) for gpu in driver.gpus}
    if driver.cuda is not None:
        facts["NVIDIA driver"] = f"{driver.version or 'version not told'}, up to CUDA {driver.cuda}"
    facts["free on disk"] = human_bytes(machine.disk_free)
    for name, value in facts.items():
        table.add_row(name, escape(value))
    return table


def _gpu(gpu: Gpu) -> str:
    return (
        f"{gpu.name}, compute capability {gpu.compute_capability}, {human_bytes(gpu.memory)} memory"
    )


def _packages(machine: Machine) -> Table:
    table = new_table("Packages", {"package": "left", "version": "left", "state": "left"})
    name, version = machine.onnxruntime or ("onnxruntime", None)
    running = [provider for provider, problem in machine.providers.items() if problem is None]
    state = f"runs on {' and '.join(running)}" if running else "does not run"
    table.add_row(name, version or "-", state if version else "not installed")
    for name, package in machine.packages.items():
        table.add_row(name, package.version or "-", escape(_state(package)))
    return table


def _state(package: Package) -> str:
    if package.version is None:
        return "not installed"
    return "installed" if package.problem is None else f"does not load: {package.problem}"


def _tasks(tasks: tuple[Task, ...]) -> Table:
    table = new_table(
        "What works here",
        {"task": "left", "works": "left", "why not": "left", "what to do": "left"},
    )
    for task in tasks:
        rows = [(obstacle.reason, obstacle.remedy) for obstacle in task.obstacles] or [("", "")]
        for number, (reason, remedy) in enumerate(rows):
            name, works = (task.name, _YES_NO[task.works]) if number == 0 else ("", "")
            table.add_row(name, works, escape(reason), escape(remedy))
    return table
