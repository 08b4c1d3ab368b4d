"""Real engines through the data plane: what a client gets is what the engine gives."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import export_tiny
from PIL import Image
from served import PATIENCE, run
from served_plane import encoded_body, infer

from parnet_deploy.bundle import BatchRange, EngineBundle, ModelBundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.images import decode_bytes, preprocess
from parnet_deploy.runtime import open_runner
from parnet_deploy.runtime.outputs import likeliest, probabilities
from parnet_deploy.serve.engine.model import ServedModel
from parnet_deploy.serve.plane import DataPlane
from parnet_deploy.serve.recording import Recorder
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.signature import signature_of
from parnet_deploy.spec import Array

CPU = BuildOptions(provider="cpu", threads=1)


def build(model: ModelBundle, final: Path, *, split: bool = False) -> EngineBundle:
    return build_engine(model, final, make_builder("onnxruntime", CPU, split=split), split=split)


@pytest.fixture(scope="module")
def whole(
    tiny_bundle_dynamic: ModelBundle, tmp_path_factory: pytest.TempPathFactory
) -> EngineBundle:
    """Batch 1 to 4. Read only."""
    return build(tiny_bundle_dynamic, tmp_path_factory.mktemp("engines") / "whole")


@pytest.fixture(scope="module")
def split(
    tiny_bundle_dynamic: ModelBundle, tmp_path_factory: pytest.TempPathFactory
) -> EngineBundle:
    """The same, an engine for each stage. Read only."""
    return build(tiny_bundle_dynamic, tmp_path_factory.mktemp("engines") / "split", split=True)


@pytest.fixture(scope="module")
def threes(tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    """Takes three images at once, no fewer, as bytes. Read only."""
    folder = tmp_path_factory.mktemp("threes")
    batch = BatchRange(min=3, opt=3, max=3)
    return build(export_tiny(folder / "model", batch=batch, preprocess=True), folder / "engine")


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def rows_of_engine(engine: EngineBundle, photos: list[bytes]) -> Array:
    """What the engine itself gives for each image, run one after the other."""
    manifest = engine.manifest
    rows = []
    with open_runner(engine) as runner:  # type: ignore[attr-defined]
        for data in photos:
            pixels = preprocess(decode_bytes(data), manifest.preprocessing)
            fed = np.repeat(pixels, manifest.batch.min, axis=0)
            rows.append(runner.run({manifest.inputs[0].name: fed})[manifest.outputs[0].name][0])
    return np.stack(rows)


@contextmanager
def plane_of(engine: EngineBundle, **changes: int) -> Iterator[DataPlane]:
    settings = ServeSettings(name="tiny", queue=32, decode_threads=2, timeout=PATIENCE, **changes)
    signature = signature_of(engine, "tiny")
    recorder = Recorder(signature)
    model = ServedModel(
        signature, lambda: open_runner(engine, contexts=settings.contexts), settings, recorder
    )
    model.start()
    try:
        yield DataPlane(model, recorder)
    finally:
        model.close()


@pytest.mark.parametrize("which", ["whole", "split", "threes"])
@pytest.mark.parametrize("changes", [{}, {"contexts": 2}, {"contexts": 2, "max_batch": 3}])
def test_clients_get_what_the_engine_gives(
    which: str, changes: dict[str, int], request: pytest.FixtureRequest
) -> None:
    engine = request.getfixturevalue(which)
    photos = [photo(seed) for seed in range(12)]
    expected = rows_of_engine(engine, photos)

    async def main() -> list[bytes]:
        with plane_of(engine, **changes) as plane:
            body = [encoded_body(data) for data in photos]
            return await asyncio.gather(*(infer(plane, each) for each in body))

    for row, response in zip(expected, run(main()), strict=True):
        (output,) = json.loads(response)["outputs"]
        assert output["shape"] == [1, 7]
        # Batches of other sizes are summed in another order.
        assert np.array(output["data"]) == pytest.approx(row, rel=1e-4, abs=1e-5)


def test_a_split_engine_tells_its_stages(split: EngineBundle) -> None:
    data = photo(1)
    expected = rows_of_engine(split, [data])
    labels = split.labels

    async def main() -> None:
        with plane_of(split) as plane:
            found = await plane.classify(data, top=3, trace=True)
            row = probabilities(expected, softmax=False)[0]
            best = likeliest(row, labels, 3)
            assert [guess.index for guess in found.guesses] == [guess.index for guess in best]
            assert [guess.probability for guess in found.guesses] == pytest.approx(
                [guess.probability for guess in best]
            )
            names = {span.stage for span in found.spans}
            assert names == {stage.name for stage in split.manifest.stages}
            assert all(0 <= span.start <= span.end for span in found.spans)

    run(main())
