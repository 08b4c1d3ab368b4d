"""A training for quantisation as a run: begun, resumed, averaged, shared, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from parnet_deploy.errors import UsageError
from parnet_deploy.net import ParNet, initialise, load_checkpoint, with_classes
from parnet_deploy.spec.learned import quantisable_tensors
from parnet_deploy.train.loop import begin, train
from parnet_deploy.train.metrics import StepMetrics
from parnet_deploy.train.processes import Processes, joined
from parnet_deploy.train.qat.network import FakeQuantisedParNet
from parnet_deploy.train.qat_options import QatOptions
from parnet_deploy.train.recipe import Recipe
from parnet_deploy.train.record import RunRecord, configure
from parnet_deploy.train.run import BEST, CHECKPOINT, begin_run, resume_run
from parnet_deploy.train.settings import Settings
from parnet_deploy.train.task import Task
from tests.commands import call
from tests.data_sets import colour_data
from tests.distributed import run_processes
from tests.test_cli_train import error
from tests.training import PREPROCESSING, SHORT, SMALL, Recorder, make_task, two_colours

INT8 = QatOptions(precision="int8")
EMA = SHORT.changed(epochs=3, learning_rate=1e-3, ema_decay=0.8)


def trained() -> ParNet:
    """A network with statistics of its own, as after training."""
    model = initialise(SMALL, seed=0)
    task = make_task(recipe=SHORT.changed(epochs=1))
    train(begin(model, task), task)
    return model


def begin_qat(
    folder: Path, recipe: Recipe = EMA, observer: Recorder | None = None, **options: object
) -> RunRecord:
    data = two_colours()
    qat = QatOptions(**{"precision": "int8"} | options)  # type: ignore[arg-type]
    config = configure(SMALL, data, recipe, Settings(seed=3, save_every=2), qat=qat)
    return begin_run(folder, config, data, Processes(), observer or Recorder(), model=trained())


class Stopping(Recorder):
    """Breaks down after a step, as if killed."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def on_step(self, metrics: StepMetrics) -> None:
        super().on_step(metrics)
        if metrics.step == self.after:
            raise RuntimeError("killed")


def test_the_checkpoint_is_a_network_in_training_form_with_ranges(tmp_path: Path) -> None:
    record = begin_qat(tmp_path / "run", target="onnxruntime")
    assert record.result is not None
    for name in (CHECKPOINT, BEST):
        found = load_checkpoint(tmp_path / "run" / name)
        ranges = found.facts.ranges
        assert ranges is not None
        assert ranges.scheme == QatOptions(precision="int8", target="onnxruntime").scheme
        assert ranges.ranges.keys() == set(quantisable_tensors(SMALL))
        assert ranges.calibration.method == "qat"
        assert ranges.calibration.images == 32
        assert ranges.calibration.source == "training on two-colours"
        assert all(r.high > 0 for r in ranges.ranges.values())
    before = trained().state_dict()
    for name, value in found.model.state_dict().items():
        statistics = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(value, before[name]) == statistics, name
    # Other classes, another network: its ranges are not known.
    assert with_classes(found, ("a", "b", "c"), seed=0).facts.ranges is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    begin_qat(folder)
    return folder


@pytest.mark.parametrize("stop_at", [3, 9])
def test_a_resumed_training_gives_the_same_bits(tmp_path: Path, whole: Path, stop_at: int) -> None:
    """Weights, moving averages, and ranges, which move in the first half and then stay."""
    with pytest.raises(RuntimeError, match="killed"):
        begin_qat(tmp_path / "parts", observer=Stopping(stop_at))
    resume_run(tmp_path / "parts", two_colours(), Processes(), Recorder())
    for name in (CHECKPOINT, BEST):
        assert (whole / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_ranges_stay_after_their_part(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    model = FakeQuantisedParNet(trained(), INT8.scheme, observe=0.5)

    class Watching(Recorder):
        def on_step(self, metrics: StepMetrics) -> None:
            seen.append(model.ranges.high.clone())

    task = make_task(recipe=SHORT, observer=Watching())
    train(begin(model, task), task)
    moved = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert moved == [True] * 3 + [False] * 4
    assert int(model.ranges.seen.max()) == 4


def share(folder: str) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as processes:
        state = shared_training(processes)
        torch.save(state, Path(folder) / f"{processes.rank}.pt")


def shared_training(processes: Processes) -> dict[str, torch.Tensor]:
    task = Task(
        data=two_colours(),
        preprocessing=PREPROCESSING,
        recipe=SHORT.changed(optimiser="sgd", learning_rate=0.01),
        settings=Settings(),
        processes=processes,
        observer=Recorder(),
        save=lambda state: None,
        stop=lambda: False,
    )
    network = trained()
    network.blocks["head"].dropout.p = 0.0
    state = begin(FakeQuantisedParNet(network, INT8.scheme), task)
    assert train(state, task)
    return dict(state.model.state_dict())


@pytest.mark.slow
def test_two_processes_find_the_ranges_of_one(tmp_path: Path) -> None:
    """A batch's range is that of all processes' parts of it."""
    run_processes("tests.test_train_qat_run:share", 2, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = shared_training(Processes())
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        tolerance = 1e-2 * float(value.double().abs().max()) + 1e-6
        assert torch.allclose(first[name].double(), value.double(), atol=tolerance), name
    assert torch.equal(first["ranges.seen"], alone["ranges.seen"])


# -- refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision": "fp16"}, "fp16 is not quantised, so that any checkpoint does"),
        ({"precision": "bf16"}, "bf16 is not quantised"),
        ({"precision": "fp32"}, "fp32 is not quantised"),
        ({"precision": "int4"}, "--qat is int8 or fp8, not 'int4'"),
        ({"target": "tensorflow"}, "--qat-for is one of tensorrt"),
        ({"precision": "fp8", "target": "onnxruntime"}, "onnxruntime does not compute in fp8"),
        ({"target": "ncnn"}, "ncnn does not compute in int8"),
        ({"observe": 0.0}, r"a part in \(0, 1\], not 0"),
        ({"observe": 1.5}, "not 1.5"),
        ({"observe": float("nan")}, "not nan"),
    ],
)
def test_options_that_cannot_be(change: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        QatOptions(**{"precision": "int8"} | change)  # type: ignore[arg-type]


def test_a_run_for_quantisation_begins_with_a_network(tmp_path: Path) -> None:
    data = two_colours()
    config = configure(SMALL, data, SHORT, Settings(), qat=INT8)
    with pytest.raises(UsageError, match="begins with a trained network"):
        begin_run(tmp_path / "run", config, data, Processes(), Recorder())
    assert not (tmp_path / "run").exists()


QUICK = ("--widths", "4,8,8,8", "--blocks", "2,1,1", "--image-size", 8, "--epochs", 1)
BATCH = ("--batch-size", 8, "--warmup-epochs", 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"imagefolder:{colour_data(tmp_path_factory.mktemp('data'), train=8, test=3)}"


@pytest.fixture
def checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str) -> Path:
    result = call(capsys, "train", "--data", data, "--output", tmp_path / "first", *QUICK, *BATCH)
    assert result.status == 0, result.err
    return tmp_path / "first" / CHECKPOINT


def test_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str, checkpoint: Path
) -> None:
    qat = ("train", "--qat", "int8", "--checkpoint", checkpoint, "--data", data)
    folder = tmp_path / "second"
    result = call(capsys, *qat, *BATCH, "--qat-observe", 1, "--output", folder)
    assert result.status == 0, result.err
    config = json.loads((folder / "run.json").read_text())["config"]
    assert config["qat"] == {"precision": "int8", "target": "tensorrt", "observe": 1.0}
    assert config["recipe"]["name"] == "qat"
    found = load_checkpoint(folder).facts.ranges
    assert found is not None
    assert found.calibration.source == "training on imagefolder"
    result = call(capsys, "train", "--resume", folder, "--qat", "int8")
    error(result, 2, "leave away --qat")
    # A training that is none for quantisation does not keep ranges that its weights no longer have.
    result = call(
        capsys, "train", "--finetune", folder, "--data", data, *BATCH, "--epochs", 1,
        "--output", tmp_path / "third",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert load_checkpoint(tmp_path / "third").facts.ranges is None


Arguments = Callable[[Path], tuple[object, ...]]

REFUSED: dict[str, Arguments] = {
    "name its weights with --checkpoint": lambda path: ("--qat", "int8"),
    "no checkpoint file at nowhere": lambda path: ("--qat", "int8", "--checkpoint", "nowhere"),
    "fp16 is not quantised": lambda path: ("--qat", "fp16", "--checkpoint", path),
    "--qat-for belongs to --qat": lambda path: ("--qat-for", "tensorrt", "--checkpoint", path),
    "leave away --variant": lambda path: ("--qat", "int8", "--checkpoint", path, "--variant", "s"),
    "leave away --precision bf16": lambda path: (
        "--qat", "int8", "--checkpoint", path, "--precision", "bf16",
    ),
    "leave away --sync-bn": lambda path: ("--qat", "int8", "--checkpoint", path, "--sync-bn"),
    "the classes of digits are other ones": lambda path: (
        "--qat", "int8", "--checkpoint", path, "--data", "digits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_one_sentence_before_any_work(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    words: str,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    result = call(capsys, "train", *REFUSED[words](checkpoint))
    error(result, 1 if "nowhere" in words else 2, words)
    assert list((tmp_path / "empty").iterdir()) == []
