"""The server, the clients and the watcher put together."""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

from parnet_deploy.bundle import open_engine_bundle
from serving_soak.client import Tally, Task, run, share
from serving_soak.judging import Counts, Growth, faults_of, growth_of
from serving_soak.network import pictures
from serving_soak.watching import Sample, Watch, look

SERVE = (sys.executable, "-m", "parnet_deploy", "serve")

PICTURES = 64
"""Of each client."""

_START = 120.0
_STOP = 40.0
_QUIET = 10.0
_EVERY = 0.1
"""Seconds between two looks at the server; less where there are few requests (`_PER_REQUEST`)."""

_PER_REQUEST = 1e-5
"""The same for each request: the windows of a short run are short, and need looks in them, too."""

_IN_FLIGHT = re.compile(r"^parnet_requests_in_flight\{.*\} ([0-9.]+)$", re.MULTILINE)


class SoakError(Exception):
    """The soak cannot be run: one sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        requests: from all clients.
        clients: processes that ask at the same time.
        seconds: after which clients stop asking.
        options: of ``serve``, beside its port.
        serve: the program that serves, for tests.
    """

    requests: int = 100_000
    clients: int = 8
    seconds: float = 1500.0
    options: Sequence[str] = ()
    serve: Sequence[str] = SERVE


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        tally: of all clients.
        growth: of the server.
        counts: of the server.
        seconds: from the first request to the last.
        faults: what does not hold; empty where all does.
    """

    tally: Tally
    growth: Growth
    counts: Counts
    seconds: float
    faults: list[str]


def soak(plan: Plan, engine: Path, log: Path) -> Outcome:
    """Serve an engine, ask, and compare.

    Args:
        plan: how much.
        engine: the bundle.
        log: file for what the server says.

    Raises:
        SoakError: the server does not start, or ended before the clients.
    """
    each = [plan.requests // plan.clients] * plan.clients
    each[0] += plan.requests - sum(each)
    images = pictures(engine, PICTURES * plan.clients, seed=0)
    model = open_engine_bundle(engine).manifest.name
    with serving(plan, engine, log) as (process, port):
        before = look(process.pid)
        tasks = [
            Task(
                number=number,
                port=port,
                model=model,
                requests=requests,
                pictures=images[number * PICTURES :][:PICTURES],
                seconds=plan.seconds,
            )
            for number, requests in enumerate(each)
        ]
        begin = time.monotonic()
        tally, samples = _ask_all(tasks, process.pid)
        seconds = time.monotonic() - begin
        if process.poll() is not None:
            raise SoakError(f"the server ended with status {process.returncode}: {_last(log)}")
        counts = _counts(process, port, model, before)
    growth = growth_of(samples, plan.requests)
    faults = faults_of(tally, plan.requests, growth, counts)
    return Outcome(tally=tally, growth=growth, counts=counts, seconds=seconds, faults=faults)


@contextlib.contextmanager
def serving(plan: Plan, engine: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server that is ready, and its port; it is killed where it still runs at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*plan.serve, str(engine), "--port", str(port), *plan.options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + _START
        while _get(port, "/v2/health/ready")[0] != 200:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SoakError(f"the server is not ready: {_last(log)}")
            time.sleep(0.1)
        yield process, port
    finally:
        process.kill()
        process.wait()


def _ask_all(tasks: Sequence[Task], pid: int) -> tuple[Tally, list[Sample]]:
    """All clients at once, the server watched meanwhile."""
    context = multiprocessing.get_context("spawn")
    progress = context.Array("q", len(tasks), lock=False)
    with ProcessPoolExecutor(
        len(tasks), mp_context=context, initializer=share, initargs=(progress,)
    ) as pool:
        asking = [pool.submit(run, task) for task in tasks]
        every = min(_EVERY, _PER_REQUEST * sum(task.requests for task in tasks))
        with Watch(pid, lambda: sum(progress), every) as watch:
            tallies = [each.result() for each in asking]
    return reduce(add, tallies), watch.samples


def _counts(process: subprocess.Popen[bytes], port: int, model: str, before: Sample) -> Counts:
    """What the server says once it is quiet, and how it ends."""
    deadline = time.monotonic() + _QUIET
    in_flight = 1
    while in_flight and time.monotonic() < deadline:
        time.sleep(0.2)
        found = _IN_FLIGHT.search(_get(port, "/metrics")[1].decode())
        in_flight = int(float(found.group(1))) if found else -1
    statistics = json.loads(_get(port, f"/v2/models/{model}/stats")[1])["model_stats"][0]
    time.sleep(0.5)  # connections that were hung up on are closed
    after = look(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(_STOP)
    except subprocess.TimeoutExpired:
        status = -1
    return Counts(
        answered=statistics["inference_stats"]["success"]["count"],
        in_flight=in_flight,
        before=before,
        after=after,
        status=status,
    )


def _get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body; status 0 where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _last(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
