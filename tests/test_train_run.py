"""A run's folder: what stands in it, and how it is taken up again."""

from __future__ import annotations

import csv
import errno
import json
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from parnet_deploy.data import ArraySamples
from parnet_deploy.errors import BundleError, OutputExistsError, SpecError, TrainingError
from parnet_deploy.net import initialise, load_checkpoint
from parnet_deploy.spec import decode, variant
from parnet_deploy.train.metrics import EpochMetrics, StepMetrics
from parnet_deploy.train.processes import Processes
from parnet_deploy.train.recipe import Recipe
from parnet_deploy.train.record import RunRecord, configure, read_run
from parnet_deploy.train.run import BEST, CHECKPOINT, STATE, begin_run, resume_run
from parnet_deploy.train.settings import Settings
from tests.training import SHORT, SMALL, Recorder, begun, make_task, two_colours

EMA = SHORT.changed(epochs=3, ema_decay=0.8)


def begin(
    folder: Path, recipe: Recipe = SHORT, *, observer: Recorder | None = None, **options: object
) -> RunRecord:
    data = two_colours()
    config = configure(SMALL, data, recipe, Settings(seed=3, save_every=2))
    return begin_run(folder, config, data, Processes(), observer or Recorder(), **options)  # type: ignore[arg-type]


class Interrupting(Recorder):
    """Asks to stop, or breaks down, after a step; after an error nothing is saved, as if killed."""

    def __init__(self, after: int, act: Callable[[], None]) -> None:
        super().__init__()
        self.after, self.act = after, act

    def on_step(self, metrics: StepMetrics) -> None:
        super().on_step(metrics)
        if metrics.step == self.after:
            self.act()


class KilledError(Exception):
    """What stands for a kill: nothing runs behind it."""


def kill() -> None:
    raise KilledError


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_what_people_and_the_next_command_need(tmp_path: Path) -> None:
    folder, seen = tmp_path / "runs" / "one", Recorder()
    record = begin(folder, EMA, observer=seen)
    assert files(folder) == {
        "checkpoint.safetensors", "best.safetensors", "last.pt", "run.json", "metrics.csv",
        "curves.svg", "tensorboard",
    }  # fmt: skip
    assert decode((folder / "run.json").read_bytes(), RunRecord) == record == read_run(folder)
    assert record.result is not None
    assert record.result.last == seen.epochs[-1]
    assert record.result.failed == {}
    assert seen.closed == 1
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{k: str(v) for k, v in asdict(epoch).items()} for epoch in seen.epochs]
    found = load_checkpoint(folder / CHECKPOINT)
    assert found.facts.labels == ("red", "blue")
    assert found.facts.preprocessing == record.config.preprocessing
    assert found.model.spec == record.config.spec
    assert found.model.spec.classes == 2


def test_the_checkpoint_is_the_tested_one_and_the_best_is_the_best(tmp_path: Path) -> None:
    """The moving average is what is deployed; the best epoch may be an earlier one."""
    record = begin(tmp_path / "run", EMA)
    state = torch.load(tmp_path / "run" / STATE)
    kept = weights(tmp_path / "run" / CHECKPOINT)
    assert same(kept, state["average"])
    assert not same(kept, state["model"])
    assert record.result is not None
    best = record.result.best
    top = max(epoch["test_top1"] for epoch in state["history"])
    assert best.test_top1 == top
    if best.epoch == 3:
        assert same(weights(tmp_path / "run" / BEST), kept)
    # Trained for as long as the best epoch took, the last one is that very network.
    data = two_colours()
    whole = configure(SMALL, data, EMA, Settings(seed=3, save_every=2))
    stop = Interrupting(4 * best.epoch + 1, kill)
    if best.epoch < 3:
        with pytest.raises(KilledError):
            begin_run(tmp_path / "again", whole, data, Processes(), stop)
        assert same(weights(tmp_path / "run" / BEST), weights(tmp_path / "again" / CHECKPOINT))


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5, 8, 11, 12])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, after: int, whole_run: Path
) -> None:
    """12 steps in 3 epochs, a state after every second: killed, it ends as if it was not."""
    folder = tmp_path / "killed"
    with pytest.raises(KilledError):
        begin(folder, EMA, observer=Interrupting(after, kill))
    assert (folder / STATE).exists() == (after > 2)
    seen = Recorder()
    record = resume_run(folder, two_colours(), Processes(), seen)
    assert seen.began[0][0] == (after - 1) // 2 * 2
    assert record.result is not None
    for name in (CHECKPOINT, BEST):
        assert (folder / name).read_bytes() == (whole_run / name).read_bytes(), name
    without_time = [
        [(row["epoch"], row["train_loss"], row["test_loss"]) for row in csv.DictReader(text)]
        for text in ((run / "metrics.csv").read_text().splitlines() for run in (folder, whole_run))
    ]
    assert without_time[0] == without_time[1]
    assert len(without_time[0]) == 3


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    begin(folder, EMA)
    return folder


def test_an_interrupted_run_saves_where_it_is(tmp_path: Path, whole_run: Path) -> None:
    folder = tmp_path / "interrupted"
    stop = Interrupting(3, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        begin(folder, EMA, observer=stop)
    assert torch.load(folder / STATE)["step"] in (3, 4)
    assert read_run(folder).result is None
    resume_run(folder, two_colours(), Processes(), Recorder())
    assert (folder / CHECKPOINT).read_bytes() == (whole_run / CHECKPOINT).read_bytes()


def test_a_run_that_has_ended_is_left_as_it_is(whole_run: Path) -> None:
    before = {p: p.read_bytes() for p in whole_run.rglob("*") if p.is_file()}
    seen = Recorder()
    record = resume_run(whole_run, two_colours(), Processes(), seen)
    assert record == read_run(whole_run)
    assert seen.began == []
    assert {p: p.read_bytes() for p in whole_run.rglob("*") if p.is_file()} == before


def test_other_data_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KilledError):
        begin(folder, observer=Interrupting(3, kill))
    with pytest.raises(
        TrainingError, match="had 32 images to learn from and 10 to test on, now 30"
    ):
        resume_run(folder, two_colours(30), Processes(), Recorder())
    data = two_colours()
    assert isinstance(data.train, ArraySamples)
    data.train.labels[3] = 0
    with pytest.raises(TrainingError, match="is not what"):
        resume_run(folder, data, Processes(), Recorder())


def test_what_is_no_run_cannot_be_resumed(tmp_path: Path, whole_run: Path) -> None:
    with pytest.raises(TrainingError, match="there is no training run in"):
        resume_run(tmp_path, two_colours(), Processes(), Recorder())
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"run\.json is damaged"):
        resume_run(tmp_path, two_colours(), Processes(), Recorder())
    record = json.loads((whole_run / "run.json").read_text()) | {"result": None}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / STATE).write_bytes(b"not a state")
    with pytest.raises(TrainingError, match=r"the training's state in .*last\.pt is damaged"):
        resume_run(tmp_path, two_colours(), Processes(), Recorder())
    content = (whole_run / STATE).read_bytes()
    weights = torch.load(whole_run / STATE)["model"]["blocks.head.linear.weight"].numpy().tobytes()
    flipped = bytearray(content)
    flipped[content.index(weights) + 9] ^= 1  # one bit: no format notices
    (tmp_path / STATE).write_bytes(flipped)
    with pytest.raises(TrainingError, match="is damaged"):
        resume_run(tmp_path, two_colours(), Processes(), Recorder())
    state = torch.load(whole_run / STATE)
    state["model"]["blocks.head.linear.bias"] = torch.zeros(5)
    torch.save(state, tmp_path / STATE)
    with pytest.raises(TrainingError, match="is not the state of this training"):
        resume_run(tmp_path, two_colours(), Processes(), Recorder())
    torch.save({"format": 99}, tmp_path / STATE)
    with pytest.raises(TrainingError, match="not a state that this version can go on with"):
        resume_run(tmp_path, two_colours(), Processes(), Recorder())


def test_an_older_run_is_replaced_only_when_told(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin(folder, SHORT.changed(epochs=1))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="--force"):
        begin(folder, SHORT.changed(epochs=1))
    begin(folder, SHORT.changed(epochs=1), force=True)
    assert "notes.txt" not in files(folder)
    assert files(tmp_path) == {"run"}
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"it has no run\.json"):
        begin(other, force=True)
    assert files(other) == {"precious.txt"}


def test_an_older_run_stays_where_the_new_one_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    begin(folder, SHORT.changed(epochs=1))
    older = (folder / CHECKPOINT).read_bytes()
    mkdir = Path.mkdir

    def full(path: Path, *arguments: object, **options: object) -> None:
        if path == folder:
            raise OSError(errno.ENOSPC, "No space left on device")
        mkdir(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(BundleError, match=r"cannot write .*run: No space left"):
        begin(folder, force=True)
    assert (folder / CHECKPOINT).read_bytes() == older
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_fine_tuning_begins_with_the_weights_and_the_recipes_dropout(tmp_path: Path) -> None:
    data = two_colours()
    recipe = SHORT.changed(epochs=1, learning_rate=1e-12, weight_decay=0.0, dropout=0.5)
    config = configure(SMALL, data, recipe, Settings())
    assert config.spec.dropout == 0.5
    model = initialise(SMALL, seed=9)
    begin_run(tmp_path / "run", config, data, Processes(), Recorder(), model=model)
    tuned = load_checkpoint(tmp_path / "run" / CHECKPOINT).model
    assert tuned.spec.dropout == 0.5
    for name, value in model.named_parameters():
        assert torch.allclose(tuned.get_parameter(name), value, atol=1e-6), name


def test_a_run_takes_classes_and_normalisation_from_the_data() -> None:
    data = replace(two_colours(), mean=(0.1, 0.2, 0.3), interpolation="bicubic")
    config = configure(replace(SMALL, classes=1000), data, SHORT, Settings(), hold_out=0.2)
    assert config.spec.classes == 2
    assert config.spec.dropout == SMALL.dropout
    assert config.preprocessing.mean == (0.1, 0.2, 0.3)
    assert config.preprocessing.interpolation == "bicubic"
    assert config.preprocessing.crop_ratio == 1.0
    assert config.hold_out == 0.2
    large = configure(variant("s").spec, data, SHORT, Settings())
    assert large.preprocessing.crop_ratio == 0.875


def test_members_of_an_ensemble_are_trained_one_by_one() -> None:
    spec = variant("ensemble-2").spec
    with pytest.raises(SpecError, match=r"trained one by one.*parnet-deploy ensemble"):
        configure(spec, two_colours(), SHORT, Settings())


def test_an_epoch_without_a_right_answer_is_an_epoch() -> None:
    zero = EpochMetrics(
        epoch=1, step=1, learning_rate=0.1, train_loss=1.0, train_top1=0.0, test_loss=1.0,
        test_top1=0.0, test_top5=0.0, test_images=1, seconds=1.0, images_per_second=1.0,
    )  # fmt: skip
    state = begun(make_task(), nn.Linear(2, 2))
    assert state.best is None
    state.history += [zero, replace(zero, epoch=2)]
    assert state.best is not None
    assert state.best.epoch == 1
