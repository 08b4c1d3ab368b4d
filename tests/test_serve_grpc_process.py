"""gRPC beside HTTP in a process of its own: starting, signals, draining, memory, the end."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from serve_grpc import SERVICE, eventually, refused
from serve_process import Served, program
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

PATIENCE = 30.0
IMAGE = np.arange(3 * 64 * 64, dtype=np.float32).reshape(1, 3, 64, 64)
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@contextlib.contextmanager
def channel_of(served: Served) -> Iterator[grpc.Channel]:
    """A connection to the program's gRPC port, which it tells in its second line."""
    assert served.process.stdout is not None
    port = int(served.process.stdout.readline())
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


def stub_of(channel: grpc.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def request() -> Any:
    message = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[IMAGE.tobytes()])
    message.inputs.add(name="images_nchw", datatype="FP32", shape=IMAGE.shape)
    return message


def logits(answer: Any) -> list[float]:
    found: list[float] = np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()
    return found


def in_flight(served: Served, count: int) -> None:
    wanted = f'parnet_requests_in_flight{{engine="tiny",precision="fp32"}} {count}.0'.encode()
    eventually(lambda: wanted in served.ask("GET", "/metrics")[2])


def test_from_start_to_end() -> None:
    with program(grpc=0) as served, channel_of(served) as channel:
        assert "gRPC on port" in served.wait_for("ready: ")
        assert logits(stub_of(channel).ModelInfer(request())) == [0, 1, 2]
        assert refused(lambda: stub_of(channel).ModelInfer(pb.ModelInferRequest()))
        for code in ("OK", "NOT_FOUND"):
            series = f'parnet_grpc_responses_total{{code="{code}"}} 1.0'.encode()
            eventually(lambda: series in served.ask("GET", "/metrics")[2])  # noqa: B023
        served.stop()
        assert served.status() == 0
    assert sum("gRPC ModelInfer OK id=" in line for line in served.log) == 1
    assert sum("gRPC ModelInfer NOT_FOUND id=" in line for line in served.log) == 1
    assert not any("Traceback" in line for line in served.log)


def test_liveness_is_answered_while_the_engine_is_started() -> None:
    with program(grpc=0, start="never") as served, channel_of(served) as channel:
        stub = stub_of(channel)
        assert stub.ServerLive(pb.ServerLiveRequest(), wait_for_ready=True).live
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        code, details, trailing = refused(lambda: stub.ModelInfer(request()))
        assert (code, details) == (UNAVAILABLE, "the engine is being started")
        assert trailing["grpc-retry-pushback-ms"] == "5000"
        served.stop()
        assert served.status() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_is_answered(tmp_path: Path, signum: int) -> None:
    with program(grpc=0, gate=tmp_path / "gate") as served, channel_of(served) as channel:
        served.wait_until_ready()
        stub = stub_of(channel)
        calls = [stub.ModelInfer.future(request()) for _ in range(3)]  # one runs, and two wait
        in_flight(served, 3)
        served.stop(signum)
        served.wait_for("stopping")
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        code, details, _ = refused(lambda: stub.ModelInfer(request()))
        assert (code, details) == (UNAVAILABLE, "the server is shutting down")
        assert not any(call.done() for call in calls), "nothing was answered early"
        (tmp_path / "gate").touch()
        assert [logits(call.result(PATIENCE)) for call in calls] == [[0, 1, 2]] * 3
        assert served.status() == 0


def test_it_ends_under_load() -> None:
    """Whatever the server has answered, a client has got; the rest was told to ask another."""
    found: Counter[grpc.StatusCode] = Counter()
    lock = threading.Lock()

    def ask(channel: grpc.Channel) -> None:
        code = grpc.StatusCode.OK
        while code is grpc.StatusCode.OK:
            try:
                assert logits(stub_of(channel).ModelInfer(request())) == [0, 1, 2]
            except grpc.RpcError as exc:
                code = exc.code()
            with lock:
                found[code] += 1

    with program(grpc=0) as served, channel_of(served) as channel:
        served.wait_until_ready()
        clients = [threading.Thread(target=ask, args=(channel,)) for _ in range(4)]
        for client in clients:
            client.start()
        eventually(lambda: found[grpc.StatusCode.OK] >= 50)
        served.stop()
        for client in clients:
            client.join(PATIENCE)
            assert not client.is_alive()
        assert served.status() == 0
    assert found.keys() == {grpc.StatusCode.OK, UNAVAILABLE}
    assert found[UNAVAILABLE] == 4
    answered = sum("gRPC ModelInfer OK id=" in line for line in served.log)
    assert found[grpc.StatusCode.OK] == answered


def test_a_grace_period_ends(tmp_path: Path) -> None:
    """What was not answered then is cancelled, and the exit status tells of it."""
    gate = tmp_path / "gate"
    with (
        program(grpc=0, gate=gate, settings={"grace": 0.2}) as served,
        channel_of(served) as channel,
    ):
        served.wait_until_ready()
        call = stub_of(channel).ModelInfer.future(request())
        in_flight(served, 1)
        served.stop()
        code, _, _ = refused(lambda: call.result(PATIENCE))
        assert code in (UNAVAILABLE, grpc.StatusCode.CANCELLED)
        gate.touch()
        assert served.status() == 1


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with program(grpc=port) as served:
            assert served.status() == 1
    assert served.log[-1] == (
        f"error: cannot listen for gRPC on port {port} of 127.0.0.1: it is in use, or not for this "
        "user; choose another with --grpc-port (0: any that is free)"
    )
    assert not any("ready: " in line or "Traceback" in line for line in served.log)


@pytest.mark.slow
def test_memory_is_bounded() -> None:
    """What is small on the wire and large in memory is refused before it grows."""
    bomb = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(200_000_000)])
    with program(grpc=0) as served, channel_of(served) as channel:
        served.wait_until_ready()
        stub = stub_of(channel)
        before = peak(served)
        code, _, _ = refused(lambda: stub.ModelInfer(bomb, compression=grpc.Compression.Gzip))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        for parts in (b"\x2a\x00", b"\x22\x00", b"\x0b\x0c" + b"\x2a\x00"):
            data = parts + parts[-2:] * 4_000_000
            code, _, _ = refused(
                lambda: channel.unary_unary(f"{SERVICE}/ModelInfer")(data)  # noqa: B023
            )
            assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert logits(stub.ModelInfer(request())) == [0, 1, 2]
        assert peak(served) - before < 150_000_000


def peak(served: Served) -> int:
    """The most bytes that the process has had in memory."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
