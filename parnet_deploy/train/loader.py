"""Training batches: which images, in which order, changed how.

All of it follows from the seed, the epoch and the image's number, and from nothing else: not from
how many processes share the work, nor from where a training is taken up again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from parnet_deploy.data import Samples
from parnet_deploy.errors import ImageError, UsageError
from parnet_deploy.train.transforms import Transform

Key = tuple[int, int]
"""Epoch, from 0, and the number of an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Which images every step of a training takes.

    Attributes:
        images: images of the training split.
        batch_size: images per step, over all processes.
        micro_batch: images that one process takes at once.
        processes: how many there are.
        epochs: passes over the images; those that do not fill a last batch are left out, others
            in every epoch.
        seed: of the order.
    """

    images: int
    batch_size: int
    micro_batch: int
    processes: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse what does not come out even.

        Raises:
            UsageError: the batch is not so many micro-batches, or the images do not fill one batch.
        """
        share = self.processes * self.micro_batch
        if self.batch_size % share:
            raise UsageError(
                f"a batch of {self.batch_size} cannot be shared by {self.processes} "
                f"process{'es' * (self.processes > 1)} in micro-batches of {self.micro_batch}; "
                f"it must be a multiple of {share}"
            )
        if self.images < self.batch_size:
            raise UsageError(
                f"{self.images} images do not fill one batch of {self.batch_size}; give a smaller "
                "--batch-size"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.images // self.batch_size

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    @property
    def accumulated(self) -> int:
        """Micro-batches that a process takes per step."""
        return self.batch_size // (self.processes * self.micro_batch)

    def order(self, epoch: int) -> Tensor:
        """The images of every step of an epoch: (steps_per_epoch, batch_size) int64."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, "order", epoch))
        order = torch.randperm(self.images, generator=generator)
        steps = self.steps_per_epoch
        return order[: steps * self.batch_size].reshape(steps, self.batch_size)

    def share(self, batch: Tensor, rank: int) -> Tensor:
        """Of a step's images, those of one process: (accumulated, micro_batch).

        The first micro-batches of all processes stand together, so that a process alone with the
        same micro-batches takes the same ones.
        """
        return batch.reshape(self.accumulated, self.processes, self.micro_batch)[:, rank]

    def number(self, step: int, micro: int, rank: int) -> int:
        """The number of a micro-batch among those of all steps and processes."""
        return (step * self.accumulated + micro) * self.processes + rank

    def find(self, number: int) -> tuple[int, list[int]]:
        """The step, from 0, and the images of the micro-batch of that number."""
        position, rank = divmod(number, self.processes)
        step, micro = divmod(position, self.accumulated)
        epoch, within = divmod(step, self.steps_per_epoch)
        indices: list[int] = self.share(self.order(epoch)[within], rank)[micro].tolist()
        return step, indices


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """A micro-batch.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        failed: names of images that could not be decoded, and why; others took their places, if
            they may and if there was one. If not, there are no images.
    """

    images: Tensor
    labels: Tensor
    failed: dict[str, str]

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which copies to a GPU need not be waited for."""
        return Batch(
            images=self.images.pin_memory(), labels=self.labels.pin_memory(), failed=self.failed
        )


def mixed_seed(*parts: object) -> int:
    """A seed below 2^63 that depends on all parts."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def load_batches(
    samples: Samples,
    transform: Transform,
    plan: Plan,
    *,
    rank: int,
    first_step: int,
    workers: int,
    pin: bool,
    skip_bad: bool,
) -> Iterator[Batch]:
    """All micro-batches of a process, from a step to the end of the training, in order.

    Args:
        samples: the training split.
        transform: what happens to each image.
        plan: which images.
        rank: of this process.
        first_step: the step to begin with, from 0.
        workers: processes that decode and transform; 0 does it in this one.
        pin: page-lock the batches.
        skip_bad: take the next image that can be decoded in the place of one that cannot.
    """
    loader: DataLoader[Any] = DataLoader(  # of batches; its type has the samples'
        _Augmented(samples, transform, plan.seed, skip_bad=skip_bad),
        batch_sampler=_Keys(plan, rank, first_step),
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator(),  # of the seeds of workers; the global one is left alone
    )
    return iter(loader)


class _Keys(Sampler[list[Key]]):
    """The keys of every micro-batch of a process."""

    def __init__(self, plan: Plan, rank: int, first_step: int) -> None:
        self._plan, self._rank, self._first = plan, rank, first_step

    def __iter__(self) -> Iterator[list[Key]]:
        first, step = divmod(self._first, self._plan.steps_per_epoch)
        for epoch in range(first, self._plan.epochs):
            for batch in self._plan.order(epoch)[step:]:
                for indices in self._plan.share(batch, self._rank).tolist():
                    yield [(epoch, index) for index in indices]
            step = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    image: Tensor
    label: int
    failed: dict[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class _Bad:
    failed: dict[str, str]


class _Augmented(Dataset[_Sample | _Bad]):
    """Samples, transformed at random as epoch and index have it."""

    def __init__(
        self, samples: Samples, transform: Transform, seed: int, *, skip_bad: bool
    ) -> None:
        self._samples, self._transform, self._seed = samples, transform, seed
        self._tried = len(samples) if skip_bad else 1

    def __getitem__(self, key: Key) -> _Sample | _Bad:
        """The image of that key; where it cannot be decoded, perhaps the next that can.

        Nothing is raised: a worker's exceptions come out with its traceback as their text.
        """
        epoch, index = key
        failed: dict[str, str] = {}
        for number in range(self._tried):
            at = (index + number) % len(self._samples)
            try:
                image = self._samples.image(at)
            except ImageError as exc:
                failed[self._samples.name(at)] = str(exc)
                continue
            state = torch.get_rng_state()
            torch.default_generator.manual_seed(mixed_seed(self._seed, "image", epoch, index))
            pixels = self._transform(image)
            torch.set_rng_state(state)
            return _Sample(pixels, self._samples.label(at), failed)
        return _Bad(failed)


def _collate(samples: list[_Sample | _Bad]) -> Batch:
    good = [sample for sample in samples if isinstance(sample, _Sample)]
    if len(good) < len(samples):
        good = []
    return Batch(
        images=torch.stack([sample.image for sample in good]) if good else torch.empty(0),
        labels=torch.tensor([sample.label for sample in good], dtype=torch.int64),
        failed={name: why for sample in samples for name, why in sample.failed.items()},
    )
