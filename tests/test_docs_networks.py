"""docs/networks.md: its tables are what the code counts, and its commands can be given."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

from parnet_deploy.cli.main import app
from parnet_deploy.spec import VARIANTS
from parnet_deploy.train.recipes import RECIPES


def load() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts" / "networks.py"
    spec = importlib.util.spec_from_file_location("networks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["networks"] = module
    spec.loader.exec_module(module)
    return module


networks = load()
DOCUMENT = networks.DOCUMENT.read_text(encoding="utf-8")
ROWS = [row for rows in networks.TABLES.values() for row in rows]
COMMANDS = sorted({command for row in ROWS for command in row.commands})


def test_the_tables_are_up_to_date() -> None:
    assert networks.filled(DOCUMENT) == DOCUMENT, "run scripts/networks.py"
    assert networks.tables() in DOCUMENT


def test_a_change_of_a_count_would_show() -> None:
    changed = DOCUMENT.replace("| 35.577 |", "| 35.578 |", 1)
    assert changed != DOCUMENT
    assert networks.filled(changed) == DOCUMENT


def test_every_network_of_the_paper_has_a_row_in_each_of_its_tables() -> None:
    shown = {
        (number, row.variant)
        for title, rows in networks.TABLES.items()
        for number in re.findall(r"\d+", title.partition(":")[0])
        for row in rows
    }
    # Table 3 is about speed, with no training of its own.
    wanted = {(str(t), name) for name, v in VARIANTS.items() for t in v.tables if t != 3}
    assert shown == wanted


@pytest.mark.parametrize("name", [name for name, known in VARIANTS.items() if known.tables])
def test_the_papers_figures_are_those_of_variants(name: str) -> None:
    """A row of the variant's first table says what `variants` says."""
    known = VARIANTS[name]
    rows = [
        row
        for title, rows in networks.TABLES.items()
        if str(known.tables[0]) in re.findall(r"\d+", title.partition(":")[0])
        for row in rows
        if row.variant == name and row.size is None
    ]
    figures = [float(f) for row in rows for f in re.findall(r"\d+\.\d+|\d+", row.accuracy)]
    for accuracy in (known.paper_top1, known.paper_top5, known.paper_cifar100):
        assert accuracy is None or accuracy in figures
    parameters = {float(row.parameters) for row in rows if row.parameters != "-"}
    assert parameters == ({known.paper_parameters} if known.paper_parameters else set())
    gflop = {float(row.gflop) for row in rows if row.gflop != "-"}
    assert gflop == ({known.paper_gflop} if known.paper_gflop else set())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_given(command: str) -> None:
    """Parsed by the command line itself; recipes and variants exist."""
    program, name, *arguments = shlex.split(command)
    assert program == "parnet-deploy"
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    context = commands[name].make_context(name, arguments)
    given = context.params
    assert given.get("variant") in (None, *VARIANTS)
    assert given.get("recipe") in (None, *RECIPES)
    if name == "train":
        assert given["recipe"]
        assert given["variant"] or given["finetune"]


def test_that_check_can_fail() -> None:
    with pytest.raises(Exception, match="--no-such-option"):
        test_a_command_can_be_given("parnet-deploy train --no-such-option 3")
