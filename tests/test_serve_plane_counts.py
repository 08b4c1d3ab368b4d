"""How each request of the data plane ends is counted, once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from served import (
    CLASSES,
    SETTINGS,
    SIGNATURE,
    Clock,
    GatedRunner,
    images,
    run,
    settle,
)
from served_plane import (
    binary_body,
    body,
    counts,
    first_numbers,
    infer,
    plane_of,
    png,
)

import parnet_deploy.serve.engine.inference as inference_module
import parnet_deploy.serve.plane as plane_module
from parnet_deploy.errors import RequestError, RunnerError
from parnet_deploy.runtime.base import FunctionRunner
from parnet_deploy.serve.engine.model import State
from parnet_deploy.serve.engine.unanswered import Reason
from parnet_deploy.serve.plane import DataPlane
from parnet_deploy.spec import Array


@pytest.mark.parametrize("content", [b"", b"{", b"[]", body(np.zeros((1, 3, 2, 9), np.float32))])
def test_what_a_client_got_wrong_is_400_and_counted(content: bytes) -> None:
    async def main() -> None:
        with plane_of() as plane:
            with pytest.raises(RequestError) as caught:
                await infer(plane, content)
            assert caught.value.status == 400
            assert counts(plane.recorder) == {"invalid": 1}
            assert plane.model.waiting == 0

    run(main())


def partly_infinite(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Not finite where the image's number is negative."""
    numbers = feeds["images"][:, 0, 0, 0]
    logits = np.tile(numbers[:, None], (1, CLASSES))
    logits[numbers < 0, 2] = np.inf
    return {"logits": logits.astype(np.float32)}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("odd", "finite"),
    [(0.0, True), (6e4, True), (np.nan, False), (np.inf, False), (-np.inf, False)],
)
def test_values_are_finite_whatever_their_squares_are(dtype: str, odd: float, finite: bool) -> None:
    array = np.full((2, 1000), 3.0, dtype)
    assert inference_module._is_finite(array)
    array[1, 7] = odd
    assert inference_module._is_finite(array) is finite
    array = np.full((2, 1000), np.finfo(dtype).max)
    assert inference_module._is_finite(array)


@pytest.mark.parametrize("max_batch", [1, 8])
def test_values_that_are_not_finite_are_500_for_that_request_only(max_batch: int) -> None:
    runner = FunctionRunner(partly_infinite, inputs=SIGNATURE.inputs, outputs=SIGNATURE.outputs)
    settings = replace(SETTINGS, max_batch=max_batch, max_delay=0.05 * (max_batch > 1))

    async def main() -> None:
        with plane_of(runner, settings) as plane:
            asked = [infer(plane, body(images(number)["images"])) for number in (1, -1, 2)]
            good, bad, well = await asyncio.gather(*asked, return_exceptions=True)
            assert (first_numbers(good, 1), first_numbers(well, 1)) == ([1], [2])
            assert isinstance(bad, RequestError)
            assert (bad.status, str(bad)) == (500, "the engine gave values that are not finite")
            assert plane.model.state is State.READY
            assert counts(plane.recorder) == {"answered": 2, "not finite": 1}

    run(main())


def test_how_requests_end_is_counted_once_each() -> None:
    clock, runner = Clock(), GatedRunner()
    settings = replace(SETTINGS, queue=2, timeout=10)
    content = {number: body(images(number)["images"]) for number in range(1, 9)}

    async def main() -> None:
        with plane_of(runner, settings, clock=clock, backoff=()) as plane:

            def ask(number: int) -> asyncio.Task[bytes]:
                return asyncio.create_task(infer(plane, content[number]))

            running = ask(1)
            await settle()
            assert runner.begun() == [1]
            gone, late, full = ask(2), ask(3), ask(4)
            await settle()
            gone.cancel()
            await settle()
            runner.finish(1)
            await running
            assert runner.begun() == [3]
            clock.now += 11
            await settle()
            runner.finish(3)
            failed, waiting = ask(5), ask(6)
            await settle()
            assert runner.begun() == [5]
            runner.finish(5, RunnerError("secret"))
            await asyncio.wait([failed, waiting])
            tasks = [running, gone, late, full, failed, waiting, ask(7)]
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(ends[1], asyncio.CancelledError)
            statuses = [end.status for end in ends if isinstance(end, RequestError)]
            assert statuses == [504, 503, 500, 503, 503]
            assert not any("secret" in str(end) for end in ends)
            assert counts(plane.recorder) == {
                "answered": 1,
                "cancelled": 1,
                "queue full": 1,
                "not ready": 1,
                "timeout": 1,
                "engine": 2,
            }
            assert plane.model.waiting == 0

    run(main(), clock)


def test_a_fault_of_our_own_is_counted_and_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(plane_module, "encode_response", broken)

    async def main() -> None:
        with plane_of() as plane:
            with pytest.raises(ZeroDivisionError):
                await infer(plane, body(images(1)["images"]))
            assert counts(plane.recorder) == {str(Reason.INTERNAL): 1}
            assert plane.model.waiting == 0

    run(main())


def test_clients_that_go_while_their_image_is_decoded_cost_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[bytes] = []
    begun, go_on = threading.Event(), threading.Event()
    real = plane_module.decode_files

    def noted(files: tuple[bytes, ...], *args: Any) -> Array:
        decoded.extend(files)
        begun.set()
        assert go_on.wait(20)
        return real(files, *args)

    monkeypatch.setattr(plane_module, "decode_files", noted)
    runner = GatedRunner()
    runner.finish(1)

    async def main() -> None:
        with plane_of(runner) as plane:
            first = asyncio.create_task(plane.classify(png(1)))
            second = asyncio.create_task(plane.classify(png(2)))
            last = asyncio.create_task(plane.classify(png(255)))
            await settle()
            assert begun.wait(20)
            first.cancel()
            second.cancel()
            await settle()
            go_on.set()
            assert (await last).guesses[0].label == "cat"
            assert decoded == [png(1), png(255)]
            assert runner.log == [[1]]
            assert counts(plane.recorder) == {"answered": 1, "cancelled": 2}

    run(main())


def test_eight_clients_get_their_own_answers_through_the_protocol() -> None:
    async def client(plane: DataPlane, first: int) -> int:
        right = 0
        for number in range(first, first + 250):
            array = images(number)["images"]
            content, length = binary_body(array) if number % 2 else (body(array), None)
            right += first_numbers(await infer(plane, content, length), 1) == [number]
        return right

    async def main() -> None:
        with plane_of(settings=replace(SETTINGS, queue=8, max_batch=8)) as plane:
            clients = [client(plane, 1000 * (index + 1)) for index in range(8)]
            assert await asyncio.gather(*clients) == [250] * 8
            assert counts(plane.recorder) == {"answered": 2000}

    run(main())
