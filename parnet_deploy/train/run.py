"""A training run: one training, in a folder that it can be taken up from."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

from torch import nn

from parnet_deploy.bundle import CHECKPOINT, refuse_existing, versions
from parnet_deploy.data import DataSet
from parnet_deploy.errors import (
    BundleError,
    TrainingError,
    UsageError,
    os_reason,
)
from parnet_deploy.interrupts import held_back
from parnet_deploy.net import ParNet, TrainingFacts, initialise, save_checkpoint
from parnet_deploy.spec import (
    count,
    encode,
)
from parnet_deploy.train.curves import draw_curves
from parnet_deploy.train.files import held, remove_unfinished, replacing
from parnet_deploy.train.logs import Observers, TensorBoardLog, write_metrics
from parnet_deploy.train.loop import begin, train
from parnet_deploy.train.metrics import Observer
from parnet_deploy.train.processes import Processes
from parnet_deploy.train.qat.network import FakeQuantisedParNet
from parnet_deploy.train.record import (
    RECORD,
    RunConfig,
    RunRecord,
    RunResult,
    fingerprint,
    read_run,
)
from parnet_deploy.train.state import TrainingState
from parnet_deploy.train.task import Task, plan_for

BEST = "best.safetensors"
STATE = "last.pt"
METRICS = "metrics.csv"
CURVES = "curves.svg"
TENSORBOARD = "tensorboard"
TOOLS = ("parnet-deploy", "torch", "torchvision", "timm", "numpy", "pillow")


def begin_run(
    folder: Path,
    config: RunConfig,
    data: DataSet,
    processes: Processes,
    observer: Observer,
    *,
    model: ParNet | None = None,
    force: bool = False,
) -> RunRecord:
    """Train a network from its beginning, in a folder of its own.

    Args:
        folder: where the run is to stand.
        config: what, on what and how.
        data: the data set of that configuration.
        processes: who shares the work.
        observer: who is told how it goes.
        model: where to begin, in fine-tuning; None makes a seeded network.
        force: replace an older run that stands there.

    Returns:
        What was done; its result is None when the training was stopped.

    Raises:
        OutputExistsError: something stands there and `force` is off, or it is no run.
        BundleError: the folder cannot be written.
        TrainingError: training came apart; what was saved before is there.
        ImageError: an image cannot be decoded, and bad ones are not skipped.
        UsageError: the batch does not come out even, or the images do not fill one; or a training
            for quantisation has no network to begin with.
    """
    refuse_existing(folder, force=force, marker=RECORD)
    # Says at once what cannot be. What a process takes at once is kept: with other processes, a
    # resumed training's batch normalisations still see as many images.
    plan = plan_for(data, config.recipe, config.settings, processes)
    config = replace(config, settings=replace(config.settings, micro_batch=plan.micro_batch))
    if config.qat is not None and model is None:
        raise UsageError("a training for quantisation begins with a trained network: --checkpoint")
    model = _fitted(model, config) if model else initialise(config.spec, seed=config.settings.seed)
    record = RunRecord(config=config, tools=versions(*TOOLS))
    processes.wait()
    if processes.is_main:
        with held(folder) if folder.exists() else contextlib.nullcontext():
            _make_folder(folder)
        _write_record(folder, record)
    return _carry_out(folder, record, data, processes, observer, model, resume=False)


def resume_run(folder: Path, data: DataSet, processes: Processes, observer: Observer) -> RunRecord:
    """Go on with a run from the last state that it saved, or from its beginning.

    Args:
        folder: where the run stands.
        data: the data set of its configuration.
        processes: who shares the work.
        observer: who is told how it goes.

    Returns:
        What was done, as for `begin_run`. A run that has ended is given back as it is.

    Raises:
        TrainingError: there is no run, its state is damaged, or the data are other ones.
    """
    record = read_run(folder)
    if record.result is not None:
        return record
    if fingerprint(data) != record.config.samples_sha256:
        raise TrainingError(
            f"{record.config.data} is not what {folder} was begun with: it had "
            f"{record.config.train_images} images to learn from and {record.config.test_images} to "
            f"test on, now {len(data.train)} and {len(data.test)}, or they have other names"
        )
    resume = (folder / STATE).exists()
    seed = record.config.settings.seed
    if not resume and (folder / CHECKPOINT).exists():
        raise TrainingError(
            f"{folder / STATE} is gone, without which a run cannot go on; train --finetune "
            f"{folder / CHECKPOINT} begins with what was trained until then"
        )
    if not resume and record.config.start is not None:
        raise TrainingError(
            f"{folder} was stopped before it saved anything; fine-tune again, with --force"
        )
    model = ParNet(record.config.spec) if resume else initialise(record.config.spec, seed=seed)
    return _carry_out(folder, record, data, processes, observer, model, resume=resume)


def _fitted(model: ParNet, config: RunConfig) -> ParNet:
    """The same weights in the network of a configuration: with the recipe's dropout."""
    fitted = ParNet(config.spec)
    fitted.load_state_dict(model.state_dict())
    return fitted


def _carry_out(
    folder: Path,
    record: RunRecord,
    data: DataSet,
    processes: Processes,
    observer: Observer,
    model: ParNet,
    *,
    resume: bool,
) -> RunRecord:
    """Train, and write the result; the folder is this run's from before its state is read."""
    config = record.config
    facts = TrainingFacts(labels=data.labels, preprocessing=config.preprocessing)
    trained: nn.Module = model
    if config.qat is not None:
        trained = FakeQuantisedParNet(model, config.qat.scheme, observe=config.qat.observe)
    with held(folder) if processes.is_main else contextlib.nullcontext():
        if processes.is_main:
            remove_unfinished(folder)
        state, ended = _train(
            folder, config, facts, data, processes, observer, trained, resume=resume
        )
        if ended and processes.is_main:
            record = replace(record, result=_result(state, config))
            _finish(folder, record, state, facts)
    processes.wait()
    return record


def _train(
    folder: Path,
    config: RunConfig,
    facts: TrainingFacts,
    data: DataSet,
    processes: Processes,
    observer: Observer,
    model: nn.Module,
    *,
    resume: bool,
) -> tuple[TrainingState, bool]:
    """Train from the beginning or from what was saved; whether the end was reached."""
    with held_back() as signals, contextlib.ExitStack() as opened:
        told = observer
        task = Task(
            data=data,
            preprocessing=config.preprocessing,
            recipe=config.recipe,
            settings=config.settings,
            processes=processes,
            observer=observer,
            save=lambda state: _save(folder, state, config, facts),
            stop=lambda: bool(signals),
        )
        state = begin(model, task)
        if resume:
            state.restore(folder / STATE)
        if processes.is_main:
            log = TensorBoardLog(folder / TENSORBOARD)
            told = Observers(observer, log)
            opened.callback(told.close)
        return state, train(state, replace(task, observer=told))


def _save(folder: Path, state: TrainingState, config: RunConfig, facts: TrainingFacts) -> None:
    """Write what an epoch gave, then the state: whoever resumes writes the rest again."""
    at_end = bool(state.history) and state.history[-1].step == state.step
    if at_end:
        if state.best is state.history[-1]:
            _write_checkpoint(folder / BEST, state, config, facts)
        _write_checkpoint(folder / CHECKPOINT, state, config, facts)
        write_metrics(state.history, folder / METRICS)
    state.save(folder / STATE)


def _finish(folder: Path, record: RunRecord, state: TrainingState, facts: TrainingFacts) -> None:
    """Write what stands there when all is done; the record at last."""
    if not (folder / CHECKPOINT).exists():
        _write_checkpoint(folder / CHECKPOINT, state, record.config, facts)
    kind = record.config.data_kind  # a path may have letters that no font has
    title = f"{record.config.spec.name} on {kind}, {record.config.recipe.name}"
    draw_curves(state.history, folder / CURVES, title)
    _write_record(folder, record)


def _result(state: TrainingState, config: RunConfig) -> RunResult:
    last = state.history[-1]
    return RunResult(
        parameters=count(config.spec).parameters_training,
        last=last,
        best=state.best or last,
        seconds=sum(epoch.seconds for epoch in state.history),
        failed=state.failed,
    )


def _make_folder(folder: Path) -> None:
    """An empty folder; an older run is moved aside until it is there, and back if it cannot be."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(aside)
        try:
            folder.mkdir()
        except OSError:
            if aside.exists():
                aside.rename(folder)
            raise
    except OSError as exc:
        raise BundleError(f"cannot write {folder}: {os_reason(exc)}") from exc
    shutil.rmtree(aside, ignore_errors=True)


def _write_checkpoint(
    path: Path, state: TrainingState, config: RunConfig, facts: TrainingFacts
) -> None:
    """The network that is deployed, in training form; with its activations' ranges, if any."""
    model = state.deployed
    if isinstance(model, FakeQuantisedParNet):
        facts = replace(facts, ranges=model.learned(config.calibration))
        model = model.network
    if not isinstance(model, ParNet):
        raise TypeError(f"a run trains a ParNet, not a {type(model).__name__}")
    with replacing(path) as file:
        save_checkpoint(model, Path(file.name), facts)


def _write_record(folder: Path, record: RunRecord) -> None:
    with replacing(folder / RECORD) as file:
        file.write(encode(record))
