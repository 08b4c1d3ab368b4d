"""The training loop."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from parnet_deploy.data import DataSet
from parnet_deploy.data.naming import enumerate_names
from parnet_deploy.errors import DataError, ImageError, TrainingError
from parnet_deploy.train.batchnorm import synchronise_norms
from parnet_deploy.train.loader import Batch, Plan, load_batches, mixed_seed
from parnet_deploy.train.metrics import EpochMetrics, StepMetrics
from parnet_deploy.train.optimise import make_optimiser, make_schedule
from parnet_deploy.train.qat.network import FakeQuantisedParNet
from parnet_deploy.train.settings import Precision, Settings
from parnet_deploy.train.state import Sums, TrainingState
from parnet_deploy.train.tally import Tally
from parnet_deploy.train.task import Task, workers_for
from parnet_deploy.train.transforms import training_transform
from parnet_deploy.train.validate import TestSplit, score

_AUTOCAST: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

# On a GPU the losses are looked at once in so many steps: looking means waiting for it.
_GPU_STEPS = 50


def begin(model: nn.Module, task: Task) -> TrainingState:
    """The state of a training before its first step; the network is moved to the device."""
    device = task.processes.device
    model = model.to(device=device, memory_format=_layout(task.settings))  # type: ignore[call-overload]  # torch's stub lacks the pair
    if task.settings.sync_bn and task.processes.count > 1:
        model = synchronise_norms(model, device)
    average = None
    if task.recipe.ema_decay:
        # The decay rises with the steps, so that a short training has an average, too.
        average = ModelEmaV3(model, decay=task.recipe.ema_decay, use_warmup=True)
    return TrainingState(
        model=model,
        optimiser=make_optimiser(model, task.recipe),
        scaler=torch.amp.GradScaler(device.type, enabled=task.settings.precision == "fp16"),
        average=average,
    )


def train(state: TrainingState, task: Task) -> bool:
    """Train from where the state is to the end, and leave the network in inference mode.

    The same state, data, recipe, settings, device, number of processes and of threads give the
    same weights, to the bit, on a CPU (and on a GPU with ``deterministic``), however often the
    training was stopped and taken up again.

    Returns:
        Whether it came to its end; False when it was stopped.

    Raises:
        TrainingError: a loss or weight is no longer finite, or memory does not suffice.
        ImageError: an image cannot be decoded, and bad ones are not skipped.
        DataError: not one image of a class can be decoded.
        UsageError: the batch does not come out even.
    """
    plan = task.plan
    if task.processes.is_main:
        task.observer.begin(step=state.step, steps=plan.steps, epochs=plan.epochs)
    try:
        devices = [task.processes.device] if task.processes.device.type == "cuda" else []
        with _deterministic(task.settings.deterministic), torch.random.fork_rng(devices):
            return _Training(state, task, plan).run()
    except torch.OutOfMemoryError as exc:
        raise TrainingError(
            f"the GPU's memory does not suffice for {plan.micro_batch} images at once; a smaller "
            "--micro-batch keeps the recipe's batch"
        ) from exc
    finally:
        state.model.eval()


class _Training:
    """One run of the loop."""

    def __init__(self, state: TrainingState, task: Task, plan: Plan) -> None:
        self.state, self.task, self.plan = state, task, plan
        self.device = task.processes.device
        self.wrapped: nn.Module = state.model
        if task.processes.count > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(state.model, device_ids=ids)
        self.schedule = make_schedule(
            state.optimiser,
            task.recipe,
            steps=plan.steps,
            steps_per_epoch=plan.steps_per_epoch,
        )
        self.workers = workers_for(task.settings, task.processes)
        self.mean = torch.tensor(task.preprocessing.mean, device=self.device)[:, None, None]
        self.std = torch.tensor(task.preprocessing.std, device=self.device)[:, None, None]
        self.schedule.step_update(max(state.step - 1, 0))
        self.tally = Tally(self.device)

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        rate: float = self.state.optimiser.param_groups[0]["lr"]
        return rate

    def run(self) -> bool:
        """Every step that is left; whether the end was reached."""
        state, plan = self.state, self.plan
        if self._epoch_is_over() and not self._end_epoch():
            return False
        batches = self._batches()
        while state.step < plan.steps:
            self._step(batches)
            over = self._epoch_is_over()
            due = state.step % (self.task.settings.save_every or plan.steps + 1) == 0
            if over or due or self.device.type == "cpu" or state.step % _GPU_STEPS == 0:
                stopped = self._look()
                if over and not stopped:
                    stopped = not self._end_epoch()
                elif due or stopped:
                    self._save()
                if stopped:
                    return False
        return True

    def _batches(self) -> Iterator[Batch]:
        if self.state.step >= self.plan.steps:
            return iter(())
        return load_batches(
            self.task.data.train,
            training_transform(self.task.recipe, self.task.preprocessing),
            self.plan,
            rank=self.task.processes.rank,
            first_step=self.state.step,
            workers=self.workers,
            pin=self.device.type == "cuda",
            skip_bad=self.task.settings.skip_bad,
        )

    def _epoch_is_over(self) -> bool:
        """Whether an epoch's steps are done and it has not been tested."""
        done, rest = divmod(self.state.step, self.plan.steps_per_epoch)
        return rest == 0 and done > len(self.state.history)

    def _step(self, batches: Iterator[Batch]) -> None:
        """One optimiser step, over all of its micro-batches."""
        state = self.state
        self.wrapped.train()
        self.schedule.step_update(state.step)
        if isinstance(state.model, FakeQuantisedParNet):
            state.model.begin_step(state.step / self.plan.steps)
        # Dropout: the same masks in this step whenever it is done.
        rank = self.task.processes.rank
        torch.manual_seed(mixed_seed(self.task.settings.seed, "step", state.step, rank))
        for number in range(self.plan.accumulated):
            batch = next(batches)
            self._note_failed(batch)
            last = number == self.plan.accumulated - 1
            with contextlib.nullcontext() if last else self._apart():
                self._accumulate(batch, number)
        state.scaler.step(state.optimiser)
        state.scaler.update()
        state.optimiser.zero_grad(set_to_none=True)
        state.step += 1
        if state.average is not None:
            state.average.update(state.model, step=state.step)

    def _apart(self) -> contextlib.AbstractContextManager[None]:
        """Gradients are not yet averaged over the processes."""
        if isinstance(self.wrapped, DistributedDataParallel):
            return self.wrapped.no_sync()
        return contextlib.nullcontext()

    def _accumulate(self, batch: Batch, number: int) -> None:
        """Forward and backward of a micro-batch."""
        images, labels = self._on_device(batch)
        precision = self.task.settings.precision
        with torch.autocast(self.device.type, _AUTOCAST[precision], enabled=precision != "fp32"):
            logits = self.wrapped(images)
            loss = functional.cross_entropy(
                logits.float(), labels, label_smoothing=self.task.recipe.label_smoothing
            )
        self.state.scaler.scale(loss / self.plan.accumulated).backward()
        rank = self.task.processes.rank
        self.tally.add(loss, logits, labels, self.plan.number(self.state.step, number, rank))

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images as the network reads them: (N, 3, H, W) float32, normalised; and labels."""
        images = batch.images.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        normalised = (images.float() / 255 - self.mean) / self.std
        return normalised.contiguous(memory_format=_layout(self.task.settings)), labels

    def _note_failed(self, batch: Batch) -> None:
        """Remember what was skipped, or say that it may not be.

        Raises:
            ImageError: bad images are not skipped, or no image is good.
        """
        if not len(batch.labels):
            first = next(iter(batch.failed.values()))
            if self.task.settings.skip_bad:
                raise ImageError(f"not one of {self.plan.images} images can be decoded: {first}")
            raise ImageError(f"{first}; --skip-bad takes other images for such ones")
        self.state.failed.update(batch.failed)

    def _look(self) -> bool:
        """Add up over all processes, tell, and find out whether to go on.

        Returns:
            Whether somebody wants to stop.

        Raises:
            TrainingError: a loss was not finite.
        """
        processes = self.task.processes
        look = self.tally.look(processes, stop=self.task.stop())
        if look.bad is not None:
            raise TrainingError(self._describe_bad(look.bad))
        new = look.sums
        self.state.sums += new
        if processes.is_main:
            self.task.observer.on_step(
                StepMetrics(
                    epoch=(self.state.step - 1) // self.plan.steps_per_epoch + 1,
                    step=self.state.step,
                    learning_rate=self.rate,
                    loss=new.loss / new.batches,
                    top1=new.right / new.images,
                    images_per_second=new.images / new.seconds,
                )
            )
        return look.stop

    def _describe_bad(self, number: int) -> str:
        """Which step's which batch has a loss that is not finite."""
        step, indices = self.plan.find(number)
        names = [self.task.data.train.name(index) for index in indices]
        return (
            f"the loss is not finite at step {step + 1} (epoch "
            f"{step // self.plan.steps_per_epoch + 1}), for the batch of "
            f"{enumerate_names(names)}: training has come apart and was stopped; "
            "take a lower --learning-rate, or look for damaged data"
        )

    def _end_epoch(self) -> bool:
        """Test the network and keep what has been reached; False when it was stopped."""
        state, task, sums = self.state, self.task, self.state.sums
        # Without synchronised BN each process has statistics of its own; the main one's are kept
        # (DistributedDataParallel, too, hands them on before every step), so they are tested.
        task.processes.share_buffers(state.model)
        task.processes.share_buffers(state.deployed)
        failed: dict[str, str] = {}
        split = TestSplit(
            samples=task.data.test,
            preprocessing=task.preprocessing,
            skip_bad=task.settings.skip_bad,
            workers=self.workers,
        )
        epoch = state.step // self.plan.steps_per_epoch
        tested = score(
            state.deployed,
            split,
            task.processes,
            when=f"after step {state.step} (epoch {epoch})",
            failed=failed,
            stop=task.stop,
        )
        if tested is None:
            self._save()
            return False
        state.failed = task.processes.merge(state.failed | failed)
        _check_classes(task.data, state.failed)
        metrics = EpochMetrics(
            epoch=epoch,
            step=state.step,
            learning_rate=self.rate,
            train_loss=sums.loss / sums.batches,
            train_top1=sums.right / sums.images,
            test_loss=tested.loss,
            test_top1=tested.top1,
            test_top5=tested.top5,
            test_images=tested.images,
            seconds=sums.seconds,
            images_per_second=sums.images / sums.seconds,
        )
        state.history.append(metrics)
        state.sums = Sums()
        if task.processes.is_main:
            task.observer.on_epoch(metrics)
        self._save()
        self.tally.begin()
        return True

    def _save(self) -> None:
        if self.task.processes.is_main:
            self.task.save(self.state)
        self.task.processes.wait()


def _layout(settings: Settings) -> torch.memory_format:
    """How feature maps lie in memory."""
    return torch.channels_last if settings.channels_last else torch.contiguous_format


def _check_classes(data: DataSet, failed: Mapping[str, str]) -> None:
    """Refuse to go on when a class has no image that can be learnt from.

    Raises:
        DataError: all images of a class are bad.
    """
    if not failed:
        return
    left = Counter(
        data.train.label(index)
        for index in range(len(data.train))
        if data.train.name(index) not in failed
    )
    if lost := [name for label, name in enumerate(data.labels) if not left[label]]:
        raise DataError(
            f"not one image of {enumerate_names(lost)} can be decoded, so it cannot be learnt; "
            "take the class away, or mend its files"
        )


@contextlib.contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Only operators that give the same bits every time, on a GPU."""
    before = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if wanted:  # what cuBLAS needs for it, before it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted or before)
    torch.backends.cudnn.benchmark = not wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
