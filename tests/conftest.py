"""What several tests share: small networks, bundles of them, and the command line."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from parnet_deploy.bundle import EngineBundle, ModelBundle, Source
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.export import ExportOptions, export_model
from parnet_deploy.net import ParNet, initialise
from parnet_deploy.spec import ParNetSpec, Preprocessing, StemMode

DATA = Path(__file__).parent / "data"

os.environ["COLUMNS"] = "200"  # pytest-xdist sets another width than there is without it

settings.register_profile(
    "parnet", deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("parnet")


def pytest_collection_finish() -> None:
    """Tests and libraries, 600 000 objects, stay: no collection of garbage goes through them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Two workers on two cores: one thread each."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _nothing_waits_for_the_disk() -> Iterator[None]:
    """What a test writes need not outlive a power cut; a bundle is a dozen files, each synced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def tiny_spec(**changes: object) -> ParNetSpec:
    """A ParNet of the ImageNet shape, small enough for any test: 64x64 images, 7 classes."""
    spec = ParNetSpec(
        name="tiny",
        stem_widths=(8,),
        stem_strides=(2, 2),
        stream_widths=(8, 16, 24),
        stream_blocks=(2, 2, 2),
        last_width=32,
        classes=7,
        image_size=(64, 64),
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch normalisation random parameters and statistics, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                random = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.data.copy_(low + (high - low) * random)
    return model


def tiny_network(seed: int = 0, **changes: object) -> ParNet:
    """A seeded tiny ParNet with randomised batch normalisations, in inference mode."""
    model = initialise(tiny_spec(**changes), seed=seed)
    randomise(model, seed)
    return model.eval()


def export_tiny(
    final: Path,
    *,
    stem: StemMode = "replicate",
    seed: int = 0,
    preprocess: bool = False,
    changes: dict[str, object] | None = None,
    **options: object,
) -> ModelBundle:
    """Export a tiny network into a model bundle at `final`."""
    model = tiny_network(seed, **(changes or {}))
    preprocessing = Preprocessing(size=model.spec.image_size, in_graph=preprocess)
    export_options = ExportOptions(
        name=final.name,
        preprocessing=preprocessing,
        stem=stem,
        **options,  # type: ignore[arg-type]
    )
    return export_model(model, Source(kind="untrained", seed=seed), final, export_options)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """A tiny network's model bundle, stem replicated, batch 1. Read only: copy it to change it."""
    return export_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_bundle_dynamic(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """The same with a shared stem and a dynamic batch of 1:2:4. Read only."""
    from parnet_deploy.bundle import BatchRange

    return export_tiny(
        tmp_path_factory.mktemp("models") / "tiny-dynamic",
        stem="share",
        batch=BatchRange(min=1, opt=2, max=4),
    )


@pytest.fixture(scope="session")
def tiny_engine(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    """A tiny network's engine on one thread, whole, of one image. Read only."""
    builder = make_builder("onnxruntime", BuildOptions(provider="cpu", threads=1), split=False)
    final = tmp_path_factory.mktemp("engines") / "tiny-onnxruntime-cpu"
    return build_engine(tiny_bundle, final, builder, split=False)


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command line as a user calls it, in a process of its own, in a folder of its own."""

    def call(
        *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "parnet_deploy", *map(str, arguments)],
            cwd=cwd or tmp_path,
            env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return call


@pytest.fixture
def here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Cli:
    """The same in this process: every command has a test in its own, which takes seconds more."""

    def call_here(*arguments: object) -> subprocess.CompletedProcess[str]:
        from commands import call

        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        result = call(capsys, *arguments)
        return subprocess.CompletedProcess(arguments, result.status, result.out, result.err)

    return call_here


def clean_error(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The command ended as a bad input must: one clear sentence, non-zero, no traceback."""
    assert result.returncode not in (0, None), result.stdout + result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part.lower() in lines[0].lower(), (part, lines[0])


@pytest.fixture
def lone_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked before does not keep a request from the express lane."""
    monkeypatch.setattr("parnet_deploy.serve.http.express._LONE", 0.0)


@pytest.fixture
def patient_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the express lane a body may take as long as the test."""
    monkeypatch.setattr("parnet_deploy.serve.http.sockets.express_connection._PATIENCE", 60.0)
