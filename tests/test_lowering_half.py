"""Graphs in float16: what is rounded, what is not, and how far the answers part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from conftest import export_tiny, tiny_network, tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from strategies import FORMS, specs

from parnet_deploy.bundle import MODEL_GRAPH, ModelBundle, Source
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.errors import ExportError, SpecError
from parnet_deploy.export import ExportOptions, export_model, gate, whole_graph
from parnet_deploy.export.model import export_onnx
from parnet_deploy.export.stages import contracts
from parnet_deploy.lowering import half, lower
from parnet_deploy.net import ParNet, fuse, initialise
from parnet_deploy.runtime import OnnxRuntimeRunner
from parnet_deploy.spec import IMAGES, LOGITS, DeployForm, ParNetSpec, Preprocessing
from parnet_deploy.spec.precision import Precision, arithmetic, rounding_tolerance
from parnet_deploy.verify.options import VerifyOptions
from parnet_deploy.verify.result import Verification
from parnet_deploy.verify.verifying import verify


@pytest.fixture(scope="module")
def half_bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return export_tiny(tmp_path_factory.mktemp("models") / "half", stem="share", precision="fp16")


def options(spec: ParNetSpec, precision: Precision = "fp16", **changes: object) -> ExportOptions:
    preprocessing = Preprocessing(size=spec.image_size)
    return ExportOptions(  # type: ignore[arg-type]
        **{"name": "half", "preprocessing": preprocessing, "precision": precision} | changes
    )


def graph_of(model: ParNet, precision: Precision, **changes: object) -> gs.Graph:
    chosen = options(model.spec, precision, **changes)
    return whole_graph(fuse(model, chosen.form), chosen)


def types(graph: gs.Graph) -> dict[str, int]:
    """ONNX element types of every value, as ONNX's own inference finds them."""
    proto = onnx.shape_inference.infer_shapes(export_onnx(graph), strict_mode=True)
    values = [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


# -- numbers


def test_the_numbers_of_a_precision_are_numpys() -> None:
    for precision, kind in (("fp32", np.float32), ("fp16", np.float16)):
        known, numbers = arithmetic(precision), np.finfo(kind)
        assert np.dtype(known.dtype) == kind
        assert known.greatest == float(numbers.max)
        assert known.roundoff == float(numbers.eps) / 2


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SpecError, match="no precision 'fp12'; there are fp32, fp16"):
        options(tiny_spec(), "fp12")  # type: ignore[arg-type]


# -- the graph


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("in_graph", [False, True])
def test_everything_between_images_and_logits_is_float16(softmax: bool, in_graph: bool) -> None:
    model = tiny_network()
    preprocessing = Preprocessing(size=model.spec.image_size, in_graph=in_graph)
    graph = graph_of(model, "fp16", preprocessing=preprocessing, softmax=softmax)
    outside = {IMAGES, LOGITS, "probabilities"}
    outside |= {name for name in types(graph) if name.startswith("preprocess")}
    outside -= {"preprocess.fp16"}
    kinds = types(graph)
    assert kinds[IMAGES] == (onnx.TensorProto.UINT8 if in_graph else onnx.TensorProto.FLOAT)
    assert {kinds[name] for name in outside & kinds.keys() - {IMAGES}} == {onnx.TensorProto.FLOAT}
    assert {kind for name, kind in kinds.items() if name not in outside} == {
        onnx.TensorProto.FLOAT16
    }
    (output,) = graph.outputs
    assert output.name == ("probabilities" if softmax else LOGITS)


def test_weights_are_rounded_once_and_the_fp32_graph_stays_as_it_was() -> None:
    model = tiny_network()
    exact = graph_of(model, "fp32")
    before = export_onnx(exact).SerializeToString(deterministic=True)
    lowered = lower(exact, "fp16", first=IMAGES, last=LOGITS)
    assert export_onnx(exact).SerializeToString(deterministic=True) == before
    full = {t.name: numpy_helper.to_array(t) for t in export_onnx(exact).graph.initializer}
    norms = {name for name in full if ".identity." in name or ".norm" in name}
    rounded = {t.name: numpy_helper.to_array(t) for t in export_onnx(lowered).graph.initializer}
    assert rounded.keys() == full.keys()
    for name in full.keys() - norms:
        wanted = full[name].astype(np.float16) if full[name].dtype == np.float32 else full[name]
        np.testing.assert_array_equal(rounded[name], wanted, err_msg=name)
        assert rounded[name].dtype == wanted.dtype


def test_a_normalisation_is_folded_before_it_is_rounded() -> None:
    """Its variance may be beyond float16, its scale and shift are what must not be."""
    model = tiny_network()
    block = model.blocks["stream2_block1"]
    block.identity.running_var.fill_(1e6)
    block.identity.weight.data.fill_(500.0)
    scale = (block.identity.weight / (block.identity.running_var + 1e-5).sqrt()).detach().numpy()
    shift = (block.identity.bias - block.identity.running_mean * torch.tensor(scale)).detach()
    graph = graph_of(model, "fp16")
    (node,) = (node for node in graph.nodes if node.name == "stream2_block1.identity")
    found = [tensor.values for tensor in node.inputs[1:]]
    assert node.attrs["epsilon"] == 0.0
    np.testing.assert_array_equal(found[0], scale.astype(np.float16))
    np.testing.assert_allclose(found[1], shift.numpy(), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(found[2], np.zeros_like(found[2]))
    np.testing.assert_array_equal(found[3], np.ones_like(found[3]))


def test_fp32_is_left_as_it_is() -> None:
    graph = graph_of(tiny_network(), "fp32")
    assert lower(graph, "fp32", first=IMAGES, last=LOGITS) is graph


# -- answers


def run(graph: gs.Graph, spec: ParNetSpec, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and a graph's answers to it."""
    path = folder / "x.onnx"
    onnx.save(export_onnx(graph), path)
    images = np.random.default_rng(0).standard_normal((1, 3, *spec.image_size)).astype(np.float32)
    contract = contracts(spec, options(spec))
    inputs, outputs = (contract[IMAGES],), (contract[LOGITS],)
    with OnnxRuntimeRunner(path, inputs=inputs, outputs=outputs) as runner:
        return images, runner.run({IMAGES: images})[LOGITS]


@settings(max_examples=10)
@given(spec=specs(ensembles=False), form=st.sampled_from(FORMS), seed=st.integers(0, 3))
def test_any_network_keeps_within_the_roundings(
    tmp_path_factory: pytest.TempPathFactory, spec: ParNetSpec, form: DeployForm, seed: int
) -> None:
    model = initialise(spec, seed=seed).eval()
    images, actual = run(graph_of(model, "fp16", form=form), spec, tmp_path_factory.mktemp("half"))
    with torch.inference_mode():
        expected = model.double()(torch.from_numpy(images).double()).numpy()
    assert actual.dtype == np.float32
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= rounding_tolerance("fp16", spec)


# -- bundles


def test_cuts_cross_in_float16(half_bundle: ModelBundle) -> None:
    manifest = half_bundle.manifest
    assert manifest.precision == "fp16"
    assert manifest.cuts
    for cut in manifest.cuts:
        assert cut.tensor.dtype == "float16"
        assert cut.bytes == 2 * np.prod(cut.tensor.shape[1:])
    assert [spec.dtype for spec in (*manifest.inputs, *manifest.outputs)] == ["float32"] * 2
    assert not any("fp32" in str(path) for path in half_bundle.path.rglob("*"))


def test_half_the_bytes(half_bundle: ModelBundle, tiny_bundle: ModelBundle) -> None:
    sizes = [
        bundle.manifest.files["stages/weights.safetensors"].bytes
        for bundle in (half_bundle, tiny_bundle)
    ]
    assert 0.45 < sizes[0] / sizes[1] < 0.65


def by_rung(found: Verification) -> dict[str, str]:
    return {rung.name: rung.verdict for rung in found.rungs}


@pytest.mark.parametrize("split", [False, True])
def test_a_right_engine_passes_and_the_float32_rungs_are_judged_as_ever(
    half_bundle: ModelBundle, tmp_path: Path, split: bool
) -> None:
    builder = make_builder("onnxruntime", BuildOptions(provider="cpu", threads=1), split=split)
    engine = build_engine(half_bundle, tmp_path / "engine", builder, split=split)
    found = verify(engine.path, VerifyOptions(samples=2))
    assert found.passed, found.failures
    rung = "split-engine" if split else "engine"
    assert by_rung(found)[rung] == "passed"
    tolerance = {one.name: one.tolerance for one in found.rungs}
    allowed = rounding_tolerance("fp16", half_bundle.manifest.spec)
    assert (tolerance["fused-f32"], tolerance["fused-f64"]) == (1e-4, 1e-10)
    assert {tolerance[name] for name in ("onnx-whole", "onnx-stages", rung)} == {allowed}
    seen = {error.block for one in found.rungs if one.before for error in one.before.blocks}
    assert "stream2_block2" in seen, "blocks' values are seen in float16, too"


def test_fp16_sold_as_fp32_is_found(half_bundle: ModelBundle) -> None:
    """With what float32 is allowed, the same bundle fails."""
    strict = dict.fromkeys(("onnx-whole", "onnx-stages"), 1e-4)
    found = verify(half_bundle.path, VerifyOptions(samples=2, tolerances=strict))
    assert by_rung(found)["onnx-whole"] == "failed"


# -- what is refused


def export(final: Path, model: ParNet, precision: Precision = "fp16") -> None:
    export_model(model, Source(kind="untrained"), final, options(model.spec, precision))


def test_a_weight_beyond_the_range_is_named(tmp_path: Path) -> None:
    model = tiny_network()
    model.blocks["head"].linear.weight.data[0, 0] = 7e4
    words = r"'logits\.weight' reaches 7e\+04, and fp16 ends at 65504: .* --precision fp32"
    with pytest.raises(ExportError, match=words):
        export(tmp_path / "net", model)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("block", ["head", "stem2"])
def test_a_value_beyond_the_range_is_named(tmp_path: Path, block: str) -> None:
    """ONNX Runtime on a CPU would not have shown it."""
    model = tiny_network()
    if block == "head":
        model.blocks["head"].linear.weight.data.fill_(-4e4)
    else:
        model.blocks["stem2"].dense.bn.weight.data.mul_(2e4)
    words = r"on noise 'blocks\.\w+\..*' reaches .*, and fp16 ends at 65504: .* --precision fp32"
    with pytest.raises(ExportError, match=words):
        export(tmp_path / "net", model)
    assert not any(tmp_path.iterdir())


def test_what_half_would_hide_is_found_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong epsilon changes less than float16's roundings may."""
    from parnet_deploy.export import model as exporting

    def fuse_wrongly(model: ParNet, form: DeployForm) -> object:
        fused = fuse(model, form)
        for module in fused.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 2e-3
        return fused

    monkeypatch.setattr(exporting, "fuse", fuse_wrongly)
    with pytest.raises(ExportError, match="the whole graph differs from the network by"):
        export(tmp_path / "net", tiny_network())
    monkeypatch.setattr(exporting, "_prove_in_float32", lambda *_: None)
    export(tmp_path / "net", tiny_network())  # the float16 gate alone lets it pass


@pytest.mark.parametrize("fault", ["stale", "order", "fp32"])
def test_a_fault_while_rounding_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def wrongly(name: str, values: np.ndarray, precision: Precision) -> np.ndarray:
        if name != "stream2_block1.conv.weight":
            return values.astype(np.float16)
        wrong = {"stale": values[::-1], "order": values.swapaxes(2, 3), "fp32": values * 0}
        return np.ascontiguousarray(wrong[fault]).astype(np.float16)

    monkeypatch.setattr(half, "rounded", wrongly)
    with pytest.raises(ExportError, match="the whole graph differs from the network by"):
        export(tmp_path / "net", tiny_network())
    assert not any(tmp_path.iterdir())


def test_the_gates_tolerance_is_the_precisions(half_bundle: ModelBundle) -> None:
    rounded = rounding_tolerance("fp16", half_bundle.manifest.spec)
    assert gate.tolerances(half_bundle.manifest) == (rounded, gate.STAGES_TOLERANCE)
    assert half_bundle.file(MODEL_GRAPH).exists()
