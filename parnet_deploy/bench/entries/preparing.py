"""What a contest needs beforehand, made in a process of its own.

``python -m parnet_deploy.bench.entries.preparing TASK`` reads what is asked as JSON from standard
input and prints what it made as JSON. So the benchmark itself carries no training framework, and
what a library does to the process it runs in ends with that process. Standard output carries the
answer only: what libraries print goes to standard error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.entries.reference import Answers, Question, answer_question
from parnet_deploy.bench.entries.timm_networks import (
    TIMM_NETWORKS,
    TimmRequest,
    timm_contestant,
    timm_problem,
)
from parnet_deploy.bench.peers import Preparation, find_peer
from parnet_deploy.bench.process_group import end_group, end_with_parent
from parnet_deploy.bench.result import Absence
from parnet_deploy.errors import BuildError, ParnetDeployError, SpecError
from parnet_deploy.spec import decode, encode

SECONDS = 900.0
"""How long a preparation may take: exports of the largest network take a minute."""

COMMAND = (sys.executable, "-m", "parnet_deploy.bench.entries.preparing")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What such a process prints: one of these two, as JSON."""

    made: Any = None
    error: str | None = None


def prepare_in_process(asked: Preparation, *, seconds: float = SECONDS) -> Contestant | Absence:
    """Prepare a peer in a process of its own.

    Args:
        asked: which peer, and what for.
        seconds: how long it may take.

    Returns:
        The contestant, or why it cannot take part.

    Raises:
        UsageError: there is no such peer or no such device.
    """
    peer = find_peer(asked.peer)
    reason = peer.problem(asked.device, asked.precision)
    if reason is None:
        try:
            return _ask("peer", asked, Contestant, seconds)
        except BuildError as exc:
            reason = str(exc)
    return Absence(name=peer.title, network=asked.network, reason=reason)


def timm_in_process(asked: TimmRequest, *, seconds: float = SECONDS) -> Contestant | Absence:
    """Prepare one of timm's networks in a process of its own.

    Args:
        asked: which network, and what builds its engine.
        seconds: how long it may take.

    Returns:
        The contestant, or why it cannot take part. Its settings name, as ``reference``, a file
        with what is right.
    """
    reason = timm_problem(asked)
    if reason is None:
        try:
            return _ask("timm", asked, Contestant, seconds)
        except BuildError as exc:
            reason = str(exc)
    title = f"{TIMM_NETWORKS[asked.name].title}, {asked.backend}"
    return Absence(name=title, network=asked.name, reason=reason)


def reference_in_process(question: Question, *, seconds: float = SECONDS) -> Answers:
    """Compute the training form's answers in float64, in a process of its own.

    Args:
        question: which network, and which images.
        seconds: how long it may take.

    Raises:
        BuildError: they cannot be computed; the message says why.
    """
    return _ask("reference", question, Answers, seconds)


def _prepare_peer(data: bytes) -> Contestant:
    asked = decode(data, Preparation)
    return find_peer(asked.peer).prepare(asked)


def _prepare_timm(data: bytes) -> Contestant:
    return timm_contestant(decode(data, TimmRequest))


def _reference(data: bytes) -> Answers:
    return answer_question(decode(data, Question))


TASKS: Mapping[str, Callable[[bytes], object]] = {
    "peer": _prepare_peer,
    "timm": _prepare_timm,
    "reference": _reference,
}


def main() -> int:
    """Do the task that is named by the first argument. Exit status 1 where it failed."""
    end_with_parent()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        prepared = Prepared(made=TASKS[sys.argv[1]](sys.stdin.buffer.read()))
    except ParnetDeployError as exc:
        prepared = Prepared(error=str(exc))
    except Exception as exc:  # noqa: BLE001 - a peer is absent for whatever its library raises
        prepared = Prepared(error=f"{type(exc).__name__}: {' '.join(str(exc).split())}")
    with answers:
        answers.write(encode(prepared))
    return 0 if prepared.error is None else 1


def _ask(task: str, asked: object, kind: type[T], seconds: float) -> T:
    """Have a task done.

    Raises:
        BuildError: it failed, crashed, or took too long.
    """
    status, answer, said = _have_done((*COMMAND, task), encode(asked), seconds)
    try:
        prepared = decode(answer, Prepared)
        if prepared.error is None:
            return decode(encode(prepared.made), kind)
    except SpecError as exc:
        raise BuildError(_ended(status, said)) from exc
    raise BuildError(prepared.error)


def _have_done(command: Sequence[str], asked: bytes, seconds: float) -> tuple[int, bytes, bytes]:
    """A process's status, answer and words. Whatever it has started ends with it.

    Raises:
        BuildError: it cannot be started, or took too long.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except OSError as exc:
        raise BuildError(f"cannot start {command[0]}: {exc.strerror or exc}") from exc
    try:
        answer, said = process.communicate(asked, timeout=seconds)
    except subprocess.TimeoutExpired as exc:
        raise BuildError(f"its preparation took longer than {seconds:g} seconds") from exc
    finally:
        end_group(process)
    return process.returncode, answer, said


def _ended(status: int, said: bytes) -> str:
    """How a process ended that gave no answer."""
    how = f"signal {-status}" if status < 0 else f"status {status}"
    lines = said.decode(errors="replace").strip().splitlines()
    return f"its preparation ended with {how}" + (f": {lines[-1].strip()}" if lines else "")


if __name__ == "__main__":
    sys.exit(main())
