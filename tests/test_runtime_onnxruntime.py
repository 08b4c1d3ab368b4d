"""OnnxRuntimeRunner: answers, errors, and no fallback that nobody notices."""

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
import onnxruntime
import pytest

import parnet_deploy.runtime.onnxruntime as module
from parnet_deploy.bundle import MODEL_GRAPH, ModelBundle
from parnet_deploy.errors import EngineError, MissingDependencyError, RunnerError, TargetError
from parnet_deploy.runtime import OnnxRuntimeRunner
from parnet_deploy.runtime.machine import provider_problem
from parnet_deploy.runtime.timeline import TimesCompute
from parnet_deploy.spec import Array


def whole(bundle: ModelBundle, **options: Any) -> OnnxRuntimeRunner:
    manifest = bundle.manifest
    options = {"inputs": manifest.inputs, "outputs": manifest.outputs, "threads": 1, **options}
    return OnnxRuntimeRunner(bundle.file(MODEL_GRAPH), **options)


@pytest.fixture
def images(rng: np.random.Generator) -> Array:
    return rng.standard_normal((1, 3, 64, 64)).astype(np.float32)


def plain_answer(bundle: ModelBundle, images: Array) -> Array:
    """What ONNX Runtime says without any optimisation and without this project."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        bundle.file(MODEL_GRAPH), options, providers=["CPUExecutionProvider"]
    )
    return session.run(["logits"], {"images": images})[0]


@pytest.mark.parametrize("optimise", [True, False])
def test_it_answers_as_a_plain_session(
    tiny_bundle: ModelBundle, images: Array, optimise: bool
) -> None:
    expected = plain_answer(tiny_bundle, images)
    with whole(tiny_bundle, optimise=optimise) as runner:
        logits = runner.run({"images": images})["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_images_in_any_memory_order_give_the_same_answer(
    tiny_bundle: ModelBundle, images: Array
) -> None:
    scattered = np.asfortranarray(images)
    assert not scattered.flags.c_contiguous
    with whole(tiny_bundle) as runner:
        expected = runner.run({"images": images})["logits"]
        np.testing.assert_array_equal(runner.run({"images": scattered})["logits"], expected)


def test_the_arrays_given_back_belong_to_the_caller(
    tiny_bundle: ModelBundle, images: Array
) -> None:
    with whole(tiny_bundle) as runner:
        first = runner.run({"images": images})["logits"]
        kept = first.copy()
        runner.run({"images": -images})
    np.testing.assert_array_equal(first, kept)
    first += 1  # it may be written to


def test_several_threads_each_get_their_own_answers(
    tiny_bundle: ModelBundle, rng: np.random.Generator
) -> None:
    inputs = rng.standard_normal((16, 1, 3, 64, 64)).astype(np.float32)
    with whole(tiny_bundle) as runner, ThreadPoolExecutor(4) as callers:
        expected = [runner.run({"images": x})["logits"] for x in inputs]
        results = list(callers.map(lambda x: runner.run({"images": x})["logits"], inputs))
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_any_batch_of_a_dynamic_graph_runs(
    tiny_bundle_dynamic: ModelBundle, rng: np.random.Generator
) -> None:
    images = rng.standard_normal((4, 3, 64, 64)).astype(np.float32)
    with whole(tiny_bundle_dynamic) as runner:
        together = runner.run({"images": images})["logits"]
        alone = [runner.run({"images": images[i : i + 1]})["logits"] for i in range(4)]
    assert together.shape == (4, 7)
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5, rtol=1e-5)


def test_computing_alone_is_a_part_of_a_run(tiny_bundle: ModelBundle, images: Array) -> None:
    runner = whole(tiny_bundle)
    assert isinstance(runner, TimesCompute)
    for given in (images, np.asfortranarray(images)):
        assert 0 < runner.time_compute({"images": given}) < 60
    with pytest.raises(RunnerError, match="is expected"):
        runner.time_compute({"images": images[:, :, :32]})
    (lie,) = (replace(spec, name="other") for spec in runner.inputs)
    with (
        whole(tiny_bundle, inputs=(lie,)) as wrong,
        pytest.raises(RunnerError, match="ONNX Runtime failed: "),
    ):
        wrong.time_compute({"other": images})
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


def test_a_run_that_fails_inside_onnx_runtime_is_a_runner_error(
    tiny_bundle: ModelBundle, images: Array
) -> None:
    (spec,) = tiny_bundle.manifest.inputs
    lie = replace(spec, shape=(1, 3, 32, 32))
    with whole(tiny_bundle, inputs=(lie,)) as runner:
        with pytest.raises(RunnerError, match="ONNX Runtime failed: ") as caught:
            runner.run({"images": images[:, :, :32, :32]})
        assert "[ONNXRuntimeError]" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_closed_runner_says_so(tiny_bundle: ModelBundle, images: Array) -> None:
    runner = whole(tiny_bundle)
    runner.close()
    runner.close()
    with pytest.raises(RunnerError, match="closed; open it again"):
        runner.run({"images": images})


@pytest.mark.parametrize(
    "content", [None, b"", b"not a graph"], ids=["missing", "empty", "garbage"]
)
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "graph.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r"cannot load .*graph\.onnx: ") as caught:
        OnnxRuntimeRunner(path, inputs=(), outputs=())
    assert "\n" not in str(caught.value)


def test_an_unknown_provider_is_refused(tiny_bundle: ModelBundle) -> None:
    with pytest.raises(EngineError, match="one of cpu, cuda; not 'tpu'"):
        whole(tiny_bundle, provider="tpu")


def test_threads_are_set(tiny_bundle: ModelBundle) -> None:
    with whole(tiny_bundle, threads=3) as runner:
        assert runner._session.get_session_options().intra_op_num_threads == 3


@pytest.mark.skipif(provider_problem("cuda") is None, reason="the CUDA provider works here")
def test_cuda_that_is_not_there_is_an_error_and_nothing_is_printed(
    tiny_bundle: ModelBundle, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineError, match="CUDAExecutionProvider"):
        whole(tiny_bundle, provider="cuda")
    assert capfd.readouterr() == ("", "")


class Sessions:
    """ONNX Runtime's module, as far as a session needs it; `providers` is what it ends up with."""

    __file__ = onnxruntime.__file__
    GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel
    SessionOptions = onnxruntime.SessionOptions

    def __init__(
        self, *, providers: tuple[str, ...] = (), available: tuple[str, ...] = (), error: str = ""
    ) -> None:
        self.providers = list(providers)
        self.available = list(available or (*providers, "CUDAExecutionProvider"))
        self.error = error
        self.asked: dict[str, Any] = {}
        self.entries: dict[str, str] = {}

    def get_available_providers(self) -> list[str]:
        return self.available

    def set_default_logger_severity(self, severity: int) -> None:
        pass

    def preload_dlls(self) -> None:
        print("Failed to load libcublasLt.so")

    def InferenceSession(self, path: Path, options: Any, **asked: Any) -> Any:  # noqa: N802
        self.asked = asked
        key = "session.disable_cpu_ep_fallback"
        self.entries[key] = options.get_session_config_entry(key)
        if self.error:
            raise RuntimeError(self.error)
        return SimpleNamespace(get_providers=lambda: self.providers)


def use(monkeypatch: pytest.MonkeyPatch, sessions: Sessions) -> Sessions:
    monkeypatch.setattr(module, "load_onnxruntime", lambda: sessions)
    return sessions


def open_cuda(device_id: int = 0) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(
        Path("x.onnx"), inputs=(), outputs=(), provider="cuda", device_id=device_id
    )


def test_a_gpu_session_may_not_fall_back_in_any_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = use(
        monkeypatch, Sessions(providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    )
    open_cuda(device_id=2)
    assert sessions.asked == {
        "providers": [("CUDAExecutionProvider", {"device_id": "2", "use_tf32": "0"})],
        "enable_fallback": 0,
    }
    assert sessions.entries == {"session.disable_cpu_ep_fallback": "1"}
    assert capsys.readouterr().out == ""


def test_a_session_that_ended_up_on_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Sessions(providers=("CPUExecutionProvider",)))
    with pytest.raises(TargetError, match="was asked for, and ONNX Runtime fell back to the CPU"):
        open_cuda()


def test_a_part_of_the_graph_that_would_run_on_the_cpu_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = "graph nodes are assigned to the default CPU EP, but fallback to CPU EP has been ..."
    use(monkeypatch, Sessions(error=error))
    with pytest.raises(TargetError, match=r"fell back to the CPU.*doctor"):
        open_cuda()


def test_another_failure_of_a_gpu_session_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    use(
        monkeypatch, Sessions(error="[ONNXRuntimeError] : 1 : FAIL : CUDA failure 101: no device 7")
    )
    with pytest.raises(TargetError, match=r"cannot load x.onnx: CUDA failure 101: no device 7"):
        open_cuda(device_id=7)


def test_a_build_of_onnx_runtime_without_the_provider_says_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, Sessions(available=("CPUExecutionProvider",)))
    with pytest.raises(TargetError, match="not available here; there are CPUExecutionProvider"):
        open_cuda()


def test_a_missing_onnx_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime-gpu"):
        module.load_onnxruntime()


def test_nothing_is_collected_about_who_runs_an_engine(tmp_path: Path) -> None:
    """ONNX Runtime's telemetry keeps a device's number and a queue of events below the home."""
    code = "from parnet_deploy.runtime.trial import try_provider; try_provider('cpu')"
    hidden = {"HOME", "XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    subprocess.run([sys.executable, "-c", code], env=env | {"HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.rglob("*"))
