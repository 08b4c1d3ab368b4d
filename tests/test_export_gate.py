"""The gate: each fault that is planted in a graph must make the export fail and leave nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import export_tiny, tiny_network
from onnx import numpy_helper

from parnet_deploy.bundle import MODEL_GRAPH, WEIGHTS, BatchRange, ModelManifest, Source
from parnet_deploy.errors import ExportError
from parnet_deploy.export import ExportOptions, export_model, gate
from parnet_deploy.export import model as exporting
from parnet_deploy.export.gate import NETWORK_TOLERANCE, STAGES_TOLERANCE, prove
from parnet_deploy.net import DeployParNet, ParNet, fuse
from parnet_deploy.runtime import FunctionRunner
from parnet_deploy.spec import DeployForm, Preprocessing

Fault = Callable[[onnx.ModelProto], None]


def export(final: Path, model: ParNet | None = None) -> None:
    options = ExportOptions(name="net", preprocessing=Preprocessing(size=(64, 64)))
    export_model(model or tiny_network(), Source(kind="untrained", seed=0), final, options)


def plant(monkeypatch: pytest.MonkeyPatch, file: str, fault: Fault) -> None:
    """Damage one graph right after it was written."""
    write = exporting.write_graphs

    def write_and_damage(work: Path, whole: object, manifest: ModelManifest) -> None:
        write(work, whole, manifest)
        proto = onnx.load(work / file, load_external_data=False)
        before = proto.SerializeToString()
        fault(proto)
        assert proto.SerializeToString() != before, "the fault was planted"
        (work / file).write_bytes(proto.SerializeToString())

    monkeypatch.setattr(exporting, "write_graphs", write_and_damage)


def named(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    (tensor,) = (t for t in graph.initializer if t.name == name)
    return tensor


def swapped_streams(proto: onnx.ModelProto) -> None:
    """The fusion takes stream 1 for stream 2 and the other way round: both are (1, 16, 8, 8)."""
    other = {"stream2_block2": "merge1", "merge1": "stream2_block2"}
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = other.get(name, name)


def wrong_epsilon(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f = 1e-2


def replaced(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Give a weight a copy of its own, changed, inside the graph."""
    tensor = named(proto.graph, name)
    rng = np.random.default_rng(0)
    array = (
        rng.standard_normal(tuple(tensor.dims)).astype(np.float32)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        else numpy_helper.to_array(tensor).copy()
    )
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def zeroed_bias_channel(proto: onnx.ModelProto) -> None:
    replaced(proto, "stream2_block1.conv.bias", lambda array: array.__setitem__(3, 0))


def stale_weights(proto: onnx.ModelProto) -> None:
    """Two weights of the same shape point at each other's bytes."""
    one, two = (named(proto.graph, f"stream2_block{i}.conv.weight") for i in (1, 2))
    first = [(item.key, item.value) for item in one.external_data]
    for item, other in zip(one.external_data, two.external_data, strict=True):
        item.value = other.value
    for item, (_, value) in zip(two.external_data, first, strict=True):
        item.value = value


def missing_activation(proto: onnx.ModelProto) -> None:
    (node,) = (n for n in proto.graph.node if n.output[0] == "stream3_block2.sigmoid")
    node.op_type = "Tanh"


def infinite_weight(proto: onnx.ModelProto) -> None:
    replaced(proto, "stream2_block1.conv.bias", lambda array: array.__setitem__(0, np.inf))


STAGE_FAULTS: list[tuple[str, Fault, str]] = [
    ("stages/fusion.onnx", swapped_streams, "the stages joined differ"),
    ("stages/fusion.onnx", wrong_epsilon, "the stages joined differ"),
    ("stages/stream2.onnx", zeroed_bias_channel, "the stages joined differ"),
    ("stages/stream2.onnx", stale_weights, "the stages joined differ"),
    ("stages/stream3.onnx", missing_activation, "the stages joined differ"),
    ("stages/stream2.onnx", infinite_weight, "the logits of the joined stages .* are not finite"),
]


@pytest.mark.parametrize(
    ("file", "fault", "words"), STAGE_FAULTS, ids=[f.__name__ for _, f, _ in STAGE_FAULTS]
)
def test_a_faulty_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, fault: Fault, words: str
) -> None:
    plant(monkeypatch, file, fault)
    with pytest.raises(ExportError, match=words):
        export(tmp_path / "net")
    assert not any(tmp_path.iterdir()), "nothing is left, hidden or not"


@pytest.mark.parametrize("fault", [wrong_epsilon, zeroed_bias_channel, stale_weights])
def test_a_faulty_whole_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    plant(monkeypatch, MODEL_GRAPH, fault)
    with pytest.raises(ExportError, match="the whole graph differs from the network"):
        export(tmp_path / "net")
    assert not any(tmp_path.iterdir())


def test_a_fault_in_whole_and_stages_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One channel of one kernel zeroed while fusing: whole and stages agree, and are both wrong."""

    def fuse_wrongly(model: ParNet, form: DeployForm) -> DeployParNet:
        fused = fuse(model, form)
        fused.blocks["stream2_block1"].conv.weight[5] = 0
        return fused

    monkeypatch.setattr(exporting, "fuse", fuse_wrongly)
    with pytest.raises(ExportError, match="the whole graph differs from the network"):
        export(tmp_path / "net")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    model = tiny_network()
    model.blocks["stream1_block2"].dense.conv.weight.data[0, 0, 0, 0] = value
    words = r"1 of the network's tensors .* 'blocks\.stream1_block2\.dense\.conv\.weight'"
    with pytest.raises(ExportError, match=words):
        export(tmp_path / "net", model)
    assert not any(tmp_path.iterdir())


def test_finite_weights_whose_answers_are_not(tmp_path: Path) -> None:
    model = tiny_network()
    model.blocks["head"].linear.weight.data.fill_(3e38)
    with pytest.raises(ExportError, match=r"the logits of the whole graph on noise .* are not"):
        export(tmp_path / "net", model)
    assert not any(tmp_path.iterdir())


def test_a_graph_that_is_not_valid_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "IR_VERSION", 10_000)
    with pytest.raises(ExportError, match=r"model\.onnx is not valid ONNX") as caught:
        export(tmp_path / "net")
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_a_sound_bundle_passes_with_room_to_spare(tmp_path: Path) -> None:
    """Otherwise the faults above would prove nothing."""
    bundle = export_tiny(tmp_path / "net")
    proof = prove(bundle.path, bundle.manifest, tiny_network())
    assert proof.network is not None
    assert proof.network < NETWORK_TOLERANCE / 10
    assert proof.stages < STAGES_TOLERANCE / 10
    assert proof.network > 0, "float32 against float32 of another library is never exact"


@pytest.mark.parametrize("trial", [0, 1, 2])
def test_a_network_without_an_answer_to_any_of_the_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trial: int
) -> None:
    honest, answers = gate.run_network, []

    def no_number(*arguments: Any, softmax: bool) -> np.ndarray:
        answers.append(honest(*arguments, softmax=softmax))
        return answers[-1] * (np.nan if len(answers) == trial + 1 else 1)

    monkeypatch.setattr(gate, "run_network", no_number)
    with pytest.raises(ExportError, match="differs from the network by nan"):
        export(tmp_path / "net")
    assert not any(tmp_path.iterdir())


def test_a_graph_that_answers_the_first_image_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row must not be compared with every row of a network that says the same to all."""
    bundle = export_tiny(tmp_path / "net", batch=BatchRange(min=2, opt=2, max=2))
    model = tiny_network()
    model.blocks["head"].linear.weight.data.zero_()
    answer = model.blocks["head"].linear.bias.detach().numpy()[None]
    runner = FunctionRunner(
        lambda feeds: {"logits": answer},
        inputs=bundle.manifest.inputs,
        outputs=(replace(bundle.manifest.outputs[0], shape=(1, 7)),),
    )
    monkeypatch.setattr(gate, "_open_whole", lambda folder, manifest: runner)
    monkeypatch.setattr(gate, "_open_stages", lambda folder, manifest: runner)
    with pytest.raises(ExportError, match="differs from the network by inf"):
        prove(bundle.path, bundle.manifest, model)


def test_a_sure_networks_probabilities_hide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 and 1 whatever its logits are: a stage that gets the least likely class wrong shows."""
    model = tiny_network()
    model.blocks["head"].linear.weight.data *= 20
    least = int(model(torch.zeros(1, 3, 64, 64)).argmin())

    def less_likely_still(proto: onnx.ModelProto) -> None:
        bias = named(proto.graph, "logits.bias")
        array = numpy_helper.to_array(bias).copy()
        array[least] -= 3
        bias.CopyFrom(numpy_helper.from_array(array, bias.name))

    source = Source(kind="untrained", seed=0)
    preprocessing = Preprocessing(size=(64, 64))
    options = ExportOptions(name="net", preprocessing=preprocessing, softmax=True)
    export_model(model, source, tmp_path / "sound", options)
    plant(monkeypatch, "stages/fusion.onnx", less_likely_still)
    with pytest.raises(ExportError, match="the stages joined differ"):
        export_model(model, source, tmp_path / "net", options)


def test_another_networks_bundle_is_noticed(tmp_path: Path) -> None:
    bundle = export_tiny(tmp_path / "net")
    with pytest.raises(ExportError, match="differs from the network"):
        prove(bundle.path, bundle.manifest, tiny_network(seed=1))


def test_weights_that_cannot_be_written(tmp_path: Path) -> None:
    from parnet_deploy.export.weights import write_weights

    with pytest.raises(ExportError, match="cannot write the weights"):
        write_weights(tmp_path / "nowhere" / "weights.safetensors", {"x": np.zeros(3)})


def test_the_gate_reads_the_files_that_are_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage in the weights file itself, which whole and stages share, is noticed too."""
    write = exporting.write_graphs

    def write_and_damage(work: Path, whole: object, manifest: ModelManifest) -> None:
        write(work, whole, manifest)
        data = bytearray((work / WEIGHTS).read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        data[start : start + 4096] = bytes(4096)
        (work / WEIGHTS).write_bytes(data)

    monkeypatch.setattr(exporting, "write_graphs", write_and_damage)
    with pytest.raises(ExportError, match="differs from the network"):
        export(tmp_path / "net")
    assert not any(tmp_path.iterdir())
