"""open_runner: every kind of engine, and engines that do not belong here."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parnet_deploy.runtime.open as module
from parnet_deploy.bundle import EngineBundle, ModelBundle, open_engine_bundle, resolve_model
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.errors import BundleError, EngineError, RunnerError, TargetError
from parnet_deploy.runtime import (
    FunctionRunner,
    OnnxRuntimeRunner,
    SplitRunner,
    open_runner,
    rebuild_command,
)
from parnet_deploy.runtime.machine import CudaDriver, Gpu, provider_problem


def build(model: ModelBundle, final: Path, *, split: bool) -> EngineBundle:
    builder = make_builder("onnxruntime", BuildOptions(threads=1, provider="cpu"), split=split)
    return build_engine(model, final, builder, split=split)


@pytest.fixture(scope="module")
def engines(
    tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, EngineBundle]:
    """A whole and a split engine. Read only."""
    folder = tmp_path_factory.mktemp("engines")
    return {
        name: build(tiny_bundle, folder / name, split=name == "split")
        for name in ("whole", "split")
    }


def changed(bundle: EngineBundle, **fields: Any) -> EngineBundle:
    return replace(bundle, manifest=replace(bundle.manifest, **fields))


def retargeted(bundle: EngineBundle, **target: str) -> EngineBundle:
    return changed(bundle, target={**bundle.manifest.target, **target})


@pytest.mark.parametrize(("name", "kind"), [("whole", OnnxRuntimeRunner), ("split", SplitRunner)])
def test_an_engine_opens_as_one_runner_with_its_bundles_inputs_and_outputs(
    engines: dict[str, EngineBundle], name: str, kind: type, rng: np.random.Generator
) -> None:
    images = rng.standard_normal((1, 3, 64, 64)).astype(np.float32)
    with open_runner(engines[name]) as runner:
        assert isinstance(runner, kind)
        assert runner.inputs == engines[name].manifest.inputs
        assert runner.outputs == engines[name].manifest.outputs
        assert runner.run({"images": images})["logits"].shape == (1, 7)


def test_closing_a_split_engine_closes_its_stages(engines: dict[str, EngineBundle]) -> None:
    runner = open_runner(engines["split"])
    runner.close()
    with pytest.raises(RunnerError, match="closed"):
        runner.run({"images": np.zeros((1, 3, 64, 64), dtype=np.float32)})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"onnxruntime": "1.2.3"}, r"ONNX Runtime 1\.2\.3 \(here: "),
        ({"vectors": "avx1024"}, r"CPU vector instructions avx1024 \(here: "),
        ({"architecture": "vax"}, r"CPU architecture vax \(here: "),
        ({"provider": "tpu"}, r"its provider is 'tpu', not one of cpu, cuda"),
    ],
)
@pytest.mark.parametrize("name", ["whole", "split"])
def test_an_engine_for_another_machine_is_refused_with_the_way_out(
    engines: dict[str, EngineBundle], name: str, target: dict[str, str], message: str
) -> None:
    bundle = retargeted(engines[name], **target)
    with pytest.raises(EngineError, match=message) as caught:
        open_runner(bundle)
    assert str(bundle.path) in str(caught.value)
    assert rebuild_command(bundle) in str(caught.value)


@pytest.mark.skipif(provider_problem("cuda") is None, reason="the CUDA provider works here")
def test_a_gpu_engine_on_a_machine_without_one_is_refused(
    engines: dict[str, EngineBundle],
) -> None:
    stages = tuple(replace(stage, device="cuda:0") for stage in engines["whole"].manifest.stages)
    bundle = retargeted(changed(engines["whole"], stages=stages), provider="cuda")
    with pytest.raises(TargetError, match=r"it needs an NVIDIA GPU .*build it again"):
        open_runner(bundle)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0"])
def test_a_device_that_is_none_is_refused(engines: dict[str, EngineBundle], device: str) -> None:
    (stage,) = engines["whole"].manifest.stages
    bundle = changed(engines["whole"], stages=(replace(stage, device=device),))
    with pytest.raises(EngineError, match=f"is for device '{device}', not cpu or cuda:N"):
        open_runner(bundle)


def test_a_whole_engine_is_one_that_reads_and_gives_what_its_bundle_says(
    engines: dict[str, EngineBundle],
) -> None:
    whole, split = engines["whole"], engines["split"]
    (stage,) = whole.manifest.stages
    other = replace(stage.outputs[0], name="probabilities")
    for stages in ((), split.manifest.stages, (replace(stage, outputs=(other,)),)):
        with pytest.raises(
            EngineError, match=r"said to be one engine .* build it again: parnet-de"
        ):
            open_runner(changed(whole, stages=stages))


@pytest.mark.parametrize("file", ["whole.onnx", "whole.weights"])
@pytest.mark.parametrize("damage", ["empty", "half", "gone"])
def test_a_corrupt_engine_is_refused(
    engines: dict[str, EngineBundle], tmp_path: Path, file: str, damage: str
) -> None:
    path = Path(shutil.copytree(engines["whole"].path, tmp_path / "copy")) / file
    if damage == "gone":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(b"" if damage == "empty" else data[: len(data) // 2])
    with pytest.raises(
        EngineError, match=r"cannot run here.*build it again: parnet-deploy"
    ) as caught:
        open_runner(open_engine_bundle(tmp_path / "copy", check=False))
    assert not isinstance(caught.value, TargetError), "it would run nowhere"


@pytest.mark.parametrize("damage", ["flipped", "half", "gone"])
def test_a_file_of_an_engine_that_was_changed_is_refused_with_the_way_out(
    engines: dict[str, EngineBundle], tmp_path: Path, damage: str
) -> None:
    folder = Path(shutil.copytree(engines["split"].path, tmp_path / "my engine"))
    file = folder / "stream2.onnx"
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2] if damage == "half" else data[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"stream2\.onnx") as caught:
        open_engine_bundle(folder)
    words = shlex.split(str(caught.value).rpartition("build it again: ")[2])
    assert words[:2] == ["parnet-deploy", "build-engine"]
    assert words[3:] == [
        *("--split-streams", "--backend", "onnxruntime", "--provider", "cpu", "--threads", "1"),
        *("--output", str(folder), "--force"),
    ]


def test_stages_that_are_open_are_closed_when_the_next_one_does_not_open(
    engines: dict[str, EngineBundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    class Stage(FunctionRunner):
        def close(self) -> None:
            closed.append(self.outputs[0].name)

    def open_or_fail(bundle: EngineBundle, stage: Any) -> FunctionRunner:
        if stage.name == "fusion":
            raise EngineError("no")
        return Stage(dict, inputs=stage.inputs, outputs=stage.outputs)

    monkeypatch.setattr(module, "_open_onnxruntime", open_or_fail)
    with pytest.raises(EngineError):
        open_runner(engines["split"])
    made = [stage.outputs[0].name for stage in engines["split"].manifest.stages[:-1]]
    assert closed == made[::-1]


PLACE = ["--output", "/engines here/it's one", "--force"]
IN_PLACE = ["--backend", "onnxruntime", "--provider", "cpu", "--threads", "3", *PLACE]


@pytest.mark.parametrize(
    ("device", "problem", "more"),
    [
        ("cpu", "no driver", IN_PLACE),
        ("cuda:1", None, IN_PLACE),
        # The same would not run here: beside it, with a backend that does.
        ("cuda:1", "no driver", ["--backend", "onnxruntime"]),
    ],
)
def test_the_command_that_rebuilds_is_one_that_a_shell_reads_back(
    engines: dict[str, EngineBundle],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    problem: str | None,
    more: list[str],
) -> None:
    monkeypatch.setattr(module, "cuda_driver", lambda: CudaDriver(problem=problem))
    stages = tuple(replace(stage, device=device) for stage in engines["split"].manifest.stages)
    moved = replace(engines["split"], path=Path("/engines here/it's one"))
    bundle = changed(moved, stages=stages, options={"intra_op_num_threads": 3})
    words = shlex.split(rebuild_command(bundle))
    assert words[:2] == ["parnet-deploy", "build-engine"]
    assert words[3:] == ["--split-streams", *more]


def test_the_command_that_rebuilds_keeps_what_decides_the_numbers(
    engines: dict[str, EngineBundle],
) -> None:
    whole = engines["whole"]
    plan = changed(whole, backend="tensorrt-rtx", target={}, options={"builder_flags": ["TF32"]})
    assert "--backend tensorrt-rtx --tf32 --output" in rebuild_command(plan)
    strict = changed(plan, options={"builder_flags": []})
    assert "--tf32" not in rebuild_command(strict)


def quantised_plan(bundle: EngineBundle, precision: str) -> EngineBundle:
    stages = tuple(replace(stage, device="cuda:0") for stage in bundle.manifest.stages)
    return changed(
        bundle,
        backend="tensorrt-rtx",
        precision=precision,
        stages=stages,
        target={"compute_capabilities": ["8.9"]},
        options={},
    )


@pytest.mark.parametrize(
    ("precision", "installed", "backend", "half", "said"),
    [
        ("fp32", {}, "onnxruntime", False, ""),
        ("fp16", {}, "onnxruntime", False, " (which computes in fp32 here)"),
        ("fp16", {}, "onnxruntime", True, ""),
        ("bf16", {"openvino": "1.0"}, "openvino", False, " (which computes in fp32 here)"),
        ("bf16", {"openvino": "1.0"}, "openvino", True, ""),
        ("bf16", {}, "openvino", False, " (which computes in fp32 here)"),
    ],
)
def test_without_a_gpu_the_backend_that_builds_it_is_named_and_what_it_computes_in(
    engines: dict[str, EngineBundle],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    installed: dict[str, str],
    backend: str,
    half: bool,
    said: str,
) -> None:
    monkeypatch.setattr(module, "cuda_driver", lambda: CudaDriver(problem="no driver"))
    monkeypatch.setattr(module, "installed", installed.get)
    monkeypatch.setattr(module, "has_half_kernels", lambda: half)
    monkeypatch.setattr("parnet_deploy.runtime.openvino.has_bfloat16", lambda: half)
    plan = quantised_plan(engines["whole"], precision)
    model = resolve_model(plan.manifest.model, plan.path)
    command = f"parnet-deploy build-engine {model} --backend {backend}"
    assert rebuild_command(plan) == command
    assert module.way_out(plan) == f"build it again: {command}{said}"


def gpu(capability: str) -> Gpu:
    return Gpu(index=0, name="a GPU", compute_capability=capability, memory=0)


@pytest.mark.parametrize(
    ("precision", "here", "needs"),
    [
        ("fp8", (), "of compute capability 8.9 or later"),
        ("fp8", ("8.6",), "of compute capability 8.9 or later"),
        ("int8", (), "without a GPU of compute capability 8.0 or later: run it where"),
        ("int8", ("7.5",), "without a GPU of compute capability 8.0 or later: run it where"),
    ],
)
def test_where_building_again_does_not_help_it_is_said_what_does(
    engines: dict[str, EngineBundle],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    here: tuple[str, ...],
    needs: str,
) -> None:
    driver = CudaDriver(gpus=tuple(map(gpu, here)), problem=None if here else "no driver")
    monkeypatch.setattr(module, "cuda_driver", lambda: driver)
    plan = quantised_plan(engines["whole"], precision)
    said = module.way_out(plan)
    assert "build it again" not in said
    assert needs in said
    model = resolve_model(plan.manifest.model, plan.path)
    assert f"'parnet-deploy evaluate {model} --data SOURCE'" in said
    assert "--precision int8 --for onnxruntime --output " in said
    assert f"{model}-for-onnxruntime --calibrate DATA'" in said, "not in the model's own place"
    assert str(model / "checkpoint.safetensors") in said
    monkeypatch.setattr(module, "_open_on_gpus", refuses)
    with pytest.raises(EngineError, match="cannot run here: it needs an NVIDIA GPU; no build"):
        open_runner(plan)


def refuses(bundle: EngineBundle, contexts: int) -> None:
    raise TargetError("it needs an NVIDIA GPU")


def test_a_plan_in_fp8_is_built_again_for_a_gpu_that_computes_in_it(
    engines: dict[str, EngineBundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself TensorRT RTX builds for compute capability 8.0, too, which has no fp8."""
    plan = quantised_plan(engines["whole"], "fp8")
    monkeypatch.setattr(module, "cuda_driver", lambda: CudaDriver(gpus=(gpu("9.0"),)))
    assert "build it again: parnet-deploy build-engine" in module.way_out(plan)
    assert "--backend tensorrt-rtx --compute-capability 9.0 --output" in module.way_out(plan)
    monkeypatch.setattr(module, "cuda_driver", lambda: CudaDriver(problem="no driver"))
    command = rebuild_command(plan)  # which takes no GPU
    assert "--backend tensorrt-rtx --compute-capability 8.9 --output" in command
    other = rebuild_command(quantised_plan(engines["whole"], "int8"))
    assert "--backend tensorrt-rtx --output" in other


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What stages on GPUs were given; a runner that does nothing takes the place of theirs."""
    made: list[dict[str, Any]] = []

    def stage(path: Path, **given: Any) -> None:
        made.append({"path": path, **given})

    def runner(stages: list[Any], *, contexts: int, **given: Any) -> FunctionRunner:
        for plan in made:
            plan["contexts"] = contexts
        return FunctionRunner(dict, **given)

    monkeypatch.setattr("parnet_deploy.runtime.tensorrt.tensorrt_stage", stage)
    monkeypatch.setattr("parnet_deploy.runtime.onnxruntime_cuda.onnxruntime_stage", stage)
    monkeypatch.setattr("parnet_deploy.runtime.cuda.runner.CudaRunner", runner)
    return made


def as_plans(bundle: EngineBundle, *, weights: str = "included") -> EngineBundle:
    stages = tuple(
        replace(stage, device=f"cuda:{index}") for index, stage in enumerate(bundle.manifest.stages)
    )
    target = {"version": "1.0", "weights": weights}
    return changed(bundle, backend="tensorrt-rtx", stages=stages, target=target)


def test_plans_open_each_on_its_gpu_with_the_target_to_check(
    engines: dict[str, EngineBundle], plans: list[dict[str, Any]]
) -> None:
    bundle = as_plans(engines["split"])
    with open_runner(bundle, contexts=2) as runner:
        assert runner.inputs == bundle.manifest.inputs
        assert runner.outputs == bundle.manifest.outputs
    assert {plan["contexts"] for plan in plans} == {2}
    assert [plan["device"] for plan in plans] == [0, 1, 2, 3]
    for plan, stage in zip(plans, bundle.manifest.stages, strict=True):
        assert plan["path"] == bundle.path / stage.file
        assert (plan["inputs"], plan["outputs"]) == (stage.inputs, stage.outputs)
        assert plan["name"] == stage.name
        assert plan["backend"] == "tensorrt-rtx"
        assert plan["target"] == bundle.manifest.target
        assert plan["weights"] is None


@pytest.mark.parametrize("name", ["whole", "split"])
def test_graphs_for_the_cuda_provider_open_each_on_its_gpu(
    engines: dict[str, EngineBundle], plans: list[dict[str, Any]], name: str
) -> None:
    stages = tuple(
        replace(stage, device=f"cuda:{index}")
        for index, stage in enumerate(engines[name].manifest.stages)
    )
    version = engines[name].manifest.target["onnxruntime"]
    target = {"onnxruntime": version, "provider": "cuda"}
    bundle = changed(engines[name], stages=stages, target=target)
    with open_runner(bundle):
        pass
    assert [plan["device"] for plan in plans] == list(range(len(stages)))
    for plan, stage in zip(plans, stages, strict=True):
        assert plan["path"] == bundle.path / stage.file
        assert plan["batch"] == bundle.manifest.batch
    with pytest.raises(TargetError, match=r"ONNX Runtime 1\.2\.3.*build it again"):
        open_runner(changed(bundle, target={**target, "onnxruntime": "1.2.3"}))


@pytest.mark.parametrize("name", ["whole", "split"])
def test_weights_of_a_stripped_plan_come_from_the_very_model_it_was_built_from(
    engines: dict[str, EngineBundle],
    plans: list[dict[str, Any]],
    tiny_bundle: ModelBundle,
    name: str,
) -> None:
    with open_runner(as_plans(engines[name], weights="stripped")):
        pass
    given = [plan["weights"].resolve() for plan in plans]
    stages = [tiny_bundle.file(stage.file).resolve() for stage in tiny_bundle.manifest.stages]
    assert given == (stages if name == "split" else [tiny_bundle.file("model.onnx").resolve()])


def test_weights_of_another_model_never_get_into_a_stripped_plan(
    engines: dict[str, EngineBundle], plans: list[dict[str, Any]]
) -> None:
    stripped = as_plans(engines["whole"], weights="stripped")
    stale = replace(stripped.manifest.model, manifest_sha256="0" * 64)
    with pytest.raises(EngineError, match="is another model than it is of"):
        open_runner(changed(stripped, model=stale))
    gone = replace(stripped.manifest.model, path="../../nowhere")
    with pytest.raises(EngineError, match=r"its weights are not in it.*there is no bundle"):
        open_runner(changed(stripped, model=gone))
    assert plans == []
