"""What starts a repository: the compose file, KServe's InferenceService, the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from triton_engines import cpu_engine, stamp_engine

from parnet_deploy.bundle import EngineBundle, ModelBundle
from parnet_deploy.serve.triton import RepositorySettings, write_repository
from parnet_deploy.serve.triton.config import ModelConfig
from parnet_deploy.serve.triton.deploy import inference_service_text
from parnet_deploy.serve.triton.models import models_of

PLACEMENT = {"stream1": "cuda:0", "stream2": "cuda:1", "stream3": "cuda:2", "fusion": "cuda:2"}


@pytest.fixture(scope="module")
def on_cpu(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    return cpu_engine(tiny_bundle, tmp_path_factory.mktemp("e") / "engine", split=False)


@pytest.fixture(scope="module")
def on_gpus(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    final = tmp_path_factory.mktemp("e") / "engine"
    return stamp_engine(tiny_bundle, final, split=True, placement=PLACEMENT)


def write(bundle: EngineBundle, final: Path, **settings: Any) -> Path:
    write_repository(bundle, final, RepositorySettings(**settings))
    return final


def service(repository: Path) -> dict[str, Any]:
    composed = yaml.safe_load((repository / "compose.yaml").read_text())
    assert list(composed) == ["services"]
    (found,) = composed["services"].values()
    return dict(found)


def predictor(text: str) -> dict[str, Any]:
    read = yaml.safe_load(text)
    assert read["apiVersion"] == "serving.kserve.io/v1beta1"
    assert read["kind"] == "InferenceService"
    return dict(read["spec"]["predictor"])


def test_the_compose_file_mounts_its_own_folder_and_shuts_the_rest(
    on_cpu: EngineBundle, tmp_path: Path
) -> None:
    found = service(write(on_cpu, tmp_path / "r"))
    assert found["command"] == [
        "tritonserver",
        "--model-repository=/models",
        "--disable-auto-complete-config",
        "--exit-timeout-secs=30",
    ]
    assert found["volumes"] == [".:/models:ro"]
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["image"].startswith("${TRITON_IMAGE:?")
    assert all(port.startswith("127.0.0.1:") for port in found["ports"])
    assert "deploy" not in found, "no GPU is asked for where none is used"
    grace = int(found["stop_grace_period"].removesuffix("s"))
    assert grace > 30, "what is in flight is answered before the container is killed"
    compile(found["healthcheck"]["test"][-1], "healthcheck", "exec")


def test_as_many_gpus_are_asked_for_as_stages_stand_on(
    on_gpus: EngineBundle, tmp_path: Path
) -> None:
    repository = write(on_gpus, tmp_path / "r")
    (device,) = service(repository)["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["0", "1", "2"]
    model = predictor((repository / "inferenceservice.yaml").read_text())["model"]
    assert model["resources"]["limits"] == {"nvidia.com/gpu": "3"}


def test_kserves_service(on_cpu: EngineBundle, tmp_path: Path) -> None:
    repository = write(on_cpu, tmp_path / "r", name="ParNet_L", storage="s3://bucket/parnet")
    text = (repository / "inferenceservice.yaml").read_text()
    assert yaml.safe_load(text)["metadata"]["name"] == "parnet-l"
    assert predictor(text) == {
        "minReplicas": 1,
        "terminationGracePeriodSeconds": 40,
        "model": {
            "modelFormat": {"name": "triton", "version": "2"},
            "runtime": "kserve-tritonserver",
            "protocolVersion": "v2",
            "storageUri": "s3://bucket/parnet",
            "args": ["--disable-auto-complete-config", "--exit-timeout-secs=30"],
        },
    }


@pytest.mark.parametrize(
    ("name", "label"),
    [("A.b_C", "a-b-c"), ("3x3", "m-3x3"), ("x" * 80, "x" * 63), ("9" * 80, "m-" + "9" * 61)],
)
def test_names_become_names_that_kubernetes_takes(
    name: str, label: str, on_cpu: EngineBundle
) -> None:
    models: tuple[ModelConfig, ...] = models_of(on_cpu, RepositorySettings(name=name))
    text = inference_service_text(models, on_cpu.manifest, "pvc://models")
    assert yaml.safe_load(text)["metadata"]["name"] == label


def test_plans_of_any_version_are_allowed_only_where_the_engine_is_one(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    engine = stamp_engine(tiny_bundle, tmp_path / "e", split=False, version_compatible=True)
    repository = write(engine, tmp_path / "r")
    option = "--backend-config=tensorrt,version-compatible=true"
    assert option in service(repository)["command"]
    readme = (repository / "README.md").read_text()
    assert option in readme
    assert "TensorRT 10.13.3.9 or later" in readme


def test_the_readme_says_how_to_start_and_what_is_in_it(
    on_cpu: EngineBundle, on_gpus: EngineBundle, tmp_path: Path
) -> None:
    whole = (write(on_cpu, tmp_path / "whole", name="net") / "README.md").read_text()
    assert 'tritonserver --model-repository="$PWD" --disable-auto-complete-config' in whole
    assert "| net | onnxruntime_onnx | CPU, 1 instance(s) | images [1, 3, 64, 64] |" in whole
    assert "UNTRAINED" in whole
    assert "The batch is fixed at 1" in whole
    split = (write(on_gpus, tmp_path / "split", name="net") / "README.md").read_text()
    assert "| net-stream2 | tensorrt_plan | GPU 1, 1 instance(s) |" in split
    assert "| net | ensemble | its models' devices |" in split
    assert "need TensorRT 10.13.3.9 in Triton's image and a GPU of compute capability 8.6" in split
    assert "GPUs 0 to 2 have to be there" in split
    assert "replace the repository as a whole" in split
