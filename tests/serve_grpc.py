"""What tests of gRPC share: a front on a thread of its own, clients of it, and requests."""

from __future__ import annotations

import asyncio
import atexit
import functools
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import numpy as np
import uvloop
from served import PATIENCE, SETTINGS, SIGNATURE, GatedRunner, images
from served_plane import plane_of
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from parnet_deploy.runtime.base import Runner
from parnet_deploy.serve.grpc import Front, start
from parnet_deploy.serve.plane import DataPlane
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.signature import Signature
from parnet_deploy.spec import Array

Found = TypeVar("Found")

SERVICE = "/inference.GRPCInferenceService"

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
HALF_A_HEADER = b"\0\x40\0\1\4\0\0\0\1\x82"
"""How HTTP/2 begins (RFC 9113): the preface, settings, and a call's header of 16 KiB cut short."""


class Served:
    """A front that listens.

    Attributes:
        plane: what answers.
        url: where.
        front: it.
    """

    def __init__(self, plane: DataPlane, front: Front) -> None:
        self.plane = plane
        self.front = front
        self.url = f"127.0.0.1:{front.port}"
        self._channels: list[grpc.Channel] = []

    def channel(self) -> grpc.Channel:
        """A connection of its own."""
        channel = grpc.insecure_channel(self.url, [("grpc.use_local_subchannel_pool", 1)])
        self._channels.append(channel)
        return channel

    def stub(self) -> Any:
        """The service, over a connection of its own."""
        return service_pb2_grpc.GRPCInferenceServiceStub(self.channel())

    def stopping(self, grace: float) -> Future[bool]:
        """Begin to stop."""
        return on_loop(self.front.stop(grace))

    def stop(self, grace: float = PATIENCE) -> bool:
        """Stop, and wait for it."""
        return self.stopping(grace).result(2 * PATIENCE)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """An event loop on a thread: the only one of this process, as gRPC has it in a server."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def end() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()

    atexit.register(end)
    return loop


@contextmanager
def fronted(
    runner: Runner | None = None,
    settings: ServeSettings = SETTINGS,
    signature: Signature = SIGNATURE,
) -> Iterator[Served]:
    """A front of a model that was started."""
    with plane_of(runner, settings, signature) as plane:
        front = on_loop(start(plane, settings, 0)).result(PATIENCE)
        served = Served(plane, front)
        try:
            yield served
        finally:
            served.close()
            served.stop(grace=0)


def on_loop(work: Coroutine[Any, Any, Found]) -> Future[Found]:
    """Have this done where fronts live."""
    return asyncio.run_coroutine_threadsafe(work, _loop())


def raw_request(array: Array, **changes: Any) -> Any:
    """A request as NVIDIA's client sends it."""
    request = pb.ModelInferRequest(model_name="tiny")
    tensor = {"name": "images", "shape": array.shape, "datatype": "FP32"} | changes
    request.inputs.add(**tensor)
    request.raw_input_contents.append(array.tobytes())
    return request


def typed_request(array: Array, **changes: Any) -> Any:
    """A request whose numbers stand in a field of their own."""
    request = raw_request(array, **changes)
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend(array.ravel().tolist())
    return request


def request(number: float) -> Any:
    return raw_request(images(number)["images"])


@contextmanager
def busy(settings: ServeSettings = SETTINGS) -> Iterator[tuple[Served, GatedRunner, Any]]:
    """A front whose engine runs a first request, and goes on when it is told to."""
    runner = GatedRunner()
    with fronted(runner, settings) as served:
        first = served.stub().ModelInfer.future(request(1))
        assert runner.begun() == [1]
        yield served, runner, first
        runner.finish(1)


def waiting(served: Served, count: int) -> None:
    eventually(lambda: served.plane.model.waiting == count)


def unsent() -> tuple[Iterator[bytes], threading.Event]:
    """A message that does not come, until it is told to."""
    go = threading.Event()

    def messages() -> Iterator[bytes]:
        go.wait(PATIENCE)
        yield request(5).SerializeToString()

    return messages(), go


def numbers(response: Any) -> list[float]:
    """The first logit of each row."""
    (data,) = response.raw_output_contents
    array = np.frombuffer(data, np.float32).reshape(response.outputs[0].shape)
    found: list[float] = array[:, 0].tolist()
    return found


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    """How a call was refused: its status, the sentence, and the metadata behind it."""
    try:
        answer = call()
    except grpc.RpcError as exc:
        trailing = dict(exc.trailing_metadata() or ())
        return exc.code(), exc.details(), trailing
    raise AssertionError(f"it was answered: {answer}")


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
