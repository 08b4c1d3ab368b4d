"""An engine in int8 that needs VNNI is not opened where its sums would overflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from parnet_deploy.errors import TargetError
from parnet_deploy.runtime import cpu
from parnet_deploy.runtime.cpu import INT8, WIDE, check_int8, has_narrow_weights, int8_target


@pytest.fixture(autouse=True)
def _x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")


def told(folder: Path, flags: str) -> Path:
    path = folder / flags.replace(" ", "-")
    path.write_text(f"processor : 0\nflags : {flags}\n")
    return path


def test_it_is_refused_without_vnni_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_vnni, without = told(tmp_path, "avx2 avx_vnni"), told(tmp_path, "avx2")
    monkeypatch.setattr(cpu, "int8_overflows", lambda cpuinfo=with_vnni: cpuinfo == without)
    made = int8_target()
    assert made
    check_int8(made, with_vnni)
    with pytest.raises(TargetError, match="VNNI"):
        check_int8(made, without)
    check_int8({}, without)  # built where they would have overflown, so that they do not


def test_one_that_was_built_without_vnni_runs_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "int8_overflows", lambda cpuinfo=None: True)
    assert int8_target() == {}


@pytest.mark.parametrize(
    ("backend", "options", "without", "with_vnni"),
    [
        ("openvino", {}, True, False),
        ("onnxruntime", {}, False, False),
        ("onnxruntime", {"narrow_weights": True}, True, False),
        ("tensorrt", {}, False, False),
    ],
)
def test_whose_weights_are_narrow(
    backend: str, options: dict[str, bool], without: bool, with_vnni: bool
) -> None:
    assert has_narrow_weights(backend, {}, options) == without
    assert has_narrow_weights(backend, {INT8: WIDE}, options) == with_vnni
