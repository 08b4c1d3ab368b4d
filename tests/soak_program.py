"""``parnet-deploy serve`` with faults put in: ``python soak_program.py lose,swap ENGINE ...``."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from parnet_deploy.cli.main import run
from parnet_deploy.serve.http.sockets.transport import AnswerTransport
from parnet_deploy.serve.plane import DataPlane
from parnet_deploy.serve.recording import Recorder

KEPT: list[Any] = []
"""What leaks."""


def with_every_inference(act: Callable[[int], object]) -> None:
    """Do something more whenever the model is asked."""
    sound, count = DataPlane.infer, 0

    async def infer(self: DataPlane, *given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        act(count)
        return await sound(self, *given, **named)

    DataPlane.infer = infer  # type: ignore[method-assign]


def with_answer(number: int, act: Callable[[AnswerTransport], object]) -> None:
    """Do something more before one answer is sent, whatever made it."""
    sound, count = AnswerTransport.write_together, 0

    def write_together(self: AnswerTransport, *given: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            act(self)
        sound(self, *given)

    AnswerTransport.write_together = write_together  # type: ignore[method-assign]


def leak_memory() -> None:
    with_every_inference(lambda count: KEPT.append(b"x" * 100_000))


def leak_files() -> None:
    with_every_inference(lambda count: count % 10 or KEPT.append(os.open("/dev/null", os.O_RDONLY)))


def leak_threads() -> None:
    def start(count: int) -> None:
        if count % 20 == 0:
            threading.Thread(target=threading.Event().wait, daemon=True).start()

    with_every_inference(start)


def swap() -> None:
    """Answer every seventh request as the one before it."""
    sound, answers = DataPlane.infer, []

    async def infer(self: DataPlane, *given: Any, **named: Any) -> Any:
        answers.append(await sound(self, *given, **named))
        return answers[-2 if len(answers) % 7 == 0 else -1]

    DataPlane.infer = infer  # type: ignore[method-assign]


def lose() -> None:
    """Hang up in place of an answer."""
    with_answer(
        10, AnswerTransport.abort
    )  # early, so that it is among the first reasons that are kept


def answer_twice() -> None:
    again = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    with_answer(20, lambda transport: transport.writelines([again]))


def count_nothing() -> None:
    Recorder.answered = lambda *_, **__: None  # type: ignore[method-assign]


def end_badly() -> None:
    """See below."""


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__: fault
    for fault in (
        *(leak_memory, leak_files, leak_threads, count_nothing, end_badly),
        *(swap, lose, answer_twice),
    )
}

if __name__ == "__main__":
    names = sys.argv[1].split(",")
    for name in names:
        FAULTS[name]()
    status = run(["serve", *sys.argv[2:]])
    sys.exit(3 if "end_badly" in names else status)
