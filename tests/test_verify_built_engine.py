"""What is said of plans of which something cannot be read: never that all is right, nor wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from conftest import export_tiny
from hypothesis import given
from hypothesis import strategies as st
from test_plan_types import build_plans

from parnet_deploy.bundle import EngineBundle, ModelBundle
from parnet_deploy.verify import built_engine
from parnet_deploy.verify.built_engine import (
    EngineTypes,
    check_engine,
    engine_types,
    expected_types,
    stage_types,
)
from parnet_deploy.verify.problems import NAMED
from parnet_deploy.verify.result import CheckResult


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return export_tiny(tmp_path_factory.mktemp("model") / "m", precision="fp16")


@pytest.fixture(scope="module")
def engine(model: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    return build_plans(model, tmp_path_factory.mktemp("engine") / "e", split=True)


def judged(engine: EngineBundle, model: ModelBundle, found: EngineTypes) -> CheckResult:
    _, built = check_engine("engine", engine.manifest, model.manifest, found)
    return built


def changed(
    engine: EngineBundle, path: Path, old: bytes, new: bytes, *, stages: int
) -> EngineTypes:
    """What an engine tells with the same number of other bytes in its first stages' plans."""
    assert len(old) == len(new)
    made = replace(engine, path=path)
    for number, stage in enumerate(engine.manifest.stages):
        data = engine.file(stage.file).read_bytes()
        where = path / stage.file
        where.parent.mkdir(parents=True, exist_ok=True)
        assert old in data
        where.write_bytes(data.replace(old, new) if number < stages else data)
    return engine_types(made)


def test_a_plan_that_is_read_in_full_passes(engine: EngineBundle, model: ModelBundle) -> None:
    found = engine_types(engine)
    assert found.complete
    assert not found.unread
    assert judged(engine, model, found).verdict == "passed"


@pytest.mark.parametrize("stages", [1, 9])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"NLYM", b"NLYN"),
        (b"\n  corrltn={", b"\n  convolv={"),
        (b"[ONNX Layer: ", b"[ONNX Node : "),
        (b" input={", b" reads={"),
        (b"type=half", b"kind=half"),
    ],
    ids=["no program", "no convolution", "no nodes", "no inputs", "no types"],
)
def test_a_format_that_is_not_known_is_not_verified(
    engine: EngineBundle, model: ModelBundle, tmp_path: Path, old: bytes, new: bytes, stages: int
) -> None:
    found = changed(engine, tmp_path / "e", old, new, stages=stages)
    built = judged(engine, model, found)
    assert built.verdict == "not verified"
    wanted = expected_types(engine.manifest, model.manifest)
    lost = [block for block in wanted if block not in found.types]
    assert lost
    assert len(lost) < len(wanted) or stages > 1
    assert built.detail.endswith("could not be read from it")
    names = built.detail.partition(" of ")[2]
    assert all((name in names) == (name in lost[:NAMED]) for name in lost)


def test_a_type_that_is_not_known_is_named(
    engine: EngineBundle, model: ModelBundle, tmp_path: Path
) -> None:
    found = changed(engine, tmp_path / "e", b"type=half", b"type=fp4x", stages=9)
    built = judged(engine, model, found)
    assert built.verdict == "not verified"
    assert "it says what is not known here, 'fp4x'" in built.detail
    assert set(
        stage_types(replace(engine, path=tmp_path / "e"), engine.manifest.stages[0]).values()
    )


def test_a_wrong_type_fails_where_others_cannot_be_read(
    engine: EngineBundle, model: ModelBundle, tmp_path: Path
) -> None:
    found = changed(engine, tmp_path / "e", b"type=half", b"type=bf16", stages=9)
    assert judged(engine, model, found).verdict == "failed"
    block, *rest = found.types
    for unread in ({}, dict.fromkeys(rest, ()), {rest[0]: ("fp{4}",)}):
        partly = EngineTypes(types={block: "bf16"}, unread=unread, complete=False)
        built = judged(engine, model, partly)
        assert built.verdict == "failed"
        assert built.detail.startswith(f"{block} was built in bf16, and fp16 was asked for; ")
        assert "could not be read" in built.detail
    assert "'fp{4}'" in built.detail


def test_a_convolution_that_is_not_in_a_plan_of_a_known_format_fails(
    engine: EngineBundle, model: ModelBundle
) -> None:
    """The gate that must not be lost: nothing names it, and all was understood."""
    first, *others = engine.manifest.stages
    lacking = replace(engine, manifest=replace(engine.manifest, stages=tuple(others)))
    found = engine_types(lacking)
    built = judged(engine, model, found)
    assert built.verdict == "failed"
    gone = stage_types(engine, first).keys() - found.types.keys()
    assert gone
    assert built.detail.startswith(f"it has no convolution{'s' * (len(gone) > 1)} ")
    assert all(block in built.detail for block in gone)


@given(data=st.data(), complete=st.booleans())
def test_what_was_not_read_never_passes_and_never_fails(
    data: st.DataObject, complete: bool, engine: EngineBundle, model: ModelBundle
) -> None:
    wanted = expected_types(engine.manifest, model.manifest)
    states = {
        block: data.draw(st.sampled_from(["read", "wrong", "part", "unread", "gone"]))
        for block in wanted
    }
    types = {b: wanted[b] if s != "wrong" else "fp32" for b, s in states.items()}
    types = {b: kind for b, kind in types.items() if states[b] in ("read", "wrong", "part")}
    unread = {b: ("x",) for b, s in states.items() if s in ("part", "unread")}
    built = judged(engine, model, EngineTypes(types=types, unread=unread, complete=complete))
    kinds = set(states.values())
    if "wrong" in kinds or ("gone" in kinds and complete):
        assert built.verdict == "failed"
    else:
        assert built.verdict == ("passed" if kinds == {"read"} else "not verified")


def test_a_convolution_of_filled_up_weights_is_known_by_its_activation(
    tiny_engine: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ONNX Runtime saves it where channels are no multiple of the CPU's vectors."""
    node = onnx.helper.make_node(
        "Conv", ["images", "reorder", "reorder_token_0"], ["y"], "stem1_nchwc"
    )
    other = onnx.helper.make_node("Conv", ["y", "reorder"], ["z"], "merge2.norm1_bn_nchwc")
    weights = onnx.helper.make_tensor("reorder", onnx.TensorProto.FLOAT, (1,), [0.0])
    graph = onnx.helper.make_graph([node, other], "g", [], [], [weights])
    saved = onnx.helper.make_model(graph)
    monkeypatch.setattr(built_engine, "load_graph", lambda path, weights: saved)
    assert stage_types(tiny_engine, tiny_engine.manifest.stages[0]) == {"stem1": "fp32"}
