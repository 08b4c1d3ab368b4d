"""Repositories for Triton: every configuration, field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import export_tiny, tiny_spec
from google.protobuf import json_format
from triton_engines import VERSION, cpu_engine, read_config, stamp_engine, write

from parnet_deploy.bundle import BatchRange, EngineBundle, ModelBundle
from parnet_deploy.errors import UsageError

FACTS = {"engine", "engine_manifest_sha256", "model_manifest_sha256", "precision", "scores"}
FACTS |= {"preprocessing"}
IMAGE = {"name": "images", "data_type": "TYPE_FP32"}
LOGITS = {"name": "logits", "data_type": "TYPE_FP32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def whole(tiny_bundle: ModelBundle, folder: Path) -> EngineBundle:
    """Of batch 1."""
    return cpu_engine(tiny_bundle, folder / "whole", split=False, threads=2)


@pytest.fixture(scope="module")
def split(tiny_bundle: ModelBundle, folder: Path) -> EngineBundle:
    """Of batch 1, stem replicated."""
    return cpu_engine(tiny_bundle, folder / "split", split=True)


@pytest.fixture(scope="module")
def dynamic(tiny_bundle_dynamic: ModelBundle, folder: Path) -> EngineBundle:
    return cpu_engine(tiny_bundle_dynamic, folder / "dynamic", split=False)


@pytest.fixture(scope="module")
def dynamic_split(tiny_bundle_dynamic: ModelBundle, folder: Path) -> EngineBundle:
    """Stem shared."""
    return cpu_engine(tiny_bundle_dynamic, folder / "dynamic-split", split=True)


def fields(repository: Path, model: str) -> dict[str, Any]:
    """A configuration's fields as they are named in it, without the facts about the engine."""
    message = json_format.MessageToDict(
        read_config(repository, model), preserving_proto_field_name=True
    )
    parameters = {key: value["string_value"] for key, value in message.pop("parameters").items()}
    for fact in FACTS:
        assert parameters.pop(fact), fact
    return message | ({"parameters": parameters} if parameters else {})


def warmup(batch: int, inputs: dict[str, list[int]]) -> dict[str, Any]:
    return {
        "name": f"batch {batch}",
        "batch_size": batch,
        "count": 3,
        "inputs": {
            name: {"data_type": "TYPE_FP32", "dims": strings(dims), "zero_data": True}
            for name, dims in inputs.items()
        },
    }


def strings(numbers: list[int]) -> list[str]:
    """64-bit numbers, as protocol buffers' JSON has them."""
    return [str(number) for number in numbers]


def common(name: str, platform: str) -> dict[str, Any]:
    return {
        "name": name,
        "platform": platform,
        "version_policy": {"specific": {"versions": ["1"]}},
        "response_cache": {},
    }


# -- configurations


def test_an_engine_of_a_fixed_batch_has_it_in_every_shape(
    whole: EngineBundle, tmp_path: Path
) -> None:
    repository = write(whole, tmp_path / "repository")
    assert fields(repository, "whole") == common("whole", "onnxruntime_onnx") | {
        "input": [IMAGE | {"dims": strings([1, 3, 64, 64])}],
        "output": [LOGITS | {"dims": strings([1, 7]), "label_filename": "labels.txt"}],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "model_warmup": [warmup(1, {"images": [1, 3, 64, 64]})],
        "parameters": {"intra_op_thread_count": "2"},
    }


def test_an_engine_of_a_changing_batch_puts_requests_together(
    dynamic: EngineBundle, tmp_path: Path
) -> None:
    repository = write(
        dynamic, tmp_path / "r", name="parnet", delay=250, preferred=(4, 2), instances=2
    )
    image = {"images": [3, 64, 64]}
    assert fields(repository, "parnet") == common("parnet", "onnxruntime_onnx") | {
        "max_batch_size": 4,
        "input": [IMAGE | {"dims": strings([3, 64, 64])}],
        "output": [LOGITS | {"dims": strings([7]), "label_filename": "labels.txt"}],
        "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
        "dynamic_batching": {
            "preferred_batch_size": [2, 4],
            "max_queue_delay_microseconds": "250",
        },
        "model_warmup": [warmup(1, image), warmup(4, image)],
        "parameters": {"intra_op_thread_count": "1"},
    }


def test_without_a_delay_requests_are_put_together_that_wait_anyway(
    dynamic: EngineBundle, tmp_path: Path
) -> None:
    config = read_config(write(dynamic, tmp_path / "r"), "dynamic")
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0


def test_batches_of_one_are_not_put_together(dynamic: EngineBundle, tmp_path: Path) -> None:
    config = read_config(write(dynamic, tmp_path / "r", max_batch=1), "dynamic")
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")
    assert [sample.batch_size for sample in config.model_warmup] == [1]


def test_a_split_engine_is_an_ensemble_of_its_stages(split: EngineBundle, tmp_path: Path) -> None:
    repository = write(split, tmp_path / "r", name="net")
    ensemble = fields(repository, "net")
    steps = ensemble.pop("ensemble_scheduling")["step"]
    assert ensemble == common("net", "ensemble") | {
        "input": [IMAGE | {"dims": strings([1, 3, 64, 64])}],
        "output": [LOGITS | {"dims": strings([1, 7]), "label_filename": "labels.txt"}],
    }
    stages = split.manifest.stages
    assert [stage.name for stage in stages] == ["stream1", "stream2", "stream3", "fusion"]
    assert steps == [
        {
            "model_name": f"net-{stage.name}",
            "model_version": "1",
            "input_map": {spec.name: spec.name for spec in stage.inputs},
            "output_map": {spec.name: spec.name for spec in stage.outputs},
        }
        for stage in stages
    ]
    for stage in stages:
        config = fields(repository, f"net-{stage.name}")
        shapes = {spec.name: list(spec.shape) for spec in stage.inputs}
        assert config == common(f"net-{stage.name}", "onnxruntime_onnx") | {
            "input": [
                {"name": spec.name, "data_type": "TYPE_FP32", "dims": strings(list(spec.shape))}
                for spec in stage.inputs
            ],
            "output": [
                {"name": spec.name, "data_type": "TYPE_FP32", "dims": strings(list(spec.shape))}
                for spec in stage.outputs
            ],
            "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
            "model_warmup": [warmup(1, shapes)],
            "parameters": {"intra_op_thread_count": "1"},
        }


def test_only_models_that_read_images_let_requests_wait(
    dynamic_split: EngineBundle, tmp_path: Path
) -> None:
    repository = write(dynamic_split, tmp_path / "r", name="net", delay=500, preferred=(4,))
    delays = {}
    for stage in dynamic_split.manifest.stages:
        config = read_config(repository, f"net-{stage.name}")
        assert config.max_batch_size == 4
        assert list(config.dynamic_batching.preferred_batch_size) == [4]
        delays[stage.name] = config.dynamic_batching.max_queue_delay_microseconds
    assert delays == {"stem": 500, "stream1": 0, "stream2": 0, "stream3": 0, "fusion": 0}
    ensemble = read_config(repository, "net")
    assert ensemble.max_batch_size == 4
    assert not ensemble.HasField("dynamic_batching")
    outputs = [output.name for output in ensemble.output]
    assert outputs == ["logits"], "Triton deadlocks on ensembles that give what is inside them"


def test_the_facts_say_which_engine_and_model_it_is(
    whole: EngineBundle, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    config = read_config(write(whole, tmp_path / "r"), "whole")
    facts = {key: value.string_value for key, value in config.parameters.items()}
    assert facts["engine"] == "whole"
    assert facts["engine_manifest_sha256"] == whole.manifest_sha256
    assert facts["model_manifest_sha256"] == tiny_bundle.manifest_sha256
    assert facts["precision"] == "fp32"
    assert facts["scores"] == "logits"
    assert json.loads(facts["preprocessing"])["size"] == [64, 64]


def test_uint8_images_and_probabilities(tmp_path: Path) -> None:
    model = export_tiny(tmp_path / "model", preprocess=True, softmax=True)
    engine = cpu_engine(model, tmp_path / "engine", split=False)
    config = read_config(write(engine, tmp_path / "r"), "engine")
    assert json_format.MessageToDict(config)["input"][0]["dataType"] == "TYPE_UINT8"
    sample = config.model_warmup[0].inputs["images"]
    assert sample.WhichOneof("input_data_type") == "random_data"
    assert config.parameters["scores"].string_value == "probabilities"


def test_labels_are_not_promised_where_a_fixed_batch_would_mix_images(tmp_path: Path) -> None:
    model = export_tiny(tmp_path / "model", batch=BatchRange(min=2, opt=2, max=2))
    engine = cpu_engine(model, tmp_path / "engine", split=False)
    repository = write(engine, tmp_path / "r")
    config = read_config(repository, "engine")
    assert list(config.input[0].dims) == [2, 3, 64, 64]
    assert config.output[0].label_filename == ""
    assert not (repository / "engine" / "labels.txt").exists()


# -- TensorRT


def test_stages_of_plans_stand_on_their_own_gpus(
    tiny_bundle_dynamic: ModelBundle, tmp_path: Path
) -> None:
    placement = {"stem": "cuda:0", "stream1": "cuda:0", "stream2": "cuda:1", "stream3": "cuda:2"}
    engine = stamp_engine(
        tiny_bundle_dynamic, tmp_path / "e", split=True, placement=placement | {"fusion": "cuda:2"}
    )
    repository = write(engine, tmp_path / "r", name="net", preferred=(2,))
    for stage in engine.manifest.stages:
        config = read_config(repository, f"net-{stage.name}")
        assert config.platform == "tensorrt_plan"
        (group,) = config.instance_group
        assert (group.count, f"cuda:{group.gpus[0]}", len(group.gpus)) == (1, stage.device, 1)
        cuda = config.optimization.cuda
        assert cuda.graphs
        assert [spec.batch_size for spec in cuda.graph_spec] == [1, 2, 4]
        for spec in cuda.graph_spec:
            assert {name: list(shape.dim) for name, shape in spec.input.items()} == {
                tensor.name: list(tensor.shape[1:]) for tensor in stage.inputs
            }
        plan = repository / f"net-{stage.name}" / "1" / "model.plan"
        assert plan.read_bytes() == f"the plan of {stage.name}".encode()
        assert config.parameters["tensorrt_version"].string_value == VERSION
        assert config.parameters["compute_capabilities"].string_value == "8.6"
    ensemble = read_config(repository, "net")
    assert not ensemble.HasField("optimization")
    assert not ensemble.instance_group


@pytest.mark.parametrize("stem", ["replicate", "share"])
@pytest.mark.parametrize("streams", [1, 4])
def test_any_number_of_streams_and_both_stems(streams: int, stem: Any, tmp_path: Path) -> None:
    spec = tiny_spec().with_streams(streams)
    changes = {"stream_widths": spec.stream_widths, "stream_blocks": spec.stream_blocks}
    model = export_tiny(tmp_path / "model", stem=stem, changes=changes)
    engine = stamp_engine(model, tmp_path / "e", split=True)
    repository = write(engine, tmp_path / "r", name="net")
    steps = read_config(repository, "net").ensemble_scheduling.step
    names = [stage.name for stage in model.manifest.stages]
    assert [step.model_name for step in steps] == [f"net-{name}" for name in names]
    assert ("stem" in names) == (stem == "share")
    carried = {(value, step.model_name) for step in steps for value in step.input_map.values()}
    assert {(cut.tensor.name, f"net-{cut.target}") for cut in model.manifest.cuts} <= carried


def test_a_plan_of_a_fixed_batch_is_recorded_as_one_cuda_graph(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    engine = stamp_engine(tiny_bundle, tmp_path / "e", split=False)
    config = read_config(write(engine, tmp_path / "r"), "e")
    (spec,) = config.optimization.cuda.graph_spec
    assert spec.batch_size == 0
    assert list(spec.input["images"].dim) == [1, 3, 64, 64]


def test_another_placement_than_the_engines(
    dynamic: EngineBundle, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    moved = write(dynamic, tmp_path / "r", placement={"whole": "cuda:3"})
    config = read_config(moved, "dynamic")
    assert list(config.instance_group[0].gpus) == [3]
    assert "intra_op_thread_count" not in config.parameters, "threads of a CPU that it is not on"
    engine = stamp_engine(tiny_bundle, tmp_path / "e", split=False)
    with pytest.raises(UsageError, match="a TensorRT plan, which runs on a GPU"):
        write(engine, tmp_path / "s", placement={"whole": "cpu"})
