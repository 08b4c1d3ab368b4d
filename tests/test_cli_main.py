"""How every command ends: statuses, one sentence, no traceback, and closed pipes."""

from __future__ import annotations

import errno
import re
import subprocess
import sys

import pytest
from commands import call, call_and_close, one_sentence
from conftest import Cli

from parnet_deploy import __version__
from parnet_deploy.cli import main
from parnet_deploy.errors import BundleError, ParnetDeployError, SpecError

COMMANDS = [
    "train", "export", "build-engine", "verify", "predict", "serve", "triton-repo", "inspect",
    "variants", "doctor",
]  # fmt: skip


DEFECT = "this is a defect of parnet-deploy, --debug shows where"


def test_version(cli: Cli) -> None:
    result = cli("--version")
    assert (result.returncode, result.stdout, result.stderr) == (
        0,
        f"parnet-deploy {__version__}\n",
        "",
    )


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    result = call(capsys, flag)
    assert (result.status, result.err) == (0, "")
    assert all(command in result.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    result = call(capsys, command, "-h")
    assert (result.status, result.err) == (0, "")
    assert f"parnet-deploy {command}" in result.out


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys)
    assert result.status == 2
    assert "build-engine" in result.out
    assert "error" not in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exprot"], "'exprot'"),
        (["export", "--varaint", "s"], "--varaint"),
        (["export", "--variant"], "--variant"),
        (["export", "--opset", "many"], "--opset"),
        (["export", "--stem", "both"], "'replicate', 'share'"),
        (["export", "surplus"], "surplus"),
        (["verify"], "ENGINE"),
        (["predict"], "ENGINE"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    one_sentence(call(capsys, *arguments), 2, words)


def raising(monkeypatch: pytest.MonkeyPatch, exc: BaseException) -> None:
    def app(*args: object, **kwargs: object) -> None:
        raise exc

    monkeypatch.setattr(main, "app", app)


@pytest.mark.parametrize(
    ("exc", "status", "line"),
    [
        (ParnetDeployError("it broke"), 1, "error: it broke"),
        (BundleError("no bundle"), 1, "error: no bundle"),
        (SpecError("no such network"), 2, "error: no such network"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"),
            1,
            "error: No such file or directory (a/b)",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: No space left on device"),
        (MemoryError(), 1, "error: there is not enough memory for this"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was left half-written"),
        (ZeroDivisionError("by zero"), 1, f"error: ZeroDivisionError: by zero; {DEFECT}"),
        (AssertionError(), 1, f"error: AssertionError; {DEFECT}"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_how_exceptions_end(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    exc: BaseException,
    status: int,
    line: str,
) -> None:
    raising(monkeypatch, exc)
    result = call(capsys, "export")
    assert (result.status, result.err, result.out) == (status, line + "\n", "")


@pytest.mark.parametrize(("code", "status"), [(None, 0), (0, 0), (3, 3), ("text", 1)])
def test_exits(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    code: object,
    status: int,
) -> None:
    raising(monkeypatch, SystemExit(code))
    assert call(capsys, "export").status == status


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_the_traceback_wherever_it_stands(
    capsys: pytest.CaptureFixture[str], place: int
) -> None:
    arguments = ["export", "--variant", "nope"]
    arguments.insert(place, "--debug")
    result = call(capsys, *arguments)
    assert result.status == 2
    assert "Traceback (most recent call last)" in result.err
    assert result.err.splitlines()[-1].startswith("error: there is no variant 'nope'")


TALKING = """
import logging, sys
from parnet_deploy.cli import main
def app(*arguments, **options):
    logging.getLogger("parnet_deploy.tensorrt").debug("INFO: it parses")
    logging.getLogger("matplotlib").debug("it looks for fonts")
main.app = app
sys.exit(main.run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("options", "said"), [(["--debug"], "parnet_deploy.tensorrt: INFO: it parses\n"), ([], "")]
)
def test_debug_lets_our_own_loggers_print(options: list[str], said: str) -> None:
    command = [sys.executable, "-c", TALKING, "build-engine", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stderr, done.stdout) == (said, "")


@pytest.mark.parametrize("arguments", [["-h"], ["variants"], ["variants", "--json"]])
def test_a_closed_pipe_is_no_error(arguments: list[str]) -> None:
    assert call_and_close(*arguments, stream="stdout") == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_a_supervisor_has_closed(closed: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"$0" -m parnet_deploy variants {closed}', sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ("ImageNet" in done.stdout) == (not re.search(r"(^| )>&-", closed))
