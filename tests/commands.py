"""The command line called inside this process, where a process of its own would only cost time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest

from parnet_deploy.cli.main import run


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    status: int
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    before = signal.getsignal(signal.SIGTERM)
    try:
        status = run([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, before)
    out, err = capsys.readouterr()
    return Result(status=status, out=out, err=err)


def call_and_close(*arguments: object, stream: Literal["stdout", "stderr"]) -> int:
    """``parnet-deploy ... | true``: a process whose reader has gone before anything is written.

    Returns:
        The exit status, where what was written to the other stream has no traceback in it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "parnet_deploy", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    closed = process.stdout if stream == "stdout" else process.stderr
    assert closed is not None
    closed.close()
    open_one = process.stderr if stream == "stdout" else process.stdout
    assert open_one is not None
    with open_one:
        said = open_one.read()
    status = process.wait(timeout=60)
    assert "Traceback" not in said, said
    assert "BrokenPipe" not in said, said
    return status


def one_sentence(result: Result, status: int, *parts: str) -> None:
    """The command ended as bad input must end: with one clear sentence and this status."""
    assert result.status == status, result
    assert "Traceback" not in result.out + result.err
    (line,) = (line for line in result.err.splitlines() if line.startswith("error: "))
    assert result.err.endswith(line + "\n"), "one line, and the last"
    assert "defect of parnet-deploy" not in line
    for part in parts:
        assert part in line, (part, line)
