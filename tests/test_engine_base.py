"""The frame of building: options, all of a bundle or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from parnet_deploy.bundle import (
    LABELS,
    MANIFEST,
    EngineStage,
    ModelBundle,
    open_engine_bundle,
    open_model,
    resolve_model,
    sha256,
)
from parnet_deploy.engine import (
    WHOLE,
    BuildOptions,
    BuildStage,
    build_engine,
    build_stages,
    choose_backend,
    make_builder,
)
from parnet_deploy.engine import choose as choose_module
from parnet_deploy.errors import BuildError, BundleError, EngineError, OutputExistsError, UsageError
from parnet_deploy.runtime.machine import CudaDriver, Gpu
from parnet_deploy.spec import Backend


class Stamp:
    """A builder that writes the stage's name, and fails at the stage that it is told."""

    backend: Backend = "onnxruntime"
    label = "stamp"

    def __init__(self, devices: tuple[str, ...] = ("cpu",), fail_at: str = "") -> None:
        self.devices = devices
        self.fail_at = fail_at
        self.built: list[BuildStage] = []

    def target(self) -> Mapping[str, object]:
        return {"stamp": "1"}

    def options(self) -> Mapping[str, object]:
        return {"ink": "blue"}

    def tools(self) -> Mapping[str, str]:
        return {"stamp": "1.0"}

    def computes(self, precision: str) -> str:
        return "fp32"

    def build(self, stage: BuildStage, folder: Path) -> EngineStage:
        self.built.append(stage)
        path = folder / f"{stage.name}.stamp"
        path.write_text(stage.name)
        if stage.name == self.fail_at:
            raise BuildError(f"no ink for {stage.name}")
        return EngineStage(
            name=stage.name,
            file=path.name,
            device=stage.device,
            inputs=stage.inputs,
            outputs=stage.outputs,
            kernels=5,
            streams=2,
        )


@pytest.fixture
def model(tiny_bundle: ModelBundle, tmp_path: Path) -> ModelBundle:
    """A copy of the tiny bundle that may be damaged."""
    return open_model(Path(shutil.copytree(tiny_bundle.path, tmp_path / "models" / "tiny")))


@pytest.mark.parametrize("split", [False, True])
def test_a_bundle_says_what_it_is_and_what_it_came_from(
    model: ModelBundle, tmp_path: Path, split: bool
) -> None:
    final = tmp_path / "engines" / "tiny-stamp"
    steps: list[str] = []
    built = build_engine(model, final, Stamp(), split=split, progress=steps.append)
    manifest = open_engine_bundle(final).manifest
    assert manifest == built.manifest
    names = [stage.name for stage in model.manifest.stages] if split else [WHOLE]
    assert [stage.name for stage in manifest.stages] == names
    assert (manifest.name, manifest.backend, manifest.split) == (final.name, "onnxruntime", split)
    for field in ("spec", "form", "batch", "softmax", "preprocessing", "inputs", "outputs"):
        assert getattr(manifest, field) == getattr(model.manifest, field)
    assert manifest.warnings == model.manifest.warnings != ()  # UNTRAINED is not forgotten
    assert (manifest.target, manifest.options) == ({"stamp": "1"}, {"ink": "blue"})
    assert {"parnet-deploy", "numpy", "stamp"} <= set(manifest.tools)
    assert manifest.stages[0].kernels == 5
    assert built.labels == model.labels
    assert manifest.files[LABELS] == model.manifest.files[LABELS]
    assert set(manifest.files) == {LABELS, *(f"{name}.stamp" for name in names)}
    assert [step for step in steps if step.startswith("build")] == [
        f"build: {name} for cpu" for name in names
    ]


def test_an_engine_names_the_manifest_of_its_model_and_finds_it(
    model: ModelBundle, tmp_path: Path
) -> None:
    built = build_engine(model, tmp_path / "engines" / "e", Stamp(), split=False)
    reference = built.manifest.model
    assert reference.name == "tiny"
    assert reference.manifest_sha256 == sha256(model.path / MANIFEST) == model.manifest_sha256
    assert reference.path == "../../models/tiny"
    moved = (tmp_path / "both").resolve()
    moved.mkdir()
    for folder in ("models", "engines"):
        (tmp_path / folder).rename(moved / folder)
    assert resolve_model(reference, moved / "engines" / "e") == moved / "models" / "tiny"


def test_an_engine_behind_a_link_finds_its_model(model: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "big" / "disk").mkdir(parents=True)
    (tmp_path / "engines").symlink_to(tmp_path / "big" / "disk")
    built = build_engine(model, tmp_path / "engines" / "e", Stamp(), split=False)
    for path in (tmp_path / "engines" / "e", tmp_path / "big" / "disk" / "e"):
        found = resolve_model(built.manifest.model, path)
        assert open_model(found).manifest_sha256 == model.manifest_sha256


def test_a_stage_is_built_from_its_own_graph(model: ModelBundle) -> None:
    (whole,) = build_stages(model, ("cpu",), split=False)
    assert (whole.name, whole.graph) == (WHOLE, model.path / "model.onnx")
    assert (whole.inputs, whole.outputs) == (model.manifest.inputs, model.manifest.outputs)
    stages = build_stages(model, ("cuda:0", "cuda:1"), split=True)
    for stage, graph in zip(stages, model.manifest.stages, strict=True):
        assert (stage.name, stage.graph) == (graph.name, model.path / graph.file)
        assert (stage.inputs, stage.outputs) == (graph.inputs, graph.outputs)
        assert stage.batch == model.manifest.batch
    devices = {stage.name: stage.device for stage in stages}
    assert devices == {
        "stream1": "cuda:0",
        "stream2": "cuda:1",
        "stream3": "cuda:0",
        "fusion": "cuda:0",
    }


def flip_a_byte(model: ModelBundle) -> str:
    path = model.file("stages/weights.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    return "weights.safetensors is damaged"


def lose_a_file(model: ModelBundle) -> str:
    model.file("stages/stream2.onnx").unlink()
    return "'stages/stream2.onnx' is missing"


def make_newer(model: ModelBundle) -> str:
    path = model.path / MANIFEST
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    return "install a newer parnet-deploy"


def replace_by_another(model: ModelBundle) -> str:
    path = model.path / MANIFEST
    path.write_text(path.read_text().replace('"tiny"', '"other"'))
    digest = sha256(path)
    (model.path / "manifest.sha256").write_text(f"{digest}  {MANIFEST}\n")
    return "was replaced by another bundle"


@pytest.mark.parametrize("damage", [flip_a_byte, lose_a_file, make_newer, replace_by_another])
def test_a_model_that_is_not_what_it_was_is_refused_before_anything_is_built(
    model: ModelBundle, tmp_path: Path, damage: object
) -> None:
    message = damage(model)  # type: ignore[operator]
    builder = Stamp()
    with pytest.raises(BundleError, match=message):
        build_engine(model, tmp_path / "engines" / "e", builder, split=True)
    assert builder.built == []
    assert list((tmp_path / "engines").iterdir()) == []


@pytest.mark.parametrize("stage", ["stream1", "fusion"])
def test_a_build_that_fails_leaves_nothing(model: ModelBundle, tmp_path: Path, stage: str) -> None:
    with pytest.raises(BuildError, match=f"no ink for {stage}"):
        build_engine(model, tmp_path / "engines" / "e", Stamp(fail_at=stage), split=True)
    assert list((tmp_path / "engines").iterdir()) == []


def test_a_build_that_fails_leaves_the_old_engine_as_it_was(
    model: ModelBundle, tmp_path: Path
) -> None:
    final = tmp_path / "e"
    old = build_engine(model, final, Stamp(), split=False)
    with pytest.raises(OutputExistsError, match="--force"):
        build_engine(model, final, Stamp(), split=True)
    with pytest.raises(BuildError):
        build_engine(model, final, Stamp(fail_at="fusion"), split=True, force=True)
    assert open_engine_bundle(final).manifest_sha256 == old.manifest_sha256
    new = build_engine(model, final, Stamp(), split=True, force=True)
    assert open_engine_bundle(final).manifest_sha256 == new.manifest_sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "models"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": -1}, "--threads is not negative"),
        ({"workspace_mib": -1}, "--workspace is not negative"),
        ({"aux_streams": -1}, "--aux-streams is not negative"),
        ({"devices": (0, -1)}, "--devices are different numbers from 0"),
        ({"devices": (1, 1)}, "--devices are different numbers from 0"),
        ({"compute_capabilities": ("8.6", "sm_90")}, "a compute capability .* not 'sm_90'"),
        ({"compute_capabilities": ("8",)}, "a compute capability .* not '8'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BuildOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("onnxruntime", {"tf32": True}, "--tf32 does not apply to onnxruntime.*tensorrt or"),
        ("onnxruntime", {"timing_cache": Path("x")}, "--timing-cache does not apply"),
        ("onnxruntime", {"compute_capabilities": ("8.6",)}, "it is for --backend tensorrt-rtx$"),
        ("tensorrt", {"compute_capabilities": ("8.6",)}, "it is for --backend tensorrt-rtx$"),
        (
            "tensorrt",
            {"threads": 2},
            "--threads .*is for --backend onnxruntime or openvino or ncnn$",
        ),
        ("openvino", {"spin": False}, "--spin does not apply to openvino.* --backend onnxruntime$"),
        ("openvino", {"devices": (0,)}, "--devices does not apply to openvino"),
        ("tensorrt-rtx", {"provider": "cuda"}, "--provider does not apply to tensorrt-rtx"),
        ("onnxruntime", {"devices": (0, 1)}, "--devices names 2 devices.*add --split-streams"),
    ],
)
def test_options_that_do_not_apply_are_refused_and_told_where_they_do(
    backend: Backend, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_builder(backend, BuildOptions(**options), split=False)  # type: ignore[arg-type]


NO_GPU = CudaDriver(problem="there is no NVIDIA driver here")
AMPERE = Gpu(index=0, name="A GPU", compute_capability="8.6", memory=24 * 2**30)
GPU = CudaDriver(version="580", cuda="13.0", gpus=(AMPERE,))
OLD_DRIVER = replace(GPU, version="550", cuda="12.4")
TURING = replace(GPU, gpus=(replace(AMPERE, compute_capability="7.5"),))


@pytest.mark.parametrize(
    ("packages", "driver", "broken", "provider", "backend", "taken"),
    [
        ({"tensorrt", "tensorrt-rtx"}, GPU, {}, None, "tensorrt", "tensorrt"),
        ({"tensorrt-rtx"}, GPU, {}, None, "tensorrt-rtx", "tensorrt-rtx"),
        (
            {"tensorrt", "tensorrt-rtx"},
            GPU,
            {"tensorrt": "libnvinfer is broken"},
            None,
            "tensorrt-rtx",
            "tensorrt-rtx",
        ),
        (set(), GPU, {}, None, "onnxruntime", "onnxruntime on cuda"),
        (set(), GPU, {}, "no cuDNN", "onnxruntime", "onnxruntime on cpu"),
        ({"tensorrt", "tensorrt-rtx"}, NO_GPU, {}, "no GPU", "onnxruntime", "onnxruntime on cpu"),
        ({"tensorrt", "tensorrt-rtx"}, OLD_DRIVER, {}, None, "onnxruntime", "onnxruntime on cuda"),
        ({"tensorrt-rtx"}, TURING, {}, None, "onnxruntime", "onnxruntime on cuda"),
        ({"tensorrt", "tensorrt-rtx"}, TURING, {}, None, "tensorrt", "tensorrt"),
    ],
    ids=[
        "all",
        "rtx only",
        "tensorrt broken",
        "cuda",
        "no cudnn",
        "no gpu",
        "old driver",
        "old gpu",
        "old gpu, tensorrt",
    ],
)
def test_auto_takes_the_fastest_that_works_and_says_why_not_the_others(
    monkeypatch: pytest.MonkeyPatch,
    packages: set[str],
    driver: CudaDriver,
    broken: dict[str, str],
    provider: str | None,
    backend: str,
    taken: str,
) -> None:
    monkeypatch.setattr(
        choose_module, "installed", lambda name: "1.0" if name in packages else None
    )
    monkeypatch.setattr(choose_module, "cuda_driver", lambda: driver)
    monkeypatch.setattr(choose_module, "cuda_required", lambda name: 13)
    monkeypatch.setattr(choose_module, "import_problem", broken.get)
    monkeypatch.setattr(choose_module, "provider_problem", lambda name: provider)
    choice = choose_backend()
    assert choice.backend == backend
    assert choice.reasons[-1].startswith(f"{taken}: taken")
    for reason in choice.reasons[:-1]:
        assert ": not taken, " in reason
    told = " | ".join(choice.reasons)
    for name in {"tensorrt", "tensorrt-rtx"} - packages:
        assert taken == "tensorrt" or f"{name} is not installed (pip install" in told
    for problem in broken.values():
        assert problem in told
    for name in ("openvino", "ncnn"):
        missing = (
            f"{name}: not taken, {name} is not installed (pip install 'parnet-deploy[{name}]')"
        )
        assert (missing in choice.reasons) == (taken == "onnxruntime on cpu")
    unfit = {
        NO_GPU: "there is no NVIDIA driver",
        OLD_DRIVER: "the driver serves CUDA 12.4, tensorrt-rtx needs CUDA 13",
        TURING: "no GPU of compute capability 8.0",
    }
    if driver in unfit and taken != "tensorrt":
        builds = "it builds here, with --backend tensorrt-rtx, but does not run: "
        assert builds + unfit[driver] in told
    if driver is OLD_DRIVER:
        assert "tensorrt: not taken, the driver serves CUDA 12.4, tensorrt needs CUDA 13" in told


ORDER = choose_module._CPU_ORDER


@pytest.mark.parametrize("order", [ORDER, ("openvino", "onnxruntime", "ncnn"), ORDER[::-1]])
@pytest.mark.parametrize("broken", [False, True])
def test_the_first_on_the_cpu_that_loads_is_taken_and_the_others_are_told(
    monkeypatch: pytest.MonkeyPatch, order: tuple[Backend, ...], broken: bool
) -> None:
    tried = []

    def import_problem(module: str) -> str | None:
        tried.append(module)
        return "libtbb.so.12 is missing" if broken else None

    monkeypatch.setattr(choose_module, "_CPU_ORDER", order)
    monkeypatch.setattr(choose_module, "installed", {"openvino": "2026.4.1", "ncnn": "1.0"}.get)
    monkeypatch.setattr(choose_module, "import_problem", import_problem)
    monkeypatch.setattr(choose_module, "cuda_driver", lambda: NO_GPU)
    monkeypatch.setattr(choose_module, "provider_problem", lambda name: "no GPU")
    choice = choose_backend()
    expected = "onnxruntime" if broken else order[0]
    assert choice.backend == expected
    before = order[: order.index(expected)]
    assert tried == [name for name in (*before, expected) if name != "onnxruntime"]
    assert [reason.partition(",")[0] for reason in choice.reasons[3:]] == [
        *(f"{name}: not taken" for name in order if name != expected),
        f"{expected} on cpu: taken",
    ]
    for name in order:
        behind = f"{name}: not taken, {expected} on cpu comes before it"
        assert (behind in choice.reasons) == (name not in (*before, expected))


def test_a_backend_that_does_not_read_a_precision_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = ("ncnn", "openvino", "onnxruntime")
    monkeypatch.setattr(choose_module, "_CPU_ORDER", order)
    monkeypatch.setattr(choose_module, "installed", {"openvino": "2026.4.1", "ncnn": "1.0"}.get)
    monkeypatch.setattr(choose_module, "import_problem", lambda module: None)
    monkeypatch.setattr(choose_module, "cuda_driver", lambda: NO_GPU)
    monkeypatch.setattr(choose_module, "provider_problem", lambda name: "no GPU")
    assert choose_backend("fp32").backend == "ncnn"
    choice = choose_backend("fp16")
    assert choice.backend == "openvino"
    assert "ncnn: not taken, it reads no fp16 graphs" in choice.reasons
    with pytest.raises(EngineError, match=r"--backend tensorrt-rtx --compute-capability 8\.9, w"):
        choose_backend("fp8")  # for all that it builds for by itself it would be refused
