"""Send the list of faults to our server, and to a real Triton, for ``scripts/serve-faults``."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from serving_faults.checking import MOST_MEMORY, Checker, Finding, all_faults, check_all
from serving_faults.deadlines import deadline_scenarios
from serving_faults.loads import load_scenarios
from serving_faults.model import NAME, Model, open_model
from serving_faults.scenario import NotHereError, Ours, Scenario
from serving_faults.scenario import Side as Servers
from serving_faults.servers import StartError, ours
from serving_faults.starts import start_scenarios
from serving_faults.table import Report, Side, page
from serving_faults.trick import make_trick
from serving_faults.triton import Tritons, make_repository, make_tricky, served, triton_scenarios
from serving_faults.wire import WireError
from triton_server import WHEEL, Triton, TritonError, install

MOST_GROWTH = 32 << 20
"""Bytes that the list may leave behind when it is sent for the second time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Send everything; 1 where ours is not right, or a server cannot be had."""
    options = parse(arguments)
    untried: dict[str, str] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="serve-faults-") as scratch:
            folder = Path(scratch)
            engine = make_engine(folder)
            model = open_model(engine)
            with contextlib.closing(model):
                found, (growth, left) = look_at_ours(model, folder / "ours", untried)
                sides = [found]
                if options.triton is not None:
                    triton = install(options.triton.resolve())
                    sides.append(look_at_triton(model, triton, folder / "triton"))
    except (TritonError, StartError, WireError, subprocess.CalledProcessError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    if options.output is not None:
        options.output.write_text(page(report(sides, growth, untried)), encoding="utf-8")
        print(f"written: {options.output}")
    wrong = [each for each in (*sides[0].findings, *sides[0].scenarios) if each.wrong]
    print(f"{len(sides[0].by_fault)} faults: {len(wrong)} of ours are not right; {growth}")
    return 1 if wrong or left > MOST_GROWTH else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/serve-faults", description=__doc__)
    parser.add_argument("--triton", type=Path, metavar="FOLDER", help="where Triton is, or will be")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table there")
    return parser.parse_args(arguments)


def make_engine(folder: Path) -> Path:
    """An untrained digits network's engine, of one to four images."""
    model, engine = folder / "models" / NAME, folder / "engines" / NAME
    _call("export", "--variant", "digits", "--for", "onnxruntime", "--batch", "1:1:4", model)
    _call("build-engine", model, "--backend", "onnxruntime", "--provider", "cpu", engine)
    return engine


def _call(*arguments: object) -> None:
    """``parnet-deploy`` as a user calls it; the last argument is where it writes to."""
    *words, output = map(str, arguments)
    command = [sys.executable, "-m", "parnet_deploy", *words, "--output", output]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def growth_of(checker: Checker) -> tuple[str, int]:
    """What a list leaves behind that was sent once already: in words, and bytes.

    Open files that were not open before count as more than there may be.
    """
    server = checker.server
    sizes, files = [], []
    for number in range(3):
        for fault in all_faults() if number else ():
            checker.check(fault)
        server.wait_for_metric("parnet_http_connections", 1)  # the one that asks
        sizes.append(server.memory())
        files.append(server.files())
    first, last = (f"{size / 2**20:.0f} MiB" for size in (sizes[0], sizes[-1]))
    words = (
        f"Our server had {first} of memory and {files[0]} files open after the whole list was sent "
        f"once, {last} and {files[-1]} after it was sent three times."
    )
    return words, sizes[-1] - sizes[0] if files[-1] <= files[0] else sys.maxsize


def look_at_ours(
    model: Model, folder: Path, untried: dict[str, str]
) -> tuple[Side, tuple[str, int]]:
    """What ours does, and `growth_of` it."""
    folder.mkdir()
    checker = Checker(lambda: ours(model.bundle.path), model, sentences=True)
    with contextlib.closing(checker):
        findings = tuple(told("ours", check_all(checker)))
        growth = growth_of(checker)
    side = Ours(model=model, engine=make_trick(model.bundle.path, folder / "trick"), folder=folder)
    with contextlib.closing(side):
        scenarios = tuple(told("ours", tried(every_scenario(), side, untried)))
    found = Side(name="ours", findings=findings, scenarios=scenarios, deaths=checker.deaths)
    return found, growth


def look_at_triton(model: Model, triton: Triton, folder: Path) -> Side:
    """What Triton does; after it died another one is started."""
    folder.mkdir()
    repository = make_repository(model.bundle.path, folder)
    checker = Checker(lambda: served(triton, repository), model, sentences=False)
    with contextlib.closing(checker):
        findings = tuple(told("Triton", check_all(checker, everybody=True)))
    tricky = make_tricky(repository, folder)
    side = Tritons(model=model, triton=triton, repository=tricky, folder=folder)
    with contextlib.closing(side):
        scenarios = tuple(told("Triton", tried(triton_scenarios(every_scenario()), side, {})))
    return Side(name="Triton", findings=findings, scenarios=scenarios, deaths=checker.deaths)


def every_scenario() -> tuple[Scenario, ...]:
    """All faults that take more than one request."""
    return (*deadline_scenarios(), *load_scenarios(), *start_scenarios())


def tried(
    scenarios: Sequence[Scenario], side: Servers, untried: dict[str, str]
) -> Iterator[Finding]:
    """What came of each; what cannot be tried here is noted."""
    for scenario in scenarios:
        try:
            yield scenario.check(side)
        except NotHereError as exc:
            untried[scenario.title] = str(exc)


def told(whose: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """The same; what is not right is printed as it comes."""
    for finding in findings:
        if finding.wrong:
            where = f"{whose}: {finding.group}: {finding.title}"
            print(f"{where}: {finding.measured} ({finding.wrong})", flush=True)
        yield finding


def report(sides: Sequence[Side], growth: str, untried: dict[str, str]) -> Report:
    """All that the page tells."""
    named = ("parnet-deploy", "onnxruntime-gpu", "starlette", "uvicorn", "msgspec", "pillow")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in named)
    others = f"; {WHEEL} (Triton 2.51)" if len(sides) > 1 else ""
    alone = {(each.group, each.title): each.alone for each in all_faults() if each.alone}
    alone |= {(each.group, each.title): each.alone for each in every_scenario() if each.alone}
    others_know = sides[-1].by_fault if len(sides) > 1 else {}
    return Report(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        versions=f"Python {platform.python_version()}, {versions}{others}.",
        memory=MOST_MEMORY >> 20,
        growth=growth,
        sides=sides,
        alone={key: why for key, why in alone.items() if key not in others_know},
        untried=untried,
    )


if __name__ == "__main__":
    sys.exit(main())
