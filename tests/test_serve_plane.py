"""The data plane: from a body to an answer, without a transport, and how requests are counted."""

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
    PATIENCE,
    SETTINGS,
    SIGNATURE,
    Clock,
    GatedRunner,
    images,
    join_threads,
    run,
    settle,
)
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

import parnet_deploy.serve.classify as classify_module
import parnet_deploy.serve.plane as plane_module
from parnet_deploy.errors import RequestError
from parnet_deploy.runtime.timeline import Span
from parnet_deploy.serve.plane import LARGE_JSON
from parnet_deploy.spec import Array


def test_a_tensor_in_json_is_answered() -> None:
    async def main() -> None:
        with plane_of() as plane:
            response, timing = await plane.infer("tiny", "1", body(images(5, 6)["images"]), None)
            assert first_numbers(response.body, 2) == [5, 6]
            parts = timing.prepare + timing.queue + timing.infer + timing.output
            assert parts == pytest.approx(timing.total)
            assert counts(plane.recorder) == {"answered": 1}
            assert plane.recorder.images == 2

    run(main())


def test_a_binary_tensor_is_answered_without_a_thread_for_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        with plane_of() as plane:
            monkeypatch.setattr(plane.model, "prepare", pytest.fail)
            content, length = binary_body(images(5)["images"])
            assert first_numbers(await infer(plane, content, length), 1) == [5]

    run(main())


@pytest.mark.parametrize("kind", ["LARGE_JSON", "LARGE_BINARY", "LARGE_ANSWER"])
def test_what_is_large_is_read_and_written_on_a_thread(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plane_module, kind, 1)
    threads: list[str] = []
    name = "encode_response" if kind == "LARGE_ANSWER" else "parse_request"
    real = getattr(plane_module, name)

    def noted(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return real(*args)

    monkeypatch.setattr(plane_module, name, noted)

    async def main() -> None:
        with plane_of() as plane:
            array = images(5)["images"]
            content, length = binary_body(array) if kind == "LARGE_BINARY" else (body(array), None)
            assert first_numbers(await infer(plane, content, length), 1) == [5]

    run(main())
    assert threads == ["decode-0"]


@pytest.mark.parametrize(
    ("spaces", "header", "on_thread"),
    [(0, None, False), (LARGE_JSON, None, True), (LARGE_JSON, "all", True), (0, "all", False)],
)
def test_json_is_large_by_its_own_size_whatever_the_header_says(
    spaces: int, header: str | None, on_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    real = plane_module.parse_request

    def noted(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return real(*args)

    monkeypatch.setattr(plane_module, "parse_request", noted)

    async def main() -> None:
        with plane_of() as plane:
            content = body(images(5)["images"]) + b" " * spaces
            assert first_numbers(await infer(plane, content, header and len(content)), 1) == [5]

    run(main())
    assert [name.startswith("decode") for name in threads] == [on_thread]


def test_work_is_refused_before_its_body_is_read_and_counted_once() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with plane_of(runner, replace(SETTINGS, queue=1)) as plane:
            plane.check("tiny", "1")
            plane.check("tiny", None)
            plane.check(None, None)
            for name, version in (("other", None), ("tiny", "2")):
                with pytest.raises(RequestError, match="there is no model") as caught:
                    plane.check(name, version)
                assert caught.value.status == 404
            running = asyncio.create_task(infer(plane, body(images(1)["images"])))
            await settle()
            assert runner.begun() == [1]
            waiting = asyncio.create_task(infer(plane, body(images(2)["images"])))
            await settle()
            with pytest.raises(RequestError, match="1 requests wait") as caught:
                plane.check("tiny", None)
            assert (caught.value.status, caught.value.retry_after) == (503, 1)
            plane.model.drain()
            with pytest.raises(RequestError, match="shutting down") as caught:
                plane.check(None, None)
            assert caught.value.status == 503
            runner.finish(1)
            runner.finish(2)
            await asyncio.gather(running, waiting)
            ends = {"unknown model": 2, "queue full": 1, "not ready": 1, "answered": 2}
            assert counts(plane.recorder) == ends

    run(main())


def test_image_files_take_the_place_of_a_tensor() -> None:
    async def main() -> None:
        with plane_of() as plane:
            response = await infer(plane, encoded_body(png(255), png(51)))
            assert first_numbers(response, 2) == pytest.approx([1.0, 0.2])

    run(main())


def test_pixels_are_counted_over_all_images_of_a_request() -> None:
    async def main() -> None:
        with plane_of(settings=replace(SETTINGS, max_pixels=40)) as plane:  # each has 16
            assert first_numbers(await infer(plane, encoded_body(png(255), png(51))), 2)
            said = "image 3 of 3 has 4x4 pixels, and at most 40 .* the 32 of those before it"
            with pytest.raises(RequestError, match=said) as caught:
                await infer(plane, encoded_body(png(1), png(2), png(3)))
            assert caught.value.status == 400
            assert counts(plane.recorder) == {"answered": 1, "invalid": 1}

    run(main())


@pytest.mark.parametrize("why", ["deadline", "client gone"])
def test_nothing_is_decoded_for_a_request_that_nobody_waits_for(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    decoded: list[str] = []
    begun, go_on = threading.Event(), threading.Event()
    real = classify_module.decode_bytes

    def slow(*args: Any, **options: Any) -> Any:
        decoded.append(options["name"])
        begun.set()
        assert go_on.wait(PATIENCE)
        return real(*args, **options)

    monkeypatch.setattr(classify_module, "decode_bytes", slow)

    async def main() -> None:
        with plane_of(clock=clock) as plane:
            task = asyncio.create_task(infer(plane, encoded_body(*map(png, range(5)))))
            await settle()
            assert begun.wait(PATIENCE)
            if why == "deadline":
                clock.now += SETTINGS.timeout + 1
                with pytest.raises(RequestError, match="not answered in time"):
                    await task
                expected = "timeout"
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                expected = "cancelled"
            go_on.set()
            assert counts(plane.recorder) == {expected: 1}
        join_threads("decode-0")

    run(main(), clock)
    assert decoded == ["image 1 of 5"]


def test_a_file_that_is_no_image_is_refused_and_the_others_are_named() -> None:
    async def main() -> None:
        with plane_of() as plane:
            with pytest.raises(RequestError, match="image 2 of 2") as caught:
                await infer(plane, encoded_body(png(1), b"nothing"))
            assert caught.value.status == 400
            with pytest.raises(RequestError, match="the image is not an image") as caught:
                await plane.classify(b"nothing")
            assert caught.value.status == 400
            assert counts(plane.recorder) == {"invalid": 2}
            assert plane.model.waiting == 0

    run(main())


def test_an_image_with_too_many_pixels_is_refused() -> None:
    async def main() -> None:
        with plane_of(settings=replace(SETTINGS, max_pixels=15)) as plane:
            with pytest.raises(RequestError, match="4x4 pixels, and at most 15") as caught:
                await plane.classify(png(1))
            assert caught.value.status == 400

    run(main())


def test_an_image_is_classified() -> None:
    async def main() -> None:
        with plane_of() as plane:
            found = await plane.classify(png(255), top=2)
            # logits 1, 0, 0, 0
            assert [guess.label for guess in found.guesses] == ["cat", "dog"]
            assert found.guesses[0].probability == pytest.approx(np.e / (np.e + 3))
            assert found.guesses[1].probability == pytest.approx(1 / (np.e + 3))
            assert found.spans == ()
            assert counts(plane.recorder) == {"answered": 1}
            assert len((await plane.classify(png(255), top=99)).guesses) == CLASSES
            with pytest.raises(RequestError, match="at least one class") as caught:
                await plane.classify(png(255), top=0)
            assert caught.value.status == 400

    run(main())


class Tracing(GatedRunner):
    def trace(self, feeds: Mapping[str, Array]) -> tuple[Span, ...]:
        return (Span(stage="fusion", device="cpu", start=0.0, end=0.5),)


def test_a_classification_tells_the_stages_of_a_run() -> None:
    runner = Tracing()
    runner.finish(1)

    async def main() -> None:
        with plane_of(runner) as plane:
            found = await plane.classify(png(255), top=1, trace=True)
            assert [span.stage for span in found.spans] == ["fusion"]

    run(main())


def test_a_network_that_reads_bytes_gets_bytes() -> None:
    signature = replace(
        SIGNATURE,
        inputs=(replace(SIGNATURE.image, dtype="uint8"),),
        preprocessing=replace(SIGNATURE.preprocessing, in_graph=True),
    )

    async def main() -> None:
        with plane_of(signature=signature) as plane:
            assert first_numbers(await infer(plane, encoded_body(png(7))), 1) == [7]

    run(main())


@pytest.mark.parametrize(("name", "version"), [("other", None), ("tiny", "2"), ("", "1")])
def test_an_unknown_model_is_404(name: str, version: str | None) -> None:
    async def main() -> None:
        with plane_of() as plane:
            with pytest.raises(RequestError, match="there is no model") as caught:
                await plane.infer(name, version, body(images(1)["images"]), None)
            assert caught.value.status == 404
            for ask in (
                plane.model_ready,
                plane.model_metadata,
                plane.model_config,
                plane.statistics,
            ):
                with pytest.raises(RequestError) as caught:
                    ask(name, version)
                assert caught.value.status == 404
            assert counts(plane.recorder) == {"unknown model": 1}

    run(main())


def test_documents_are_of_the_model() -> None:
    with plane_of() as plane:
        assert plane.model_metadata("tiny", "1").name == "tiny"
        assert plane.model_config("tiny")["max_batch_size"] == 8
        assert plane.statistics()["model_stats"][0]["name"] == "tiny"
        assert "statistics" in plane.server_metadata().extensions
        assert plane.model_ready("tiny")
        assert (plane.live, plane.ready, plane.message) == (True, True, "")
        plane.model.drain()
        assert not plane.model_ready("tiny", "1")
        assert (plane.live, plane.ready) == (True, False)
        assert "shutting down" in plane.message
