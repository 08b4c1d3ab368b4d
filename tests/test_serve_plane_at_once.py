"""The data plane's answer within a call: the same, counted the same, or none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from served import SETTINGS, GatedRunner, images, run, settle
from served_plane import (
    binary_body,
    body,
    counts,
    encoded_body,
    first_numbers,
    infer,
    plane_of,
    png,
)

import parnet_deploy.serve.plane as plane_module
from parnet_deploy.errors import RequestError, RunnerError
from parnet_deploy.serve.plane import DataPlane

INLINE = replace(SETTINGS, inline_below=60.0)
"""Whatever a run took before, the next may be run at once."""

BINARY, LENGTH = binary_body(images(5)["images"])


async def warmed(plane: DataPlane) -> None:
    """A first run tells how long the next may take."""
    await infer(plane, BINARY, LENGTH)


@pytest.mark.parametrize("in_json", [False, True])
def test_it_is_the_same_answer_and_is_counted(in_json: bool) -> None:
    content, length = (body(images(5)["images"]), None) if in_json else (BINARY, LENGTH)

    async def main() -> None:
        with plane_of(settings=INLINE) as plane:
            await warmed(plane)
            response, _ = await plane.infer("tiny", None, content, length)
            found = plane.infer_at_once("tiny", None, content, length)
            assert found is not None
            answer, timing = found
            assert answer == response
            assert first_numbers(answer.body, 1) == [5]
            parts = timing.prepare + timing.queue + timing.infer + timing.output
            assert parts == pytest.approx(timing.total)
            assert counts(plane.recorder) == {"answered": 3}
            assert (plane.recorder.images, plane.model.is_idle) == (3, True)

    run(main())


@pytest.mark.parametrize(
    ("name", "version", "content", "status", "reason"),
    [
        ("other", None, BINARY, 404, "unknown model"),
        ("tiny", "2", BINARY, 404, "unknown model"),
        ("tiny", None, BINARY[:-1], 400, "invalid"),
        ("tiny", None, b"{" * LENGTH, 400, "invalid"),
    ],
)
def test_a_refusal_is_the_same_and_counted_once(
    name: str, version: str | None, content: bytes, status: int, reason: str
) -> None:
    async def main() -> None:
        with plane_of(settings=INLINE) as plane:
            await warmed(plane)
            said = []
            with pytest.raises(RequestError) as caught:
                await plane.infer(name, version, content, LENGTH)
            said.append(str(caught.value))
            with pytest.raises(RequestError) as caught:
                plane.infer_at_once(name, version, content, LENGTH)
            said.append(str(caught.value))
            assert caught.value.status == status
            assert said[0] == said[1]
            assert counts(plane.recorder) == {"answered": 1, reason: 2}
            assert plane.model.is_idle

    run(main())


def test_an_engine_that_fails_is_500_and_then_it_is_not_idle() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with plane_of(runner, INLINE, backoff=()) as plane:
            first = asyncio.create_task(infer(plane, BINARY, LENGTH))
            await settle()
            runner.finish(5)
            await first
            runner.finish(5, RunnerError("secret"))
            with pytest.raises(RequestError) as caught:
                plane.infer_at_once("tiny", None, BINARY, LENGTH)
            assert (caught.value.status, "secret" in str(caught.value)) == (500, False)
            assert counts(plane.recorder) == {"answered": 1, "engine": 1}
            assert not plane.model.is_idle
            assert plane.infer_at_once("tiny", None, BINARY, LENGTH) is None

    run(main())


def test_a_fault_of_our_own_is_counted_and_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise ZeroDivisionError

    async def main() -> None:
        with plane_of(settings=INLINE) as plane:
            await warmed(plane)
            monkeypatch.setattr(plane_module, "encode_response", broken)
            with pytest.raises(ZeroDivisionError):
                plane.infer_at_once("tiny", None, BINARY, LENGTH)
            assert counts(plane.recorder) == {"answered": 1, "internal": 1}
            assert plane.model.is_idle

    run(main())


@pytest.mark.parametrize(
    ("content", "length", "small"),
    [
        (encoded_body(png(200)), None, ""),
        (body(images(5)["images"]), None, "LARGE_JSON"),
        (BINARY, LENGTH, "LARGE_BINARY"),
        (body(images(5)["images"]), None, "LARGE_ANSWER"),
    ],
    ids=["files", "JSON", "bytes", "answer in JSON"],
)
def test_what_takes_long_is_left_and_not_counted(
    monkeypatch: pytest.MonkeyPatch, content: bytes, length: int | None, small: str
) -> None:
    async def main() -> None:
        with plane_of(settings=INLINE) as plane:
            await warmed(plane)
            assert plane.takes_at_once(len(content), length)
            if small:
                monkeypatch.setattr(plane_module, small, 1)
            taken = plane.takes_at_once(len(content), length)
            assert taken == (small in ("", "LARGE_ANSWER"))
            assert plane.infer_at_once("tiny", None, content, length) is None
            assert counts(plane.recorder) == {"answered": 1}
            assert plane.model.is_idle

    run(main())


def test_nobody_is_answered_at_once_while_another_is_in_or_the_run_is_long_or_never_was() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with plane_of(runner, INLINE) as plane:
            other = asyncio.create_task(infer(plane, BINARY, LENGTH))
            await settle()
            assert not plane.model.is_idle
            assert plane.infer_at_once("tiny", None, BINARY, LENGTH) is None
            runner.finish(5)
            await other
            assert plane.model.is_idle
            with plane.model.admit():
                assert plane.infer_at_once("tiny", None, BINARY, LENGTH) is None
        with plane_of(settings=replace(INLINE, inline_below=0.0)) as plane:
            await warmed(plane)
            assert plane.infer_at_once("tiny", None, BINARY, LENGTH) is None
        with plane_of(settings=replace(INLINE, max_batch=2, max_delay=0.001)) as plane:
            await warmed(plane)
            assert plane.infer_at_once("tiny", None, BINARY, LENGTH) is None

    run(main())
