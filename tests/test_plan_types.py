"""What plans compute in: from text made here, from an inspector's layers, and from real plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import export_tiny
from test_plan_text import section

from parnet_deploy.bundle import ModelBundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.errors import EngineError
from parnet_deploy.runtime.plan_types import built_types, types_of_layers

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


@pytest.mark.parametrize(
    ("kind", "wanted"), [("int8", "int8"), ("half", "mixed"), ("fp8_e4m3", "mixed")]
)
def test_a_program_tells_what_its_convolutions_read(tmp_path: Path, kind: str, wanted: str) -> None:
    path = tmp_path / "x.plan"
    path.write_bytes(section(PROGRAM.replace("KIND", kind)))
    found = built_types(path, "tensorrt-rtx")
    assert found == {"a": wanted, "b": "fp16", "c": "mixed"}


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
        ({"Inputs": []}, "unknown"),
    ],
)
def test_an_inspector_tells_what_convolutions_read(layer: dict[str, Any], wanted: str) -> None:
    told = {
        "Name": "x",
        "LayerType": "CaskConvolution",
        "Metadata": "[ONNX Layer: stem1.conv]\x1f[ONNX Layer: stem1.gate]",
        **layer,
    }
    beside = {"LayerType": "kgen", "Metadata": "[ONNX Layer: stem1.conv]", "Inputs": []}
    assert types_of_layers([told, beside]) == {"stem1": wanted}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_real_plans_compute_in_their_graphs_precision(tmp_path: Path, precision: str) -> None:
    model: ModelBundle = export_tiny(tmp_path / "model", precision=precision)
    builder = make_builder("tensorrt-rtx", BuildOptions(compute_capabilities=("8.9",)), split=True)
    engine = build_engine(model, tmp_path / "engine", builder, split=True)
    found: dict[str, str] = {}
    for stage in engine.manifest.stages:
        found |= built_types(engine.file(stage.file), "tensorrt-rtx") or {}
    blocks = {name for stage in model.manifest.stages for name in stage.blocks} - {"head"}
    assert found == dict.fromkeys(blocks, precision)
