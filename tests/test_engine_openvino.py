"""OpenVINO engines: they answer as the graph does; float32 on disk; movable; whole or not."""

from __future__ import annotations

import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import export_tiny

import parnet_deploy.engine.openvino as module
from parnet_deploy.bundle import (
    MODEL_GRAPH,
    BatchRange,
    EngineBundle,
    ModelBundle,
    ModelManifest,
    open_engine_bundle,
    open_model,
)
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.errors import BuildError, BundleError, EngineError, RunnerError, TargetError
from parnet_deploy.runtime import OnnxRuntimeRunner, SplitRunner, open_runner, rebuild_command
from parnet_deploy.runtime.openvino import OpenVinoRunner, load_openvino, openvino_version
from parnet_deploy.spec import Array

TOLERANCE = 1e-4  # relative to the greatest absolute value

ONE_THREAD = BuildOptions(threads=1)


def build(model: ModelBundle, final: Path, *, split: bool = False) -> EngineBundle:
    builder = make_builder("openvino", ONE_THREAD, split=split)
    return build_engine(model, final, builder, split=split)


@pytest.fixture(scope="module")
def engines(
    tiny_bundle_dynamic: ModelBundle, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, EngineBundle]:
    """A whole and a split engine of a dynamic batch and a shared stem. Read only."""
    folder = tmp_path_factory.mktemp("engines")
    return {
        name: build(tiny_bundle_dynamic, folder / name, split=name == "split")
        for name in ("whole", "split")
    }


def some_images(manifest: ModelManifest, batch: int, seed: int = 0) -> Array:
    (spec,) = manifest.inputs
    rng = np.random.default_rng(seed)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, spec.concrete(batch), dtype=np.uint8)
    return rng.standard_normal(spec.concrete(batch)).astype(np.float32)


def plain_answer(model: ModelBundle, images: Array) -> Array:
    """The whole graph in ONNX Runtime without any optimisation."""
    manifest = model.manifest
    (output,) = manifest.outputs
    with OnnxRuntimeRunner(
        model.file(MODEL_GRAPH),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        threads=1,
        optimise=False,
    ) as runner:
        return runner.run({"images": images})[output.name]


def assert_close(actual: Array, expected: Array) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max() > 0


def assert_equal_to_the_graph(engine: EngineBundle, model: ModelBundle) -> None:
    batch = model.manifest.batch
    (output,) = model.manifest.outputs
    with open_runner(engine) as runner:
        for size in {batch.min, batch.opt, batch.max}:
            images = some_images(model.manifest, size)
            assert_close(runner.run({"images": images})[output.name], plain_answer(model, images))


def test_whole_and_split_engines_equal_the_graph_at_every_batch(
    engines: dict[str, EngineBundle], tiny_bundle_dynamic: ModelBundle
) -> None:
    names = [stage.name for stage in tiny_bundle_dynamic.manifest.stages]
    assert [stage.name for stage in engines["whole"].manifest.stages] == ["whole"]
    assert [stage.name for stage in engines["split"].manifest.stages] == names
    for engine in engines.values():
        assert_equal_to_the_graph(engine, tiny_bundle_dynamic)


@pytest.mark.parametrize(
    "options",
    [
        {"batch": BatchRange(min=3, opt=3, max=3), "preprocess": True, "softmax": True},
        {
            "changes": {
                "activation": "relu",
                "squeeze": False,
                "image_size": (32, 96),
                "stream_widths": (8,),
                "stream_blocks": (1,),
                "last_width": 40,
            }
        },
    ],
    ids=["uint8, softmax, batch 3", "relu, no squeeze, 32x96, one stream"],
)
def test_every_option_of_the_export_survives(tmp_path: Path, options: dict[str, Any]) -> None:
    model = export_tiny(tmp_path / "model", **options)
    for split in (False, True):
        engine = build(model, tmp_path / f"engine-{split}", split=split)
        assert engine.manifest.inputs == model.manifest.inputs
        assert engine.manifest.outputs == model.manifest.outputs
        assert_equal_to_the_graph(engine, model)


@pytest.mark.parametrize("name", ["whole", "split"])
def test_several_threads_at_once_get_their_own_answers(
    engines: dict[str, EngineBundle], tiny_bundle_dynamic: ModelBundle, name: str
) -> None:
    given = [some_images(tiny_bundle_dynamic.manifest, 1 + n % 4, seed=n) for n in range(24)]
    with open_runner(engines[name]) as runner, ThreadPoolExecutor(8) as callers:
        expected = [runner.run({"images": images})["logits"] for images in given]
        found = list(callers.map(lambda images: runner.run({"images": images})["logits"], given))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_values_that_cross_a_cut_belong_to_whoever_reads_them(
    engines: dict[str, EngineBundle], tiny_bundle_dynamic: ModelBundle
) -> None:
    images = some_images(tiny_bundle_dynamic.manifest, 2)
    with open_runner(engines["split"]) as runner:
        assert isinstance(runner, SplitRunner)
        values = runner.run_all({"images": images})
        kept = {name: value.copy() for name, value in values.items()}
        runner.run({"images": -images})
    assert len(kept) > 4
    for name, value in values.items():
        np.testing.assert_array_equal(value, kept[name])


def test_the_manifest_says_how_and_for_what_it_was_built(engines: dict[str, EngineBundle]) -> None:
    for name, engine in engines.items():
        manifest = engine.manifest
        assert manifest.backend == "openvino"
        assert manifest.target == {"openvino": openvino_version()}
        pinning = {"ENABLE_CPU_PINNING": False} if name == "split" else {}
        assert manifest.options == {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": 1,
            **pinning,
        }
        assert "openvino" in manifest.tools
        assert {stage.device for stage in manifest.stages} == {"cpu"}


def test_an_engine_holds_its_weights_in_float32_and_nothing_but_the_named_files(
    engines: dict[str, EngineBundle],
) -> None:
    engine = engines["whole"]
    assert {path.name for path in engine.path.iterdir()} == {
        *("labels.txt", "manifest.json", "manifest.sha256", "whole.bin", "whole.xml"),
    }
    model = load_openvino().Core().read_model(engine.file("whole.xml"))
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    types = {op.get_element_type().get_type_name() for op in constants}
    assert "f32" in types
    assert not types & {"f16", "bf16"}


def test_an_engine_needs_neither_its_place_nor_its_model(
    tmp_path: Path, tiny_bundle: ModelBundle
) -> None:
    model = open_model(Path(shutil.copytree(tiny_bundle.path, tmp_path / "model")))
    engine = build(model, tmp_path / "engine", split=True)
    images = some_images(model.manifest, 1)
    expected = plain_answer(model, images)
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    engine.path.rename(moved)
    shutil.rmtree(model.path)
    with open_runner(open_engine_bundle(moved)) as runner:
        assert_close(runner.run({"images": images})["logits"], expected)


def properties(runner: OpenVinoRunner) -> tuple[Any, ...]:
    names = ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "ENABLE_CPU_PINNING")
    precision, threads, pinned = (runner._compiled.get_property(name) for name in names)
    return precision.get_type_name(), threads, pinned


def test_stages_share_the_cores_unpinned_and_in_float32(
    tmp_path: Path, tiny_bundle_dynamic: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}
    real = module.OpenVinoRunner

    def recorded(path: Path, **options: Any) -> OpenVinoRunner:
        asked[path.stem] = options["threads"]
        return real(path, **options)

    monkeypatch.setattr("parnet_deploy.engine.base.usable_cores", lambda: 5)
    monkeypatch.setattr(module, "OpenVinoRunner", recorded)
    monkeypatch.setattr("parnet_deploy.runtime.openvino.OpenVinoRunner", recorded)
    builder = make_builder("openvino", BuildOptions(), split=True)
    engine = build_engine(tiny_bundle_dynamic, tmp_path / "engine", builder, split=True)
    told = {stage.name: stage.threads for stage in engine.manifest.stages}
    assert told == {"stem": 5, "stream1": 2, "stream2": 2, "stream3": 1, "fusion": 5}
    assert asked == told
    asked.clear()
    with open_runner(engine) as runner:
        assert isinstance(runner, SplitRunner)
        found = [properties(stage.runner) for stage in runner._stages]
    assert asked == told
    assert {(precision, pinned) for precision, _, pinned in found} == {("f32", False)}


def test_threads_that_were_asked_for_come_before_a_share_of_the_cores(
    engines: dict[str, EngineBundle],
) -> None:
    assert {stage.threads for stage in engines["split"].manifest.stages} == {1}
    with open_runner(engines["whole"]) as runner:
        assert properties(runner)[:2] == ("f32", 1)


@pytest.mark.parametrize("file", ["whole.xml", "whole.bin"])
@pytest.mark.parametrize("damage", ["empty", "half", "gone"])
def test_a_damaged_engine_is_refused_with_the_way_out(
    engines: dict[str, EngineBundle], tmp_path: Path, file: str, damage: str
) -> None:
    path = Path(shutil.copytree(engines["whole"].path, tmp_path / "copy")) / file
    if damage == "gone":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(b"" if damage == "empty" else data[: len(data) // 2])
    with pytest.raises(BundleError, match="build it again: parnet-deploy build-engine"):
        open_engine_bundle(tmp_path / "copy")
    damaged = open_engine_bundle(tmp_path / "copy", check=False)
    with pytest.raises(EngineError, match=r"cannot run here.*OpenVINO cannot.*build it again: par"):
        open_runner(damaged)


@pytest.mark.parametrize("name", ["whole", "split"])
def test_an_engine_that_a_newer_openvino_wrote_is_for_another_machine(
    engines: dict[str, EngineBundle], name: str
) -> None:
    manifest = replace(engines[name].manifest, target={"openvino": "2999.1.0"})
    bundle = replace(engines[name], manifest=manifest)
    with pytest.raises(TargetError, match=r"written by OpenVINO 2999\.1\.0.*build it again"):
        open_runner(bundle)


def test_the_command_that_rebuilds_keeps_the_threads(engines: dict[str, EngineBundle]) -> None:
    words = shlex.split(rebuild_command(engines["split"]))
    start = words.index("--split-streams")
    assert words[start : start + 5] == [
        "--split-streams",
        *("--backend", "openvino", "--threads", "1"),
    ]


def test_a_closed_engine_says_so(
    engines: dict[str, EngineBundle], tiny_bundle_dynamic: ModelBundle
) -> None:
    for engine in engines.values():
        runner = open_runner(engine)
        runner.close()
        runner.close()
        with pytest.raises(RunnerError, match="closed"):
            runner.run({"images": some_images(tiny_bundle_dynamic.manifest, 1)})


def test_a_graph_that_does_not_load_is_a_build_error_and_leaves_nothing(
    tmp_path: Path, tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.read_model
    monkeypatch.setattr(module, "read_model", lambda path: real(tiny_bundle.file("labels.txt")))
    with pytest.raises(BuildError, match="'whole' could not be read: OpenVINO cannot load"):
        build(tiny_bundle, tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []


class Writing:
    """OpenVINO, with something to go wrong when a model is written."""

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails

    def save_model(self, model: Any, path: Path, **options: Any) -> None:
        if self._fails:
            raise RuntimeError("basic_ios::clear: iostream error")
        load_openvino().save_model(model, path, **options)
        weights = path.with_suffix(".bin")
        weights.write_bytes(weights.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("fails", "kind", "message"),
    [
        (True, BundleError, "could not write 'whole': is the disk full"),
        (False, BuildError, "'whole' could not be built for cpu: OpenVINO cannot"),
    ],
    ids=["full disk", "cut short"],
)
def test_what_was_not_written_whole_is_noticed_before_the_engine_is_put_in_place(
    tmp_path: Path, tiny_bundle: ModelBundle, fails: bool, kind: type[Exception], message: str
) -> None:
    builder = make_builder("openvino", ONE_THREAD, split=False)
    builder._openvino = Writing(fails=fails)  # type: ignore[attr-defined]
    with pytest.raises(kind, match=message):
        build_engine(tiny_bundle, tmp_path / "engine", builder, split=False)
    assert list(tmp_path.iterdir()) == []
