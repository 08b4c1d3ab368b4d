"""What a saved graph depends on: found on any CPU, and compared where the engine is opened."""

from __future__ import annotations

import platform
from pathlib import Path

import onnxruntime
import pytest

from parnet_deploy.errors import EngineError
from parnet_deploy.runtime.target import check_target, saved_graph_target, vector_instructions


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu sse2 avx fma avx2 avx512f avx512bw\n", "avx512f"),
        ("flags\t\t: fpu sse2 avx fma avx2\n", "avx2"),
        ("flags\t\t: fpu sse2 avx avx2\n", "avx"),  # the kernels for AVX2 need FMA
        ("flags\t\t: fpu sse2\n", "sse2"),
        ("Features\t: fp asimd evtstrm\n", "neon"),
        ("Features\t: fp asimd sme\n", "sme"),
        ("flags\t\t: fpu\n", "none"),
    ],
)
def test_the_widest_vectors_are_found(tmp_path: Path, cpuinfo: str, expected: str) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert vector_instructions(path) == expected


def test_where_no_features_are_told_the_cpu_has_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    path = tmp_path / "cpuinfo"
    assert vector_instructions(path) == "arm"
    path.write_text("processor : 0\n")
    assert vector_instructions(path) == "arm"


def test_a_target_of_this_machine_is_accepted() -> None:
    target = saved_graph_target("cpu")
    assert target["onnxruntime"] == onnxruntime.__version__
    check_target(target, "cpu")
    check_target(saved_graph_target("cuda"), "cuda")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("onnxruntime", "1.0.0", rf"ONNX Runtime 1\.0\.0 \(here: {onnxruntime.__version__}\)"),
        ("provider", "cuda", r"provider cuda \(here: cpu\)"),
        ("architecture", "riscv64", r"CPU architecture riscv64 \(here: "),
        ("vectors", "avx1024", r"CPU vector instructions avx1024 \(here: "),
    ],
)
def test_another_target_is_refused_and_told(key: str, value: str, message: str) -> None:
    target = saved_graph_target("cpu") | {key: value}
    with pytest.raises(EngineError, match=message):
        check_target(target, "cpu")


def test_all_differences_are_told_at_once_and_a_missing_entry_is_one() -> None:
    target = saved_graph_target("cpu") | {"onnxruntime": "1.0.0"}
    del target["vectors"]
    with pytest.raises(EngineError, match=r"ONNX Runtime 1\.0\.0 .*vector instructions unknown"):
        check_target(target, "cpu")


def test_a_gpu_graph_does_not_depend_on_the_cpu() -> None:
    assert set(saved_graph_target("cuda")) == {"onnxruntime", "provider"}
