"""``parnet-deploy triton-repo`` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Result, call, one_sentence
from triton_engines import cpu_engine, read_config, stamp_engine

from parnet_deploy.bundle import EngineBundle, ModelBundle, open_engine_bundle


@pytest.fixture(scope="module")
def engine(
    tiny_bundle_dynamic: ModelBundle, tmp_path_factory: pytest.TempPathFactory
) -> EngineBundle:
    return cpu_engine(tiny_bundle_dynamic, tmp_path_factory.mktemp("e") / "tiny-cpu", split=True)


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    result = call(capsys, "triton-repo", *arguments)
    assert result.status == 0, result.err
    return result


def test_a_repository_is_written_and_the_result_is_told(
    engine: EngineBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    result = told(capsys, engine.path, "--output", repository)
    assert "tiny-cpu-fusion" in result.out
    assert "onnxruntime_onnx" in result.out
    assert "1 x cpu" in result.out
    assert "ensemble" in result.out
    assert result.out.splitlines()[-1].startswith(f"next: {repository}/README.md says how")
    assert "UNTRAINED" in result.err
    assert read_config(repository, "tiny-cpu").platform == "ensemble"


def test_every_option_arrives(
    engine: EngineBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = "stem=cpu,stream1=cuda:0,stream2=cuda:1,stream3=cuda:2,fusion=cuda:2"
    options = ("--name", "net", "--max-batch", "3", "--delay", "200", "--preferred", "2,3")
    options += ("--instances", "2", "--place", place, "--storage", "gs://b/m")
    told(capsys, engine.path, "--output", tmp_path / "r", *options)
    stem, fusion = (read_config(tmp_path / "r", f"net-{name}") for name in ("stem", "fusion"))
    assert stem.max_batch_size == 3
    assert stem.dynamic_batching.max_queue_delay_microseconds == 200
    assert list(stem.dynamic_batching.preferred_batch_size) == [2, 3]
    assert stem.instance_group[0].count == 2
    assert not stem.instance_group[0].gpus
    assert list(fusion.instance_group[0].gpus) == [2]
    assert "gs://b/m" in (tmp_path / "r" / "inferenceservice.yaml").read_text()


def test_json_is_what_the_marker_says(
    engine: EngineBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = told(capsys, engine.path, "--output", tmp_path / "r", "--json")
    marker = (tmp_path / "r" / "triton-repository.json").read_text()
    assert json.loads(result.out) == json.loads(marker)


def test_bad_input_is_one_sentence(
    engine: EngineBundle,
    tiny_bundle: ModelBundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(status: int, *parts: str, given: tuple[object, ...]) -> None:
        one_sentence(call(capsys, "triton-repo", *given), status, *parts)

    out = ("--output", tmp_path / "r")
    refused(1, "there is no bundle at", given=(tmp_path / "none", *out))
    refused(1, "'parnet-deploy/model' bundle", given=(tiny_bundle.path, *out))
    refused(2, "--preferred takes whole numbers", given=(engine.path, *out, "--preferred", "a"))
    refused(2, "--max-batch is at most 4", given=(engine.path, *out, "--max-batch", "9"))
    refused(2, "leaves out", given=(engine.path, *out, "--place", "stem=cpu"))
    refused(2, "output", given=(engine.path,))
    refused(
        1, "in the engine's own folder", given=(engine.path, "--output", engine.path / "triton")
    )
    rtx = stamp_engine(tiny_bundle, tmp_path / "rtx", split=False, backend="tensorrt-rtx")
    refused(1, "a tensorrt-rtx engine", "--backend tensorrt", given=(rtx.path, *out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rtx"]
    open_engine_bundle(engine.path)


def test_force_replaces_a_repository_and_nothing_else(
    engine: EngineBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("triton-repo", engine.path, "--output", tmp_path / "r")
    assert call(capsys, *given).status == 0
    one_sentence(call(capsys, *given), 1, "exists already", "--force")
    assert call(capsys, *given, "--force", "--name", "other").status == 0
    assert (tmp_path / "r" / "other").is_dir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    given = ("triton-repo", engine.path, "--output", tmp_path / "mine", "--force")
    one_sentence(call(capsys, *given), 1, "--force does not replace it")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
