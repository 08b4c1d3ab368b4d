"""The log: lines of text or JSON, with ids; a reader that has stopped stops nobody."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
import time
from typing import Any

import pytest
from serve_http import INFER, Plane, app_of, ask

from parnet_deploy.serve.transport import logs
from parnet_deploy.serve.transport.log_lines import Said, in_text
from parnet_deploy.serve.transport.logs import REQUEST_ID, log_facts, logging_to

log = logging.getLogger("parnet_deploy.serve.test")


def test_text() -> None:
    stream = io.StringIO()
    with logging_to(stream, "text"):
        log.warning("something %s", "happened")
        log_facts(log, "GET /v2 200", lambda: {"event": "request", "status": 200, "ms": 1.5})
    first, second = stream.getvalue().splitlines()
    assert first.endswith("Z WARNING something happened")
    assert second.endswith("Z INFO GET /v2 200 ms=1.5")


def test_json() -> None:
    stream = io.StringIO()
    with logging_to(stream, "json"):
        log.warning("something happened")
        log_facts(log, "GET /v2 200", lambda: {"event": "request", "status": 200})
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == "something happened"
    assert (first["level"], first["logger"]) == ("warning", "parnet_deploy.serve.test")
    assert (second["event"], second["status"]) == ("request", 200)


@pytest.mark.parametrize("kind", ["text", "json"])
def test_every_line_of_a_request_has_its_id(kind: Any) -> None:
    stream = io.StringIO()
    plane = Plane()

    async def tell() -> None:
        log.warning("half way")

    plane.work = tell
    with logging_to(stream, kind):
        got = ask(app_of(plane), "POST", INFER, b"{}", {"X-Request-Id": "abc-1"})
    assert got.status == 200
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert all('"id":"abc-1"' in line or " id=abc-1" in line for line in lines)
    assert "half way" in lines[0]
    assert REQUEST_ID.get() == "", "and no other line has"


def test_the_line_of_a_request() -> None:
    stream = io.StringIO()
    with logging_to(stream, "json"):
        ask(app_of(Plane()), "POST", f"{INFER}?secret=1", b"{}")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["method"], line["path"], line["status"]) == ("POST", INFER, 200)
    assert (line["received"], line["sent"]) == (2, len('{"ok":true}'))
    assert (line["prepare_ms"], line["queue_ms"], line["infer_ms"]) == (1.0, 2.0, 3.0)
    assert line["ms"] > 0
    assert line["client"] == "127.0.0.1:40000"


def test_a_traceback_follows_in_text_and_is_a_field_in_json() -> None:
    for kind in ("text", "json"):
        stream = io.StringIO()
        with logging_to(stream, kind):
            try:
                raise ValueError("no")
            except ValueError:
                log.exception("failed")
        said = stream.getvalue()
        assert "ValueError: no" in said
        if kind == "json":
            assert json.loads(said)["traceback"].startswith("Traceback")


def test_a_path_cannot_write_lines_of_its_own() -> None:
    stream = io.StringIO()
    with logging_to(stream, "text"):
        ask(app_of(Plane()), "GET", "/a%0aINFO%20all%20is%20well")
        log.info("name: %s", "x\nINFO all is well\x1b[2J")
        log_facts(log, "GET /v2 200", lambda: {"error": ValueError("x\nINFO all is well")})
    assert len(stream.getvalue().splitlines()) == 3
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("kind", ["text", "json"])
def test_what_cannot_be_formatted_breaks_nothing(kind: Any) -> None:
    stream = io.StringIO()
    with logging_to(stream, kind):
        log.info("%d images", "no")
        log_facts(log, "GET /v2 200", lambda: {"odd": object(), "id": "\ud800"})
        log.info("the next")
    said = stream.getvalue()
    assert "a line that cannot be formatted: '%d images'" in said
    assert "GET /v2 200" in said
    assert "the next" in said


@pytest.mark.parametrize(
    ("when", "shown"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.9996, "2023-11-14T22:13:20.999Z"),
        (1_700_000_001.0, "2023-11-14T22:13:21.000Z"),
    ],
)
def test_a_time_is_cut_to_milliseconds(when: float, shown: str) -> None:
    assert in_text(Said(when, logging.INFO, "x", "said", "", {})).split()[0] == shown


def test_logging_is_put_back() -> None:
    root = logging.getLogger()
    before = root.handlers[:], logging.getLogger("parnet_deploy").level
    with logging_to(io.StringIO(), "text"):
        assert root.handlers != before[0]
    assert (root.handlers, logging.getLogger("parnet_deploy").level) == before


def test_a_reader_that_has_stopped_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are dropped, and it is told how many as soon as somebody reads again."""
    monkeypatch.setattr(logs, "_LINES", 3)
    reading = threading.Event()

    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            assert reading.wait(20)
            return super().write(text)

    pipe = Pipe()
    with logging_to(pipe, "text") as writing:
        for number in range(20):
            log.info("line %d", number)
        reading.set()
        end = time.monotonic() + 20
        while "dropped" not in pipe.getvalue():  # before the log ends
            assert time.monotonic() < end
        log.info("behind it")
    said = pipe.getvalue()
    assert said.count("dropped") == 1
    assert "behind it" in said
    assert "line 0" in said
    assert "line 19" not in said
    assert "lines of this log were dropped" in said
    assert not writing.is_stuck


def test_what_was_logged_can_be_waited_for() -> None:
    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            time.sleep(0.001)
            return super().write(text)

    pipe = Pipe()
    with logging_to(pipe, "text") as writing:
        for number in range(20):
            log.info("line %d", number)
        writing.flush()
        assert "line 19\n" in pipe.getvalue()
        log.info("one more")
    assert "one more" in pipe.getvalue()


def test_a_log_that_cannot_be_ended_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_PATIENCE", 0.05)
    reading = threading.Event()

    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            assert reading.wait(20)
            return super().write(text)

    with logging_to(Pipe(), "text") as writing:
        log.info("a line")
    assert writing.is_stuck
    reading.set()


def test_a_reader_that_has_gone() -> None:
    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with logging_to(Pipe(), "text") as writing:
        log.info("a line")
    assert not writing.is_stuck


def test_no_line_is_left_behind_when_the_writer_goes_to_sleep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lines come alone and in crowds, just when the thread that writes looks for more."""
    monkeypatch.setattr(logs, "_PAUSE", 0.02)
    stream = io.StringIO()

    def say(number: int) -> None:
        for line in range(100):
            log.info("line %d of %d", line, number)
            if line % 10 == number:
                time.sleep(logs._PAUSE * (0.9 + line / 500))

    with logging_to(stream, "text") as writing:
        threads = [threading.Thread(target=say, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while len(writing._lines):  # without the end's help
            pass
    told = sorted(re.findall(r"line (\d+) of (\d)", stream.getvalue()))
    assert told == sorted((str(line), str(number)) for line in range(100) for number in range(4))


def test_no_line_of_a_crowd_is_dropped_while_somebody_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever writes is woken before as many wait as may."""
    monkeypatch.setattr(logs, "_PAUSE", 20.0)
    monkeypatch.setattr(logs, "_LINES", 100)
    stream = io.StringIO()
    end = time.monotonic() + 10
    with logging_to(stream, "text") as writing:
        for number in range(1000):
            log.info("line %d", number)
            while len(writing._lines) > 70:  # what follows waits for what was woken
                assert time.monotonic() < end
                time.sleep(0.001)
    assert len(stream.getvalue().splitlines()) == 1000


def test_lines_that_follow_each_other_wake_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is written at once, and whoever writes looks for the others by itself."""
    monkeypatch.setattr(logs, "_PAUSE", 0.5)
    stream = io.StringIO()
    with logging_to(stream, "text") as writing:
        log.info("the first")
        while "the first" not in stream.getvalue():
            time.sleep(0.001)
        filled = threading.Event()
        monkeypatch.setattr(writing._lines, "_filled", filled)
        for number in range(20):
            log.info("line %d", number)
        assert not filled.is_set()
        writing.flush()
    assert len(stream.getvalue().splitlines()) == 21
