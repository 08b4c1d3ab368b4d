"""ONNX Runtime's CUDA provider on simulated GPUs: binding, streams, graphs, threads, failures."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from doubles import onnxruntime_cuda as double
from gpu_plans import Network, image, parnet, tensor

from parnet_deploy.errors import EngineError, RunnerError, TargetError
from parnet_deploy.runtime import onnxruntime as plain
from parnet_deploy.runtime import onnxruntime_cuda as module
from parnet_deploy.runtime.cuda.device import CudaDevice
from parnet_deploy.runtime.cuda.runner import CudaRunner
from parnet_deploy.runtime.machine import Gpu
from parnet_deploy.runtime.onnxruntime_cuda import onnxruntime_stage

GPU = Gpu(index=0, name="NVIDIA H200", compute_capability="9.0", memory=1 << 37)
PATIENCE = 60.0  # seconds; what takes longer hangs

NETWORK = parnet(0, 1, 0, gpus=2)


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> double.Onnxruntime:
    functions = {part.name: part.compute for part in NETWORK.parts}
    made = double.Onnxruntime(driver=NETWORK.driver(), functions=functions)
    for place in (plain, module):
        monkeypatch.setattr(place, "load_onnxruntime", lambda: made)
    return made


def opened(
    ort: double.Onnxruntime, network: Network = NETWORK, *, contexts: int = 1, graphs: bool = True
) -> CudaRunner:
    stages = [
        onnxruntime_stage(
            Path(f"{part.name}.onnx"),
            name=part.name,
            inputs=tuple(map(tensor, part.reads)),
            outputs=tuple(map(tensor, part.gives)),
            batch=network.batch,
            device=part.device,
            graphs=graphs,
            find=lambda index: GPU,
        )
        for part in network.parts
    ]
    return CudaRunner(
        stages,
        inputs=(tensor("x"),),
        outputs=(tensor("y"),),
        contexts=contexts,
        open_device=partial(CudaDevice, driver=ort.driver),
    )


def check(runner: CudaRunner, number: int, batch: int = 1) -> None:
    x = image(number, batch)
    np.testing.assert_array_equal(runner.run({"x": x})["y"], NETWORK.expected(x)["y"])


def test_stages_answer_on_memory_that_was_bound_once(ort: double.Onnxruntime) -> None:
    with opened(ort) as runner:
        for number, batch in enumerate((1, 1, 1, 4, 4, 2, 1)):
            check(runner, number, batch)
    assert ort.driver.live() == {}


def test_each_session_computes_on_the_stream_of_its_stage(ort: double.Onnxruntime) -> None:
    with opened(ort):
        pass
    streams = [int(settings["user_compute_stream"]) for settings in ort.settings]
    assert len(set(streams)) == len(streams) == len(NETWORK.parts)
    devices = [int(settings["device_id"]) for settings in ort.settings]
    assert devices == [part.device for part in NETWORK.parts]
    assert {settings["use_tf32"] for settings in ort.settings} == {"0"}


def test_stages_overlap_and_cuts_stay_on_the_gpus(ort: double.Onnxruntime) -> None:
    with opened(ort) as runner:
        check(runner, 0)
        ort.driver.calls.clear()
        ort.driver.history = []
        check(runner, 1)
    sessions = [work for work in ort.driver.history if work.action.label == "session"]
    before = [len([w for w in work.before if w.action.label == "session"]) for work in sessions]
    assert before == [0, 0, 0, 3], "three streams wait for no other, the last stage for all"
    calls = ort.driver.calls
    assert (calls["cuMemcpyHtoDAsync"], calls["cuMemcpyDtoHAsync"]) == (2, 1)
    assert calls["cuMemcpyPeerAsync"] == 1
    assert calls["cuStreamBeginCapture"] == 0, "ONNX Runtime records by itself"


def test_graphs_are_recorded_after_one_plain_run_of_a_batch(ort: double.Onnxruntime) -> None:
    stages = len(NETWORK.parts)
    with opened(ort) as runner:
        for number, (batch, plain_runs, replayed) in enumerate(
            [(1, 1, 0), (1, 1, 1), (1, 1, 2), (4, 2, 2), (4, 2, 3), (1, 2, 4)]
        ):
            check(runner, number, batch)
            assert ort.runs == {
                name: count * stages
                for name, count in (("plain", plain_runs), ("replayed", replayed))
                if count
            }


def test_without_graphs_every_run_is_plain(ort: double.Onnxruntime) -> None:
    with opened(ort, graphs=False) as runner:
        for number in range(4):
            check(runner, number)
    assert set(ort.runs) == {"plain"}
    assert {settings["enable_cuda_graph"] for settings in ort.settings} == {"0"}


def test_many_threads_record_one_at_a_time_and_get_their_own_answers(
    ort: double.Onnxruntime,
) -> None:
    with opened(ort, contexts=3) as runner, ThreadPoolExecutor(8) as callers:
        futures = [callers.submit(check, runner, n, 1 + n % 2) for n in range(160)]
        for future in futures:
            future.result(PATIENCE)
    assert ort.runs["replayed"] > ort.runs["plain"] / 2
    assert ort.driver.live() == {}


def test_a_run_that_fails_names_stage_and_gpu(ort: double.Onnxruntime) -> None:
    with opened(ort) as runner:
        check(runner, 0)
        ort.fails = "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory\nmore"
        with pytest.raises(RunnerError) as caught:
            runner.run({"x": image(1)})
        assert str(caught.value) == (
            "stage 'stream1' on cuda:0 failed: ONNX Runtime failed: CUDA failure 2: out of memory"
        )
        ort.fails = ""
        with pytest.raises(RunnerError, match="it failed before"):
            runner.run({"x": image(0)})
    assert ort.driver.live() == {}


@pytest.mark.parametrize(
    ("refuses", "kind"),
    [("Load model failed: protobuf parsing failed", EngineError), ("CUDA failure 35", TargetError)],
)
def test_a_file_that_does_not_load_names_stage_and_gpu(
    ort: double.Onnxruntime, refuses: str, kind: type[EngineError]
) -> None:
    ort.refuses = refuses
    with pytest.raises(EngineError, match=rf"'stream1' on cuda:0 .*{refuses}") as caught:
        opened(ort)
    assert type(caught.value) is kind
    assert ort.driver.live() == {}


def test_a_provider_that_is_not_there_is_a_target_error(ort: double.Onnxruntime) -> None:
    ort.providers = ("CPUExecutionProvider",)
    with pytest.raises(TargetError, match="CUDAExecutionProvider is not available here"):
        opened(ort)


def test_no_gpu_is_told_before_anything_is_opened(ort: double.Onnxruntime) -> None:
    def find(index: int) -> Gpu:
        raise TargetError(f"there is no cuda:{index}")

    with pytest.raises(TargetError, match="there is no cuda:5"):
        onnxruntime_stage(
            Path("a.onnx"),
            name="a",
            inputs=(),
            outputs=(),
            batch=NETWORK.batch,
            device=5,
            find=find,
        )
    assert ort.driver.calls.total() == 0


def test_the_double_has_the_names_of_the_real_module() -> None:
    pairs = {
        double.Onnxruntime: onnxruntime,
        double.SessionOptions: onnxruntime.SessionOptions,
        double.RunOptions: onnxruntime.RunOptions,
        double.IOBinding: onnxruntime.IOBinding,
        double.InferenceSession: onnxruntime.InferenceSession,
    }
    own = {"driver", "functions", "fails", "refuses", "providers", "settings", "runs", "recording"}
    for fake, real in pairs.items():
        names = {name for name in vars(fake) if not name.startswith("_")} - own
        missing = {name for name in names if not hasattr(real, name)}
        assert names, fake
        assert not missing, (fake, missing)
    for name in ("bind_input", "bind_output"):
        mine, theirs = (
            list(inspect.signature(getattr(kind, name)).parameters)
            for kind in (double.IOBinding, onnxruntime.IOBinding)
        )
        assert mine == theirs
    theirs = list(inspect.signature(onnxruntime.InferenceSession.run_with_iobinding).parameters)
    assert theirs == ["self", "iobinding", "run_options"]


def test_the_real_provider_knows_the_options_that_are_set(ort: double.Onnxruntime) -> None:
    with opened(ort):
        pass
    folder = Path(onnxruntime.__file__).parent / "capi"
    libraries = [*folder.glob("libonnxruntime_providers_cuda.so"), *folder.glob("*pybind11_state*")]
    if len(libraries) < 2:
        pytest.skip("this onnxruntime has no CUDA provider")
    text = b"".join(path.read_bytes() for path in libraries)
    for name in (*ort.settings[0], "disable_synchronize_execution_providers", "gpu_graph_id"):
        assert name.encode() in text, name
