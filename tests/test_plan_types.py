"""What plans compute in: from text made here, from an inspector's layers, and from real plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import verify_faults as faults
import verify_precision as precise
from conftest import export_tiny
from test_plan_text import section

from parnet_deploy.bundle import EngineBundle, ModelBundle, Source
from parnet_deploy.cli import main
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.errors import EngineError
from parnet_deploy.export import ExportOptions, export_model
from parnet_deploy.net import initialise
from parnet_deploy.runtime.plan_text import read_plan_text
from parnet_deploy.runtime.plan_types import PlanTypes, built_types, shown, types_of_layers
from parnet_deploy.spec import Preprocessing
from parnet_deploy.spec.form import default_form
from parnet_deploy.spec.precision import Precision
from parnet_deploy.spec.variants import variant
from parnet_deploy.verify.built_engine import BUILT
from parnet_deploy.verify.options import VerifyOptions
from parnet_deploy.verify.verifying import verify

PROGRAM = """header {
  accelerators={sm89 }
}
descriptors {
  tensor={ dims={ 1 } name="map" type=KIND }
  tensor={ dims={ 1 } name="kernel" type=int8 }
  sub_tensor={ base="x" dims={ 1 } name="half" type=half }
}
main {
  corrltn={ name="a_U1" input={"map" "kernel" "?" } stream=0 layers="[ONNX Layer: a.conv]" }
  corrltn={ name="b_U1" input={"half" "half" } stream=0 layers="[ONNX Layer: b.conv]" }
  corrltn={ name="s_U1" input={"half" "half" } stream=0 layers="[ONNX Layer: a.squeeze]" }
  corrltn={ name="c_U1" input={"gone" "kernel" } stream=0 layers="[ONNX Layer: c.conv]" }
  function={ name=__myl_Silu stream=0 layers="[ONNX Layer: d.conv]" }
}
"""

FUSED = """header {
  accelerators={*}
}
descriptors {
  tensor={ dims={ 1 } name="map" type=KIND }
  tensor={ dims={ 1 } name="kernel" type=KIND }
}
main {
  corrltn={ name="d_U1" input={"map" "kernel" } stream=0 layers="[ONNX Layer: d.conv]" }
  silu={ name="d_U2" output={"y" } input={"x" } stream=0 layers="[ONNX Layer: d.conv]" }
}
"""
"""Inside of a kernel that several were fused into."""


@pytest.mark.parametrize(
    ("kind", "wanted"), [("int8", "int8"), ("half", "mixed"), ("fp8_e4m3", "mixed")]
)
def test_a_program_tells_what_its_convolutions_read(tmp_path: Path, kind: str, wanted: str) -> None:
    path = tmp_path / "x.plan"
    path.write_bytes(section(PROGRAM.replace("KIND", kind)))
    found = built_types(path, "tensorrt-rtx")
    assert found is not None
    assert found.types == {"a": wanted, "b": "fp16", "c": "int8"}
    assert found.unread == {"c": (), "d": ()}, "one names no type, the other is no convolution"


def test_a_type_that_is_not_known_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.plan"
    path.write_bytes(section(PROGRAM.replace("KIND", "fp4_e2m1")))
    found = built_types(path, "tensorrt-rtx")
    assert found is not None
    assert found.types["a"] == "int8", "what its kernel is"
    assert found.unread["a"] == ("fp4_e2m1",)
    assert shown(found.types, found.unread) == {
        "a": "int8 and unknown",
        "b": "fp16",
        "c": "int8 and unknown",
        "d": "unknown",
    }


@pytest.mark.parametrize("read", ["", 'input={"half" }', 'reads={"half" "half" }'])
def test_a_convolution_that_does_not_say_what_it_reads(tmp_path: Path, read: str) -> None:
    path = tmp_path / "x.plan"
    path.write_bytes(section(PROGRAM.replace('b_U1" input={"half" "half" }', f'b_U1" {read}')))
    found = built_types(path, "tensorrt-rtx")
    assert found is not None
    assert found.unread["b"] == ()


@pytest.mark.parametrize(("kind", "wanted"), [("bf16", "bf16"), ("float", "fp32")])
def test_a_program_tells_of_convolutions_within_fused_kernels(
    tmp_path: Path, kind: str, wanted: str
) -> None:
    path = tmp_path / "x.plan"
    program = PROGRAM.replace("function={ name=__myl_Silu", "runtime_fusion={ name=__myl_CorrSilu")
    path.write_bytes(section(program) + section(FUSED.replace("KIND", kind)))
    found = built_types(path, "tensorrt-rtx")
    assert found is not None
    assert found.types["d"] == wanted
    assert "d" not in found.unread
    text = read_plan_text(path)
    assert text is not None
    assert len(text.kernels) == 5, "what is within is no launch"


def test_a_plan_that_tells_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.plan"
    path.write_bytes(b"something else")
    assert built_types(path, "tensorrt-rtx") is None
    with pytest.raises(EngineError, match="cannot read"):
        built_types(tmp_path / "gone.plan", "tensorrt-rtx")


@pytest.mark.parametrize(
    ("layer", "wanted"),
    [
        ({"Weights": {"Type": "Int8", "Count": 9}}, "int8"),
        ({"Inputs": [{"Format/Datatype": "Half"}]}, "fp16"),
        (
            {"Inputs": [{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}]},
            "fp16",
        ),
        ({"Inputs": [{"Format/Datatype": "BFloat16"}]}, "bf16"),
        ({"Inputs": [{"Format/Datatype": "FP8"}]}, "fp8"),
        ({"Inputs": [{"Format/Datatype": "Row major linear FP32"}]}, "fp32"),
    ],
)
def test_an_inspector_tells_what_convolutions_read(layer: dict[str, Any], wanted: str) -> None:
    told = {
        "Name": "x",
        "LayerType": "CaskConvolution",
        "Metadata": "[ONNX Layer: stem1.conv]\x1f[ONNX Layer: stem1.gate]",
        **layer,
    }
    for kind in ("kgen", "fusion", "SomethingNew"):
        read = [{"Format/Datatype": "FP99"}]
        beside = {"LayerType": kind, "Metadata": "[ONNX Layer: stem1.conv]", "Inputs": read}
        assert types_of_layers([told, beside]) == PlanTypes(
            types={"stem1": wanted}, unread={}, complete=False
        )


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"LayerType": "CaskConvolution", "Inputs": []}, ()),
        ({"LayerType": "CaskConvolution", "Weights": {"Type": "Posit16"}}, ("Posit16",)),
        ({"LayerType": "gemm", "Inputs": [{"Format/Datatype": "Row major P4"}]}, ("Row major P4",)),
        ({"LayerType": "SomethingNew", "Inputs": [{"Format/Datatype": "Half"}]}, ("SomethingNew",)),
        ({"LayerType": "kgen", "Inputs": [{"Format/Datatype": "Half"}]}, ()),
        ({"Inputs": [{"Format/Datatype": "Half"}]}, ()),
    ],
)
def test_what_an_inspector_says_that_is_not_known_is_told(
    layer: dict[str, Any], words: tuple[str, ...]
) -> None:
    found = types_of_layers([{"Metadata": "[ONNX Layer: stem1.conv]", **layer}])
    assert found == PlanTypes(types={}, unread={"stem1": words}, complete=False)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_real_plans_compute_in_their_graphs_precision(tmp_path: Path, precision: str) -> None:
    model: ModelBundle = export_tiny(tmp_path / "model", precision=precision)
    builder = make_builder("tensorrt-rtx", BuildOptions(compute_capabilities=("8.9",)), split=True)
    engine = build_engine(model, tmp_path / "engine", builder, split=True)
    found: dict[str, str] = {}
    for stage in engine.manifest.stages:
        told = built_types(engine.file(stage.file), "tensorrt-rtx")
        assert told is not None
        assert told.complete, "something in the plan is not known"
        assert not told.unread
        found |= told.types
    blocks = {name for stage in model.manifest.stages for name in stage.blocks} - {"head"}
    assert found == dict.fromkeys(blocks, precision)


def export_digits(final: Path, precision: Precision) -> ModelBundle:
    """The digits network, whose last fusion TensorRT RTX makes one kernel of."""
    spec = variant("digits").spec
    options = ExportOptions(
        name=final.name,
        preprocessing=Preprocessing(size=spec.image_size),
        form=default_form("tensorrt-rtx"),
        precision=precision,
    )
    network = initialise(spec, seed=0).eval()
    return export_model(network, Source(kind="untrained", seed=0), final, options)


def build_plans(model: ModelBundle, final: Path, *, split: bool) -> EngineBundle:
    capabilities = ("8.6", "8.9", "12.0")
    options = BuildOptions(compute_capabilities=capabilities)
    return build_engine(
        model, final, make_builder("tensorrt-rtx", options, split=split), split=split
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_plans_of_the_digits_network_are_what_was_asked_for(
    precision: Precision, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = export_digits(tmp_path / "model", precision)
    engines = [build_plans(model, tmp_path / f"{split}", split=split) for split in (False, True)]
    whole = read_plan_text(engines[0].file("whole.plan"))
    assert whole is not None
    assert whole.understood
    fused = [kernel.layers for kernel in whole.inside if kernel.kind == "corrltn"]
    assert fused, "the test is of no use where nothing is fused"
    found = verify(engines[0].path, VerifyOptions(samples=2, sibling=engines[1].path))
    built = [check for check in found.checks if check.name == BUILT]
    assert [check.verdict for check in built] == ["passed", "passed"], built
    assert found.passed, found.failures
    capsys.readouterr()
    assert main.run(["inspect", str(engines[0].path), "--layers"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["merge3", precision] in [row[:2] for row in shown]


def test_plans_of_the_digits_network_in_float32_sold_as_float16(tmp_path: Path) -> None:
    model = export_digits(tmp_path / "model", "fp16")
    path = precise.copy_of(model, tmp_path / "wrong")
    precise.change_graphs(path, precise.float32_everywhere)
    wrong = build_plans(faults.reseal_model(path), tmp_path / "engine", split=False)
    faults.claim(wrong.path, model)
    found = verify(wrong.path, VerifyOptions(samples=2))
    (failure,) = found.failures
    assert failure.startswith(f"engine, {BUILT}: ")
    assert "were built in fp32, and fp16 was asked for" in failure
    types = {row.block: row.built["engine"] for row in found.types if "engine" in row.built}
    assert set(types.values()) == {"fp32"}
    assert types["merge3"] == "fp32"
