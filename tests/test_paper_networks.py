"""Every network of the paper: trained for a few steps, exported, split and verified.

Its blocks are all there; only its widths are a sixteenth, and images are small.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import verify_faults as faults
from strategies import SHAPES
from torch import nn

from parnet_deploy.bundle import Source, sha256
from parnet_deploy.export import ExportOptions, export_model
from parnet_deploy.net import ParNet, initialise, load_checkpoint, save_checkpoint
from parnet_deploy.net.ensemble import join_checkpoints
from parnet_deploy.spec import VARIANTS, ParNetSpec, Preprocessing, layout, stages
from parnet_deploy.verify.options import VerifyOptions
from parnet_deploy.verify.verifying import verify

CLASSES, BATCH, STEPS = 5, 8, 3
PASSED = {
    "training-f64",
    "fused-f64",
    "fused-f32",
    "onnx-whole",
    "onnx-stages",
    "split-engine",
}


def small(spec: ParNetSpec) -> ParNetSpec:
    """The same network, a sixteenth as wide."""
    widths = tuple(max(4, width // 16 // 4 * 4) for width in spec.widths)
    side = 2 * spec.stride if spec.stride > 4 else 16
    return replace(spec.with_widths(widths), classes=CLASSES, image_size=(side, side))


def trained(spec: ParNetSpec, seed: int) -> ParNet:
    """A network after a few steps of SGD on noise, each of which changed every weight."""
    model = initialise(spec, seed=seed).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # what is dropped
    for _ in range(STEPS):
        images = torch.randn(BATCH, 3, *spec.image_size, generator=generator)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
        assert math.isfinite(loss.item())
        unchanged = [n for n, value in model.named_parameters() if torch.equal(value, before[n])]
        assert not unchanged
    return model.eval()


def checkpoint(spec: ParNetSpec, folder: Path) -> Path:
    """A trained network's checkpoint: an ensemble's members are trained each by itself."""
    path = folder / "net.safetensors"
    if spec.members == 1:
        save_checkpoint(trained(spec, 0), path)
        return path
    members = []
    for seed in range(spec.members):
        members.append(folder / f"member{seed}.safetensors")
        save_checkpoint(trained(replace(spec, members=1), seed), members[-1])
    model, facts = join_checkpoints(members)
    save_checkpoint(model, path, facts)
    return path


# Those that have another's blocks and are only wider are left to CI.
NAMES = [pytest.param(name, marks=() if name in SHAPES else pytest.mark.slow) for name in VARIANTS]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_trained_exported_split_and_verified(name: str, tmp_path: Path) -> None:
    spec = small(VARIANTS[name].spec)
    assert len(layout(spec)) == len(layout(VARIANTS[name].spec))
    path = checkpoint(spec, tmp_path)
    model = load_checkpoint(path).model
    source = Source(kind="parnet-deploy", file=path.name, sha256=sha256(path))
    options = ExportOptions(name=name, preprocessing=Preprocessing(size=spec.image_size))
    bundle = export_model(model, source, tmp_path / "model", options)
    assert [s.name for s in bundle.manifest.stages] == [s.name for s in stages(spec, "replicate")]
    engine = faults.build(bundle, tmp_path / "engine", split=True)
    found = verify(engine.path, VerifyOptions(samples=2))
    assert found.passed, found.failures
    assert {rung.name for rung in found.rungs if rung.verdict == "passed"} == PASSED


@pytest.mark.parametrize("streams", [1, 2, 3, 4])
@pytest.mark.parametrize("options", [{"squeeze": False}, {"activation": "relu"}], ids=str)
def test_the_ablations_at_every_number_of_streams_learn(
    streams: int, options: dict[str, object]
) -> None:
    spec = small(VARIANTS["m"].spec.with_streams(streams))
    trained(replace(spec, **options), 0)  # type: ignore[arg-type]
