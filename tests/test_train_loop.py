"""The training loop: it learns, goes on to the bit where it was stopped, and stops when it must."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from parnet_deploy.data import ArraySamples, DataSet
from parnet_deploy.errors import ImageError, TrainingError, UsageError
from parnet_deploy.net import initialise
from parnet_deploy.train.loop import train
from parnet_deploy.train.metrics import EpochMetrics
from parnet_deploy.train.processes import Processes
from parnet_deploy.train.recipe import Recipe
from parnet_deploy.train.settings import Settings
from parnet_deploy.train.state import TrainingState
from parnet_deploy.train.task import workers_for
from tests.training import SHORT, SMALL, Recorder, begun, make_task, samples, two_colours

SGD = SHORT.changed(optimiser="sgd", learning_rate=0.03, nesterov=True, ema_decay=0.9)


class Plain(nn.Module):
    """A network without batch normalisation: a sum over images is a sum over any parts of them."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear = nn.Linear(3 * 8 * 8, 2)

    def forward(self, images: Tensor) -> Tensor:
        y: Tensor = self.linear(images.flatten(1))
        return y


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def comparable(history: list[EpochMetrics]) -> list[tuple[float, ...]]:
    """Everything but the times."""
    return [
        (e.epoch, e.step, e.learning_rate, e.train_loss, e.train_top1, e.test_loss, e.test_top1)
        for e in history
    ]


@pytest.mark.parametrize("recipe", [SHORT.changed(epochs=10), SGD.changed(epochs=10)])
def test_train_learns(recipe: Recipe) -> None:
    seen = Recorder()
    task = make_task(recipe=recipe, observer=seen)
    state = begun(task)
    assert train(state, task)
    assert seen.began == [(0, 40, 10)]
    assert [entry.step for entry in seen.steps] == list(range(1, 41))
    assert seen.epochs == state.history
    assert [entry.epoch for entry in state.history] == list(range(1, 11))
    assert state.history[-1].train_loss < state.history[0].train_loss
    assert state.history[-1].test_top1 == 1.0
    assert not state.model.training


def test_what_is_told_adds_up() -> None:
    """An epoch's mean loss is that of its steps; the test is that of the network itself."""
    seen = Recorder()
    task = make_task(recipe=SHORT.changed(epochs=1), observer=seen)
    state = begun(task)
    train(state, task)
    (epoch,) = seen.epochs
    assert epoch.train_loss == pytest.approx(np.mean([step.loss for step in seen.steps]))
    assert epoch.train_top1 == pytest.approx(np.mean([step.top1 for step in seen.steps]))
    assert epoch.learning_rate == seen.steps[-1].learning_rate
    test = task.data.test
    pixels = np.stack([np.asarray(test.image(i)).transpose(2, 0, 1) for i in range(len(test))])
    with torch.inference_mode():
        logits = state.model(torch.from_numpy((pixels / 255 - 0.5) / 0.25).float())
    labels = torch.tensor([test.label(i) for i in range(len(test))])
    assert epoch.test_top1 == float((logits.argmax(1) == labels).double().mean())
    assert epoch.test_loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
    assert epoch.test_top5 == 1.0  # there are two classes


def test_train_leaves_the_random_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    task = make_task()
    train(begun(task), task)
    assert torch.equal(torch.rand(3), expected)


def test_the_seed_decides_and_nothing_else() -> None:
    def trained(seed: int, workers: int = 0) -> nn.Module:
        task = make_task(settings=Settings(seed=seed, workers=workers))
        state = begun(task)
        torch.rand(seed + workers)  # whatever the caller did before
        train(state, task)
        return state.model

    assert same_bits(trained(0), trained(0, workers=1))
    assert not same_bits(trained(0), trained(1))


@pytest.mark.slow
@given(
    stop_after=st.integers(1, 7),
    save_every=st.sampled_from([1, 2, 3, None]),
    recipe=st.sampled_from([SHORT, SGD]),
    micro=st.sampled_from([None, 4]),
    precision=st.sampled_from(["fp32", "bf16"]),
)
@settings(max_examples=6, phases=[Phase.generate])  # shrinking would take minutes
def test_a_training_that_was_stopped_goes_on_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory,
    stop_after: int,
    save_every: int | None,
    recipe: Recipe,
    micro: int | None,
    precision: str,
) -> None:
    """Stopped as by a signal, or killed: then what was saved last is gone on from."""
    path = tmp_path_factory.mktemp("state") / "last.pt"
    how = Settings(seed=5, save_every=save_every, micro_batch=micro, precision=precision)  # type: ignore[arg-type]

    def run(state: TrainingState | None, stop_at: int | None) -> TrainingState:
        seen = Recorder()
        task = make_task(
            recipe=recipe,
            settings=how,
            observer=seen,
            save=lambda state: state.save(path),
            stop=lambda: stop_at is not None and len(seen.steps) >= stop_at - 1,
        )
        fresh = begun(task)
        if state is not None:
            fresh.restore(path)
        assert train(fresh, task) == (stop_at is None)
        return fresh

    whole = run(None, None)
    stopped = run(None, stop_after)
    assert stopped.step in (stop_after, stop_after - 1)  # in the test at an epoch's end
    resumed = run(stopped, None)
    assert same_bits(whole.model, resumed.model)
    assert same_bits(whole.deployed, resumed.deployed)
    assert comparable(whole.history) == comparable(resumed.history)


def test_a_stop_in_the_middle_of_a_test_is_gone_on_from_too(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    asked = {"times": 0}

    def stop() -> bool:
        asked["times"] += 1
        return asked["times"] == 5  # four steps are an epoch; the fifth question is the test's

    task = make_task(save=lambda state: state.save(path), stop=stop)
    state = begun(task)
    assert not train(state, task)
    assert (state.step, state.history) == (4, [])
    task = make_task()
    resumed, whole = begun(task), begun(task)
    resumed.restore(path)
    assert train(resumed, task)
    assert train(whole, task)
    assert same_bits(whole.model, resumed.model)
    assert comparable(whole.history) == comparable(resumed.history)


@pytest.mark.parametrize("micro", [2, 4])
def test_gradients_are_accumulated_to_the_whole_batch(micro: int) -> None:
    recipe = SGD.changed(shift=0.0)
    whole = make_task(recipe=recipe)
    parts = make_task(recipe=recipe, settings=Settings(micro_batch=micro))
    a, b = begun(whole, Plain()), begun(parts, Plain())
    train(a, whole)
    train(b, parts)
    assert parts.plan.accumulated == 8 // micro
    for left, right in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.allclose(left, right, rtol=1e-5, atol=1e-7)
    assert a.history[-1].train_loss == pytest.approx(b.history[-1].train_loss, rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_and_keeps_weights_in_full(precision: str) -> None:
    task = make_task(
        recipe=SHORT.changed(epochs=6),
        settings=Settings(precision=precision),  # type: ignore[arg-type]
    )
    dtypes = set()
    model = initialise(SMALL, seed=0)
    model.blocks["stem1"].dense.conv.register_forward_hook(
        lambda module, inputs, output: dtypes.add(output.dtype)
    )
    state = begun(task, model)
    assert train(state, task)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert half in dtypes
    assert {p.dtype for p in state.model.parameters()} == {torch.float32}
    assert state.scaler.is_enabled() == (precision == "fp16")
    assert state.history[-1].test_top1 == 1.0


def test_the_moving_average_is_what_is_tested_and_kept() -> None:
    task = make_task(recipe=SGD.changed(epochs=1, ema_decay=0.5))
    state = begun(task)
    before = copy.deepcopy(state.model)
    train(state, task)
    assert not same_bits(state.deployed, state.model)
    assert not same_bits(state.deployed, before)
    assert state.deployed is state.average.module  # type: ignore[union-attr]
    task = make_task()
    assert begun(task).deployed is not None
    assert begun(task).average is None


def test_a_loss_that_is_not_finite_names_step_and_batch_and_keeps_the_last_good_state(
    tmp_path: Path,
) -> None:
    """A network that breaks down over one image: its batch is named, and nobody else's."""

    class Fragile(Plain):
        """White is (1 - 0.5) / 0.25 = 2 after normalisation; nothing else is above 1.2."""

        def forward(self, images: Tensor) -> Tensor:
            white = images.amin((1, 2, 3)) > 1.9
            return torch.where(white[:, None], torch.nan, super().forward(images))

    path, saved = tmp_path / "last.pt", []
    data = two_colours()
    train_split = samples()
    train_split.images[13] = 255
    task = make_task(
        recipe=SHORT.changed(shift=0.0, rotation=0.0, zoom=0.0, epochs=3),
        settings=Settings(save_every=1, micro_batch=2),
        data=replace(data, train=train_split),
        save=lambda state: (state.save(path), saved.append(path.read_bytes())),  # type: ignore[arg-type, return-value]
    )
    order = task.plan.order(0)
    step = next(s for s in range(4) if 13 in order[s])
    micro = next(part for part in order[step].reshape(4, 2).tolist() if 13 in part)
    state = begun(task, Fragile())
    with pytest.raises(TrainingError) as caught:
        train(state, task)
    message = str(caught.value)
    assert f"at step {step + 1} (epoch 1)" in message
    assert f"for the batch of made[{micro[0]}], made[{micro[1]}]:" in message
    assert len(saved) == step
    assert not saved or path.read_bytes() == saved[-1]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    task = make_task(save=lambda state: state.save(path), recipe=SHORT.changed(epochs=1))
    state = begun(task)
    train(state, task)
    good = path.read_bytes()
    with torch.no_grad():
        next(state.model.parameters()).fill_(math.inf)
    with pytest.raises(TrainingError, match="no longer finite after step 4"):
        state.save(path)
    assert path.read_bytes() == good
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


class OneBad(ArraySamples):
    """An image in the middle cannot be decoded."""

    def image(self, index: int) -> Image.Image:
        if index == 3:
            raise ImageError("made[3] is damaged or cut short")
        return super().image(index)


def with_a_bad_image() -> DataSet:
    good = two_colours()
    made = samples()
    bad = OneBad(images=made.images, labels=made.labels, name="made")
    return replace(good, train=bad)


def test_a_bad_image_ends_the_training_with_its_name() -> None:
    task = make_task(data=with_a_bad_image())
    with pytest.raises(ImageError, match=r"made\[3\] is damaged.*--skip-bad"):
        train(begun(task), task)


def test_bad_images_are_skipped_and_counted() -> None:
    task = make_task(data=with_a_bad_image(), settings=Settings(skip_bad=True))
    state = begun(task)
    assert train(state, task)
    assert state.failed == {"made[3]": "made[3] is damaged or cut short"}


def test_without_a_single_good_image_skipping_does_not_help() -> None:
    class AllBad(ArraySamples):
        def image(self, index: int) -> Image.Image:
            raise ImageError(f"made[{index}] is damaged or cut short")

    made = samples()
    bad = AllBad(images=made.images, labels=made.labels, name="made")
    task = make_task(
        data=replace(two_colours(), train=bad), settings=Settings(skip_bad=True, workers=1)
    )
    with pytest.raises(ImageError, match=r"not one of 32 images can be decoded: made\[\d+\] is"):
        train(begun(task), task)


def test_what_does_not_come_out_even_is_refused() -> None:
    task = make_task(settings=Settings(micro_batch=3))
    with pytest.raises(UsageError, match="multiple of 3"):
        train(begun(task), task)
    task = make_task(recipe=SHORT.changed(batch_size=64))
    with pytest.raises(UsageError, match="32 images do not fill one batch of 64"):
        train(begun(task), task)


@pytest.mark.parametrize(
    ("device", "here", "given", "expected"),
    [("cpu", 1, None, 0), ("cuda", 1, None, 8), ("cuda", 4, None, 3), ("cuda", 32, None, 1),
     ("cpu", 1, 5, 5), ("cuda", 1, 0, 0)],
)  # fmt: skip
def test_images_are_decoded_by_the_cores_that_are_left(
    monkeypatch: pytest.MonkeyPatch, device: str, here: int, given: int | None, expected: int
) -> None:
    monkeypatch.setattr("parnet_deploy.train.task.usable_cores", lambda: 12)
    processes = Processes(count=here, here=here, device=torch.device(device))
    assert workers_for(Settings(workers=given), processes) == expected
