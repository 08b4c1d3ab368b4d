"""int8 and fp8 graphs: what is quantised and what is not, and faults that the gate must catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import tiny_network, tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from strategies import specs, stem_modes
from verify_precision import without_pair

from parnet_deploy.bundle import MODEL_GRAPH, BatchRange, ModelManifest, Source
from parnet_deploy.errors import ExportError, SpecError, UsageError
from parnet_deploy.export import ExportOptions
from parnet_deploy.export import model as exporting
from parnet_deploy.export.gate import prove
from parnet_deploy.export.graph import float_graph, whole_graph
from parnet_deploy.export.model import describe, export_model, export_onnx, write_graphs
from parnet_deploy.lowering import (
    EXACTLY,
    emulate,
    keeping,
    layer_types,
    layers,
    lower,
    observed,
    quantisation_faults,
    stored_weights,
)
from parnet_deploy.lowering.weights import quantised
from parnet_deploy.net import ParNet, fuse, initialise
from parnet_deploy.spec import IMAGES, LOGITS, Array, Backend, ParNetSpec, Preprocessing
from parnet_deploy.spec.form import default_form
from parnet_deploy.spec.layout import layout
from parnet_deploy.spec.precision import Precision
from parnet_deploy.spec.quantisation import (
    LIMITS,
    Calibration,
    Quantisation,
    Quantiser,
    Scheme,
    scheme_of,
)

TARGETS: tuple[tuple[Precision, Backend], ...] = (
    ("fp16", "tensorrt-rtx"),
    ("bf16", "tensorrt-rtx"),
    ("int8", "tensorrt-rtx"),
    ("fp8", "tensorrt-rtx"),
    ("int8", "onnxruntime"),
)


def options_for(
    spec: ParNetSpec,
    precision: Precision = "int8",
    backend: Backend = "tensorrt-rtx",
    **more: object,
) -> ExportOptions:
    """Options in a precision, as the backend takes it, with ranges that noise keeps within."""
    options = ExportOptions(
        **{  # type: ignore[arg-type]
            "name": "net",
            "preprocessing": Preprocessing(size=spec.image_size),
            "form": default_form(backend),
            "precision": precision,
        }
        | more
    )
    scheme = scheme_of(precision, backend)
    if scheme is None:
        return options
    graph = float_graph(fuse(initialise(spec, seed=0).eval(), options.form), options)
    return replace(options, quantisation=quantisation_of(graph, scheme))


def quantisation_of(graph: object, scheme: Scheme, **more: object) -> Quantisation:
    names = observed(graph, scheme)
    low, high = LIMITS[scheme.activation]
    quantiser = Quantiser(
        dtype=scheme.activation,
        scale=8.0 / (high - low),
        zero_point=128 if scheme.activation == "uint8" else 0,
    )
    calibration = Calibration(method="minmax", images=1, sha256="0", source="noise")
    return Quantisation(
        scheme=scheme,
        calibration=calibration,
        tensors=dict.fromkeys(names, quantiser),
        **more,  # type: ignore[arg-type]
    )


def proto_of(model: ParNet, options: ExportOptions) -> onnx.ModelProto:
    return export_onnx(whole_graph(fuse(model, options.form), options))


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


# -- what is quantised


@pytest.mark.parametrize(("precision", "backend"), TARGETS)
def test_every_layer_has_the_type_and_the_opset_that_it_takes(
    precision: Precision, backend: Backend
) -> None:
    model = tiny_network()
    proto = proto_of(model, options_for(model.spec, precision, backend))
    onnx.checker.check_model(proto, full_check=True)
    types = dict(layer_types(proto))
    head = types.pop("head")
    assert set(types.values()) == {precision}
    assert types.keys() == {b.name for b in layout(model.spec) if b.kind != "head"}
    wanted = {"fp16": "fp16", "bf16": "fp32"}.get(precision)
    assert head == (wanted or ("fp16" if backend == "tensorrt-rtx" else "fp32"))
    opset = {"fp16": 18, "bf16": 22}.get(precision, 19)
    assert proto.opset_import[0].version == opset


def test_blocks_values_bear_their_names_in_the_reduced_type() -> None:
    model = tiny_network()
    options = options_for(model.spec)
    found = kinds(proto_of(model, options))
    assert found[IMAGES] == onnx.TensorProto.FLOAT
    assert found["images.quantised"] == onnx.TensorProto.INT8
    assert options.quantisation is not None
    for name in options.quantisation.tensors:
        if name != IMAGES:
            assert found[name] == onnx.TensorProto.INT8
        assert found[f"{name}.dequantised"] == onnx.TensorProto.FLOAT16
    assert found[LOGITS] == onnx.TensorProto.FLOAT


def test_preprocessed_images_are_quantised_inside() -> None:
    model = tiny_network()
    preprocessing = Preprocessing(size=model.spec.image_size, in_graph=True)
    found = kinds(proto_of(model, options_for(model.spec, preprocessing=preprocessing)))
    assert found[IMAGES] == onnx.TensorProto.UINT8
    assert found["preprocess.quantised"] == onnx.TensorProto.INT8


def test_kept_layers_stay_in_the_base_and_what_only_they_needed_is_not_quantised() -> None:
    model = tiny_network()
    options = options_for(model.spec)
    graph = float_graph(fuse(model, options.form), options)
    assert options.quantisation is not None
    kept = keeping(graph, options.quantisation, ("stem1", "merge3", "last"))
    assert not {IMAGES, "merge3.join", "merge3"} & kept.tensors.keys()
    lowered = replace(options, quantisation=kept)
    proto = proto_of(model, lowered)
    types = layer_types(proto)
    assert {block for block, kind in types.items() if kind != "int8"} == {*kept.kept, "head"}
    assert {types[block] for block in kept.kept} == {"fp16"}
    assert kinds(proto)["merge3"] == onnx.TensorProto.FLOAT16
    assert lowered.dtype("merge3") == "float16"
    assert lowered.dtype("stem2") == "int8"


def test_layers_and_what_is_observed() -> None:
    model = tiny_network()
    options = options_for(model.spec)
    graph = float_graph(fuse(model, options.form), options)
    found = layers(graph)
    assert [layer.block for layer in found if layer.input == IMAGES] == ["stem1"]
    (fusion,) = (layer for layer in found if layer.block == "merge2")
    assert fusion.input == "merge2.join"
    symmetric, outputs = scheme_of("int8", "tensorrt"), scheme_of("int8", "onnxruntime")
    assert symmetric is not None
    assert outputs is not None
    names = observed(graph, symmetric)
    assert {"merge1", "stream2_block2", "merge2.join"} <= set(names)
    assert not any(name.endswith(".conv") for name in names)
    more = set(observed(graph, outputs)) - set(names)
    assert more == {layer.output for layer in found}


# -- what is refused


def test_what_does_not_fit_is_refused() -> None:
    model = tiny_network()
    options = options_for(model.spec)
    graph = float_graph(fuse(model, options.form), options)
    whole = options.quantisation
    assert whole is not None

    def with_(changed: Quantisation | None) -> None:
        lower(graph, "int8", first=IMAGES, last=LOGITS, quantisation=changed)

    with pytest.raises(ExportError, match=r"int8 needs ranges: .*--calibrate"):
        with_(None)
    with pytest.raises(UsageError, match="no layer 'stem9' to keep; there are stem1, "):
        with_(replace(whole, kept=("stem9",)))
    fewer = {name: one for name, one in whole.tensors.items() if name != "stem1"}
    with pytest.raises(ExportError, match="'stem1' is to be quantised and has no range"):
        with_(replace(whole, tensors=fewer))
    one = whole.tensors["stem1"]
    with pytest.raises(ExportError, match="of another network: it has no 'other'"):
        with_(replace(whole, tensors={**whole.tensors, "other": one}))
    unsigned = Quantiser(dtype="uint8", scale=1.0)
    with pytest.raises(ExportError, match="calibrated for uint8, and the target takes int8"):
        with_(replace(whole, tensors={**whole.tensors, "stem1": unsigned}))
    with pytest.raises(SpecError, match="fp16 takes no quantisation"):
        replace(options, precision="fp16")


@pytest.mark.parametrize("value", [np.nan, np.inf, 7e4])
def test_a_weight_that_cannot_be_is_named(value: float) -> None:
    values = np.ones((2, 3, 3, 3), np.float32)
    values[1, 0, 0, 0] = value
    with pytest.raises(ExportError, match=r"weight 'w' reaches .*, and fp16 ends at 65504"):
        quantised("w", values, "int8", base="fp16", per_channel=True)


# -- weights


@settings(max_examples=30)
@given(
    seed=st.integers(0, 99),
    kind=st.sampled_from(["int8", "float8_e4m3fn"]),
    base=st.sampled_from(["fp16", "fp32"]),
    per_channel=st.booleans(),
    factored=st.booleans(),
    spread=st.floats(-4, 4),
)
def test_weights_stand_for_what_they_were_within_half_a_step(
    seed: int, kind: str, base: str, per_channel: bool, factored: bool, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((4, 3, 3, 3)) * np.exp(rng.normal(size=(4, 1, 1, 1)) * spread / 2)
    values[2] = 0
    weight = values.astype(np.float32)
    found = quantised(
        "w",
        weight,
        kind,
        base=base,
        per_channel=per_channel,
        factored=factored,  # type: ignore[arg-type]
    )
    limit = LIMITS[kind][1]  # type: ignore[index]
    steps = found.values.astype(np.float64)
    assert np.abs(steps).max() <= limit
    scales = found.scales().reshape(-1, 1, 1, 1)
    step = 0.5 if kind == "int8" else np.maximum(np.abs(steps) * 2**-4, 2.0**-10)
    clipped = np.abs(weight) / scales > limit  # the scale was rounded down
    error = np.abs(weight / scales - steps)
    assert (error[~clipped] <= (step + 0 * error + 1e-9)[~clipped]).all()
    assert (error[clipped] <= limit * 2**-9).all()
    np.testing.assert_array_equal(found.dequantised()[2], 0.0)


# -- the gate


@settings(max_examples=12)
@given(data=st.data(), spec=specs(ensembles=False), target=st.sampled_from(TARGETS))
def test_stages_joined_are_the_whole_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    spec: ParNetSpec,
    target: tuple[Precision, Backend],
) -> None:
    batch = data.draw(st.sampled_from([BatchRange(), BatchRange(min=1, opt=2, max=3)]))
    in_graph, softmax = data.draw(st.booleans()), data.draw(st.booleans())
    stem = data.draw(st.sampled_from(stem_modes(spec)))
    preprocessing = Preprocessing(size=spec.image_size, in_graph=in_graph)
    options = options_for(
        spec, *target, batch=batch, softmax=softmax, stem=stem, preprocessing=preprocessing
    )
    model = initialise(spec, seed=1).eval()
    fused = fuse(model, options.form)
    if options.quantisation is not None:
        blocks = [layer.block for layer in layers(float_graph(fused, options))]
        kept = tuple(data.draw(st.lists(st.sampled_from(blocks), max_size=3, unique=True)))
        changed = keeping(float_graph(fused, options), options.quantisation, kept)
        options = replace(options, quantisation=changed)
    folder = tmp_path_factory.mktemp("graphs")
    manifest = describe(spec, Source(kind="untrained"), options)
    write_graphs(folder, whole_graph(fused, options), manifest)
    with pytest.MonkeyPatch.context() as patch:  # untrained ranges are made up: only this counts
        patch.setattr("parnet_deploy.export.gate.tolerances", lambda manifest: (np.inf, 0.0))
        assert prove(folder, manifest, model).stages == 0.0
    for cut in manifest.cuts:
        name = cut.tensor.name
        tensors = {} if options.quantisation is None else options.quantisation.tensors
        if name not in (IMAGES, LOGITS):
            wanted = tensors[name].dtype if name in tensors else options.dtype(name)
            assert cut.tensor.dtype == wanted


Fault = Callable[[onnx.ModelProto], None]


def constant(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    (found,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
    return found


def put(tensor: onnx.TensorProto, values: Array) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def wrong_scale(proto: onnx.ModelProto) -> None:
    tensor = constant(proto, "stem2.quantise.scale")
    put(tensor, numpy_helper.to_array(tensor) * np.float16(2))


def wrong_weight_scale(proto: onnx.ModelProto) -> None:
    tensor = constant(proto, "stem2.conv.weight.scale")
    put(tensor, numpy_helper.to_array(tensor) * np.float16(2))


def wrong_factor(proto: onnx.ModelProto) -> None:
    tensor = constant(proto, "stem2.conv.factor")
    values = numpy_helper.to_array(tensor).copy()
    values[..., 0] *= 2
    put(tensor, values)


def zero_point(proto: onnx.ModelProto) -> None:
    put(constant(proto, "stem2.quantise.zero_point"), np.array(3, np.int8))


def unsigned(proto: onnx.ModelProto) -> None:
    put(constant(proto, "stem2.quantise.zero_point"), np.array(0, np.uint8))


def stale_weight(proto: onnx.ModelProto) -> None:
    tensor = constant(proto, "stem2.conv.weight")
    put(tensor, np.ascontiguousarray(numpy_helper.to_array(tensor)[::-1]))


def missing_pair(proto: onnx.ModelProto) -> None:
    """What stem3 reads, and with it what other blocks read of stem2, is not quantised."""
    without_pair("stem2")(proto)


FAULTS: dict[str, tuple[Fault, str]] = {
    "scale": (wrong_scale, r"the scale of 'stem2\.quantise' is"),
    "weight scale": (wrong_weight_scale, r"the scales of 'stem2\.conv\.weight' are not"),
    "factor": (wrong_factor, r"the scales of 'stem2\.conv\.weight' are not"),
    "zero point": (zero_point, r"the zero point of 'stem2\.quantise' is 3, not 0"),
    "unsigned": (unsigned, r"'stem2\.quantise' is uint8, not int8"),
    "missing": (missing_pair, r"'stem3' is to be quantised, and reads 'stem2', which is not"),
    "stale": (stale_weight, r"'stem2\.conv\.weight' is not the network's"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_quantised_graph_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fault, words = FAULTS[name]
    write = exporting.write_graphs

    def write_and_damage(work: Path, whole: object, manifest: ModelManifest) -> None:
        write(work, whole, manifest)
        if manifest.quantisation is not None:
            proto = onnx.load(work / MODEL_GRAPH)
            fault(proto)
            onnx.save(proto, work / MODEL_GRAPH)

    monkeypatch.setattr(exporting, "write_graphs", write_and_damage)
    model = tiny_network()
    with pytest.raises(ExportError, match=f"{MODEL_GRAPH}: {words}"):
        export_model(
            model, Source(kind="untrained"), tmp_path / "net", options_for(model.spec, stem="share")
        )
    assert not any(tmp_path.iterdir())


def test_a_right_graph_has_no_faults_and_its_weights_are_read_back() -> None:
    model = tiny_network()
    options = options_for(model.spec)
    fused = fuse(model, options.form)
    proto = proto_of(model, options)
    graph = float_graph(fused, options)
    tensors = graph.tensors()
    weights = {layer.weight: tensors[layer.weight].values for layer in layers(graph)}
    assert options.quantisation is not None
    assert quantisation_faults(proto, options.quantisation, weights) == ()
    stored = stored_weights(proto)
    assert stored["stem2"].factor is not None, "a gated block in NHWC"
    for layer in layers(graph):
        found, wanted = stored[layer.block].dequantised(), weights[layer.weight]
        assert np.abs(found - wanted).max() <= np.abs(wanted).max() / 200


def test_emulated_bfloat16_rounds() -> None:
    """A Cast there and back is not taken for nothing, whether the graph is rewritten or not."""
    cast = [
        onnx.helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.BFLOAT16),
        onnx.helper.make_node("Relu", ["y"], ["z"]),
    ]
    values = [
        onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4]),
        onnx.helper.make_tensor_value_info("z", onnx.TensorProto.BFLOAT16, [4]),
    ]
    graph = onnx.helper.make_graph(cast, "g", values[:1], values[1:])
    opset = [onnx.helper.make_opsetid("", 22)]
    proto = emulate(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), EXACTLY)
    x = np.array([1.001, -2.0, 3.14159, 1e30], np.float32)
    wanted = np.maximum(x, 0).astype(ml_dtypes.bfloat16).astype(np.float32)
    for level in (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        settings_ = onnxruntime.SessionOptions()
        settings_.graph_optimization_level = level
        session = onnxruntime.InferenceSession(proto.SerializeToString(), settings_)
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], wanted)


def test_an_unfactored_layer_where_float16_could_not_hold_its_output() -> None:
    """A channel of next to nothing: its bias, divided by its factor, would be beyond float16."""
    spec = tiny_spec()
    model = initialise(spec, seed=0).eval()
    options = options_for(spec)
    fused = fuse(model, options.form)
    conv = fused.blocks["stem2"].conv
    conv.weight.data[0] *= 1e-4
    conv.bias.data[0] = 60.0
    stored = stored_weights(export_onnx(whole_graph(fused, options)))
    assert stored["stem2"].factor is None
    assert stored["stem2"].scale.shape == (conv.weight.shape[0],)
    assert stored["stem3"].factor is not None
