"""Processors kept awake: what is asked of the system, how long, and what is said if it cannot."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from parnet_deploy.errors import TargetError
from parnet_deploy.runtime import awake


def opened(path: Path) -> bool:
    """Whether this process has a file open."""
    folder = Path("/proc/self/fd")
    return any(os.path.realpath(each) == str(path) for each in folder.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="the device is Linux's")
def test_a_latency_of_nothing_is_asked_for_until_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = (tmp_path / "device").resolve()
    device.touch()
    monkeypatch.setattr(awake, "DEVICE", device)
    with awake.kept_awake():
        assert device.read_bytes() == b"\0\0\0\0"
        assert opened(device)
    assert not opened(device)


def test_why_it_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(awake, "DEVICE", tmp_path / "gone")
    with (
        pytest.raises(TargetError, match=r"kept awake: .*gone: No such file .*write access"),
        awake.kept_awake(),
    ):
        pytest.fail("this is not to be reached")
