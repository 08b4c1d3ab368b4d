"""What tests of a served model share: its signature, runners that wait to be told, and a clock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import RequestError
from parnet_deploy.runtime.base import ClosingRunner, FunctionRunner, Runner
from parnet_deploy.serve.engine.inference import Answer
from parnet_deploy.serve.engine.model import ServedModel
from parnet_deploy.serve.engine.queue import Job, JobQueue
from parnet_deploy.serve.recording import Recorder
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.signature import Signature
from parnet_deploy.spec import Array, Preprocessing, TensorSpec

PATIENCE = 20.0
"""Seconds after which a test that waits for a thread fails instead of hanging."""

CLASSES = 4

SIGNATURE = Signature(
    name="tiny",
    inputs=(TensorSpec(name="images", shape=("N", 3, 2, 2), dtype="float32"),),
    outputs=(TensorSpec(name="logits", shape=("N", CLASSES), dtype="float32"),),
    batch=BatchRange(min=1, opt=1, max=8),
    labels=("cat", "dog", "owl", "yak"),
    preprocessing=Preprocessing(size=(2, 2), crop_ratio=1.0, mean=(0, 0, 0), std=(1, 1, 1)),
    softmax=False,
    backend="onnxruntime",
    precision="fp32",
)

SETTINGS = ServeSettings(warm_up=0, decode_threads=1, queue=4)

Found = TypeVar("Found")


def with_batch(low: int, high: int) -> Signature:
    """The signature of an engine that takes these batches."""
    batch = BatchRange(min=low, opt=low, max=high)
    return replace(
        SIGNATURE,
        batch=batch,
        inputs=(replace(SIGNATURE.image, shape=(batch.axis, 3, 2, 2)),),
        outputs=(replace(SIGNATURE.scores, shape=(batch.axis, CLASSES)),),
    )


def images(*numbers: float) -> dict[str, Array]:
    """An image for each number, which is its first pixel."""
    array = np.zeros((len(numbers), 3, 2, 2), np.float32)
    array[:, 0, 0, 0] = numbers
    return {"images": array}


def numbers_in(feeds: Mapping[str, Array]) -> list[float]:
    """The numbers that `images` put in."""
    numbers: list[float] = feeds["images"][:, 0, 0, 0].tolist()
    return numbers


def echo(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Logits that begin with each image's number."""
    logits = np.zeros((len(feeds["images"]), CLASSES), np.float32)
    logits[:, 0] = feeds["images"][:, 0, 0, 0]
    return {"logits": logits}


def echoed(answer: Answer) -> list[float]:
    """The numbers in an answer of `echo`."""
    numbers: list[float] = answer.outputs["logits"][:, 0].tolist()
    return numbers


def echo_runner(signature: Signature = SIGNATURE) -> FunctionRunner:
    """Answers at once."""
    return FunctionRunner(echo, inputs=signature.inputs, outputs=signature.outputs)


def counting_runner(
    sizes: list[int], function: Callable[[Mapping[str, Array]], Mapping[str, Array]] = echo
) -> FunctionRunner:
    """Notes how many images each run has."""

    def run_it(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        sizes.append(len(feeds["images"]))
        return function(feeds)

    return FunctionRunner(run_it, inputs=SIGNATURE.inputs, outputs=SIGNATURE.outputs)


class GatedRunner(ClosingRunner):
    """Runs begin, and end only when they are told to.

    Attributes:
        started: the numbers of each run that has begun.
        log: every batch that was run, and ``closed`` for every `close`.
    """

    def __init__(self, signature: Signature = SIGNATURE) -> None:
        self.inputs, self.outputs = signature.inputs, signature.outputs
        self.started: SimpleQueue[list[float]] = SimpleQueue()
        self.log: list[list[float] | str] = []
        self._gates: dict[float, SimpleQueue[BaseException | None]] = {}
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        numbers = numbers_in(feeds)
        self.log.append(numbers)
        self.started.put(numbers)
        error = self._gate(numbers[0]).get(timeout=PATIENCE)
        if error is not None:
            raise error
        return echo(feeds)

    def begun(self) -> list[float]:
        """Wait until a run begins: its numbers."""
        return self.started.get(timeout=PATIENCE)

    def finish(self, number: float, error: BaseException | None = None) -> None:
        """Let the run whose first number this is end."""
        self._gate(number).put(error)

    def close(self) -> None:
        self.log.append("closed")

    def _gate(self, number: float) -> SimpleQueue[BaseException | None]:
        with self._lock:
            return self._gates.setdefault(number, SimpleQueue())


class GatedOpener:
    """Gives the runners and errors it is told, and waits for them after the first."""

    def __init__(self, first: Runner) -> None:
        self.asked: SimpleQueue[None] = SimpleQueue()
        self._next: SimpleQueue[Runner | BaseException] = SimpleQueue()
        self._next.put(first)

    def __call__(self) -> Runner:
        self.asked.put(None)
        found = self._next.get(timeout=PATIENCE)
        if isinstance(found, BaseException):
            raise found
        return found

    def give(self, found: Runner | BaseException) -> None:
        """What the next opening finds."""
        self._next.put(found)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.read = threading.Event()

    def __call__(self) -> float:
        self.read.set()
        return self.now


class ClockLoop(asyncio.SelectorEventLoop):
    """An event loop by another clock: what is due later comes when that is moved."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def time(self) -> float:
        return self._clock.now


def run(main: Coroutine[Any, Any, Found], clock: Clock | None = None) -> Found:
    """`asyncio.run`, by another clock if one is given; nothing may fail where nobody looks."""
    factory = None if clock is None else (lambda: ClockLoop(clock))
    with asyncio.Runner(loop_factory=factory) as runner:
        unseen = watch(runner.get_loop())
        found = runner.run(main)
    assert unseen == []
    return found


def watch(loop: asyncio.AbstractEventLoop) -> list[dict[str, Any]]:
    """What goes wrong in an event loop's own calls, and in futures that nobody waits for."""
    unseen: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unseen.append(context))
    return unseen


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


@contextmanager
def serving(
    opener: Callable[[], Runner],
    settings: ServeSettings = SETTINGS,
    signature: Signature = SIGNATURE,
    **options: Any,
) -> Any:
    """A model that was started, and is closed at the end."""
    model = ServedModel(signature, opener, settings, Recorder(signature), **options)
    model.start()
    try:
        yield model
    finally:
        model.close()


async def ask(model: ServedModel, *numbers: float, trace: bool = False) -> Answer:
    """One request, from admission to its end."""
    with model.admit() as ticket:
        return await model.run(ticket, images(*numbers), trace=trace)


def asked(model: ServedModel, *numbers: float) -> asyncio.Task[Answer]:
    """The same beside the caller; it waits for the engine after the next `settle`."""
    return asyncio.create_task(ask(model, *numbers))


def join_threads(name: str) -> None:
    """Wait until every thread of that name has ended."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(PATIENCE)
            assert not thread.is_alive()


Waiting = asyncio.Task[str]


class Desk:
    """A queue by a clock that stands still, and jobs put into it by their names."""

    def __init__(self, *, limit: int = 1, delay: float = 0.0) -> None:
        self.clock = Clock()
        self.queue: JobQueue[str, str] = JobQueue(limit=limit, delay=delay, clock=self.clock)

    def put(
        self, work: str, *, timeout: float = 10.0, rows: int = 1, alone: bool = False
    ) -> Waiting:
        """In the queue after the next `settle`."""
        now = self.clock.now
        job: Job[str, str] = Job(work, queued=now, deadline=now + timeout, rows=rows, alone=alone)
        return asyncio.create_task(self.queue.result(job))

    def take(self) -> list[Job[str, str]]:
        """What a thread would take now; there must be something."""
        assert len(self.queue)
        return self.queue.take()

    def taking(self) -> SimpleQueue[list[str]]:
        """The works that another thread takes."""
        taken: SimpleQueue[list[str]] = SimpleQueue()

        def take() -> None:
            taken.put([job.work for job in self.queue.take()])

        threading.Thread(target=take, daemon=True).start()
        return taken


def works(jobs: list[Job[str, str]]) -> list[str]:
    return [job.work for job in jobs]


def refused(call: object, status: int) -> RequestError:
    """The error of something that has been refused with this status."""
    assert isinstance(call, RequestError), call
    assert call.status == status
    return call


async def end_of(task: asyncio.Task[object]) -> object:
    """A task's result, or its error."""
    (end,) = await asyncio.gather(task, return_exceptions=True)
    return end
