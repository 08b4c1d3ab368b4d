"""Servers in processes of their own, and clients that ask them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("serve_program.py")


@dataclass(kw_only=True)
class Served:
    """A server's process.

    Attributes:
        port: where it listens.
        log: what it has said on standard error so far, by lines.
    """

    process: subprocess.Popen[str]
    port: int = 0
    log: list[str] = field(default_factory=list)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        self.process.send_signal(signum)

    def status(self) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(timeout=30)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, header fields, body."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, fields, answer.read()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def wait_for(self, words: str) -> str:
        """The first line of the log with these words in it."""
        end = time.monotonic() + 60
        while True:
            if found := [line for line in self.log if words in line]:
                return found[0]
            assert time.monotonic() < end, (words, self.log)
            assert self.process.poll() is None or self._reader_has_more(), self.log
            time.sleep(0.01)

    def wait_until_it_listens(self) -> None:
        """Until connections are taken, or it has ended."""
        end = time.monotonic() + 60
        while self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                assert time.monotonic() < end
                time.sleep(0.01)
            else:
                return

    def wait_until_ready(self) -> None:
        self.wait_for("ready: ")
        assert self.ask("GET", "/v2/health/ready")[0] == 200

    def _reader_has_more(self) -> bool:
        return any(thread.name == f"log of {self.process.pid}" for thread in threading.enumerate())


@contextlib.contextmanager
def program(*, reads: bool = True, **asked: Any) -> Iterator[Served]:
    """The program with a Python function for an engine; `reads`: its log, too."""
    with started([str(PROGRAM), json.dumps(asked, default=str)], reads=reads) as served:
        assert served.process.stdout is not None
        line = served.process.stdout.readline()
        assert line, served.log
        served.port = int(line)
        served.wait_until_it_listens()
        yield served


@contextlib.contextmanager
def started(
    arguments: Sequence[str], *, cwd: Path | None = None, reads: bool = True
) -> Iterator[Served]:
    """A Python program; it is killed at the end of the block where it still runs."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    served = Served(process=process)

    def follow() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            served.log.append(line.rstrip("\n"))

    reader = threading.Thread(target=follow, name=f"log of {process.pid}", daemon=True)
    if reads:
        reader.start()
    try:
        yield served
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=30)
        if reads:
            reader.join(30)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@dataclass(kw_only=True)
class Load:
    """What came of requests that threads sent as fast as they were answered.

    Attributes:
        statuses: of answers, and how many there were.
        unanswered: errors of requests that were begun before `stopped_at`.
        refused: requests begun later that found no server any more.
        stopped_at: when the server was told to stop, by `time.monotonic`.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)
    refused: int = 0
    stopped_at: float = float("inf")
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def load(served: Served, path: str, body: bytes, clients: int) -> Iterator[Load]:
    """Clients that ask on kept connections until the server has gone; they end by themselves."""
    found = Load()
    end = time.monotonic() + 20

    def ask() -> None:
        connection = served.connect()
        while time.monotonic() < end:
            begun = time.monotonic()
            try:
                connection.request("POST", path, body)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as exc:
                with found.lock:
                    if begun < found.stopped_at:
                        found.unanswered.append(repr(exc))
                    else:
                        found.refused += 1
                break
            with found.lock:
                found.statuses[answer.status] += 1
            if answer.getheader("Connection") == "close":
                connection.close()
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
