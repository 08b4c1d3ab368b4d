"""``parnet-deploy ensemble`` as a user calls it, and what is made of its checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, one_sentence
from conftest import tiny_spec

from parnet_deploy.bundle import open_engine_bundle, open_model
from parnet_deploy.net import TrainingFacts, initialise, load_checkpoint, save_checkpoint
from parnet_deploy.runtime import open_runner
from parnet_deploy.spec import Preprocessing

FACTS = TrainingFacts(
    labels=tuple("abcdefg"), preprocessing=Preprocessing(size=(64, 64), crop_ratio=1.0)
)
CPU = ("--backend", "onnxruntime", "--provider", "cpu", "--threads", "1")

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two networks, trained from different seeds as far as anyone can tell, where one is."""
    monkeypatch.chdir(tmp_path)
    spec = tiny_spec(name="one", stream_widths=(16,), stream_blocks=(3,))
    names = ["a.safetensors", "b.safetensors"]
    for seed, name in enumerate(names):
        save_checkpoint(initialise(spec, seed=seed), Path(name), FACTS)
    return names


def test_from_members_to_a_verified_split_engine(capsys: Capture, members: list[str]) -> None:
    joined = call(capsys, "ensemble", *members, "--output", "both.safetensors")
    assert joined.status == 0, joined.err
    first, last = joined.out.splitlines()
    assert first.startswith("both.safetensors: one-ensemble-2, 2 members, 0.")
    assert first.endswith("parameters fused, depth 7")
    assert last == "next: parnet-deploy export --checkpoint both.safetensors"

    exported = call(capsys, "export", "--checkpoint", "both.safetensors")
    assert exported.status == 0, exported.err
    bundle = open_model(Path("models/parnet-one-ensemble-2"))
    assert [stage.name for stage in bundle.manifest.stages] == ["stream1", "stream2", "fusion"]
    assert bundle.labels == FACTS.labels
    assert bundle.manifest.preprocessing == FACTS.preprocessing

    built = call(capsys, "build-engine", bundle.path, "--split-streams", *CPU)
    assert built.status == 0, built.err
    engine = Path("engines/parnet-one-ensemble-2-onnxruntime-cpu-split")
    checked = call(capsys, "verify", engine, "--samples", 4)
    assert checked.status == 0, checked.out
    shown = call(capsys, "inspect", engine, "--svg", "net.svg")
    assert "an ensemble of 2 single-stream networks" in shown.out
    assert "stream1_stem1-2, stream1_block1-3, stream1_last" in shown.out

    images = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    with torch.inference_mode():
        alone = [load_checkpoint(Path(name)).model(torch.from_numpy(images)) for name in members]
    with open_runner(open_engine_bundle(engine)) as runner:
        logits = runner.run({"images": images})["logits"]
    np.testing.assert_allclose(logits, torch.stack(alone).mean(0).numpy(), rtol=1e-4, atol=1e-5)


def test_an_ensembles_variant_is_exported_untrained(capsys: Capture, members: list[str]) -> None:
    options = ("--widths", "16,24", "--image-size", "32", "--classes", "5", "--output", "three")
    result = call(capsys, "export", "--variant", "ensemble-3", *options)
    assert result.status == 0, result.err
    assert open_model(Path("three")).manifest.spec.members == 3


@pytest.mark.parametrize(
    ("arguments", "status", "parts"),
    [
        (["a.safetensors", "--output", "x.safetensors"], 2, ["at least two members, not 1"]),
        (
            ["a.safetensors", "copy.safetensors", "--output", "x.safetensors"],
            1,
            ["copy.safetensors holds the same weights as a.safetensors"],
        ),
        (
            ["a.safetensors", "other.safetensors", "--output", "x.safetensors"],
            1,
            ["other.safetensors has other classes than a.safetensors"],
        ),
        (
            ["a.safetensors", "missing.safetensors", "--output", "x.safetensors"],
            1,
            ["no checkpoint file at missing.safetensors"],
        ),
        (["a.safetensors", "b.safetensors", "--output", "x.onnx"], 2, ["FILE.safetensors"]),
        (["a.safetensors", "b.safetensors", "--output", "b.safetensors"], 1, ["give --force"]),
        (
            ["a.safetensors", "b.safetensors", "--output", "nowhere/x.safetensors"],
            1,
            ["cannot write nowhere/x.safetensors", "No such file"],
        ),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_what_cannot_be_joined(
    capsys: Capture, members: list[str], arguments: list[str], status: int, parts: list[str]
) -> None:
    shutil.copy(members[0], "copy.safetensors")
    other = tiny_spec(stream_widths=(16,), stream_blocks=(3,), classes=3)
    save_checkpoint(initialise(other, seed=2), Path("other.safetensors"))
    before = {path: path.read_bytes() for path in Path().iterdir()}
    one_sentence(call(capsys, "ensemble", *arguments), status, *parts)
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_force_replaces_a_file(capsys: Capture, members: list[str]) -> None:
    Path("both.safetensors").write_text("older")
    arguments = ("ensemble", *members, "--output", "both.safetensors")
    assert call(capsys, *arguments).status == 1
    assert call(capsys, *arguments, "--force").status == 0
    assert load_checkpoint(Path("both.safetensors")).model.spec.members == 2


def test_an_ensemble_has_no_stem_to_share(capsys: Capture, members: list[str]) -> None:
    call(capsys, "ensemble", *members, "--output", "both.safetensors")
    result = call(capsys, "export", "--checkpoint", "both.safetensors", "--stem", "share")
    one_sentence(result, 2, "have a stem each")
    assert not Path("models").exists()
