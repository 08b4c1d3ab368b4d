"""Several processes train the same network as one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from parnet_deploy.errors import TrainingError, UsageError
from parnet_deploy.net import initialise
from parnet_deploy.train.batchnorm import SynchronisedBatchNorm2d, synchronise_norms
from parnet_deploy.train.loop import begin, train
from parnet_deploy.train.processes import Processes, choose_device, joined
from parnet_deploy.train.settings import Settings
from parnet_deploy.train.state import TrainingState
from parnet_deploy.train.task import Task
from tests.distributed import run_processes
from tests.training import PREPROCESSING, SHORT, SMALL, Recorder, two_colours

SGD = SHORT.changed(optimiser="sgd", learning_rate=0.03, dropout=0.0, ema_decay=0.5)


def train_with(processes: Processes, how: Settings, folder: Path) -> TrainingState:
    """Train for two epochs; what is left of it is a state in `folder`, and losses."""
    seen = Recorder()
    task = Task(
        data=two_colours(),
        preprocessing=PREPROCESSING,
        recipe=SGD,
        settings=how,
        processes=processes,
        observer=seen,
        save=lambda state: state.save(folder / f"{state.step}.pt"),
        stop=lambda: False,
    )
    model = initialise(SMALL, seed=0)
    model.blocks["head"].dropout.p = 0.0
    state = begin(model, task)
    assert train(state, task)
    assert bool(seen.steps) == processes.is_main
    if processes.is_main:
        torch.save([step.loss for step in seen.steps], folder / "losses.pt")
    return state


def train_in_a_pair(folder: str, sync_bn: str) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as processes:
        assert processes.count == 2
        state = train_with(processes, Settings(sync_bn=sync_bn == "yes"), Path(folder))
        torch.save(state.model.state_dict(), Path(folder) / f"rank{processes.rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("sync_bn", ["yes", "no"])
def test_two_processes_have_the_loss_of_one_with_the_same_batch(
    tmp_path: Path, sync_bn: str
) -> None:
    """With synchronised BN, that of one that takes it whole; without, of one that halves it."""
    pair, alone = tmp_path / "pair", tmp_path / "alone"
    pair.mkdir()
    alone.mkdir()
    run_processes("tests.test_train_processes:train_in_a_pair", 2, str(pair), sync_bn)
    how = Settings(micro_batch=None if sync_bn == "yes" else 4)
    state = train_with(Processes(), how, alone)
    expected, losses = torch.load(alone / "losses.pt"), torch.load(pair / "losses.pt")
    assert len(losses) == len(expected) == 8
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses != pytest.approx(torch.load(alone / "losses.pt")[::-1], rel=1e-4)
    ranks = [torch.load(pair / f"rank{rank}.pt") for rank in range(2)]
    for name, value in state.model.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        # Alone, two halves are seen in every step, and the statistics are those of both.
        if sync_bn == "yes" or not name.endswith(("running_mean", "running_var", "tracked")):
            assert torch.allclose(ranks[0][name].double(), value.double(), atol=2e-4), name
    tested = torch.load(pair / "8.pt")["history"][-1]
    assert tested["images_per_second"] > 0
    if sync_bn == "yes":
        assert tested["test_loss"] == pytest.approx(state.history[-1].test_loss, rel=1e-3)
        assert tested["test_top1"] == state.history[-1].test_top1


def normalise_in_a_pair(folder: str) -> None:
    """Every process its half of a batch; forward, backward, and inference afterwards."""
    with joined("cpu") as processes:
        images, upstream = torch.load(Path(folder) / "batch.pt")
        norm = nn.BatchNorm2d(3).double()
        norm.load_state_dict(torch.load(Path(folder) / "norm.pt"))
        synchronise_norms(norm, torch.device("cpu"))
        assert type(norm) is SynchronisedBatchNorm2d
        mine = images.chunk(2)[processes.rank].clone().requires_grad_()
        result = norm(mine)
        result.backward(upstream.chunk(2)[processes.rank])
        for parameter in norm.parameters():
            processes.sum(parameter.grad)
        state = norm.state_dict() | {"result": result, "input": mine.grad}
        state |= {f"grad.{name}": p.grad for name, p in norm.named_parameters()}
        norm.eval()
        state["inference"] = norm(mine)
        torch.save({k: v.detach() for k, v in state.items()}, Path(folder) / f"{processes.rank}.pt")


ROWS = ("result", "input", "inference")
"""What has a row for each image; everything else is of the whole batch."""


def normalise_alone(folder: str) -> None:
    """The joined batch through plain batch normalisation, in a process of its own like the pair."""
    images, upstream = torch.load(Path(folder) / "batch.pt")
    norm = nn.BatchNorm2d(3).double()
    norm.load_state_dict(torch.load(Path(folder) / "norm.pt"))
    images.requires_grad_()
    result = norm(images)
    result.backward(upstream)
    found = norm.state_dict() | {f"grad.{n}": p.grad for n, p in norm.named_parameters()}
    norm.eval()
    found |= {"result": result, "input": images.grad, "inference": norm(images)}
    torch.save({name: value.detach() for name, value in found.items()}, Path(folder) / "joined.pt")


@pytest.mark.slow
def test_synchronised_bn_is_that_of_the_joined_batch(tmp_path: Path) -> None:
    """Outputs, gradients and running statistics; the mean is large against the deviation."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 4, 5, generator=generator).double() * 0.3 + 20
    upstream = torch.randn(6, 3, 4, 5, generator=generator).double()
    norm = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
    torch.save((images, upstream), tmp_path / "batch.pt")
    torch.save(norm.state_dict(), tmp_path / "norm.pt")
    run_processes("tests.test_train_processes:normalise_in_a_pair", 2, str(tmp_path))
    run_processes("tests.test_train_processes:normalise_alone", 1, str(tmp_path))
    joined = torch.load(tmp_path / "joined.pt")
    expected = {name: joined[name] for name in joined if name not in ROWS}
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, value in expected.items():
        for part in parts:
            assert torch.allclose(part[name].double(), value.detach().double(), rtol=1e-4), name
    for name in ROWS:
        value = joined[name]
        together = torch.cat([part[name] for part in parts])
        assert torch.allclose(together, value.detach(), rtol=1e-4, atol=1e-4), name


def test_devices_are_named_as_torch_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(None, None) == torch.device("cuda", 0)
    assert choose_device("cuda", 1) == torch.device("cuda", 1)
    assert choose_device("cuda:1", None) == torch.device("cuda", 1)
    assert choose_device("cpu", 1) == torch.device("cpu")
    with pytest.raises(UsageError, match="no device cuda:2: torch sees 2 GPUs"):
        choose_device("cuda:2", None)
    with pytest.raises(UsageError, match="cpu, cuda or cuda:N, not 'tpu'"):
        choose_device("tpu", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device(None, 3) == torch.device("cpu")
    with pytest.raises(UsageError, match="--device cpu trains without one"):
        choose_device("cuda", None)


def test_alone_there_is_nobody_to_wait_for() -> None:
    with joined("cpu") as processes:
        assert (processes.rank, processes.count, processes.is_main) == (0, 1, True)
        processes.wait()
        assert processes.sum(torch.tensor([2.0])).tolist() == [2.0]
        assert processes.least(torch.tensor([2])).tolist() == [2]
        assert processes.merge({"a": "b"}) == {"a": "b"}


def test_who_is_left_alone_says_so_and_nothing_else_is_taken_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    ended: list[bool] = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: ended.append(True))
    lost = "[/build/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:8609"
    for raised in (RuntimeError(lost), torch.distributed.DistBackendError("NCCL remote error")):
        with pytest.raises(TrainingError, match="process 1 of 2 was left alone"), joined("cpu"):
            raise raised
    with pytest.raises(RuntimeError, match="size mismatch"), joined("cpu"):
        raise RuntimeError("size mismatch")
    assert ended == []  # whoever is gone would be waited for
    with pytest.raises(KeyboardInterrupt), joined("cpu"):
        raise KeyboardInterrupt
    with joined("cpu"):
        pass
    assert len(ended) == 2
