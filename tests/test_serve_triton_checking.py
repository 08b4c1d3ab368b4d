"""The gate before a repository is put in place: every planted fault is caught and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import export_tiny
from triton_engines import cpu_engine, stamp_engine

from parnet_deploy.bundle import EngineBundle, ModelBundle
from parnet_deploy.errors import ServingError
from parnet_deploy.serve.triton import ModelConfig, RepositorySettings, write_repository
from parnet_deploy.serve.triton import repository as repository_module
from parnet_deploy.serve.triton.checking import check_repository
from parnet_deploy.serve.triton.config import DynamicBatching, InstanceGroup, Warmup
from parnet_deploy.serve.triton.models import models_of

Models = tuple[ModelConfig, ...]
NET = RepositorySettings(name="net")


@pytest.fixture(scope="module")
def engine(
    tiny_bundle_dynamic: ModelBundle, tmp_path_factory: pytest.TempPathFactory
) -> EngineBundle:
    """Split, stem shared, batch 1 to 4."""
    return cpu_engine(tiny_bundle_dynamic, tmp_path_factory.mktemp("e") / "engine", split=True)


@pytest.fixture(scope="module")
def written(engine: EngineBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    final = tmp_path_factory.mktemp("r") / "repository"
    write_repository(engine, final, NET)
    return final


def changed(models: Models, name: str, **changes: Any) -> Models:
    """With other fields in one model."""
    assert name in {model.name for model in models}
    return tuple(replace(m, **changes) if m.name == name else m for m in models)


def stepped(models: Models, number: int, **changes: Any) -> Models:
    """With other fields in one step of the ensemble."""
    steps = list(models[-1].steps)
    steps[number] = replace(steps[number], **changes)
    return changed(models, "net", steps=tuple(steps))


def test_what_was_written_passes(engine: EngineBundle, written: Path) -> None:
    check_repository(written, models_of(engine, NET), engine)


STEM, STREAM1, STREAM2, STREAM3, FUSION = range(5)

Fault = Callable[[Models], Models]


def swapped_cut(models: Models) -> Models:
    """What two streams give the joining stage, crosswise."""
    names = list(models[-1].steps[FUSION].input_map)
    crossed = dict(zip(names, [names[1], names[0], *names[2:]], strict=True))
    return stepped(models, FUSION, input_map=crossed)


def swapped_outputs(models: Models) -> Models:
    names = list(models[-1].steps[STEM].output_map)
    return stepped(models, STEM, output_map=dict(zip(names, reversed(names), strict=True)))


def intermediate_as_output(models: Models) -> Models:
    return changed(models, "net", outputs=(*models[-1].outputs, models[STREAM1].outputs[0]))


def without_step(number: int) -> Fault:
    def fault(models: Models) -> Models:
        steps = tuple(s for n, s in enumerate(models[-1].steps) if n != number)
        return changed(models, "net", steps=steps)

    return fault


def steps_out_of_order(models: Models) -> Models:
    return changed(models, "net", steps=tuple(reversed(models[-1].steps)))


def twice_the_same_step(models: Models) -> Models:
    steps = models[-1].steps
    return changed(models, "net", steps=(*steps[:STREAM2], steps[STREAM1], *steps[STREAM3:]))


def dims_of_another(models: Models) -> Models:
    tensor = models[STREAM1].inputs[0]
    wrong = replace(tensor, dims=(*tensor.dims[:-1], tensor.dims[-1] + 1))
    return changed(models, "net-stream1", inputs=(wrong,))


def another_type(models: Models) -> Models:
    wrong = replace(models[-1].inputs[0], data_type="TYPE_FP16")
    return changed(models, "net", inputs=(wrong,))


FAULTS: dict[str, tuple[Fault, str]] = {
    "a swapped cut": (swapped_cut, "'.*' of 'net-fusion' is mapped to '"),
    "swapped outputs": (swapped_outputs, "'.*' of 'net-stem' is mapped to '"),
    "an intermediate as output": (intermediate_as_output, "is an output of the ensemble, too"),
    "no stem": (without_step(STEM), "'net-stem' is 0 steps of the ensemble"),
    "no stream": (without_step(STREAM2), "'net-stream2' is 0 steps of the ensemble"),
    "no fusion": (without_step(FUSION), "no step makes the output 'logits'"),
    "steps out of order": (steps_out_of_order, "'net-fusion' reads '.*', which no step before"),
    "one step twice": (twice_the_same_step, "'net-stream1' is 2 steps of the ensemble"),
    "wrong dims": (dims_of_another, "input '.*' of 'net-stream1' is TYPE_FP32"),
    "wrong type": (another_type, "input 'images' of 'net' is TYPE_FP16"),
    "the latest version": (
        lambda models: stepped(models, STREAM3, model_version=-1),
        "asked for its version -1, not 1",
    ),
    "an input left out": (
        lambda models: stepped(models, STREAM1, input_map={}),
        r"'net-stream1' has the inputs \['.*'\], and \[\] is mapped",
    ),
    "an output left out": (
        lambda models: stepped(models, STREAM1, output_map={}),
        r"'net-stream1' has the outputs \['.*'\], and \[\] is mapped",
    ),
    "an output of the network that is none": (
        lambda models: changed(models, "net", outputs=()),
        "'logits' is not an output of 'net'",
    ),
    "an ensemble with instances": (
        lambda models: changed(models, "net", instance_group=InstanceGroup(count=1)),
        "has instance_group, which Triton refuses",
    ),
    "an ensemble that warms up": (
        lambda models: changed(models, "net", warmup=(Warmup(batch_size=1, count=1),)),
        "has warmup, which Triton refuses",
    ),
    "a stage without instances": (
        lambda models: changed(models, "net-stream1", instance_group=None),
        "'net-stream1' has no instance group",
    ),
    "a stage of smaller batches": (
        lambda models: changed(models, "net-fusion", max_batch_size=2),
        "'net-fusion' has max_batch_size 2, and 'net' 4",
    ),
    "batches beyond the engine's": (
        lambda models: tuple(replace(model, max_batch_size=8) for model in models),
        "max_batch_size 8, .* of an engine's 4",
    ),
    "preferred beyond the largest": (
        lambda models: changed(
            models,
            "net-stem",
            dynamic_batching=DynamicBatching(
                max_queue_delay_microseconds=0, preferred_batch_size=(8,)
            ),
        ),
        "'net-stem' prefers batches beyond 4",
    ),
    "a stage missing": (lambda models: models[1:], "4 models stand for 5 stages"),
    "two stages exchanged": (
        lambda models: (models[STEM], models[STREAM2], models[STREAM1], *models[STREAM3:]),
        "'net-stream2' stands where the model of stage 'stream1' should",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_and_nothing_is_put_in_place(
    name: str, engine: EngineBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, said = FAULTS[name]
    models = models_of(engine, NET)
    monkeypatch.setattr(repository_module, "models_of", lambda *_: fault(models))
    # What cannot be written any more is not what is tested here.
    monkeypatch.setattr(repository_module, "_write_models", lambda *_: None)
    with pytest.raises(ServingError, match=said) as raised:
        write_repository(engine, tmp_path / "r", NET)
    assert "was not put in place" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


FILE_FAULTS: dict[str, tuple[str, str | None, str]] = {
    "a configuration changed": (
        "net/config.pbtxt",
        "net-stem/config.pbtxt",
        "net/config.pbtxt is not there as it was meant",
    ),
    "a configuration missing": ("net-fusion/config.pbtxt", None, "net-fusion/config.pbtxt"),
    "another stage's graph": (
        "net-stream1/1/model.onnx",
        "net-stream2/1/model.onnx",
        "net-stream1/1/model.onnx is not the graph of stage 'stream1'",
    ),
    "a graph missing": ("net-stream1/1/model.onnx", None, "net-stream1/1 is empty"),
    "an ensemble's version that object stores lose": (
        "net/1/ensemble.txt",
        None,
        "net/1 is empty",
    ),
    "other labels": ("net/labels.txt", "net/config.pbtxt", "does not hold the engine's labels"),
    "no labels": ("net/labels.txt", None, "net/labels.txt does not hold the engine's labels"),
}


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_a_wrong_file_is_named(
    name: str, engine: EngineBundle, written: Path, tmp_path: Path
) -> None:
    file, source, said = FILE_FAULTS[name]
    folder = Path(shutil.copytree(written, tmp_path / "r"))
    if source is None:
        (folder / file).unlink()
    else:
        shutil.copyfile(folder / source, folder / file)
    with pytest.raises(ServingError, match=said):
        check_repository(folder, models_of(engine, NET), engine)


def other_weight(graph: Any) -> str:
    """One number of one weight is another one."""
    tensor = max(graph.initializer, key=lambda each: len(each.raw_data))
    data = bytearray(tensor.raw_data)
    data[-1] ^= 0x40
    tensor.raw_data = bytes(data)
    return f"'{tensor.name}' in net-stream1/1/model.onnx is not the weight of its model"


def exchanged_weights(graph: Any) -> str:
    """Two weights of one shape stand under each other's names."""
    by_shape: dict[tuple[int, ...], Any] = {}
    for tensor in graph.initializer:
        other = by_shape.setdefault(tuple(tensor.dims), tensor)
        if other.raw_data != tensor.raw_data:
            other.raw_data, tensor.raw_data = tensor.raw_data, other.raw_data
            return f"'{tensor.name}' in net-stream1/1/model.onnx is not the weight"
    raise AssertionError("no two weights have one shape")


def further_weight(graph: Any) -> str:
    graph.initializer.add().CopyFrom(graph.initializer[0])
    graph.initializer[-1].name = "more"
    return "'more' in net-stream1/1/model.onnx is not the weight"


def other_operation(graph: Any) -> str:
    """One that takes no more and no less."""
    node = next(node for node in graph.node if node.op_type in ("Relu", "Sigmoid"))
    node.op_type = "Tanh"
    return "net-stream1/1/model.onnx has other operations than stage 'stream1'"


@pytest.mark.parametrize(
    "change", [other_weight, exchanged_weights, further_weight, other_operation]
)
def test_a_graph_that_computes_something_else_is_named(
    change: Callable[[Any], str], engine: EngineBundle, written: Path, tmp_path: Path
) -> None:
    """Its inputs and outputs are the stage's."""
    onnx = pytest.importorskip("onnx")
    folder = Path(shutil.copytree(written, tmp_path / "r"))
    path = folder / "net-stream1" / "1" / "model.onnx"
    graph = onnx.load(str(path))
    said = change(graph.graph)
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(ServingError, match=said):
        check_repository(folder, models_of(engine, NET), engine)


def test_a_plan_of_another_stage_is_named(tmp_path: Path) -> None:
    model = export_tiny(tmp_path / "model")
    engine = stamp_engine(model, tmp_path / "engine", split=True)
    write_repository(engine, tmp_path / "r", NET)
    models = models_of(engine, NET)
    check_repository(tmp_path / "r", models, engine)
    one, two = (tmp_path / "r" / f"net-stream{n}" / "1" / "model.plan" for n in (1, 2))
    shutil.copyfile(two, one)
    with pytest.raises(ServingError, match="is not the plan of stage 'stream1'"):
        check_repository(tmp_path / "r", models, engine)
