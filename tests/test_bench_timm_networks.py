"""The paper's other networks: as timm has them, as engines built like ours."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from parnet_deploy.bench.contest.openers import open_contestant
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.entries import preparing, timm_networks
from parnet_deploy.bench.entries.images import read_images
from parnet_deploy.bench.entries.preparing import timm_in_process
from parnet_deploy.bench.entries.reference import compare_answers, read_answers
from parnet_deploy.bench.entries.timm_networks import (
    TIMM_NETWORKS,
    TimmNetwork,
    TimmRequest,
    deploy_form,
    make_network,
    timm_contestant,
    timm_problem,
)
from parnet_deploy.bench.peers import base
from parnet_deploy.bench.result import Absence
from parnet_deploy.errors import UsageError
from parnet_deploy.runtime.machine import CudaDriver
from parnet_deploy.spec import IMAGES, LOGITS, Array, Backend, decode, encode


@pytest.fixture
def asked(tmp_path: Path) -> TimmRequest:
    return TimmRequest(name="resnet34", workspace=str(tmp_path), backend="onnxruntime")


@pytest.fixture
def images(rng: np.random.Generator) -> Array:
    return rng.standard_normal((2, 3, 64, 64)).astype(np.float32)


def test_timm_has_the_papers_networks() -> None:
    assert list(TIMM_NETWORKS) == ["resnet34", "resnet50", "repvgg-b1g4", "repvgg-b2g4"]
    assert {network.model for network in TIMM_NETWORKS.values()} <= set(timm.list_models())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "ncnn"])
def test_an_engine_answers_as_the_network(
    backend: Backend, asked: TimmRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small network of timm's own tests stands in; the path is the same."""
    small = TimmNetwork(title="Small", model="test_resnet")
    monkeypatch.setattr(timm_networks, "TIMM_NETWORKS", {"resnet34": small})
    monkeypatch.setattr(timm_networks, "SIZE", (64, 64))
    asked = replace(asked, backend=backend, batch=2)
    made = timm_contestant(asked)
    assert timm_contestant(asked) == made
    contestant = decode(encode(made), Contestant)
    assert (contestant.name, contestant.network) == (f"Small, {backend}", "resnet34")
    reference = read_answers(Path(contestant.settings["reference"]))
    assert reference is not None
    assert reference.shape == (2, 1000)
    opened = open_contestant(contestant)
    answer = opened.runner.run({IMAGES: read_images(Path(contestant.images), "float32")})[LOGITS]
    parity = compare_answers(answer, reference)
    assert parity.max_rel < 2e-5
    assert parity.same_top1 == 2
    opened.runner.close()


def test_a_repvgg_is_deployed_as_plain_convolutions(images: Array) -> None:
    """With the same answers, which its calibrated layers keep finite."""
    model = make_network("repvgg_a0", images, seed=0)
    deployed = deploy_form(model)
    kinds = [type(module) for module in deployed.modules()]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.Conv2d) == 22
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 44
    given = torch.from_numpy(images)
    with torch.inference_mode():
        before, after = model(given), deployed(given)
    assert before.abs().max() < 100
    assert before.std() > 1e-3
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))


def test_weights_are_seeded_and_the_random_state_stays(images: Array) -> None:
    before = torch.random.get_rng_state()
    first, same, other = (make_network("test_resnet", images, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [next(model.parameters()) for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.slow
def test_a_network_is_prepared_in_a_process_of_its_own(asked: TimmRequest) -> None:
    contestant = timm_in_process(asked)
    assert isinstance(contestant, Contestant), contestant
    opened = open_contestant(contestant)
    answer = opened.runner.run({IMAGES: read_images(Path(contestant.images), "float32")})[LOGITS]
    reference = read_answers(Path(contestant.settings["reference"]))
    assert reference is not None
    assert compare_answers(answer, reference).max_rel < 2e-5
    opened.runner.close()


def test_why_it_is_absent(asked: TimmRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = replace(asked, device="cuda:0")
    monkeypatch.setattr(base, "cuda_driver", lambda: CudaDriver(problem="there is no driver"))
    assert timm_problem(on_gpu) == "there is no driver"
    assert timm_problem(replace(on_gpu, backend="openvino")) == "openvino runs on cpu only"
    assert timm_problem(replace(asked, backend="tensorrt")) == "tensorrt runs on cuda only"
    assert timm_problem(asked) is None
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "timm" else find("json")
    )
    assert timm_in_process(asked) == Absence(
        name="ResNet34, onnxruntime",
        network="resnet34",
        reason="timm is not installed: pip install 'parnet-deploy[bench]'",
    )


def test_a_failure_is_an_absence(
    asked: TimmRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = "import sys; sys.exit('out of luck')"
    monkeypatch.setattr(preparing, "COMMAND", (preparing.sys.executable, "-c", code))
    absence = timm_in_process(asked)
    assert isinstance(absence, Absence)
    assert absence.reason == "its preparation ended with status 1: out of luck"


def test_what_is_asked_for_wrongly(asked: TimmRequest) -> None:
    with pytest.raises(UsageError, match=r"a network is one of resnet34, .*; not 'vgg'"):
        replace(asked, name="vgg")
    with pytest.raises(UsageError, match="at least one image"):
        replace(asked, batch=0)
    with pytest.raises(UsageError, match="a device is cpu or cuda:N"):
        replace(asked, device="gpu")
