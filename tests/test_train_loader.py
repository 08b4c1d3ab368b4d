"""Which images every step takes, and what happens to them, whoever does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from parnet_deploy.data import ArraySamples
from parnet_deploy.errors import ImageError, UsageError
from parnet_deploy.train.loader import Batch, Plan, load_batches, mixed_seed
from parnet_deploy.train.transforms import training_transform
from tests.training import PREPROCESSING, SHORT, samples


def make_plan(**changes: int) -> Plan:
    fields = {
        "images": 10, "batch_size": 4, "micro_batch": 4, "processes": 1, "epochs": 2, "seed": 0,
    }  # fmt: skip
    return Plan(**(fields | changes))


@given(
    processes=st.integers(1, 4),
    micro=st.integers(2, 5),
    accumulated=st.integers(1, 3),
    extra=st.integers(0, 30),
    seed=st.integers(0, 2**32),
)
def test_every_image_of_a_step_is_taken_by_exactly_one_process(
    processes: int, micro: int, accumulated: int, extra: int, seed: int
) -> None:
    batch = processes * micro * accumulated
    plan = Plan(
        images=batch + extra,
        batch_size=batch,
        micro_batch=micro,
        processes=processes,
        epochs=3,
        seed=seed,
    )
    assert plan.accumulated == accumulated
    assert plan.steps == 3 * ((batch + extra) // batch)
    for epoch in range(3):
        order = plan.order(epoch)
        assert len(order.unique()) == order.numel()
        assert 0 <= int(order.min()) <= int(order.max()) < plan.images
    order = plan.order(1)
    for step, images in enumerate(order, start=plan.steps_per_epoch):
        shares = [plan.share(images, rank) for rank in range(processes)]
        assert sorted(torch.cat(shares).flatten().tolist()) == sorted(images.tolist())
        for rank, share in enumerate(shares):
            assert share.shape == (accumulated, micro)
            for number, part in enumerate(share.tolist()):
                assert plan.find(plan.number(step, number, rank)) == (step, part)


def test_batches_have_numbers_in_the_order_in_which_they_are_taken() -> None:
    plan = make_plan(images=24, batch_size=12, micro_batch=2, processes=3)
    numbers = [plan.number(s, m, r) for s in range(4) for m in range(2) for r in range(3)]
    assert numbers == list(range(24))


def test_epochs_and_seeds_have_other_orders() -> None:
    plan = make_plan(images=100)
    assert not torch.equal(plan.order(0), plan.order(1))
    assert not torch.equal(plan.order(0), make_plan(images=100, seed=1).order(0))
    assert torch.equal(plan.order(0), make_plan(images=100).order(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch": 3}, "a batch of 4 cannot be shared by 1 process in micro-batches of 3"),
        ({"processes": 3, "micro_batch": 2}, "by 3 processes in micro-batches of 2; it must be"),
        ({"images": 3}, "3 images do not fill one batch of 4; give a smaller --batch-size"),
    ],
)
def test_what_does_not_come_out_even_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(**changes)


def loaded(plan: Plan, rank: int = 0, *, first_step: int = 0, workers: int = 0) -> list[Batch]:
    transform = training_transform(SHORT.changed(flip=0.5), PREPROCESSING)
    made = samples(plan.images)
    return list(
        load_batches(
            made,
            transform,
            plan,
            rank=rank,
            first_step=first_step,
            workers=workers,
            pin=False,
            skip_bad=False,
        )
    )


def equal(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def test_the_same_images_come_with_any_number_of_processes() -> None:
    alone = loaded(make_plan(images=16, batch_size=8, micro_batch=2))
    pair = [
        loaded(make_plan(images=16, batch_size=8, micro_batch=2, processes=2), rank)
        for rank in range(2)
    ]
    assert len(alone) == 2 * 2 * 4
    together = [batch for both in zip(*pair, strict=True) for batch in both]
    assert all(equal(a, b) for a, b in zip(alone, together, strict=True))
    whole = loaded(make_plan(images=16, batch_size=8, micro_batch=8))
    assert torch.equal(whole[0].images, torch.cat([batch.images for batch in alone[:4]]))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_rest_of_a_training_is_what_it_would_have_been(workers: int) -> None:
    plan = make_plan(images=9, micro_batch=2)
    whole = loaded(plan)
    assert len(whole) == 2 * plan.steps
    for first_step in (0, 1, 2, 3, 4):
        rest = loaded(plan, first_step=first_step, workers=workers)
        assert len(rest) == len(whole) - 2 * first_step
        assert all(map(equal, rest, whole[2 * first_step :]))


def test_an_image_is_changed_in_another_way_in_every_epoch() -> None:
    plan = make_plan(images=4)
    first, second = loaded(plan)
    by_image = [
        dict(zip(plan.order(epoch)[0].tolist(), batch.images, strict=True))
        for epoch, batch in enumerate((first, second))
    ]
    assert all(not torch.equal(by_image[0][i], by_image[1][i]) for i in range(4))


def test_loading_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    loaded(make_plan())
    assert torch.equal(torch.rand(2), expected)


class Bad(ArraySamples):
    """Some images cannot be decoded."""

    bad: frozenset[int] = frozenset({2, 3})

    def image(self, index: int) -> Image.Image:
        if index in self.bad:
            raise ImageError(f"{self.name(index)} is damaged")
        return super().image(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_named_and_the_next_good_one_takes_its_place(workers: int) -> None:
    good = samples(4)
    good.images[:] = np.arange(4)[:, None, None, None]
    bad = Bad(images=good.images, labels=good.labels, name="made")
    plan = make_plan(images=4, epochs=1)
    (batch,) = load_batches(
        bad,
        training_transform(SHORT.changed(shift=0.0, rotation=0.0, zoom=0.0), PREPROCESSING),
        plan,
        rank=0,
        first_step=0,
        workers=workers,
        pin=False,
        skip_bad=True,
    )
    assert batch.failed == {"made[2]": "made[2] is damaged", "made[3]": "made[3] is damaged"}
    stand_ins = [{2: 0, 3: 0}.get(index, index) for index in plan.order(0)[0].tolist()]
    assert batch.images.amax((1, 2, 3)).tolist() == stand_ins
    assert batch.labels.tolist() == [good.label(index) for index in stand_ins]


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_without_a_good_image_there_is_none_in_the_batch(workers: int, skip_bad: bool) -> None:
    """One look at each where others may stand in, else one look."""
    good = samples(4)
    bad = Bad(images=good.images, labels=good.labels, name="made")
    bad.bad = frozenset(range(4)) if skip_bad else Bad.bad
    (batch,) = load_batches(
        bad,
        training_transform(SHORT, PREPROCESSING),
        make_plan(images=4, epochs=1),
        rank=0,
        first_step=0,
        workers=workers,
        pin=False,
        skip_bad=skip_bad,
    )
    assert len(batch.labels) == len(batch.images) == 0
    assert sorted(batch.failed) == [f"made[{index}]" for index in sorted(bad.bad)]


def test_seeds_differ_with_every_part() -> None:
    seeds = {mixed_seed(a, b, c) for a in range(3) for b in ("image", "step") for c in range(50)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mixed_seed(1, 23) != mixed_seed(12, 3)
