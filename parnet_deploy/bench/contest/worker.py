"""A contestant's own process: ``python -m parnet_deploy.bench.contest.worker``.

It reads an `Assignment` and then `Turn`s, one a line, from standard input, answers each with a
`Reply`, and ends with the input. Standard output carries replies only: what libraries print goes
to standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import numpy as np

from parnet_deploy.bench import nvml
from parnet_deploy.bench.contest.measure import peak_memory, take_turn
from parnet_deploy.bench.contest.messages import Assignment, Finished, Opened, Reply, Turn
from parnet_deploy.bench.contest.openers import open_contestant
from parnet_deploy.bench.entries.images import read_images
from parnet_deploy.bench.process_group import end_with_parent
from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import ParnetDeployError, UsageError
from parnet_deploy.runtime import Runner, run_batches
from parnet_deploy.runtime.timeline import Traces
from parnet_deploy.spec import Array, decode
from parnet_deploy.spec.codec import encode_line

Say = Callable[[Reply], None]


def main() -> int:
    """Serve one contestant until the input ends. Exit status 1 where it failed."""
    end_with_parent()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(reply: Reply) -> None:
        replies.write(encode_line(reply))

    try:
        serve(sys.stdin, say)
    except ParnetDeployError as exc:
        say(Reply(error=str(exc)))
        return 1
    except Exception as exc:  # noqa: BLE001 - a contestant is absent for whatever it failed
        say(Reply(error=f"{type(exc).__name__}: {' '.join(str(exc).split())}"))
        return 1
    return 0


def serve(requests: TextIO, say: Say) -> None:
    """Open the contestant, answer once, take turns, and answer all images at the end.

    Args:
        requests: lines: an `Assignment`, then `Turn`s.
        say: hands on a reply.

    Raises:
        ParnetDeployError: it cannot be opened, or a run failed.
    """
    assignment = decode(requests.readline(), Assignment)
    opened = open_contestant(assignment.contestant)
    runner = opened.runner
    try:
        feeds = load_feeds(assignment, runner)
        runner.run(feeds)
        (output,) = runner.outputs
        said = Opened(
            output=output.name,
            precision=opened.precision,
            kernels=opened.kernels,
            versions=opened.versions,
        )
        say(Reply(opened=said))
        for line in requests:
            say(Reply(turned=take_turn(runner, feeds, decode(line, Turn))))
        memory, gpu_memory = peak_memory(), nvml.process_memory(os.getpid())
        np.save(assignment.answers, answer_all(assignment, runner))
        timeline = runner.trace(feeds) if isinstance(runner, Traces) else ()
        say(Reply(finished=Finished(timeline=timeline, host_memory=memory, gpu_memory=gpu_memory)))
    finally:
        runner.close()


def load_feeds(assignment: Assignment, runner: Runner) -> dict[str, Array]:
    """The contestant's first images in the dtype that it reads, as many as a run takes.

    Raises:
        UsageError: there are fewer.
    """
    (source,) = runner.inputs
    images = read_images(Path(assignment.contestant.images), source.dtype)
    if len(images) < assignment.batch:
        raise UsageError(f"{assignment.batch} images are needed, and there are {len(images)}")
    return {source.name: images[: assignment.batch]}


def answer_all(assignment: Assignment, runner: Runner) -> Array:
    """The answers to all images (N, classes), as many in a run as when it is timed."""
    (source,) = runner.inputs
    images = read_images(Path(assignment.contestant.images), source.dtype)
    size = assignment.batch
    return run_batches(runner, images, BatchRange(min=size, opt=size, max=size))


if __name__ == "__main__":
    sys.exit(main())
