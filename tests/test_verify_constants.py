"""Constants that are not quantised: every one of every form, and a wrong one is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import verify_faults as faults
import verify_precision as precise
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from strategies import FORMS
from torch import nn

from parnet_deploy.bundle import CHECKPOINT, ModelBundle, open_model
from parnet_deploy.lowering.weights import quantised
from parnet_deploy.net import ParNet, fuse, load_checkpoint
from parnet_deploy.spec import Array, Backend, DeployForm
from parnet_deploy.spec.form import default_form
from parnet_deploy.spec.quantisation import Calibration, Quantisation, scheme_of
from parnet_deploy.verify.built import CONSTANTS, KERNELS, QUANTISERS, check_model
from parnet_deploy.verify.constants import GraphConstants, constant_problems
from parnet_deploy.verify.folded import BIAS
from parnet_deploy.verify.graph_facts import look_into
from parnet_deploy.verify.kernels import apart, kernel_problems
from parnet_deploy.verify.options import VerifyOptions
from parnet_deploy.verify.result import CheckResult
from parnet_deploy.verify.verifying import verify
from parnet_deploy.verify.written import WrittenKernel

KEEP = ("stem2",)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return precise.write_pixels(tmp_path_factory.mktemp("pixels") / "pixels.npz")


@pytest.fixture(scope="module")
def models(pixels: Path) -> dict[str, ModelBundle]:
    """One of each precision; int8 keeps a layer."""
    folder = pixels.parent
    return {
        "fp32": precise.export_precision(folder / "fp32", pixels, "fp32"),
        "fp16": precise.export_precision(folder / "fp16", pixels, "fp16", "tensorrt-rtx"),
        "int8": precise.export_precision(folder / "int8", pixels, "int8", "tensorrt-rtx", KEEP),
        "fp8": precise.export_precision(folder / "fp8", pixels, "fp8", "tensorrt-rtx"),
    }


def checks(model: ModelBundle, name: str = CONSTANTS) -> list[CheckResult]:
    """What is found of the graphs, whole and in stages."""
    network = load_checkpoint(model.file(CHECKPOINT)).model
    facts = look_into(model, fuse(network, model.manifest.form))
    return [check for check in check_model(model.manifest, facts) if check.name == name]


def passes(model: ModelBundle) -> None:
    found = checks(model) + checks(model, KERNELS)
    assert all(check.verdict == "passed" for check in found), found


def doubled(values: Array) -> Array:
    return values * 2


def half_more(values: Array) -> Array:
    return values + 0.5


def negated(values: Array) -> Array:
    return -values


def one_is_off(values: Array) -> Array:
    """By a hundredth of the greatest."""
    changed = values.copy()
    changed.flat[1] += 0.01 * np.abs(values).max()
    return changed


FAULTS = [
    ("merge3.conv.bias", half_more, ("merge3: the bias of 'merge3.conv' is",)),
    ("stem1.conv.bias", one_is_off, ("stem1: the bias of 'stem1.conv' is", "(1 of 8 differ")),
    ("stream3_block2.squeeze.weight", negated, ("the weight of 'stream3_block2.squeeze' is",)),
    ("logits.weight", lambda values: values / 2, ("head: the weight of 'logits' is",)),
    ("logits.bias", half_more, ("head: the bias of 'logits' is",)),
    ("stream2_block1.identity.weight", doubled, ("the scale", "'stream2_block1.identity' is")),
    ("merge2.norm1.bias", half_more, ("merge2: the shift", "'merge2.norm1' is")),
    ("stem2.conv.weight", one_is_off, ("stem2: the weight of 'stem2.conv' is",)),
]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8"])
def test_a_wrong_constant_is_found_and_named(
    precision: str, models: dict[str, ModelBundle], tmp_path: Path
) -> None:
    model = models[precision]
    passes(model)
    for number, (name, change, parts) in enumerate(FAULTS):
        if name == "stem2.conv.weight" and precision == "fp8":
            continue  # it is quantised there
        path = precise.copy_of(model, tmp_path / f"{number}")
        precise.change_graphs(path, precise.constant(name, change))
        whole, stages = checks(faults.reseal_model(path))
        for check in (whole, stages):
            assert check.verdict == "failed", name
            assert all(part in check.detail for part in parts), check.detail
        assert "model.onnx: " in whole.detail
        assert "stages/" in stages.detail


def test_a_wrong_constant_of_one_stage_is_found_there(
    models: dict[str, ModelBundle], tmp_path: Path
) -> None:
    path = precise.copy_of(models["int8"], tmp_path / "model")
    change = precise.constant("stream2_block1.conv.bias", half_more)
    precise.change_graphs(path, change, "stages/stream2.onnx")
    whole, stages = checks(faults.reseal_model(path))
    assert whole.verdict == "passed"
    assert stages.verdict == "failed"
    assert stages.detail.startswith("stages/stream2.onnx: stream2_block1: the bias")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("merge3.conv.bias", half_more),
        ("stream3_block2.squeeze.weight", negated),
        ("logits.weight", lambda values: values / 2),
    ],
    ids=["bias", "squeeze", "classifier"],
)
def test_verify_fails_by_it(
    name: str, change: precise.Values, models: dict[str, ModelBundle], pixels: Path, tmp_path: Path
) -> None:
    """At the outputs these are within what int8 is allowed."""
    path = precise.copy_of(models["int8"], tmp_path / "model")
    precise.change_graphs(path, precise.constant(name, change))
    faults.reseal_model(path)
    found = verify(path, VerifyOptions(samples=4, npz=pixels))
    assert not found.passed
    assert name.rpartition(".")[0] in found.failures[0]


def test_a_constant_under_a_right_name_that_nothing_reads_does_not_count(
    models: dict[str, ModelBundle], tmp_path: Path
) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.name == "stem1.conv":
                known = {tensor.name: tensor for tensor in model.graph.initializer}
                wrong = numpy_helper.to_array(known[node.input[2]]) + 1
                model.graph.initializer.append(numpy_helper.from_array(wrong, "other"))
                node.input[2] = "other"

    path = precise.copy_of(models["int8"], tmp_path / "model")
    precise.change_graphs(path, change)
    whole, _ = checks(faults.reseal_model(path))
    assert "stem1: the bias of 'stem1.conv' is" in whole.detail


def test_an_operator_of_a_right_name_that_nothing_reads_does_not_count(
    models: dict[str, ModelBundle], tmp_path: Path
) -> None:
    def change(model: onnx.ModelProto) -> None:
        (right,) = (node for node in model.graph.node if node.name == "logits")
        double = onnx.NodeProto()
        double.CopyFrom(right)
        double.output[0] = "unread"
        known = {tensor.name: tensor for tensor in model.graph.initializer}
        wrong = numpy_helper.to_array(known[right.input[2]]) + 1
        model.graph.initializer.append(numpy_helper.from_array(wrong, "other"))
        right.input[2] = "other"
        model.graph.node.append(double)

    path = precise.copy_of(models["fp32"], tmp_path / "model")
    precise.change_graphs(path, change, "model.onnx")
    whole, _ = checks(faults.reseal_model(path))
    assert "the bias of 'logits' is" in whole.detail
    assert "logits (Gemm) reads a constant, and the checkpoint has none for it" in whole.detail


def test_an_operator_that_the_network_does_not_have(
    models: dict[str, ModelBundle], tmp_path: Path
) -> None:
    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        graph.initializer.append(numpy_helper.from_array(np.full(1, 1.5, np.float32), "more"))
        for node in graph.node:
            if node.name == "logits":
                node.output[0] = "less"
        graph.node.append(helper.make_node("Mul", ["less", "more"], ["logits"], name="times"))

    path = precise.copy_of(models["fp32"], tmp_path / "model")
    precise.change_graphs(path, change, "model.onnx")
    whole, stages = checks(faults.reseal_model(path))
    assert "'times' reads a constant, and the checkpoint has no such operator" in whole.detail
    assert stages.verdict == "passed"


def test_a_bias_that_is_missing(models: dict[str, ModelBundle], tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.name == "stem3.conv":
                del node.input[2]

    path = precise.copy_of(models["fp8"], tmp_path / "model")
    precise.change_graphs(path, change)
    whole, _ = checks(faults.reseal_model(path))
    assert "stem3: the bias of 'stem3.conv' is missing" in whole.detail


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("form", [FORMS[0], FORMS[-1], default_form("tensorrt-rtx")], ids=str)
def test_evened_out_and_corrected_constants_are_the_checkpoints(
    form: DeployForm, activation: str, pixels: Path, tmp_path: Path
) -> None:
    """And wrong ones are found: channels may be scaled, but what reads them is divided by that."""
    model = precise.export_precision(
        tmp_path / "model",
        pixels,
        "int8",
        "onnxruntime",
        form=form,
        changes={"activation": activation},
        equalise=True,
        correct_bias=True,
    )
    quantisation = model.manifest.quantisation
    assert quantisation is not None
    assert 0 < max(quantisation.shifts.values()) < 0.5
    passes(model)
    wrong = {
        "norm": ("merge2.norm0.weight", doubled),
        "bias": ("merge1.conv.bias", half_more),
        "squeeze": ("merge3.squeeze.weight", doubled),
        "classifier": ("logits.weight", one_is_off),
    }
    for what, (name, change) in wrong.items():
        path = precise.copy_of(model, tmp_path / what)
        precise.change_graphs(path, precise.constant(name, change))
        damaged = faults.reseal_model(path)
        found = [c for c in checks(damaged) + checks(damaged, KERNELS) if c.verdict == "failed"]
        assert found, what
        assert any(name.partition(".")[0].replace("logits", "head") in c.detail for c in found)


def dead(network: ParNet) -> None:
    """Every third channel of a convolution is its bias alone."""
    for norm in _norms(network, ""):
        norm.weight.data[::3] = 0
        norm.bias.data += torch.linspace(-0.5, 0.5, len(norm.bias))


def uneven(network: ParNet) -> None:
    """Some channels are a hundredth of others: one step of a kernel's scale is more."""
    for norm in _norms(network, "_block"):
        norm.weight.data *= torch.logspace(-2, 0.3, len(norm.weight))


def tiny(network: ParNet) -> None:
    """Scales are among float16's least numbers, and below the least."""
    for norm in _norms(network, "stream2"):
        norm.weight.data *= 1e-6
        norm.bias.data *= 1e-6


def _norms(network: ParNet, part: str) -> list[nn.BatchNorm2d]:
    """The normalisations of blocks with such a part in their names."""
    blocks = [block for name, block in network.blocks.items() if part in name]
    every = [module for block in blocks for module in block.modules()]
    return [module for module in every if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("change", "backend", "per_channel"), [(dead, "onnxruntime", True), (uneven, "openvino", False)]
)
def test_channels_are_evened_out_whose_kernels_show_nothing_of_it(
    change: Callable[[ParNet], None],
    backend: Backend,
    per_channel: bool,
    pixels: Path,
    tmp_path: Path,
) -> None:
    """Then what is not quantised shows it."""
    model = precise.export_precision(
        tmp_path / "model",
        pixels,
        form=default_form(backend),
        changes={"activation": "relu"},
        equalise=True,
        correct_bias=True,
        per_channel=per_channel,
        change=change,
    )
    passes(model)


def test_numbers_among_the_least_of_float16_are_the_checkpoints(
    pixels: Path, tmp_path: Path
) -> None:
    model = precise.export_precision(tmp_path / "model", pixels, "int8", "tensorrt", change=tiny)
    passes(model)
    assert all(check.verdict == "passed" for check in checks(model, QUANTISERS))


@given(magnitude=st.floats(-12, 3), seed=st.integers(0, 99), per_channel=st.booleans())
@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_kernels_of_any_magnitude_are_known(
    backend: Backend, magnitude: float, seed: int, per_channel: bool
) -> None:
    """And one that is wrong is found, but among what float16 rounds to 0."""
    scheme = scheme_of("int8", backend)
    assert scheme is not None
    rng = np.random.default_rng(seed)
    want = (rng.normal(size=(4, 3, 3, 3)) * 10.0**magnitude).astype(np.float32)
    made = quantised("w", want, "int8", base=scheme.base, per_channel=per_channel)
    kernel = WrittenKernel(values=made.values, scale=made.scale, zero_point=np.zeros((), np.int8))
    calibration = Calibration(method="minmax", images=1, sha256="0" * 64, source="-")
    how = Quantisation(scheme=scheme, tensors={}, calibration=calibration, per_channel=per_channel)
    expected = {"stem1": want.astype(np.float64)}
    assert list(kernel_problems({"stem1": kernel}, expected, how)) == []
    if scheme.base == "fp32" or magnitude > -4:
        for wrong in (
            replace(kernel, scale=kernel.scale * 2),
            replace(kernel, values=-made.values),
        ):
            assert list(kernel_problems({"stem1": wrong}, expected, how))


def test_a_tiny_constant_is_not_any_constant_in_float32() -> None:
    want = {"stem1.conv": {BIAS: np.full(3, 1e-9)}}
    right = GraphConstants(known={"stem1.conv": {BIAS: np.full(3, 1.0000001e-9)}}, others=())
    wrong = replace(right, known={"stem1.conv": {BIAS: np.full(3, 2e-9)}})
    assert list(constant_problems(right, want, {"stem1": "fp32"}, None, "g")) == []
    assert list(constant_problems(wrong, want, {"stem1": "fp32"}, None, "g"))
    assert list(constant_problems(wrong, want, {"stem1": "fp16"}, None, "g")) == []


def test_a_channel_that_was_scaled_where_the_manifest_knows_of_none(
    pixels: Path, tmp_path: Path
) -> None:
    model = precise.export_precision(tmp_path / "model", pixels, equalise=True)
    passes(model)
    precise.change_quantisation(model.path, lambda found: replace(found, equalised=False))
    whole, _ = checks(open_model(model.path))
    assert whole.verdict == "failed"
    assert "merge2: the scale" in whole.detail


def test_corrections_of_which_the_manifest_says_nothing_are_not_judged(
    pixels: Path, tmp_path: Path
) -> None:
    """Such a manifest was written before it did."""
    model = precise.export_precision(tmp_path / "model", pixels, correct_bias=True)
    passes(model)
    precise.change_quantisation(model.path, lambda found: replace(found, shifts={}))
    whole, _ = checks(open_model(model.path))
    assert whole.verdict != "passed"


@pytest.mark.parametrize("in_graph", [False, True])
def test_probabilities_and_pixels(in_graph: bool, pixels: Path, tmp_path: Path) -> None:
    model = precise.export_precision(
        tmp_path / "model", pixels, "bf16", "openvino", in_graph=in_graph
    )
    passes(model)
    if in_graph:
        path = precise.copy_of(model, tmp_path / "wrong")
        precise.change_graphs(path, precise.constant("preprocess.scale", doubled))
        whole, _ = checks(faults.reseal_model(path))
        assert "the weight of 'preprocess.scaled' is" in whole.detail


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (1.0, 2.0, ("1", "2")),
        (0.123456, 0.123489, ("0.12346", "0.12349")),
        (0.5, 0.5, ("0.5", "0.5")),
    ],
)
def test_numbers_are_told_apart(one: float, other: float, words: tuple[str, str]) -> None:
    assert apart(one, other) == words
