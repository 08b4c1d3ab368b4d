"""``doctor`` on ordinary and on odd machines: what works, what does not, and what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import Cli

from parnet_deploy.cli import checkup, doctor, main
from parnet_deploy.cli.checkup import PACKAGES, Machine, Package, Task, judge
from parnet_deploy.cli.packages import module_of
from parnet_deploy.runtime.cpu import Cpu
from parnet_deploy.runtime.machine import CudaDriver, Gpu, installed

RTX_3090 = Gpu(index=0, name="NVIDIA GeForce RTX 3090", compute_capability="8.6", memory=24 * 2**30)
CPU_TASKS = {
    "predict, ONNX Runtime on the CPU",
    "predict, OpenVINO on the CPU",
    "predict, ncnn on the CPU",
    "build-engine --backend onnxruntime",
    "build-engine --backend openvino",
    "build-engine --backend ncnn",
}
WITHOUT_GPU = CPU_TASKS | {
    "build-engine --backend tensorrt-rtx",
    "export",
    "verify",
    "train",
    "ensemble",
    "serve",
    "serve --grpc-port",
}

FULL = Machine(
    python="3.12.1",
    system="Linux",
    cpu=Cpu(name="A CPU", architecture="x86_64", cores=8, features=("avx2", "fma")),
    driver=CudaDriver(
        version="580.95.05", cuda="13.0", gpus=(RTX_3090, replace(RTX_3090, index=1))
    ),
    nvidia_devices=2,
    onnxruntime=("onnxruntime-gpu", "1.31.1"),
    providers={"cpu": None, "cuda": None},
    packages={name: Package(version="1.0") for name in PACKAGES},
    cuda_required={"tensorrt": 13, "tensorrt-rtx": 13},
    disk_free=2**40,
)
NO_DRIVER = CudaDriver(problem="there is no NVIDIA driver here")
NO_GPU = replace(
    FULL,
    driver=NO_DRIVER,
    nvidia_devices=0,
    providers={"cpu": None, "cuda": NO_DRIVER.problem},
)
BARE = replace(
    NO_GPU,
    onnxruntime=None,
    providers={"cpu": "ModuleNotFoundError: No module named 'onnxruntime'", "cuda": "no GPU"},
    packages={name: Package(version=None) for name in PACKAGES},
    cuda_required={"tensorrt": None, "tensorrt-rtx": None},
)


def works(machine: Machine) -> set[str]:
    return {task.name for task in judge(machine) if task.works}


def task(machine: Machine, name: str) -> Task:
    return next(task for task in judge(machine) if task.name == name)


def without(machine: Machine, *names: str) -> Machine:
    missing = {name: Package(version=None) for name in names}
    return replace(machine, packages={**machine.packages, **missing})


def test_with_everything_everything_works() -> None:
    assert works(FULL) == {task.name for task in judge(FULL)} > WITHOUT_GPU


def test_without_a_gpu_engines_of_tensorrt_rtx_are_built_but_not_run() -> None:
    assert works(NO_GPU) == WITHOUT_GPU
    obstacles = task(NO_GPU, "predict, TensorRT RTX").obstacles
    assert [obstacle.reason for obstacle in obstacles] == ["there is no NVIDIA driver here"]
    assert obstacles[0].remedy == "a machine with an NVIDIA GPU"


def test_with_nothing_nothing_works_and_each_says_what_to_install() -> None:
    assert works(BARE) == set()
    for found in judge(BARE):
        assert all(obstacle.reason and obstacle.remedy for obstacle in found.obstacles)
    remedies = {found.name: [o.remedy for o in found.obstacles] for found in judge(BARE)}
    assert "pip install 'parnet-deploy[export]'" in remedies["export"]
    assert "pip install 'parnet-deploy[train]'" in remedies["train"]
    assert "pip install 'parnet-deploy[rtx]'" in remedies["build-engine --backend tensorrt-rtx"]
    assert any("parnet-deploy[tensorrt]" in r for r in remedies["build-engine --backend tensorrt"])
    assert remedies["predict, ONNX Runtime on the CPU"] == ["pip install parnet-deploy"]
    for backend, title in {"openvino": "OpenVINO", "ncnn": "ncnn"}.items():
        install = f"pip install 'parnet-deploy[{backend}]'"
        assert remedies[f"predict, {title} on the CPU"] == [install]
        assert install in remedies[f"build-engine --backend {backend}"]


@pytest.mark.parametrize(
    ("package", "lost"),
    [
        ("torch", {"export", "verify", "train", "ensemble"}),
        ("matplotlib", {"verify", "train"}),
        ("jinja2", {"verify"}),
        ("scikit-learn", {"train"}),
        ("timm", {"train"}),
        ("uvicorn", {"serve"}),
        ("tritonclient", {"serve --grpc-port"}),
        ("openvino", {"predict, OpenVINO on the CPU", "build-engine --backend openvino"}),
        ("ncnn", {"predict, ncnn on the CPU", "build-engine --backend ncnn"}),
        ("onnx", {"export", "verify", "build-engine --backend ncnn"}),
        ("tensorrt", {"predict, TensorRT", "build-engine --backend tensorrt"}),
        ("tensorrt-rtx", {"predict, TensorRT RTX", "build-engine --backend tensorrt-rtx"}),
        (
            "cuda-bindings",
            {"predict, TensorRT", "predict, TensorRT RTX", "predict, ONNX Runtime on the GPU"},
        ),
    ],
)
def test_a_package_is_needed_for_what_uses_it(package: str, lost: set[str]) -> None:
    assert works(FULL) - works(without(FULL, package)) == lost
    assert all(
        package in obstacle.reason
        for name in lost
        for obstacle in task(without(FULL, package), name).obstacles
    )


def test_a_package_that_does_not_load_is_as_good_as_none() -> None:
    broken = Package(version="11.3", problem="libnvinfer.so.11: cannot open shared object file")
    machine = replace(FULL, packages={**FULL.packages, "tensorrt": broken})
    (obstacle,) = task(machine, "build-engine --backend tensorrt").obstacles
    assert "tensorrt 11.3 does not load: libnvinfer.so.11" in obstacle.reason
    assert obstacle.remedy == "pip install --force-reinstall tensorrt"


def test_a_driver_that_is_too_old_for_a_package() -> None:
    machine = replace(FULL, driver=replace(FULL.driver, cuda="12.8"))
    (obstacle,) = task(machine, "predict, TensorRT RTX").obstacles
    assert obstacle.reason == "the driver serves CUDA 12.8, tensorrt-rtx needs CUDA 13"
    assert "driver" in obstacle.remedy
    assert task(machine, "build-engine --backend tensorrt-rtx").works


def test_what_is_tried_is_found_under_its_module_s_name() -> None:
    here = [name for name, tried in PACKAGES.items() if tried and installed(name)]
    assert {"torch", "onnx-graphsurgeon", "scikit-learn"} <= set(here)
    assert all(find_spec(module_of(name)) for name in here)


def test_a_gpu_that_is_too_old_for_tensorrt_rtx() -> None:
    turing = replace(RTX_3090, compute_capability="7.5")
    machine = replace(FULL, driver=replace(FULL.driver, gpus=(turing,)))
    assert works(FULL) - works(machine) == {"predict, TensorRT RTX"}


def test_a_gpu_without_a_driver_is_told_from_no_gpu() -> None:
    (obstacle,) = task(replace(NO_GPU, nvidia_devices=1), "predict, TensorRT RTX").obstacles
    assert "install NVIDIA's driver" in obstacle.remedy


def test_a_gpu_that_is_hidden_is_told_from_no_driver() -> None:
    driver = CudaDriver(cuda="13.0", problem="the driver finds no GPU")
    machine = replace(NO_GPU, driver=driver, nvidia_devices=1)
    (obstacle,) = task(machine, "predict, TensorRT RTX").obstacles
    assert "CUDA_VISIBLE_DEVICES" in obstacle.remedy


def test_the_wrong_onnxruntime_package_on_a_machine_with_a_gpu() -> None:
    machine = replace(
        FULL,
        onnxruntime=("onnxruntime", "1.31.1"),
        providers={"cpu": None, "cuda": "ONNX Runtime's CUDAExecutionProvider is not available"},
    )
    (obstacle,) = task(machine, "predict, ONNX Runtime on the GPU").obstacles
    assert "onnxruntime-gpu" in obstacle.remedy


def test_a_cuda_provider_without_its_libraries() -> None:
    problem = "it fell back to CPUExecutionProvider; 'parnet-deploy doctor' says what to install"
    machine = replace(FULL, providers={"cpu": None, "cuda": problem})
    (obstacle,) = task(machine, "predict, ONNX Runtime on the GPU").obstacles
    assert obstacle.reason == "it fell back to CPUExecutionProvider"
    assert "onnxruntime-gpu[cuda,cudnn]" in obstacle.remedy


@pytest.mark.parametrize(
    ("machine", "status"),
    [
        (FULL, 0),
        (NO_GPU, 0),
        (without(NO_GPU, *PACKAGES), 0),
        (BARE, 1),
        (replace(BARE, cpu=replace(FULL.cpu, features=(), cores=1)), 1),
        (replace(FULL, driver=replace(FULL.driver, version=None)), 0),
    ],
)
def test_any_machine_is_reported(
    machine: Machine,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: machine)
    assert main.run(["doctor"]) == status
    table = capsys.readouterr().out
    assert all(found.name in table for found in judge(machine))
    assert table.count(" yes ") == len(works(machine))
    assert ("RTX 3090" in table) == bool(machine.driver.gpus)

    assert main.run(["doctor", "--json"]) == status
    report = json.loads(capsys.readouterr().out)
    assert report["works"] is (status == 0)
    assert {t["task"] for t in report["tasks"] if t["works"]} == works(machine)
    assert report["machine"]["driver"]["gpus"] == [
        {
            "index": gpu.index,
            "name": gpu.name,
            "compute_capability": gpu.compute_capability,
            "memory": gpu.memory,
        }
        for gpu in machine.driver.gpus
    ]


def test_only_what_is_installed_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(checkup, "provider_problem", lambda provider: None)
    monkeypatch.setattr(checkup, "import_problem", tried.append)
    monkeypatch.setattr(checkup, "installed", {"torch": "2.14", "tensorrt-rtx": "1.7"}.get)
    machine = checkup.examine()
    assert sorted(tried) == ["tensorrt_rtx", "torch"]
    assert machine.packages["torch"] == Package(version="2.14")
    assert machine.packages["tensorrt"] == Package(version=None)


@pytest.mark.slow
def test_here(cli: Cli) -> None:
    result = cli("doctor", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["works"] is True
    done = {found["task"] for found in report["tasks"] if found["works"]}
    assert done >= WITHOUT_GPU  # what the tests install
    assert all(found["works"] or found["obstacles"] for found in report["tasks"])


@pytest.mark.slow
def test_with_broken_packages(cli: Cli, tmp_path: Path) -> None:
    """ONNX Runtime does not import, and torch takes its process with it."""
    shadows = tmp_path / "shadows"
    for name, code in {
        "onnxruntime": "raise ImportError('libcudart.so.13: cannot open shared object file')",
        "torch": "import os; os.abort()",
    }.items():
        (shadows / name).mkdir(parents=True)
        (shadows / name / "__init__.py").write_text(code)
    result = cli("doctor", env={"PYTHONPATH": str(shadows), "COLUMNS": "300"})
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    assert "libcudart.so.13" in result.stdout
    assert "it crashed with signal 6" in result.stdout
    assert "pip install --force-reinstall torch" in result.stdout
    assert "\x1b" not in result.stdout
