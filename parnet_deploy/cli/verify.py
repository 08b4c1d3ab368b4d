"""``parnet-deploy verify``: is an engine still the network that was trained?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from parnet_deploy.cli.console import (
    Justify,
    console,
    new_table,
    print_json,
    print_table,
    progress,
    tell,
)
from parnet_deploy.cli.packages import need

if TYPE_CHECKING:
    from parnet_deploy.verify.result import CheckResult, ProbeResult, Verification

Engine = Annotated[
    Path,
    typer.Argument(
        metavar="ENGINE", help="Engine bundle; a model bundle is climbed as far as its stages."
    ),
]
Sibling = Annotated[
    Path | None,
    typer.Option("--with", help="Engine of the other kind, split or whole, of the same model."),
]
Images = Annotated[Path | None, typer.Option(help="Feed images from this folder.")]
Npz = Annotated[
    Path | None,
    typer.Option(
        help="Feed an array (N,3,H,W) from this .npz: 'images', or the only one besides 'labels'."
    ),
]
Calibrate = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="What an int8 or fp8 network was calibrated on, as export's --calibrate takes it: "
        "its ranges must be found again, and it is fed where nothing else is.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the noise that is fed otherwise.", min=0)]
Samples = Annotated[
    int | None,
    typer.Option(help="Number of images, at most [default: 4; 32 up to 128x128 pixels].", min=1),
]
Require = Annotated[
    list[str] | None,
    typer.Option(metavar="RUNG", help="Fail where this rung cannot be verified; repeatable."),
]
Tolerance = Annotated[
    list[str] | None,
    typer.Option(metavar="RUNG=VALUE", help="Greatest relative error of a rung; repeatable."),
]
Model = Annotated[
    Path | None, typer.Option(help="Model bundle, where it is not where the engine says.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Output = Annotated[
    Path | None,
    typer.Option(help="Folder for verify.json and verify.html; without it, the engine's own."),
]

_STYLES = {
    "passed": "green",
    "failed": "bold red",
    "not verified": "yellow",
    "not applicable": "dim",
}


_HEADLINES = {"passed": "green", "FAILED": "red", "NOT VERIFIED": "yellow"}

NOT_JUDGED = 3
"""Exit status where nothing failed, and what is quantised was fed nothing that judges it."""


def command(
    engine: Engine,
    sibling: Sibling = None,
    images: Images = None,
    npz: Npz = None,
    calibrate: Calibrate = None,
    seed: Seed = 0,
    samples: Samples = None,
    require: Require = None,
    tolerance: Tolerance = None,
    model: Model = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Climb the parity ladder, from the network as it was trained to the engine.

    Every rung is compared with the one before and with the first: training-f64, fused-f64,
    fused-f32, onnx-whole, onnx-stages, engine, split-engine. What graphs and engines compute in is
    read from their files. The exit status is 1 where something failed, and 3 where int8 or fp8
    graphs were fed noise, on which their numbers are not judged: give images. It is 0 where
    nothing failed. A rung that cannot run on this machine is "not verified" and changes nothing
    of that, unless it is named with --require.
    """
    from parnet_deploy.verify.options import VerifyOptions
    from parnet_deploy.verify.tolerances import parse_rung, parse_tolerances

    options = VerifyOptions(
        images=images,
        npz=npz,
        calibrate=calibrate,
        seed=seed,
        samples=samples,
        required=tuple(parse_rung("--require", name) for name in require or ()),
        tolerances=parse_tolerances(tolerance or ()),
        model=model,
        sibling=sibling,
    )
    need("verify")
    from parnet_deploy.verify import wording
    from parnet_deploy.verify.report import check_writable, write_report
    from parnet_deploy.verify.verifying import verify

    if output is not None:
        check_writable(output)
    found = verify(engine, options, progress=progress)
    with contextlib.suppress(BrokenPipeError):  # whoever read the table may have gone away
        if as_json:
            print_json(found)
        else:
            _print(found)
    for path in write_report(found, output or engine):
        tell(f"written: {path}")
    if not found.passed:
        raise typer.Exit(1)
    if wording.unjudged(found):
        raise typer.Exit(NOT_JUDGED)


def _print(found: Verification) -> None:
    from parnet_deploy.verify import wording

    for note in found.notes:
        _say(f"[bold red]WARNING[/] {escape(note)}")
    print_table(_ladder(found))
    _say(f"[dim]{wording.RELATIVE} Fed: {escape(found.inputs)}.[/]")
    _say(f"[dim]Allowed: {escape(found.allowed)}.[/]")
    if found.precision != "fp32":
        for text in (wording.agreement, wording.steps):
            for line in filter(None, map(text, found.rungs)):
                _say(escape(line))
    for rung in found.rungs:
        # What ends in a failure is said there, once.
        if rung.reason and not any(rung.reason in failure for failure in found.failures):
            style = _STYLES[rung.verdict]
            _say(f"[{style}]{rung.name} {rung.verdict}:[/] {escape(rung.reason)}")
        if rung.parted_at:
            _say(f"{rung.name}: they part company at {escape(rung.parted_at)}")
    console.print()
    print_table(_judged("looked into", "what must hold", found.checks))
    console.print()
    print_table(_judged("probed", "property", wording.probes(found)))
    console.print()
    for number, failure in enumerate(found.failures):
        # The clearest is the first; what may follow from it is not a second fault.
        mark = "[red]  also[/]" if number else "[bold red]FAILED[/]"
        _say(f"{mark} {escape(failure)}")
    verdict = wording.headline(found)
    shown = f"[bold {_HEADLINES[verdict]}]{verdict}[/]"
    _say(f"{shown}: {escape(found.bundle)}; {wording.summary(found)}")


def _ladder(found: Verification) -> Table:
    from parnet_deploy.verify import wording

    columns: dict[str, Justify] = {
        "rung": "left",
        "against": "left",
        "max abs": "right",
        "max rel": "right",
        "cosine": "right",
        "top-1": "right",
        "allowed": "right",
        "margin": "right",
        "verdict": "left",
    }
    table = new_table(None, columns)
    for rung in found.rungs:
        for line in wording.lines(rung):
            table.add_row(
                line.rung,
                line.against,
                line.max_abs,
                line.max_rel,
                line.cosine,
                line.top1,
                line.allowed,
                line.margin,
                _styled(line.verdict),
            )
    return table


def _judged(what: str, how: str, results: Iterable[CheckResult | ProbeResult]) -> Table:
    """A row for each result, its verdict last; `what` and `how` head its rung and its name."""
    columns: dict[str, Justify] = {what: "left", how: "left", "found": "left", "verdict": "left"}
    table = new_table(None, columns)
    for one in results:
        table.add_row(one.rung, one.name, escape(one.detail), _styled(one.verdict))
    return table


def _styled(verdict: str) -> str:
    return f"[{_STYLES[verdict]}]{verdict}[/]" if verdict else ""


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
