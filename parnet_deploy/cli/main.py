"""The commands, and how they end: one clear sentence, a fitting exit status, no traceback."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer

from parnet_deploy import __version__
from parnet_deploy.cli import (
    bench,
    build_engine,
    doctor,
    ensemble,
    evaluate,
    export,
    inspect,
    plan,
    predict,
    serve,
    train,
    triton_repo,
    variants,
    verify,
)
from parnet_deploy.cli.console import discard
from parnet_deploy.errors import ParnetDeployError, UsageError, os_reason

# The class of all that typer's parser raises. Which package it is from depends on typer's version
# (click, or typer itself), so it is found by way of its one public descendant.
PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM

app = typer.Typer(
    name="parnet-deploy",
    help="From a trained ParNet to engines that answer one image at a time, proven equal to it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its markup swallows [what stands in brackets]
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.command)
app.command("evaluate")(evaluate.command)
app.command("ensemble")(ensemble.command)
app.command("export")(export.command)
app.command("build-engine")(build_engine.command)
app.command("verify")(verify.command)
app.command("predict")(predict.command)
app.command("serve")(serve.command)
app.command("bench")(bench.command)
app.command("plan")(plan.command)
app.command("triton-repo")(triton_repo.command)
app.command("inspect")(inspect.command)
app.command("variants")(variants.command)
app.command("doctor")(doctor.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"parnet-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Say which this is."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show an error's traceback, and what TensorRT says (any position)."
        ),
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: what follows the program's name; ``sys.argv`` where None.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    if debug:  # only our own loggers: others' DEBUG messages are many
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("parnet_deploy").setLevel(logging.DEBUG)
    signal.signal(signal.SIGTERM, _terminate)
    # torch's threads that wait for the next operator sleep instead of spinning: beside another busy
    # program, spinning made training ten times slower. It is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    status = 0
    try:
        status = app(given or ["--help"], standalone_mode=False, prog_name="parnet-deploy")
        sys.stdout.flush()  # a closed pipe is noticed here, and not when Python ends
    except SystemExit as exc:
        if exc.code == TERMINATED:
            print("terminated; nothing was left half-written", file=sys.stderr)
        if not isinstance(exc.__context__, BrokenPipeError):  # of which typer makes a status 1
            return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        discard(sys.stdout)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:
        discard(sys.stdout)
    except Exception as exc:  # noqa: BLE001 - the last resort: whatever is left is told, too
        if debug:
            traceback.print_exc()
        return _report(exc)
    if status == INTERRUPTED:  # typer, too, turns an interrupt into this status
        print("interrupted; nothing was left half-written", file=sys.stderr)
    return int(status or 0) if given else UsageError.exit_code


def _report(exc: Exception) -> int:
    """Say what went wrong in one sentence, and give the exit status."""
    message, status = _explain(exc)
    print(f"error: {message}", file=sys.stderr)
    return status


def _explain(exc: Exception) -> tuple[str, int]:
    if isinstance(exc, ParnetDeployError):
        return str(exc), exc.exit_code
    if isinstance(exc, PARSER_ERROR):
        say = getattr(exc, "format_message", exc.__str__)
        return say().rstrip("."), UsageError.exit_code
    if isinstance(exc, OSError):
        where = f" ({exc.filename})" if exc.filename else ""
        return f"{os_reason(exc)}{where}", 1
    if isinstance(exc, MemoryError):
        return "there is not enough memory for this", 1
    kind = f"{type(exc).__name__}: {exc}".strip(": ")
    return f"{kind}; this is a defect of parnet-deploy, --debug shows where", 1


def _terminate(signum: int, frame: FrameType | None) -> None:
    """End like an exception, so that nothing half-written is left.

    Nothing is printed here: the program may be in the middle of printing.
    """
    raise SystemExit(TERMINATED)
