"""OpenVinoRunner: answers, whose memory they lie in, float32 and nothing less, and errors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import parnet_deploy.runtime.openvino as module
from parnet_deploy.bundle import MODEL_GRAPH, ModelBundle
from parnet_deploy.errors import EngineError, MissingDependencyError, RunnerError, TargetError
from parnet_deploy.runtime import OnnxRuntimeRunner
from parnet_deploy.runtime.openvino import (
    OpenVinoRunner,
    check_openvino_target,
    openvino_target,
)
from parnet_deploy.runtime.timeline import TimesCompute
from parnet_deploy.spec import Array

openvino = module.load_openvino()

TOLERANCE = 1e-4  # relative to the greatest absolute value


def whole(bundle: ModelBundle, **options: Any) -> OpenVinoRunner:
    manifest = bundle.manifest
    options = {"inputs": manifest.inputs, "outputs": manifest.outputs, "threads": 1, **options}
    return OpenVinoRunner(bundle.file(MODEL_GRAPH), **options)


@pytest.fixture
def images(rng: np.random.Generator) -> Array:
    return rng.standard_normal((1, 3, 64, 64)).astype(np.float32)


def plain_answer(bundle: ModelBundle, images: Array) -> Array:
    """What ONNX Runtime says without any optimisation."""
    manifest = bundle.manifest
    with OnnxRuntimeRunner(
        bundle.file(MODEL_GRAPH),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        threads=1,
        optimise=False,
    ) as runner:
        return runner.run({"images": images})["logits"]


def assert_close(actual: Array, expected: Array) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max() > 0


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_it_answers_as_onnx_runtime(tiny_bundle: ModelBundle, images: Array, threads: int) -> None:
    with whole(tiny_bundle, threads=threads) as runner:
        assert_close(runner.run({"images": images})["logits"], plain_answer(tiny_bundle, images))


def read_only(array: Array) -> Array:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize("change", [np.array, np.asfortranarray, read_only])
def test_images_in_any_memory_give_the_same_answer_and_stay_as_they_are(
    tiny_bundle: ModelBundle, images: Array, change: Callable[[Array], Array]
) -> None:
    given = change(images)
    with whole(tiny_bundle) as runner:
        expected = runner.run({"images": images})["logits"]
        np.testing.assert_array_equal(runner.run({"images": given})["logits"], expected)
    np.testing.assert_array_equal(given, images)


def test_arrays_are_read_and_written_where_they_lie(
    tiny_bundle: ModelBundle, images: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = []

    def tensor(array: Array, *, shared_memory: bool) -> Any:
        shared.append((array, shared_memory))
        return openvino.Tensor(array, shared_memory=shared_memory)

    with whole(tiny_bundle) as runner:
        monkeypatch.setattr(runner, "_openvino", SimpleNamespace(Tensor=tensor))
        logits = runner.run({"images": images})["logits"]
    (given, _), (taken, _) = shared
    assert given is images
    assert taken is logits
    assert all(how for _, how in shared)


def test_the_arrays_given_back_belong_to_the_caller(
    tiny_bundle: ModelBundle, images: Array
) -> None:
    with whole(tiny_bundle) as runner:
        first = runner.run({"images": images})["logits"]
        kept = first.copy()
        second = runner.run({"images": -images})["logits"]
        np.testing.assert_array_equal(first, kept)
        assert not np.array_equal(second, kept)
        first += 1  # it may be written to, also while it is in use
        np.testing.assert_array_equal(runner.run({"images": images})["logits"], kept)
    np.testing.assert_array_equal(first, kept + 1)


def test_several_threads_each_get_their_own_answers(
    tiny_bundle: ModelBundle, rng: np.random.Generator
) -> None:
    inputs = rng.standard_normal((32, 1, 3, 64, 64)).astype(np.float32)
    with whole(tiny_bundle) as runner, ThreadPoolExecutor(8) as callers:
        expected = [runner.run({"images": x})["logits"] for x in inputs]
        results = list(callers.map(lambda x: runner.run({"images": x})["logits"], inputs))
        assert 1 <= len(runner._idle) <= 8  # one request for each that ran at the same time
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_any_batch_of_a_dynamic_graph_runs(
    tiny_bundle_dynamic: ModelBundle, rng: np.random.Generator
) -> None:
    images = rng.standard_normal((4, 3, 64, 64)).astype(np.float32)
    with whole(tiny_bundle_dynamic) as runner:
        for size in (1, 4, 2, 1, 3):
            given = images[:size]
            answer = runner.run({"images": given})["logits"]
            assert_close(answer, plain_answer(tiny_bundle_dynamic, given))


def test_inputs_of_different_batches_are_refused(
    tiny_bundle_dynamic: ModelBundle, rng: np.random.Generator
) -> None:
    fusion = tiny_bundle_dynamic.manifest.stages[-1]
    feeds = {s.name: rng.standard_normal(s.concrete(2)).astype(np.float32) for s in fusion.inputs}
    with OpenVinoRunner(
        tiny_bundle_dynamic.file(fusion.file), inputs=fusion.inputs, outputs=fusion.outputs
    ) as runner:
        assert runner.run(feeds)["logits"].shape == (2, 7)
        name = fusion.inputs[0].name
        with pytest.raises(RunnerError, match=r"holds the same images, at least one; not \[1, 2\]"):
            runner.run({**feeds, name: feeds[name][:1]})
        with pytest.raises(RunnerError, match=r"at least one; not \[0\]"):
            runner.run({name: feed[:0] for name, feed in feeds.items()})


def test_computing_alone_is_a_part_of_a_run(tiny_bundle: ModelBundle, images: Array) -> None:
    runner = whole(tiny_bundle)
    assert isinstance(runner, TimesCompute)
    assert 0 < runner.time_compute({"images": images}) < 60
    with pytest.raises(RunnerError, match="is expected"):
        runner.time_compute({"images": images[:, :, :32]})
    runner.close()
    with pytest.raises(RunnerError, match="closed"):
        runner.time_compute({"images": images})


@pytest.mark.parametrize(
    "change",
    [
        lambda x: {},
        lambda x: {"images": x, "more": x},
        lambda x: {"images": x.astype(np.float64)},
        lambda x: {"images": x.astype(">f4")},
        lambda x: {"images": x[:, :, :32]},
        lambda x: {"images": x[0]},
        lambda x: {"images": np.concatenate([x, x])},
    ],
    ids=["missing", "extra", "double", "big-endian", "smaller", "no batch", "another batch"],
)
def test_wrong_feeds_are_refused(
    tiny_bundle: ModelBundle, images: Array, change: Callable[[Array], dict[str, Array]]
) -> None:
    with whole(tiny_bundle) as runner:
        with pytest.raises(RunnerError, match=r"is expected|the inputs are"):
            runner.run(change(images))
        assert runner.run({"images": images})["logits"].shape == (1, 7)


def test_a_run_that_fails_inside_openvino_is_a_runner_error_in_one_line(
    tiny_bundle: ModelBundle, images: Array
) -> None:
    (spec,) = tiny_bundle.manifest.inputs
    lie = replace(spec, shape=(1, 3, 32, 32))
    with whole(tiny_bundle, inputs=(lie,)) as runner:
        with pytest.raises(RunnerError, match=r"OpenVINO failed: .*1.3.32.32") as caught:
            runner.run({"images": images[:, :, :32, :32]})
        assert "\n" not in str(caught.value)
        assert "src/" not in str(caught.value)
        assert runner._idle == []


def test_a_closed_runner_says_so_and_a_second_close_does_nothing(
    tiny_bundle: ModelBundle, images: Array
) -> None:
    runner = whole(tiny_bundle)
    runner.run({"images": images})
    runner.close()
    runner.close()
    with pytest.raises(RunnerError, match="closed; open it again"):
        runner.run({"images": images})


def test_closing_lets_runs_end(tiny_bundle: ModelBundle, images: Array) -> None:
    runner = whole(tiny_bundle)
    expected = runner.run({"images": images})["logits"]
    request = runner._idle[0]

    class Closing:
        """A request in whose run another thread closes the runner."""

        set_tensor = request.set_tensor

        def infer(self, **options: Any) -> None:
            runner.close()
            request.infer(**options)

    runner._idle[0] = Closing()
    np.testing.assert_array_equal(runner.run({"images": images})["logits"], expected)
    with pytest.raises(RunnerError, match="closed"):
        runner.run({"images": images})


@pytest.mark.parametrize("name", ["inputs", "outputs"])
def test_a_file_with_other_inputs_or_outputs_is_refused(
    tiny_bundle: ModelBundle, name: str
) -> None:
    specs = tuple(replace(spec, name="other") for spec in getattr(tiny_bundle.manifest, name))
    said = r"reads \[\['images'\]\] and gives \['logits'\]; expected"
    with pytest.raises(EngineError, match=said):
        whole(tiny_bundle, **{name: specs})


def properties(runner: OpenVinoRunner, *names: str) -> list[Any]:
    return [runner._compiled.get_property(name) for name in names]


def test_it_is_compiled_for_float32_and_the_latency_of_one_run(tiny_bundle: ModelBundle) -> None:
    with whole(tiny_bundle, threads=2, pin=False) as runner:
        assert properties(
            runner,
            "INFERENCE_PRECISION_HINT",
            "PERFORMANCE_HINT",
            "NUM_STREAMS",
            "INFERENCE_NUM_THREADS",
            "ENABLE_CPU_PINNING",
        ) == [openvino.Type.f32, "LATENCY", 1, 2, False]


class Compiled:
    def get_property(self, name: str) -> Any:
        assert name == "INFERENCE_PRECISION_HINT"
        return openvino.Type.bf16


class BFloat16Core:
    """OpenVINO on a CPU that has bfloat16, and takes it whatever it is told."""

    asked: dict[str, Any]

    def read_model(self, path: str) -> str:
        return path

    def compile_model(self, model: str, device: str, asked: dict[str, Any]) -> Compiled:
        type(self).asked = {"device": device, **asked}
        return Compiled()


def test_float32_is_asked_for_and_less_is_refused(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "load_openvino", lambda: SimpleNamespace(Core=BFloat16Core, Type=openvino.Type)
    )
    with pytest.raises(EngineError, match="for bf16, not for the f32 asked for"):
        whole(tiny_bundle, threads=3)
    assert BFloat16Core.asked == {
        "device": "CPU",
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": 3,
    }


@pytest.mark.parametrize("content", [None, b"", b"\x08\x08garbage"], ids=["gone", "empty", "other"])
def test_a_file_that_is_no_model_is_an_engine_error(
    tiny_bundle: ModelBundle, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    manifest = tiny_bundle.manifest
    with pytest.raises(EngineError, match="OpenVINO cannot load") as caught:
        OpenVinoRunner(path, inputs=manifest.inputs, outputs=manifest.outputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrote", "here", "fits"),
    [
        ("2026.1.0", "2026.1.0-1234-abc-releases/2026/1", True),
        ("2025.4.1", "2026.1.0-1234-abc", True),
        ("2026.1.0", "2026.10.0", True),
        ("2026.10.0", "2026.2.0", False),
        ("2026.1.1", "2026.1.0", False),
        ("2027.0.0", "2026.4.0.dev20260101", False),
        ("2026.4.0", "2026.4.0rc1", True),
        ("unknown", "2026.1.0", False),
    ],
)
def test_what_a_newer_openvino_wrote_is_refused(
    monkeypatch: pytest.MonkeyPatch, wrote: str, here: str, fits: bool
) -> None:
    monkeypatch.setattr(module, "load_openvino", lambda: SimpleNamespace(__version__=here))
    if fits:
        check_openvino_target({"openvino": wrote})
        assert openvino_target() == {"openvino": here.partition("-")[0]}
        return
    with pytest.raises(TargetError, match=f"written by OpenVINO {wrote}.*here: 2026"):
        check_openvino_target({"openvino": wrote})


def test_a_target_without_a_version_is_refused() -> None:
    with pytest.raises(TargetError, match="written by OpenVINO unknown"):
        check_openvino_target({})


def test_a_missing_openvino_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'parnet-deploy\[openvino\]'"):
        module.load_openvino()


def test_nothing_is_printed_and_nothing_is_collected_about_who_runs_an_engine(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    code = f"""
import numpy as np
from pathlib import Path
from parnet_deploy.bundle import open_model
from parnet_deploy.runtime.openvino import OpenVinoRunner
bundle = open_model(Path({str(tiny_bundle.path)!r}))
given = dict(inputs=bundle.manifest.inputs, outputs=bundle.manifest.outputs)
with OpenVinoRunner(bundle.file("model.onnx"), threads=1, **given) as runner:
    runner.run({{"images": np.zeros((1, 3, 64, 64), dtype=np.float32)}})
"""
    env = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert not list(tmp_path.rglob("*"))
