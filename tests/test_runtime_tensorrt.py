"""TensorRT plans on a simulated GPU, with doubles of TensorRT: order, refusals, failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import tensorrt_build, tensorrt_run
from doubles.scenario import Scenario, make_plan
from doubles.tensorrt import VERSIONS, make_api
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.errors import EngineError, MissingDependencyError, RunnerError, TargetError
from parnet_deploy.runtime.cuda.device import find_gpu
from parnet_deploy.runtime.cuda.runner import CudaRunner
from parnet_deploy.runtime.machine import CudaDriver, Gpu
from parnet_deploy.runtime.simulated.handles import CUresult, Fault
from parnet_deploy.runtime.simulated.work import SimulatedFaultError
from parnet_deploy.runtime.tensorrt import tensorrt_stage
from parnet_deploy.runtime.tensorrt_api import load_api, message_log
from parnet_deploy.runtime.tensorrt_target import PlanTarget
from parnet_deploy.spec import Array, TensorSpec

X = TensorSpec(name="x", shape=("N", 3), dtype="float32")
MASK = TensorSpec(name="mask", shape=("N", 2), dtype="uint8")
Y = TensorSpec(name="y", shape=("N", 3), dtype="float32")
Z = TensorSpec(name="z", shape=("N", 1), dtype="float32")
RTX_3090 = Gpu(index=0, name="NVIDIA GeForce RTX 3090", compute_capability="8.6", memory=1 << 34)

Make = Callable[..., CudaRunner]


def double_and_sum(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """y = 2 x, z = sum of the mask."""
    total = feeds["mask"].sum(axis=1, keepdims=True)
    return {"y": 2 * feeds["x"], "z": total.astype(np.float32)}


@pytest.fixture(params=["10", "11", "rtx"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def scenario() -> Scenario:
    return Scenario(function=double_and_sum)


@pytest.fixture
def make(kind: str, scenario: Scenario, tmp_path: Path) -> Make:
    """Opens a plan of batch 1 to 4 with doubles."""

    def opened(plan: bytes | None = None, **changes: Any) -> CudaRunner:
        path = tmp_path / "whole.plan"
        path.write_bytes(make_plan((X, MASK), (Y, Z), (1, 2, 4)) if plan is None else plan)
        return open_plan(path, scenario, kind, **changes)

    return opened


def open_plan(path: Path, scenario: Scenario, kind: str = "11", **changes: Any) -> CudaRunner:
    """A plan as a runner."""
    stage = tensorrt_stage(
        path,
        **{
            "name": "whole",
            "backend": "tensorrt-rtx" if kind == "rtx" else "tensorrt",
            "inputs": (X, MASK),
            "outputs": (Y, Z),
            "api": make_api(kind, scenario),
            "find": lambda index: RTX_3090,
            **changes,
        },
    )
    return CudaRunner(
        [stage], inputs=stage.inputs, outputs=stage.outputs, open_device=scenario.open_device
    )


def target(kind: str, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "flavour": "tensorrt-rtx" if kind == "rtx" else "tensorrt",
        "version": VERSIONS[kind],
        "compute_capabilities": ("8.6",),
    }
    return PlanTarget(**{**values, **changes}).to_json()


def feeds_of(batch: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((batch, 3)).astype(np.float32),
        "mask": rng.integers(0, 100, (batch, 2), dtype=np.uint8),
    }


def check_answer(answer: Mapping[str, Array], feeds: Mapping[str, Array]) -> None:
    expected = double_and_sum(feeds)
    assert answer.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(answer[name], value)


# -- answers


def test_every_run_gives_the_answer_to_its_own_feeds(make: Make) -> None:
    with make() as runner:
        for seed, batch in enumerate((1, 1, 1, 4, 4, 4, 2, 1, 1, 3)):
            feeds = feeds_of(batch, seed)
            check_answer(runner.run(feeds), feeds)


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans") / "whole.plan"
    path.write_bytes(make_plan((X, MASK), (Y, Z), (1, 2, 4)))
    return path


@given(batches=st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_any_sequence_of_batches_is_answered(plan_file: Path, batches: list[int]) -> None:
    scenario = Scenario(function=double_and_sum)
    runner = open_plan(plan_file, scenario)
    for seed, batch in enumerate(batches):
        feeds = feeds_of(batch, seed)
        check_answer(runner.run(feeds), feeds)
    runner.close()
    assert scenario.driver.live() == {}


def test_answers_belong_to_the_caller(make: Make) -> None:
    with make() as runner:
        first = runner.run(feeds_of(2, 1))
        kept = {name: value.copy() for name, value in first.items()}
        runner.run(feeds_of(2, 2))
        for name, value in kept.items():
            np.testing.assert_array_equal(first[name], value)
            first[name][...] = 0  # writable


def test_feeds_in_any_memory_order_are_answered(make: Make) -> None:
    feeds = {name: np.asfortranarray(value) for name, value in feeds_of(4).items()}
    assert not feeds["x"].flags.c_contiguous
    with make() as runner:
        check_answer(runner.run(feeds), feeds)


def test_a_fixed_batch_needs_no_profile(make: Make) -> None:
    fixed = tuple(
        TensorSpec(name=spec.name, shape=(2, *spec.shape[1:]), dtype=spec.dtype)
        for spec in (X, MASK, Y, Z)
    )
    plan = make_plan(fixed[:2], fixed[2:], (2, 2, 2))
    with make(plan, inputs=fixed[:2], outputs=fixed[2:]) as runner:
        check_answer(runner.run(feeds_of(2)), feeds_of(2))


# -- the order of calls


def test_memory_is_allocated_once(make: Make, scenario: Scenario) -> None:
    with make() as runner:
        calls = scenario.driver.calls
        assert (calls["cuMemAlloc"], calls["cuMemHostAlloc"]) == (4, 4)
        for batch in (1, 4, 2, 2, 2):
            runner.run(feeds_of(batch))
        assert (calls["cuMemAlloc"], calls["cuMemHostAlloc"]) == (4, 4)


def test_shapes_are_set_when_they_change(make: Make, scenario: Scenario) -> None:
    with make() as runner:
        for batch in (1, 1, 3, 3, 1):
            runner.run(feeds_of(batch))
    shapes = [line for line in scenario.log if line.startswith("shape x")]
    assert shapes == ["shape x[1, 3]", "shape x[3, 3]", "shape x[1, 3]"]


def test_the_second_run_of_a_shape_is_recorded_and_replayed(make: Make, scenario: Scenario) -> None:
    driver = scenario.driver
    with make() as runner:
        runner.run(feeds_of(2))
        assert driver.calls["cuStreamBeginCapture"] == 0
        for seed in range(3):
            check_answer(runner.run(feeds_of(2, seed)), feeds_of(2, seed))
        assert driver.calls["cuGraphInstantiate"] == 1
        assert driver.calls["cuGraphLaunch"] == 3
        assert driver.calls["cuMemcpyHtoDAsync"] == 2 * 2  # one plain run, one recording
        runner.run(feeds_of(3))
        assert "executable graph" not in driver.live()


@pytest.mark.parametrize("kind", ["rtx"], indirect=True)
def test_what_cannot_be_recorded_runs_plainly(make: Make, scenario: Scenario) -> None:
    scenario.refuses.add("is_stream_capturable")
    with make() as runner:
        for seed in range(4):
            check_answer(runner.run(feeds_of(2, seed)), feeds_of(2, seed))
    assert scenario.driver.calls["cuStreamBeginCapture"] == 0


def test_threads_take_turns(make: Make) -> None:
    with make() as runner, ThreadPoolExecutor(4) as pool:
        feeds = [feeds_of(1 + seed % 4, seed) for seed in range(40)]
        for given_feeds, answer in zip(feeds, pool.map(runner.run, feeds), strict=True):
            check_answer(answer, given_feeds)


def test_close_frees_everything_once(make: Make, scenario: Scenario) -> None:
    runner = make()
    runner.run(feeds_of(1))
    runner.run(feeds_of(1))
    runner.close()
    runner.close()
    assert scenario.driver.live() == {}
    with pytest.raises(RunnerError, match="it is closed; open the engine again"):
        runner.run(feeds_of(1))


# -- bad feeds


def test_a_batch_out_of_range_is_refused_and_does_no_harm(make: Make) -> None:
    with make() as runner:
        with pytest.raises(RunnerError, match=r"a batch of 5 was given, .* takes 1 to 4"):
            runner.run(feeds_of(5))
        with pytest.raises(RunnerError, match="different batches"):
            runner.run({"x": feeds_of(2)["x"], "mask": feeds_of(1)["mask"]})
        with pytest.raises(RunnerError, match="missing"):
            runner.run({"x": feeds_of(2)["x"]})
        check_answer(runner.run(feeds_of(4)), feeds_of(4))


# -- failures


def test_a_lost_gpu_gives_an_error_and_never_an_old_answer(make: Make, scenario: Scenario) -> None:
    runner = make()
    runner.run(feeds_of(1, 1))

    def lost(feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise SimulatedFaultError

    scenario.function = lost
    with pytest.raises(RunnerError, match=r"'whole' on cuda:0 failed: .*CUDA_ERROR_ILLEGAL_ADDR"):
        runner.run(feeds_of(2, 2))
    with pytest.raises(RunnerError, match="it failed before; open the engine again"):
        runner.run(feeds_of(1, 1))
    runner.close()


def test_what_fails_to_be_recorded_runs_plainly(make: Make, scenario: Scenario) -> None:
    code = CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    with make() as runner:
        scenario.driver.faults["cuStreamBeginCapture"] = Fault(code=code)
        for seed in range(4):
            check_answer(runner.run(feeds_of(2, seed)), feeds_of(2, seed))
    assert scenario.driver.calls["cuStreamBeginCapture"] == 1
    assert scenario.driver.calls["cuGraphLaunch"] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("execute_async_v3", "stage 'whole' on cuda:0 failed: TensorRT did not start"),
        ("set_input_shape", r"TensorRT refused x\[2, 3\]"),
    ],
)
def test_a_refusing_context_gives_an_error(
    make: Make, scenario: Scenario, call: str, message: str
) -> None:
    scenario.refuses.add(call)
    with make() as runner:
        with pytest.raises(RunnerError, match=message):
            runner.run(feeds_of(2))
        with pytest.raises(RunnerError, match="it failed before"):
            runner.run(feeds_of(2))


@pytest.mark.parametrize("call", ["cuMemHostAlloc", "cuMemAlloc"])
def test_too_little_memory_is_an_engine_error(make: Make, scenario: Scenario, call: str) -> None:
    scenario.driver.faults[call] = Fault(code=CUresult.CUDA_ERROR_OUT_OF_MEMORY, after=1)
    with pytest.raises(EngineError, match=r"cuda:0 .*bytes of .*CUDA_ERROR_OUT_OF_MEMORY"):
        make()
    assert scenario.driver.live() == {}


@pytest.mark.parametrize("call", ["create_execution_context", "set_tensor_address"])
def test_a_plan_that_cannot_be_prepared_is_an_engine_error(
    make: Make, scenario: Scenario, call: str
) -> None:
    scenario.refuses.add(call)
    with pytest.raises(EngineError, match=r"'whole' on cuda:0 .*(working memory|refused)"):
        make()
    assert scenario.driver.live() == {}


# -- what is refused before it is loaded


def test_another_gpu_is_refused_before_the_plan_is_read(
    make: Make, scenario: Scenario, kind: str
) -> None:
    with pytest.raises(EngineError) as error:
        make(b"never read", target=target(kind, compute_capabilities=("8.9", "12.0")))
    assert str(error.value) == (
        f"it needs a GPU of compute capability 8.9 or 12.0 and "
        f"{'TensorRT RTX' if kind == 'rtx' else 'TensorRT'} {VERSIONS[kind]}, and cuda:0 is "
        "NVIDIA GeForce RTX 3090, compute capability 8.6"
    )
    assert scenario.log == []
    assert scenario.driver.calls.total() == 0


def test_another_model_of_gpu_is_refused(make: Make, kind: str) -> None:
    with pytest.raises(TargetError, match=r"it needs NVIDIA A10 of compute capability 8\.6"):
        make(target=target(kind, gpu="NVIDIA A10"))
    make(target=target(kind, gpu=RTX_3090.name)).close()


@pytest.mark.parametrize(
    ("needed", "runs"), [("8.0+", True), ("8.6+", True), ("8.9+", False), ("10.0+", False)]
)
def test_and_later_is_compared_as_a_number(make: Make, kind: str, needed: str, runs: bool) -> None:
    if runs:
        make(target=target(kind, compute_capabilities=(needed,))).close()
        return
    with pytest.raises(TargetError, match="and later and TensorRT"):
        make(target=target(kind, compute_capabilities=(needed,)))


def test_another_version_is_refused_before_the_plan_is_read(
    make: Make, scenario: Scenario, kind: str
) -> None:
    older = target(kind, version="1.2.3.4")
    with pytest.raises(TargetError, match=rf"1\.2\.3\.4, and TensorRT.* {VERSIONS[kind]} is inst"):
        make(b"never read", target=older)
    assert scenario.log == []


@pytest.mark.parametrize(("version", "runs"), [("10.8.0.43", True), ("12.0.0.1", False)])
@pytest.mark.parametrize("kind", ["11"], indirect=True)
def test_version_compatible_plans_run_on_later_versions(
    make: Make, scenario: Scenario, version: str, runs: bool
) -> None:
    needs = target("11", version=version, version_compatible=True)
    if runs:
        make(target=needs).close()
        assert scenario.log[0] == "deserialize, host code allowed: True"
        return
    with pytest.raises(TargetError, match=r"12\.0\.0\.1 or later, and TensorRT 11\.4\.0"):
        make(target=needs)


def test_code_in_a_plan_is_not_run_unasked(make: Make, scenario: Scenario, kind: str) -> None:
    make(target=target(kind)).close()
    assert scenario.log[0] == "deserialize, host code allowed: False"


def test_a_target_of_another_kind_is_refused(make: Make) -> None:
    with pytest.raises(EngineError, match="not one that this version of parnet-deploy reads"):
        make(target={"provider": "cpu"})


def test_a_corrupt_plan_is_refused(make: Make, scenario: Scenario, kind: str) -> None:
    with pytest.raises(EngineError, match=r"whole\.plan does not load: magic tag does not match"):
        make(b"\0" * 100, target=target(kind))
    assert scenario.driver.live() == {}


@pytest.mark.parametrize("kind", ["rtx"], indirect=True)
def test_rtx_says_why_a_plan_is_not_valid(make: Make, scenario: Scenario) -> None:
    scenario.refuses.add("get_engine_validity")
    with pytest.raises(EngineError, match="not valid here: VERSION_MISMATCH, MALFORMED_ENGINE"):
        make()
    assert scenario.log == []


def test_a_missing_plan_is_refused(scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot read .*whole\.plan: No such file"):
        open_plan(tmp_path / "whole.plan", scenario)


@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": (X,)},
        {"outputs": (Y,)},
        {"inputs": (X, TensorSpec(name="mask", shape=("N", 2), dtype="float32"))},
        {"outputs": (Y, TensorSpec(name="z", shape=("N", 7), dtype="float32"))},
        {"inputs": (X, Z), "outputs": (Y, MASK)},
    ],
)
def test_a_plan_with_other_inputs_or_outputs_is_refused(make: Make, wrong: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="does not have the inputs and outputs of its manifest"):
        make(**wrong)


# -- weight-stripped plans


def test_stripped_weights_are_put_in_from_the_model(
    make: Make, scenario: Scenario, kind: str, tmp_path: Path
) -> None:
    plan = make_plan((X, MASK), (Y, Z), (1, 2, 4), stripped=True)
    needs = target(kind, weights="stripped")
    with make(plan, target=needs, weights=tmp_path / "model.onnx") as runner:
        check_answer(runner.run(feeds_of(2)), feeds_of(2))
    assert scenario.refitted == str(tmp_path / "model.onnx")


def test_stripped_weights_that_are_not_there_or_do_not_fit(
    make: Make, scenario: Scenario, kind: str, tmp_path: Path
) -> None:
    plan = make_plan((X, MASK), (Y, Z), (1, 2, 4), stripped=True)
    needs = target(kind, weights="stripped")
    with pytest.raises(EngineError, match="has no weights, and the model"):
        make(plan, target=needs)
    scenario.refuses.add("refit_from_file")
    with pytest.raises(EngineError, match=r"do not fit .*missing: stem1\.conv\.weight"):
        make(plan, target=needs, weights=tmp_path / "model.onnx")


# -- this machine


def test_no_gpu_and_no_such_gpu() -> None:
    none = CudaDriver(problem="there is no NVIDIA driver here")
    with pytest.raises(TargetError, match="it needs an NVIDIA GPU and its driver, and there is no"):
        find_gpu(0, none)
    one = CudaDriver(cuda="13.0", gpus=(RTX_3090,))
    assert find_gpu(0, one) is RTX_3090
    with pytest.raises(TargetError, match="it needs the GPU cuda:2, and there are only 1 here"):
        find_gpu(2, one)


def test_a_flavour_that_is_missing_or_broken_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib

    def refuse(error: Exception) -> None:
        def raise_it(name: str) -> None:
            raise error

        monkeypatch.setattr(importlib, "import_module", raise_it)

    refuse(ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt"))
    with pytest.raises(MissingDependencyError, match=r"install parnet-deploy\[tensorrt\]"):
        load_api("tensorrt")
    refuse(OSError("libtensorrt_rtx.so.1: cannot open shared object file"))
    with pytest.raises(
        MissingDependencyError, match=r"does not load: libten.*-deploy\[rtx\] again"
    ):
        load_api("tensorrt-rtx")


def test_the_log_keeps_errors_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    api = load_api("tensorrt-rtx")
    log = message_log(api)
    assert log.last_errors() == "it gave no reason"
    severity = api.ILogger.Severity
    for index in range(6):
        log.log(severity.ERROR, f"error {index}\n  of six")
    log.log(severity.INFO, "all is well")
    assert log.last_errors().startswith("error 2 of six; error 3")
    assert len(log.errors) == 6
    assert capfd.readouterr() == ("", "")


def test_the_double_of_rtx_has_no_name_that_the_real_one_lacks(scenario: Scenario) -> None:
    real, double = load_api("tensorrt-rtx"), make_api("rtx", scenario)
    for name, value in vars(double).items():
        assert hasattr(real, name), name
        members = getattr(value, "__members__", {})
        assert members.keys() <= getattr(real, name).__members__.keys() if members else True, name
    pairs = {
        "FakeBuilder": "Builder",
        "FakeNetwork": "INetworkDefinition",
        "FakeParser": "OnnxParser",
        "RtxRuntime": "Runtime",
        "FakeEngine": "ICudaEngine",
        "RtxContext": "IExecutionContext",
        "FakeConfig": "IBuilderConfig",
        "FakeRefitter": "Refitter",
        "FakeParserRefitter": "OnnxParserRefitter",
    }
    doubles = {**vars(tensorrt_build), **vars(tensorrt_run)}
    for fake, of in pairs.items():
        public = {
            n for n, v in vars(doubles[fake]).items()
            if not n.startswith("_") and (callable(v) or isinstance(v, property))
        }  # fmt: skip
        assert public, fake
        missing = {name for name in public if not hasattr(getattr(real, of), name)}
        assert not missing, (fake, missing)
