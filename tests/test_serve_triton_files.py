"""Repositories for Triton: their files, where they come from, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import export_tiny
from triton_engines import cpu_engine, read_config, stamp_engine, write

from parnet_deploy.bundle import (
    BatchRange,
    EngineBundle,
    ModelBundle,
    open_engine_bundle,
    open_model,
    sha256,
)
from parnet_deploy.errors import BundleError, OutputExistsError, ServingError, UsageError
from parnet_deploy.runtime import open_runner
from parnet_deploy.serve.triton import MARKER, RepositorySettings, write_repository
from parnet_deploy.serve.triton import graphs as graphs_module
from parnet_deploy.spec import Array


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def whole(tiny_bundle: ModelBundle, folder: Path) -> EngineBundle:
    """Of batch 1."""
    return cpu_engine(tiny_bundle, folder / "whole", split=False, threads=2)


@pytest.fixture(scope="module")
def split(tiny_bundle: ModelBundle, folder: Path) -> EngineBundle:
    """Of batch 1, stem replicated."""
    return cpu_engine(tiny_bundle, folder / "split", split=True)


@pytest.fixture(scope="module")
def dynamic(tiny_bundle_dynamic: ModelBundle, folder: Path) -> EngineBundle:
    return cpu_engine(tiny_bundle_dynamic, folder / "dynamic", split=False)


@pytest.fixture(scope="module")
def dynamic_split(tiny_bundle_dynamic: ModelBundle, folder: Path) -> EngineBundle:
    """Stem shared."""
    return cpu_engine(tiny_bundle_dynamic, folder / "dynamic-split", split=True)


# -- files


def everything(repository: Path) -> set[str]:
    return {p.relative_to(repository).as_posix() for p in repository.rglob("*") if p.is_file()}


def test_every_file_is_there_and_named_by_its_digest(split: EngineBundle, tmp_path: Path) -> None:
    repository = write(split, tmp_path / "r", name="net")
    stages = [f"net-{stage.name}" for stage in split.manifest.stages]
    expected = {f"{model}/{file}" for model in stages for file in ("config.pbtxt", "1/model.onnx")}
    expected |= {"net/config.pbtxt", "net/labels.txt", "net/1/ensemble.txt"}
    expected |= {"README.md", "compose.yaml", "inferenceservice.yaml"}
    assert everything(repository) == expected | {MARKER}
    marker = json.loads((repository / MARKER).read_text())
    assert marker["format"] == "parnet-deploy/triton-repository"
    assert marker["models"] == [*stages, "net"]
    assert marker["model"] == "net"
    assert marker["engine_manifest_sha256"] == split.manifest_sha256
    assert {name: record["sha256"] for name, record in marker["files"].items()} == {
        name: sha256(repository / name) for name in expected
    }
    labels = (repository / "net" / "labels.txt").read_text().splitlines()
    assert tuple(labels) == split.labels


def run_graphs(repository: Path, bundle: EngineBundle, name: str, images: Array) -> Array:
    """What the repository's graphs answer, joined as the ensemble's steps say."""
    steps = read_config(repository, name).ensemble_scheduling.step
    values = {"images": images}
    for model in [step.model_name for step in steps] or [name]:
        path = repository / model / "1" / "model.onnx"
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        feeds = {given.name: values[given.name] for given in session.get_inputs()}
        values |= dict(zip(names, session.run(names, feeds), strict=True))
    return values["logits"]


@pytest.mark.parametrize("engine", ["whole", "split", "dynamic", "dynamic_split"])
def test_the_graphs_answer_what_the_engine_answers(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Alone in their folders: nothing outside of them is needed."""
    bundle: EngineBundle = request.getfixturevalue(engine)
    written = write(bundle, tmp_path / "written", name="net")
    repository = Path(shutil.copytree(written, tmp_path / "elsewhere" / "repository"))
    shutil.rmtree(written)
    batch = bundle.manifest.batch.max
    images = np.random.default_rng(3).standard_normal((batch, 3, 64, 64)).astype(np.float32)
    with open_runner(bundle) as runner:  # type: ignore[attr-defined]
        expected = runner.run({"images": images})["logits"]
    found = run_graphs(repository, bundle, "net", images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# -- what is refused


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "openvino", "ncnn"])
def test_engines_that_triton_does_not_serve_are_refused_with_what_to_do(
    backend: Any, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    engine = stamp_engine(tiny_bundle, tmp_path / "e", split=False, backend=backend)
    with pytest.raises(ServingError, match=f"a {backend} engine; build one .*--backend tensorrt"):
        write(engine, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_plans_without_weights_are_refused(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    engine = stamp_engine(tiny_bundle, tmp_path / "e", split=False, weights="stripped")
    with pytest.raises(ServingError, match=r"no weights in them.* without --weight-stripped"):
        write(engine, tmp_path / "r")


@pytest.mark.parametrize(
    ("engine", "settings", "said"),
    [
        ("whole", {"max_batch": 4}, "fixed at 1.*--max-batch"),
        ("whole", {"delay": 100}, "fixed at 1.*--delay"),
        ("whole", {"preferred": (1,)}, "fixed at 1.*--preferred"),
        ("dynamic", {"max_batch": 5}, "--max-batch is at most 4.*not 5"),
        ("dynamic", {"max_batch": 2, "preferred": (2, 4)}, r"at most 2, .* not \[4\]"),
        ("dynamic", {"max_batch": 1, "delay": 100}, "nobody waits"),
    ],
)
def test_settings_that_do_not_fit_the_engine(
    engine: str,
    settings: dict[str, Any],
    said: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=said):
        write(request.getfixturevalue(engine), tmp_path / "r", **settings)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "a/b"}, "'a/b'"),
        ({"name": "../x"}, "begins with a letter or digit"),
        ({"name": ""}, "begins with"),
        ({"max_batch": 0}, "--max-batch is at least 1"),
        ({"instances": 0}, "--instances is at least 1"),
        ({"delay": -1}, "--delay is not negative"),
        ({"preferred": (0,)}, "--preferred"),
        ({"placement": {"whole": "gpu"}}, "'whole' is placed on 'gpu'"),
        ({"storage": 'x"\n'}, "--storage is an address"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        RepositorySettings(**settings)


def test_an_engine_that_takes_no_single_image_is_refused(tmp_path: Path) -> None:
    model = export_tiny(tmp_path / "model", batch=BatchRange(min=2, opt=2, max=4))
    engine = cpu_engine(model, tmp_path / "engine", split=False)
    with pytest.raises(ServingError, match=r"takes 2 to 4 images.*--batch 1:N:N"):
        write(engine, tmp_path / "r")


# -- the model that graphs come from


@pytest.fixture
def movable(tiny_bundle: ModelBundle, tmp_path: Path) -> EngineBundle:
    """An engine whose model bundle may be moved and damaged."""
    shutil.copytree(tiny_bundle.path, tmp_path / "models" / "tiny")
    return cpu_engine(open_model(tmp_path / "models" / "tiny"), tmp_path / "engine", split=True)


def test_a_model_that_moved_is_named(movable: EngineBundle, tmp_path: Path) -> None:
    (tmp_path / "models").rename(tmp_path / "attic")
    with pytest.raises(ServingError, match=r"there is no bundle at .*give --model"):
        write(movable, tmp_path / "r")
    repository = write(movable, tmp_path / "r", model=tmp_path / "attic" / "tiny")
    assert (repository / "engine-stream1" / "1" / "model.onnx").is_file()


def test_a_damaged_model_is_not_served(movable: EngineBundle, tmp_path: Path) -> None:
    path = tmp_path / "models" / "tiny" / "stages" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ServingError, match=r"weights.safetensors is damaged"):
        write(movable, tmp_path / "r")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "models"]


def test_another_model_is_not_served(movable: EngineBundle, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "models")
    export_tiny(tmp_path / "models" / "tiny", seed=1)
    with pytest.raises(ServingError, match=r"is another model than .*build-engine"):
        write(movable, tmp_path / "r")


def test_weights_beyond_what_one_file_can_hold(
    movable: EngineBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "LARGEST", 1000)
    with pytest.raises(ServingError, match="bytes, more than the 1000 of one ONNX file"):
        write(movable, tmp_path / "r")


def test_only_a_stages_own_weights_have_to_fit_in_its_file(
    movable: EngineBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them together may be more than a file can hold."""
    repository = write(movable, tmp_path / "r")
    sizes = [path.stat().st_size for path in repository.glob("*/1/model.onnx")]
    weights = (tmp_path / "models" / "tiny" / "stages" / "weights.safetensors").stat().st_size
    assert max(sizes) < weights
    monkeypatch.setattr(graphs_module, "LARGEST", max(sizes))
    again = write(movable, tmp_path / "again")
    assert sum(1 for _ in again.glob("*/1/model.onnx")) == len(sizes)


def test_a_damaged_engine_is_not_served(movable: EngineBundle, tmp_path: Path) -> None:
    labels = movable.path / "labels.txt"
    labels.write_text(labels.read_text().replace("class 0", "class x"))
    with pytest.raises(BundleError, match=r"labels.txt is damaged"):
        write(movable, tmp_path / "r")
    assert not (tmp_path / "r").exists()


# -- all of it or nothing


def test_what_stands_there_is_kept_without_force_and_replaced_with_it(
    whole: EngineBundle, dynamic: EngineBundle, tmp_path: Path
) -> None:
    repository = write(whole, tmp_path / "r")
    with pytest.raises(OutputExistsError, match="exists already; give --force"):
        write(dynamic, repository)
    assert (repository / "whole").is_dir()
    write_repository(dynamic, repository, RepositorySettings(), force=True)
    assert (repository / "dynamic").is_dir()
    assert not (repository / "whole").exists()
    assert list(tmp_path.iterdir()) == [repository]


def test_force_never_replaces_an_engine(whole: EngineBundle, tmp_path: Path) -> None:
    engine = Path(shutil.copytree(whole.path, tmp_path / "engine"))
    with pytest.raises(OutputExistsError, match=f"it has no {MARKER}"):
        write_repository(whole, engine, RepositorySettings(), force=True)
    open_engine_bundle(engine)
