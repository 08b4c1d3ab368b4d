"""The command line called inside this process, where a process of its own would only cost time."""

from __future__ import annotations

import signal
from dataclasses import dataclass

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


def one_sentence(result: Result, status: int, *parts: str) -> None:
    """The command ended as bad input must end: with one clear sentence and this status."""
    assert result.status == status, result
    assert "Traceback" not in result.out + result.err
    (line,) = (line for line in result.err.splitlines() if line.startswith("error: "))
    assert result.err.endswith(line + "\n"), "one line, and the last"
    assert "defect of parnet-deploy" not in line
    for part in parts:
        assert part in line, (part, line)
