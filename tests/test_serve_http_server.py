"""A server's life, in a process of its own: starting, signals, draining, and the end."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from serve_http import INFER
from serve_process import Served, load, program

IMAGE = np.arange(3 * 64 * 64, dtype=np.float32)
HEAD = json.dumps(
    {
        "inputs": [
            {
                "name": "images_nchw",
                "datatype": "FP32",
                "shape": [1, 3, 64, 64],
                "parameters": {"binary_data_size": IMAGE.nbytes},
            }
        ]
    }
).encode()
BODY = HEAD + IMAGE.tobytes()
HEADERS = {"Inference-Header-Content-Length": str(len(HEAD))}


def infer(served: Served, found: list) -> threading.Thread:
    """Ask in a thread; what comes of it is put into `found`."""
    thread = threading.Thread(
        target=lambda: found.append(served.ask("POST", INFER, BODY, HEADERS)), daemon=True
    )
    thread.start()
    return thread


def wait_until_in_flight(served: Served, count: int = 1) -> None:
    wanted = f'parnet_requests_in_flight{{engine="tiny",precision="fp32"}} {count}.0'.encode()
    end = time.monotonic() + 30
    while wanted not in served.ask("GET", "/metrics")[2]:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_from_start_to_end() -> None:
    with program() as served:
        line = served.wait_for("ready: ")
        url = f"http://127.0.0.1:{served.port}"
        assert "engines/tiny (onnxruntime, fp32)" in line
        assert f"curl --data-binary @cat.jpg {url}/classify" in line
        status, headers, body = served.ask("POST", INFER, BODY, HEADERS)
        assert status == 200
        assert json.loads(body)["outputs"][0]["data"] == [0.0, 1.0, 2.0]
        assert headers["date"]
        assert "server" not in headers
        served.stop()
        assert served.status() == 0
    assert sum("POST" in line for line in served.log) == 1
    assert not any("may use this server" in line for line in served.log)
    assert not any("Traceback" in line for line in served.log)


def test_who_listens_to_everybody_without_a_key_is_warned() -> None:
    with program(settings={"host": "0.0.0.0"}) as served:
        served.wait_until_ready()
    assert any("may use this server" in line for line in served.log)


def test_liveness_is_answered_while_the_engine_is_started() -> None:
    """And a server that is told to stop then does not wait for the engine."""
    with program(start="never") as served:
        assert served.ask("GET", "/v2/health/live")[0] == 200
        status, _, body = served.ask("GET", "/v2/health/ready")
        assert status == 503
        assert json.loads(body)["error"] == "the engine is being started"
        status, headers, _ = served.ask("POST", INFER, BODY, HEADERS)
        assert (status, int(headers["retry-after"]) > 0) == (503, True)
        served.stop()
        assert served.status() == 0
    assert not any("ready: " in line for line in served.log)


def test_an_engine_that_cannot_be_opened() -> None:
    problem = "engines/tiny/whole.onnx is damaged: build it again"
    with program(problem=problem) as served:
        assert served.status() == 1
    assert served.log[-1] == f"error: {problem}"
    assert not any("ready: " in line or "Traceback" in line for line in served.log)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_is_answered(tmp_path: Path, signum: int) -> None:
    with program(gate=tmp_path / "gate") as served:
        served.wait_until_ready()
        found: list = []
        asking = [infer(served, found) for _ in range(3)]  # one runs, and two wait
        wait_until_in_flight(served, 3)
        served.stop(signum)
        served.wait_for("stopping")
        for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
            status, headers, body = served.ask("GET", path)
            assert (status, headers["connection"]) == (503, "close")
        assert served.ask("GET", "/v2/health/live")[0] == 200
        status, headers, body = served.ask("POST", INFER, BODY, HEADERS)
        assert (status, headers["connection"]) == (503, "close")
        assert "shutting down" in json.loads(body)["error"]
        assert not found, "nothing was answered early"
        (tmp_path / "gate").touch()
        for thread in asking:
            thread.join(30)
        assert [status for status, _, _ in found] == [200, 200, 200]
        assert served.status() == 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with program(gate=tmp_path / "gate", settings={"grace": 600.0}) as served:
        served.wait_until_ready()
        connection = served.connect()
        connection.request("POST", INFER, BODY, HEADERS)
        wait_until_in_flight(served)
        served.stop()
        served.wait_for("stopping")
        served.stop()
        assert served.status() == 128 + signal.SIGTERM
        connection.close()
    assert any("stopping: 1 requests" in line for line in served.log)


def test_a_run_that_never_ends_does_not_keep_it(tmp_path: Path) -> None:
    with program(gate=tmp_path / "never", settings={"grace": 0.4}) as served:
        served.wait_until_ready()
        found: list = []
        asking = infer(served, found)
        wait_until_in_flight(served)
        served.stop()
        assert served.status() == 1
        asking.join(30)
    assert [status for status, _, _ in found] == [503]
    assert any("the engine is still at work" in line for line in served.log)


def test_an_engine_that_cannot_be_closed() -> None:
    """Everything was answered, so that the status is good; the log tells of it."""
    with program(end="cudaFree: invalid argument") as served:
        served.wait_until_ready()
        served.stop()
        assert served.status() == 0
    assert any("the engine could not be closed" in line for line in served.log)
    assert any("cudaFree: invalid argument" in line for line in served.log)


def test_a_grace_period_ends(tmp_path: Path) -> None:
    """What was not answered then is refused, and the exit status tells of it."""
    with program(gate=tmp_path / "gate", settings={"grace": 0.2}) as served:
        served.wait_until_ready()
        found: list = []
        asking = infer(served, found)
        wait_until_in_flight(served)
        served.stop()
        asking.join(30)
        (tmp_path / "gate").touch()
        assert served.status() == 1
    assert [status for status, _, _ in found] == [503]
    assert any("1 requests were not answered in time" in line for line in served.log)


def test_connections_that_are_idle_do_not_keep_it(tmp_path: Path) -> None:
    with program(settings={"idle_timeout": 600.0, "header_timeout": 600.0}) as served:
        served.wait_until_ready()
        idle = [served.connect() for _ in range(3)]
        for connection in idle[:2]:
            connection.request("GET", "/v2")
            connection.getresponse().read()
        idle[2].connect()
        idle[2].send(b"GET /v2 HTT")
        served.stop()
        assert served.status() == 0
        for connection in idle:
            connection.close()


def test_a_body_that_is_still_coming_is_refused(tmp_path: Path) -> None:
    with program(settings={"body_timeout": 600.0}) as served:
        served.wait_until_ready()
        connection = served.connect()
        connection.putrequest("POST", INFER)
        connection.putheader("Content-Length", "100")
        connection.endheaders()
        connection.send(b"half of it")
        served.ask("GET", "/v2")  # what was sent before has been read by now
        served.stop()
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Connection")) == (503, "close")
        assert served.status() == 0
        connection.close()


def test_under_load_everything_that_was_accepted_is_answered() -> None:
    body = json.dumps(
        {
            "inputs": [
                {
                    "name": "images_nchw",
                    "datatype": "FP32",
                    "shape": [1, 3, 64, 64],
                    "data": [0.5] * (3 * 64 * 64),
                }
            ]
        }
    ).encode()
    with program() as served:
        served.wait_until_ready()
        with load(served, INFER, body, clients=8) as found:
            while found.statuses[200] < 100:
                time.sleep(0.01)
            with found.lock:
                found.stopped_at = time.monotonic()
                served.stop()
            assert served.status() == 0
        assert not found.unanswered
        assert set(found.statuses) <= {200, 503}
        assert found.statuses[200] >= 100


def test_a_log_that_nobody_reads_stops_nothing() -> None:
    """The pipe is full after some hundred lines; requests go on, and so does the end."""
    with program(reads=False) as served, contextlib.closing(served.connect()) as connection:
        for _ in range(1000):
            connection.request("GET", "/v2/health/live", headers={"X-Request-Id": "x" * 128})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
        served.stop()
        assert served.status() == 0
