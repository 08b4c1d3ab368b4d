"""What a plan says about itself: read from text made here and from a real plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.bundle import MODEL_GRAPH, ModelBundle
from parnet_deploy.engine import BuildOptions, BuildStage
from parnet_deploy.engine.tensorrt.builder import TensorRTBuilder
from parnet_deploy.errors import EngineError
from parnet_deploy.runtime.plan_text import Kernel, PlanText, read_plan_text

PROGRAM = """header {
  version = 5
  n_streams = 2
  tf32=0
  accelerators={sm86 sm120 }
}
descriptors {

  tensor={ alignment=128 dims={ 64 3 3 3 } name="w" region=consts strides={ 27 1 9 3 } type=float }
  tensor={ dims={ 9 } name="__scratch_space_stream0" region=user type=int8 }
  sub_tensor={ base="pool" dims={ 1 3 1 1 } name="p^deref" type=half }
}
main {
 label bb1:\x20
  shape_call={ name="shapes_0" stream=0  layers="" subg_id=0 }
  function={ name=__myl_Move fqn=__myl_Move_0x1 args={ "images.1" } grid = { 2 1 1 } stream=0 }
  corrltn={ name="stem1.conv_U3" output={"a" } stream=1 layers="[ONNX Layer: stem1.conv]" }
  signal={ name="s" stream=0 event=1 layers="" }
  wait={ name="t" stream=1 event=1 layers="" }
  function={ name=__myl_Silu stream=1 layers="[ONNX Layer: stem1.gate]\x1f[ONNX Layer: stem1]" x=0 }
}
shape_main {
  assert={ name=check stream=0 msg="out of bounds
}
main {
" }
}
"""

FUSED_KERNEL = """header {
  accelerators={*}
}
main {
 label bb1:
  fully_connected={ name="squeeze_U1" stream=0 }
  sigmoid={ name="gate_U2" stream=0  layers="" }
}
"""


def section(text: str) -> bytes:
    data = text.encode()
    return b"NLYM\xa1\xda\x1e\x00" + len(data).to_bytes(8, "little") + data


def read(tmp_path: Path, *parts: bytes) -> PlanText | None:
    path = tmp_path / "x.plan"
    path.write_bytes(b"".join(parts))
    return read_plan_text(path)


def test_kernels_streams_and_layers(tmp_path: Path) -> None:
    text = read(tmp_path, b"vtrt\0\0", section(PROGRAM), b"\0weights\0", section(FUSED_KERNEL))
    assert text is not None
    assert text == PlanText(
        kernels=(
            Kernel(kind="function", name="__myl_Move", stream=0, layers=()),
            Kernel(kind="corrltn", name="stem1.conv_U3", stream=1, layers=("stem1.conv",)),
            Kernel(kind="function", name="__myl_Silu", stream=1, layers=("stem1.gate", "stem1")),
        ),
        compute_capabilities=("8.6", "12.0"),
        tf32=False,
        dtypes=("float", "half"),
        chain=2,
        inside=(
            Kernel(kind="fully_connected", name="squeeze_U1", stream=0, layers=()),
            Kernel(kind="sigmoid", name="gate_U2", stream=0, layers=()),
        ),
        unknown=text.unknown,
    )
    assert "version unsaid of a program's text" in text.unknown
    assert text.streams == 2


def chain_of(tmp_path: Path, *instructions: str) -> int | None:
    body = "\n".join(f"  {line}" for line in instructions)
    text = read(tmp_path, section(f"header {{\n accelerators={{sm86 }}\n}}\nmain {{\n{body}\n}}\n"))
    assert text is not None
    return text.chain


def kernel(stream: int) -> str:
    return f"function={{ name=k stream={stream} }}"


def event(kind: str, number: int, stream: int) -> str:
    return f'{kind}={{ name="e" stream={stream} event={number} layers="" }}'


def test_the_chain_is_the_longest_way_through_the_streams(tmp_path: Path) -> None:
    assert chain_of(tmp_path, kernel(0), kernel(0), kernel(0)) == 3
    assert chain_of(tmp_path, kernel(0), kernel(1), kernel(1)) == 2, "side by side"
    fork = (kernel(0), event("signal", 1, 0), event("wait", 1, 1), kernel(1), kernel(1), kernel(0))
    assert chain_of(tmp_path, *fork) == 3
    joined = (*fork, event("signal", 2, 1), event("wait", 2, 0), kernel(0))
    assert chain_of(tmp_path, *joined) == 4
    late = (kernel(0), event("signal", 1, 0), kernel(0), event("wait", 1, 1), kernel(1))
    assert chain_of(tmp_path, *late) == 2, "what comes behind the signal is not waited for"
    reused = (*joined, event("signal", 1, 0), event("wait", 1, 2), kernel(2))
    assert chain_of(tmp_path, *reused) == 5, "an event is its latest signal"


def test_a_wait_for_nothing_tells_no_chain(tmp_path: Path) -> None:
    assert chain_of(tmp_path, kernel(0), event("wait", 1, 1), kernel(1)) is None


def test_tf32_and_silence_about_it(tmp_path: Path) -> None:
    allowed = read(tmp_path, section(PROGRAM.replace("tf32=0", "tf32=1")))
    silent = read(tmp_path, section(PROGRAM.replace("  tf32=0\n", "")))
    assert allowed is not None
    assert allowed.tf32 is True
    assert silent is not None
    assert silent.tf32 is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"NLYM",
        b"ftrt" + bytes(1000),
        section(FUSED_KERNEL),
        section(PROGRAM)[:-200],
        section(PROGRAM).replace(b"header {", b"Header {"),
        section(PROGRAM.partition("main {")[0]),
    ],
    ids=["empty", "magic", "no program", "fused kernel", "cut short", "no text", "no main"],
)
def test_a_plan_without_a_readable_program_tells_nothing(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path, data) is None


def test_weights_that_look_like_a_start_are_passed_over(tmp_path: Path) -> None:
    text = read(tmp_path, b"NLYMNLYM" * 9, section(PROGRAM), b"NLYM")
    assert text is not None
    assert len(text.kernels) == 3


def understood(tmp_path: Path, *parts: bytes) -> bool:
    text = read(tmp_path, *parts)
    assert text is not None
    return text.understood


KNOWN = PROGRAM.partition("shape_main {")[0].replace("= { 2 1 1 }", "={ 2 1 1 }")
"""What is as in real plans."""

KNOWN_FUSED = FUSED_KERNEL.replace("header {", "header {\n  version = 4")


def test_a_plan_is_understood_where_nothing_in_it_is_unknown(tmp_path: Path) -> None:
    weights = b"\0weights\0NLY"
    assert understood(tmp_path, weights, section(KNOWN), weights, section(KNOWN_FUSED), weights)


@pytest.mark.parametrize(
    ("known", "other", "said"),
    [
        ("version = 5", "version = 6", "version 6"),
        ("  version = 5\n", "", "version unsaid"),
        ("main {\n", "new_section {\n}\nmain {\n", "section 'new_section'"),
        ("main {\n", "main {\n}\nmain {\n", "twice"),
        ("main {\n", "import new\nmain {\n", "outside of sections"),
        ("  corrltn={", "  convolve={", "instruction 'convolve={"),
        ("  corrltn={", "  corrltn::sm90={", "instruction 'corrltn::sm90={"),
        ('layers="[ONNX Layer: stem1.conv]"', 'layers=""', "instruction '"),
        ('layers="[ONNX Layer: stem1.conv]"', 'nodes="[ONNX Layer: stem1.conv]"', "instruction '"),
        (
            'layers="[ONNX Layer: stem1.conv]"',
            'layers="[ONNX Layer: stem1][Node: stem1.conv]"',
            "instruction '",
        ),
        ("name=__myl_Move fqn", "name=__myl_Conv fqn", "instruction '"),
    ],
)
def test_what_is_not_known_in_a_plan_keeps_it_from_being_understood(
    tmp_path: Path, known: str, other: str, said: str
) -> None:
    assert KNOWN.count(known) == 1
    text = read(tmp_path, section(KNOWN.replace(known, other)))
    assert text is not None
    assert len(text.unknown) == 1
    assert said in text.unknown[0]
    assert not text.understood


@pytest.mark.parametrize(
    "part", [b"NLYM", section(KNOWN)[:-20], section(FUSED_KERNEL), section("head {\n}\n")]
)
def test_a_program_that_cannot_be_read_keeps_a_plan_from_being_understood(
    tmp_path: Path, part: bytes
) -> None:
    assert understood(tmp_path, section(KNOWN))
    assert not understood(tmp_path, section(KNOWN), part)


@given(noise=st.binary(max_size=200), at=st.integers(0, len(PROGRAM)))
def test_no_bytes_make_it_fail(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    data = bytearray(section(PROGRAM))
    data[at : at + len(noise)] = noise
    path = tmp_path_factory.mktemp("noise") / "x.plan"
    path.write_bytes(data)
    text = read_plan_text(path)
    assert text is None or text.kernels


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot read .*gone\.plan: No such file"):
        read_plan_text(tmp_path / "gone.plan")


def test_a_real_plan_names_the_nodes_of_its_graph(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    builder = TensorRTBuilder("tensorrt-rtx", BuildOptions(compute_capabilities=("8.6", "12.0")))
    manifest = tiny_bundle.manifest
    stage = BuildStage(
        name="whole",
        graph=tiny_bundle.file(MODEL_GRAPH),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        batch=manifest.batch,
        device="cuda:0",
    )
    built = builder.build(stage, tmp_path)
    text = read_plan_text(tmp_path / built.file)
    assert text is not None
    assert text.compute_capabilities == ("8.6", "12.0")
    assert not text.unknown
    computed = {layer for kernel in text.kernels for layer in kernel.layers}
    blocks = {block for stage in manifest.stages for block in stage.blocks} - {"head"}
    convolutions = {f"{block}.conv" for block in blocks}
    assert {"logits", *convolutions} <= computed
    assert {kernel.kind for kernel in text.kernels} == {"function", "corrltn"}
