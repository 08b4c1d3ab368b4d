"""What a graph's tensors hold when images are run."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from observed import READ, convolutions, images
from onnx import numpy_helper

from parnet_deploy.bundle import ModelBundle
from parnet_deploy.errors import ExportError, RunnerError
from parnet_deploy.quantise.histogram import Histogram
from parnet_deploy.quantise.images import CalibrationImages
from parnet_deploy.quantise.observe import observe, run_tensors


def same(first: Histogram, second: Histogram) -> bool:
    return (first.exponent, first.low, first.high) == (
        second.exponent,
        second.low,
        second.high,
    ) and bool((first.counts == second.counts).all())


def test_every_value_of_every_image_is_counted(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    model = convolutions()
    before = model.SerializeToString()
    found = observe(
        model,
        ["second", "images", "first"],
        images(tmp_path),
        progress=lambda done, total: told.append((done, total)),
    )
    assert list(found) == ["second", "images", "first"]
    assert found["first"].total == found["second"].total == 5 * 4 * 64
    assert found["images"].total == 5 * 3 * 64
    assert same(found["images"], Histogram.of(images(tmp_path).array()))
    assert found["second"].low == 0.0
    assert found["second"].high == found["first"].high
    assert told == [(done, 5) for done in range(1, 6)]
    assert model.SerializeToString() == before


@pytest.mark.parametrize("batch", ["N", 1, 2, 7])
def test_the_graph_s_batch_changes_nothing(batch: int | str, tmp_path: Path) -> None:
    found = observe(convolutions(batch), ["first"], images(tmp_path))["first"]
    expected = observe(convolutions(), ["first"], images(tmp_path))["first"]
    assert found.total == expected.total  # what fills a batch up is not counted
    assert found.low == pytest.approx(expected.low, rel=1e-5)
    assert found.high == pytest.approx(expected.high, rel=1e-5)


def test_a_graph_a_model_and_a_file_are_the_same(tmp_path: Path) -> None:
    model, moved = convolutions(), convolutions()
    onnx.save(
        moved,
        tmp_path / "g.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    expected = observe(model, ["first"], images(tmp_path))["first"]
    for other in (gs.import_onnx(convolutions()), tmp_path / "g.onnx"):
        assert same(observe(other, ["first"], images(tmp_path))["first"], expected)
    with pytest.raises(RunnerError, match="weights lie outside of it"):
        observe(moved, ["first"], images(tmp_path))


def test_an_exported_network_is_observed(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    manifest = tiny_bundle.manifest
    names = [block for stage in manifest.stages for block in stage.blocks if block != "head"]
    names = list(dict.fromkeys(names))
    found = observe(
        tiny_bundle.path / "model.onnx", names, images(tmp_path, size=manifest.spec.image_size)
    )
    assert list(found) == names
    assert all(histogram.high > 0 for histogram in found.values())


def test_values_come_image_after_image_and_are_those_of_the_graph(tmp_path: Path) -> None:
    model = convolutions()
    kernel = numpy_helper.to_array(model.graph.initializer[0])
    fed = images(tmp_path)
    rows = list(run_tensors(model, ["first", "images"], fed))
    assert len(rows) == 5
    for row, image in zip(rows, fed.array(), strict=True):
        np.testing.assert_array_equal(row["images"][0], image)
        centre = float((kernel[2] * image[:, 3:6, 4:7]).sum())
        assert row["first"][0, 2, 4, 5] == pytest.approx(centre, rel=1e-4, abs=1e-4)


def test_a_layer_that_is_always_the_same_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"the layer 'nothing' gives .*0 everywhere on all 5"):
        observe(convolutions(), ["first", "nothing"], images(tmp_path))


def test_a_layer_that_is_not_finite_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"'broken' .* not finite for calibration image 0 \("):
        observe(convolutions(), ["first", "broken"], images(tmp_path))
    with pytest.raises(ExportError, match=r"the layer 'first' .* not finite"):
        observe(convolutions(scale=np.inf), ["first"], images(tmp_path))


def test_the_image_on_which_it_is_not_finite_is_told(tmp_path: Path) -> None:
    fed = images(tmp_path)
    values = fed.array()
    values[3, 0, 0, 0] = 3e38
    broken = CalibrationImages(values=values, preprocessing=READ, sha256="", source="")
    with pytest.raises(ExportError, match="for calibration image 3 "):
        observe(convolutions(2, scale=100), ["first"], broken)


def test_a_tensor_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the graph has no tensor 'third'"):
        observe(convolutions(), ["first", "third"], images(tmp_path))
    model = convolutions()
    model.graph.input[0].name = "pictures"
    with pytest.raises(RunnerError, match="reads pictures, and 'images' is needed"):
        observe(model, ["first"], images(tmp_path))


def test_a_graph_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    model = convolutions()
    model.graph.node[0].op_type = "Convolution"
    with pytest.raises(RunnerError, match="Convolution"):
        observe(model, ["first"], images(tmp_path))
    with pytest.raises(RunnerError, match="ONNX Runtime failed"):
        observe(convolutions(), ["first"], images(tmp_path, size=(9, 8)))


def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = images(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "empty"))

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        observe(convolutions(), ["first"], fed, progress=interrupt)
    assert not list((tmp_path / "empty").iterdir())


def test_one_image_s_values_are_held_at_a_time(tmp_path: Path) -> None:
    size = (64, 64)
    fed = images(tmp_path, 40, size=size)
    model = convolutions()
    for axis, value in enumerate(size):
        model.graph.input[0].type.tensor_type.shape.dim[2 + axis].dim_value = value
    observe(model, ["first"], fed)  # what is imported once is not counted
    gc.collect()
    tracemalloc.start()
    try:
        observe(model, ["first", "second"], fed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    every = 40 * 2 * 4 * 4 * size[0] * size[1]
    assert peak < every / 2, (peak, every)
