"""Ensembles: the mean of their members, exactly; and members that do not go together."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import verify_faults as faults
from conftest import randomise, tiny_network, tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import FORMS

from parnet_deploy.bundle import ModelBundle, Source, sha256
from parnet_deploy.errors import CheckpointError, ExportError, UsageError
from parnet_deploy.export import ExportOptions, export_model
from parnet_deploy.net import (
    ParNet,
    TrainingFacts,
    fuse,
    initialise,
    load_checkpoint,
    save_checkpoint,
)
from parnet_deploy.net.ensemble import ensemble_spec, join, join_checkpoints
from parnet_deploy.net.folds import mean_of_linears
from parnet_deploy.spec import DeployForm, ParNetSpec, Preprocessing, variant
from parnet_deploy.verify.options import VerifyOptions
from parnet_deploy.verify.verifying import verify

EXACT = 1e-12
PREPROCESSING = Preprocessing(size=(64, 64), crop_ratio=1.0)
LABELS = tuple("abcdefg")


def single(**changes: object) -> ParNetSpec:
    return tiny_spec(**{"stream_widths": (16,), "stream_blocks": (3,)} | changes)


def network(seed: int, spec: ParNetSpec | None = None) -> ParNet:
    model = initialise(spec or single(), seed=seed)
    randomise(model, seed)
    return model.eval()


def saved(path: Path, seed: int, facts: TrainingFacts | None = None, **changes: object) -> Path:
    facts = facts or TrainingFacts(labels=LABELS, preprocessing=PREPROCESSING)
    save_checkpoint(network(seed, single(**changes)), path, facts)
    return path


@given(
    members=st.integers(2, 4),
    form=st.sampled_from(FORMS),
    last=st.sampled_from(["downsample", "pointwise"]),
    squeeze=st.booleans(),
)
@settings(max_examples=10)
def test_the_logits_are_the_mean_of_the_members(
    members: int, form: DeployForm, last: str, squeeze: bool
) -> None:
    spec = single(
        last=last,
        last_stride=2 if last == "downsample" else 1,
        squeeze=squeeze,
        image_size=(16, 24),
        bn_eps=1e-3,
    )
    alone = [network(seed, spec).double() for seed in range(members)]
    images = torch.randn(
        2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        expected = torch.stack([model(images) for model in alone]).mean(0)
        joined = join(alone)
        assert (joined(images) - expected).abs().max() < EXACT
        fused = fuse(joined, form)(images)
        assert (fused - expected).abs().max() < EXACT * max(1.0, float(expected.abs().max()))
    assert not joined.training
    assert joined.spec == replace(spec, members=members, name=f"tiny-ensemble-{members}")


def test_joining_leaves_the_members_alone() -> None:
    members = [network(seed) for seed in (0, 1)]
    before = [{n: v.clone() for n, v in m.state_dict().items()} for m in members]
    for value in join(members).state_dict().values():
        value.zero_()
    for kept, member in zip(before, members, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in member.state_dict().items())


def test_an_ensemble_is_called_by_its_variant() -> None:
    one = variant("m-one-stream").spec
    assert ensemble_spec(one, 2) == variant("ensemble-2").spec
    other = replace(one, classes=10, image_size=(320, 320), name="mine")
    assert ensemble_spec(other, 3) == replace(
        variant("ensemble-3").spec, classes=10, image_size=(320, 320)
    )
    assert ensemble_spec(one, 4).name == "m-one-stream-ensemble-4"


def test_checkpoints_bring_what_they_say(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{seed}.safetensors", seed) for seed in range(3)]
    model, facts = join_checkpoints(paths)
    assert (facts.labels, facts.preprocessing) == (LABELS, PREPROCESSING)
    assert facts.members == tuple(
        Source(kind="parnet-deploy", file=path.name, sha256=sha256(path)) for path in paths
    )
    save_checkpoint(model, tmp_path / "joined.safetensors", facts)
    read = load_checkpoint(tmp_path / "joined.safetensors")
    assert read.facts == facts
    assert read.model.spec == model.spec


@pytest.mark.parametrize(
    ("changes", "facts", "words"),
    [
        ({"activation": "relu"}, {}, "other activation than .*: relu instead of silu"),
        ({"classes": 6}, {}, "other classes than .*: 6 instead of 7"),
        ({"image_size": (32, 32)}, {"preprocessing": None}, "other image_size than"),
        ({"bn_eps": 1e-3}, {}, "other bn_eps than"),
        ({"stream_widths": (20,)}, {}, r"other stream_widths than .*: \(20,\) instead of \(16,\)"),
        ({}, {"labels": tuple("gfedcba")}, "other labels than"),
        (
            {},
            {"preprocessing": replace(PREPROCESSING, crop_ratio=0.5)},
            "other preprocessing than .*0.5",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_members_that_differ_in_more_than_their_weights(
    tmp_path: Path, changes: dict[str, object], facts: dict[str, object], words: str
) -> None:
    first = saved(tmp_path / "first.safetensors", 0)
    good = saved(tmp_path / "good.safetensors", 1)
    said = {"labels": LABELS, "preprocessing": PREPROCESSING} | facts
    if "classes" in changes:
        said["labels"] = LABELS[:6]
    other = saved(tmp_path / "other.safetensors", 2, TrainingFacts(**said), **changes)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=words) as caught:
        join_checkpoints([first, good, other])
    assert str(caught.value).startswith(f"{other} has other ")
    assert str(first) in str(caught.value)
    assert str(good) not in str(caught.value)


def test_a_name_does_not_make_another_network(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{name}.safetensors", i, name=name) for i, name in enumerate("ab")]
    assert join_checkpoints(paths)[0].spec.name == "a-ensemble-2"


def test_copies_are_no_ensemble(tmp_path: Path) -> None:
    first = saved(tmp_path / "first.safetensors", 0)
    second = saved(tmp_path / "second.safetensors", 1)
    copy = Path(shutil.copy(second, tmp_path / "copy.safetensors"))
    with pytest.raises(CheckpointError, match="holds the same weights as") as caught:
        join_checkpoints([first, second, copy])
    assert str(caught.value).startswith(f"{copy} holds the same weights as {second}: ")
    renamed = saved(tmp_path / "renamed.safetensors", 1, name="other")
    assert sha256(renamed) != sha256(second)
    with pytest.raises(CheckpointError, match="holds the same weights as"):
        join_checkpoints([second, renamed])


def test_members_have_one_stream_and_there_are_several(tmp_path: Path) -> None:
    first = saved(tmp_path / "first.safetensors", 0)
    with pytest.raises(UsageError, match="at least two members, not 1"):
        join_checkpoints([first])
    three = tmp_path / "three.safetensors"
    save_checkpoint(tiny_network(), three)
    with pytest.raises(CheckpointError, match=f"{three} is a network of 3 streams"):
        join_checkpoints([three, first])
    joined = tmp_path / "joined.safetensors"
    save_checkpoint(join([network(0), network(1)]), joined)
    with pytest.raises(CheckpointError, match=f"{joined} is an ensemble already"):
        join_checkpoints([first, joined])


# Faults that the gate and the ladder must find


def exported(final: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> ModelBundle:
    model = join([network(seed) for seed in seeds])
    options = ExportOptions(name=final.name, preprocessing=PREPROCESSING)
    return export_model(model, Source(kind="untrained", seed=0), final, options)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return exported(tmp_path_factory.mktemp("models") / "good")


def test_an_ensemble_without_a_fault_is_verified(good: ModelBundle, tmp_path: Path) -> None:
    engine = faults.build(good, tmp_path / "split", split=True)
    assert [stage.name for stage in engine.manifest.stages] == [
        *("stream1", "stream2", "stream3", "fusion")
    ]
    found = verify(engine.path, VerifyOptions(samples=4))
    assert found.passed, found.failures
    assert {rung.name for rung in found.rungs if rung.verdict == "passed"} >= {
        *("training-f64", "fused-f64", "onnx-whole", "onnx-stages", "split-engine")
    }


def _sum(linears: tuple[torch.nn.Linear, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias = mean_of_linears(linears)
    return 3 * weight, 3 * bias


def _swapped(linears: tuple[torch.nn.Linear, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    return mean_of_linears((linears[1], linears[0], *linears[2:]))


@pytest.mark.parametrize("fault", [_sum, _swapped])
def test_a_wrong_fold_of_the_head_is_not_exported(
    fault: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folding = importlib.import_module("parnet_deploy.net.fuse")  # `net.fuse` is its function
    monkeypatch.setattr(folding, "mean_of_linears", fault)
    with pytest.raises(ExportError, match="the whole graph differs from the network"):
        exported(tmp_path / "net")
    assert not any(tmp_path.iterdir())


def _scaled(weights: faults.Weights) -> None:
    weights["logits.weight"] *= 3


def _members_crossed(weights: faults.Weights) -> None:
    width = weights["logits.weight"].shape[1] // 3
    first = weights["logits.weight"][:, :width].copy()
    weights["logits.weight"][:, :width] = weights["logits.weight"][:, width : 2 * width]
    weights["logits.weight"][:, width : 2 * width] = first


@pytest.mark.parametrize("change", [_scaled, _members_crossed])
def test_a_wrong_head_in_the_graphs_is_found(
    change: Callable[[faults.Weights], None], good: ModelBundle, tmp_path: Path
) -> None:
    faults.copy_model(good, tmp_path / "model")
    faults.change_weights(tmp_path / "model", change)
    found = verify(tmp_path / "model", VerifyOptions(samples=4))
    failed = next(rung for rung in found.rungs if rung.verdict == "failed")
    assert failed.name == "onnx-whole"
    assert (failed.parted_at or "").startswith("head (head block)")


def test_a_member_in_anothers_place_is_found(good: ModelBundle, tmp_path: Path) -> None:
    """One member's stage is that of another, seeded otherwise."""
    older = exported(tmp_path / "older", seeds=(5, 1, 2))
    faults.copy_model(good, tmp_path / "model")
    faults.old_stage("stream1", older)(tmp_path / "model")
    found = verify(tmp_path / "model", VerifyOptions(samples=4))
    failed = next(rung for rung in found.rungs if rung.verdict == "failed")
    assert failed.name == "onnx-stages"
    assert "stream1_stem1 (plain block in stage stream1)" in (failed.parted_at or "")
