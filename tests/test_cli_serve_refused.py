"""``parnet-deploy serve``: what keeps it from starting, in one sentence."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
from pathlib import Path

import pytest
from commands import call, one_sentence

from parnet_deploy.bundle import EngineBundle, ModelBundle
from parnet_deploy.cli.serve import KEY_VARIABLE, find_engine
from parnet_deploy.runtime import awake


def test_a_port_in_use(tiny_engine: EngineBundle, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told before anything is loaded: the engine is not even there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = call(capsys, "serve", tiny_engine.path / "nothing", "--port", port)
    one_sentence(result, 1, f"port {port} of 127.0.0.1 is in use", "--port")


def test_a_model_in_place_of_an_engine(
    tiny_bundle: ModelBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "serve", tiny_bundle.path, "--port", 0)
    one_sentence(result, 1, "parnet-deploy/engine", "build-engine")


@pytest.mark.parametrize("damage", ["changed", "cut short", "missing", "manifest"])
def test_a_damaged_engine(
    tiny_engine: EngineBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_engine.path, broken)
    file = max((p for p in broken.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    if damage == "changed":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "cut short":
        file.write_bytes(data[:-1])
    elif damage == "missing":
        file.unlink()
    else:
        file = broken / "manifest.json"
        file.write_bytes(file.read_bytes().replace(b"tiny", b"tony"))
    result = call(capsys, "serve", broken, "--port", 0)
    one_sentence(result, 1, file.name)
    assert "ready" not in result.err


def test_the_only_engine_of_a_folder(
    tiny_engine: EngineBundle,
    tiny_bundle: ModelBundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a container has it; what is no engine does not count."""
    one_sentence(call(capsys, "serve", tmp_path, "--port", 0), 1, "no engine", "build-engine")
    shutil.copytree(tiny_bundle.path, tmp_path / "model")
    one_sentence(call(capsys, "serve", tmp_path, "--port", 0), 1, "no engine", "build-engine")
    shutil.copytree(tiny_engine.path, tmp_path / "one")
    assert find_engine(tmp_path).path == tmp_path / "one"
    shutil.copytree(tiny_engine.path, tmp_path / "two")
    one_sentence(call(capsys, "serve", tmp_path, "--port", 0), 1, "2 engines", "one, two")


def test_a_name_that_no_path_can_have(
    tiny_engine: EngineBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "serve", tiny_engine.path, "--port", 0, "--name", "a/b")
    one_sentence(result, 2, "'a/b'", "--name")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--queue", 0), "--queue"),
        (("--timeout", -1), "--timeout"),
        (("--port", 70000), "70000"),
        (("--max-body", 10, "--max-buffered", 5), "--max-buffered"),
        (("--log-format", "xml"), "--log-format"),
        (("--api-key-file", "nowhere"), "nowhere"),
    ],
)
def test_options_that_cannot_be(
    tiny_engine: EngineBundle, capsys: pytest.CaptureFixture[str], options: tuple, named: str
) -> None:
    one_sentence(call(capsys, "serve", tiny_engine.path, *options), 2, named)


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"\xff\xfe"])
def test_a_file_that_holds_no_key(
    tiny_engine: EngineBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    key = tmp_path / "key"
    key.write_bytes(content)
    one_sentence(call(capsys, "serve", tiny_engine.path, "--api-key-file", key), 2, "key")


def test_the_extra_is_named_where_it_is_missing(
    tiny_engine: EngineBundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    one_sentence(call(capsys, "serve", tiny_engine.path), 1, "uvicorn", "parnet-deploy[serve]")


@pytest.mark.parametrize("key", [" ", "two words", "schl\u00fcssel"])
def test_a_key_in_the_environment_that_is_none(
    tiny_engine: EngineBundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    key: str,
) -> None:
    """No client could send it."""
    monkeypatch.setenv(KEY_VARIABLE, key)
    one_sentence(call(capsys, "serve", tiny_engine.path, "--port", 0), 2, "one word of ASCII")


def test_why_there_is_no_server_is_json_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "serve", tmp_path, "--port", 0, "--log-format", "json")
    line = json.loads(result.err)
    assert (result.status, line["level"]) == (1, "error")
    assert "there is no engine at" in line["message"]


def test_processors_that_cannot_be_kept_awake(
    tiny_engine: EngineBundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(awake, "DEVICE", tmp_path / "gone")
    result = call(capsys, "serve", tiny_engine.path, "--port", 0, "--keep-awake")
    one_sentence(result, 1, "the processors cannot be kept awake: ", "gone: No such file")
