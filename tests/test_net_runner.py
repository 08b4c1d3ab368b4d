"""A network in torch as a runner."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch
from conftest import tiny_network

from parnet_deploy.errors import RunnerError, TargetError
from parnet_deploy.net import TorchRunner, fuse
from parnet_deploy.runtime import Runner
from parnet_deploy.spec import IMAGES, LOGITS, Array


@pytest.fixture
def images(rng: np.random.Generator) -> Array:
    return rng.standard_normal((3, 3, 64, 64)).astype(np.float32)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_it_runs_the_network(channels_last: bool, images: Array) -> None:
    model = tiny_network()
    with closing(TorchRunner(model, channels_last=channels_last)) as runner:
        assert isinstance(runner, Runner)
        got = runner.run({IMAGES: images})
        one = runner.run({IMAGES: images[:1]})
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    assert list(got) == [LOGITS]
    assert got[LOGITS].dtype == np.float32
    assert np.allclose(got[LOGITS], expected, atol=1e-5)
    assert np.allclose(one[LOGITS], expected[:1], atol=1e-5)


def test_it_runs_a_deploy_form(images: Array) -> None:
    model = tiny_network()
    whole, fused = TorchRunner(model), TorchRunner(fuse(model))
    feeds = {IMAGES: images}
    assert np.allclose(whole.run(feeds)[LOGITS], fused.run(feeds)[LOGITS], atol=1e-4)


def test_it_leaves_the_network_alone(images: Array) -> None:
    """A network in training stays in training; what is changed later is not seen."""
    model = tiny_network(dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runner = TorchRunner(model, channels_last=True)
    first = runner.run({IMAGES: images})[LOGITS]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(model.parameters()).is_contiguous()
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert np.array_equal(runner.run({IMAGES: images})[LOGITS], first)


def test_answers_stay_as_they_were(images: Array) -> None:
    runner = TorchRunner(tiny_network())
    first = runner.run({IMAGES: images})[LOGITS]
    kept = first.copy()
    runner.run({IMAGES: -images})
    assert np.array_equal(first, kept)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "missing"),
        ({IMAGES: np.zeros((1, 3, 32, 64), np.float32)}, "is expected"),
        ({IMAGES: np.zeros((1, 3, 64, 64), np.uint8)}, "is expected"),
    ],
    ids=["nothing", "size", "dtype"],
)
def test_what_does_not_fit_is_refused(feeds: dict[str, Array], said: str) -> None:
    with pytest.raises(RunnerError, match=said):
        TorchRunner(tiny_network()).run(feeds)


def test_a_closed_runner_does_not_run(images: Array) -> None:
    runner = TorchRunner(tiny_network())
    runner.close()
    runner.close()
    with pytest.raises(RunnerError, match="closed"):
        runner.run({IMAGES: images})


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("CUDA"), RuntimeError("a kernel\nat")])
def test_what_torch_says_is_told(
    failure: Exception, images: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = TorchRunner(tiny_network())

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr("parnet_deploy.net.parnet.BlockGraph.forward", fail)
    said = "run fewer" if isinstance(failure, torch.OutOfMemoryError) else "torch failed: a kernel$"
    with pytest.raises(RunnerError, match=said):
        runner.run({IMAGES: images})


@pytest.mark.parametrize("name", ["gpu", "cpu-1", "meta", "cuda:x"])
def test_what_is_no_device(name: str) -> None:
    with pytest.raises(TargetError, match="a device is cpu, cuda or cuda:N"):
        TorchRunner(tiny_network(), device=name)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TargetError, match="torch finds 1 CUDA device here, not cuda:1"):
        TorchRunner(tiny_network(), device="cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(TargetError, match="torch finds no CUDA device here, not cuda;"):
        TorchRunner(tiny_network(), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_float32s_answers(images: Array) -> None:
    """With TF32 the difference would be some 1e-3."""
    model = tiny_network()
    on_cpu, on_gpu = (TorchRunner(model, device=name) for name in ("cpu", "cuda"))
    feeds = {IMAGES: images}
    assert np.allclose(on_gpu.run(feeds)[LOGITS], on_cpu.run(feeds)[LOGITS], atol=2e-5)
