"""What a network's activations are on the images that are fed, against what its quantisers reach.

That a graph's scales are the manifest's shows nothing where both were made of the same wrong
numbers. So values are taken from the network before it is quantised, in torch, the range is found
anew by the method that the manifest names, and both are compared. On the images that it was
calibrated on they must be the same. On others they are about the same: on the tests' network and
digits, calibrated on 16 to 256 images and shown 16 to 128 others, the range of a tensor was 0.19 to
3.1 times the one in the manifest, but the median over all tensors 0.84 to 1.24, and up to 1.75
where fewer than 64 were calibrated on. The bounds below were chosen with these figures at hand, and
have not been tried on others. So scales that are all off by two are found on any images.

A single one is found on those that were calibrated on, and on others where enough were calibrated
on and enough are shown: from 64 and 32 on, digits, digits made to quantise badly and the tests'
network had single ranges of 0.67 to 1.43 times the median of all (by all methods but the entropy,
whose search leaps: 0.49 to 1.9). One that is twice as wide as it should be is found where it would
be less than 1.2 times the median, one that is half as wide where it would be more than 0.75 times.
A zero point that is wrong moves a range to one side: sound ones had moved by up to 0.05 of
themselves (42 tensors of two digits networks, three methods), and 0.08 is allowed, which is 20
steps of 255; on the images that were calibrated on two steps are.
Where that cannot be judged, it is said.

What the network reads is held against what its preprocessing can make of pixels
(`quantise.plausible`), for which no image is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from parnet_deploy.bundle import ModelManifest
from parnet_deploy.errors import UsageError
from parnet_deploy.net import DeployParNet
from parnet_deploy.quantise.histogram import Histogram
from parnet_deploy.quantise.images import CalibrationImages
from parnet_deploy.quantise.plausible import check_ranges
from parnet_deploy.quantise.ranges import quantiser
from parnet_deploy.spec import IMAGES, LOGITS, PREPROCESSED
from parnet_deploy.spec.quantisation import (
    CalibrationMethod,
    Quantisation,
    Quantiser,
)
from parnet_deploy.spec.ranges import Range, reach
from parnet_deploy.verify.inputs import Batch
from parnet_deploy.verify.problems import Problem, check_of
from parnet_deploy.verify.result import CheckResult, TensorRange
from parnet_deploy.verify.tolerances import RungName

READS = "what the network reads fits its preprocessing"
RANGES = "ranges are those of the images"
SINGLE = "no single scale is off by two"
SAME = "it was calibrated on these images"
RUNG: RungName = "fused-f32"

UNSEEN = (
    "noise is nothing that it was calibrated on: give --images or --npz, or with --calibrate the "
    "images that it was calibrated on"
)

EXACT = 0.1
"""How far ranges may part on the same images: torch and ONNX Runtime differ in the last bits, and
the searches for the entropy and the least error may then take a neighbouring candidate."""

LEAST_IMAGES = 16
"""On fewer, other images than were calibrated on tell nothing of ranges."""

WIDE, NARROW, NARROW_FEW = 0.65, 1.5, 1.9
"""On other images: least and greatest of the median range, in the manifest's; the last one where
fewer than `FEW_CALIBRATED` were calibrated on."""

FEW_CALIBRATED = 64

SINGLE_WIDE, SINGLE_NARROW = 0.6, 1.5
"""On other images: least and greatest range of any tensor, in the median of all."""

SINGLE_MOVED = 0.08
"""On other images: how far both ends of a range may lie to the same side, in the range."""

SHORT, LONGER = 0.2, 0.3
"""What is a short end of a range, in the range, and by what part of its length it may lie elsewhere
on other images."""

EXACT_MOVED = 0.01
"""The same on the images that were calibrated on: two steps of 255, for the last bits."""

SINGLE_MOST = 3
"""Where more tensors than these are off, it is the images that are others."""

SINGLE_IMAGES = 32
"""On fewer, or where fewer than `FEW_CALIBRATED` were calibrated on, that is not judged."""

LEAPING = ("entropy", "qat")
"""Methods whose ranges cannot be told so nearly: a search that leaps, and what was learned."""

FAR_WIDE, FAR_NARROW = 0.1, 4.0
"""On other images: least and greatest range of any tensor, in the manifest's."""


def observe_ranges(
    model: DeployParNet, manifest: ModelManifest, batches: Iterable[Batch]
) -> tuple[TensorRange, ...]:
    """Run the network as it was fused, and look at every tensor that is to be quantised.

    Channels whose ranges were evened out have other values in the graph: such tensors are left out.

    Args:
        model: in deploy form, of the manifest's form.
        manifest: of the model, with a quantisation.
        batches: what to run.
    """
    quantisation = manifest.quantisation
    if quantisation is None:
        return ()
    dtype = next(model.parameters()).dtype
    names = [name for name in quantisation.tensors if not _is_scaled(name, manifest)]
    seen: dict[str, Histogram] = {}
    beyond = dict.fromkeys(names, 0)
    images = 0
    for batch in batches:
        images += batch.count
        normalised = torch.from_numpy(batch.normalised).to(dtype)
        for name, value in _tensors(model, normalised).items():
            if name in beyond:
                real = value[: batch.count]
                one = Histogram.of(real.numpy())
                seen[name] = seen[name] + one if name in seen else one
                beyond[name] += _beyond(real, quantisation.tensors[name])
    return tuple(
        _range(name, seen[name], quantisation, images=images, beyond=beyond[name])
        for name in names
        if name in seen
    )


def _beyond(values: Tensor, how: Quantiser) -> int:
    """How many values a quantiser cuts off: half a step beyond its last number is rounded to it."""
    ends, half = reach(how), how.scale / 2
    return int(((values < ends.low - half) | (values > ends.high + half)).sum())


def _range(
    name: str, seen: Histogram, quantisation: Quantisation, *, images: int, beyond: int
) -> TensorRange:
    how, calibration = quantisation.tensors[name], quantisation.calibration
    # What was learned in training followed the greatest values there.
    method: CalibrationMethod = "minmax" if calibration.method == "qat" else calibration.method
    ends = reach(how)
    ratio = moved = 0.0
    with suppress(UsageError):  # all values are nearly zero
        own = quantiser(seen, how.dtype, method, calibration.percentile)
        ratio, moved = own.scale / how.scale, _moved(reach(own), ends)
    return TensorRange(
        tensor=name,
        low=ends.low,
        high=ends.high,
        least=seen.low,
        greatest=seen.high,
        saturated=beyond / seen.total,
        ratio=ratio,
        moved=moved,
        images=images,
    )


def _moved(found: Range, ends: Range) -> float:
    """How far a range lies beside another, in that one's width: what a zero point may be wrong by.

    Other images make a range wider or narrower, or longer at one end. So it is what both ends have
    moved by, or what a short one, as below a SiLU's 0, has moved by beyond `LONGER` of its length,
    where that is more.
    """
    width = ends.high - ends.low
    low, high = (found.low - ends.low) / width, (found.high - ends.high) / width
    both = min(low, high, key=abs) if low * high > 0 else 0.0
    near, length = (low, -found.low) if -found.low < found.high else (high, found.high)
    if length > SHORT * width:
        return both
    beyond = math.copysign(max(0.0, abs(near) - LONGER * length / width), near)
    return max(both, beyond, key=abs)


def _is_scaled(tensor: str, manifest: ModelManifest) -> bool:
    """Whether equalisation may have scaled a tensor's channels."""
    if manifest.quantisation is None or not manifest.quantisation.equalised:
        return False
    if tensor in (IMAGES, PREPROCESSED):
        return False
    return manifest.spec.activation == "relu" or tensor.endswith(".join")


def _tensors(model: DeployParNet, images: Tensor) -> Mapping[str, Tensor]:
    """Values by the names that the float32 graph has for them."""
    found: dict[str, Tensor] = {IMAGES: images, PREPROCESSED: images}

    def watch(name: str, conv: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def see(_: nn.Module, read: tuple[Tensor, ...], given: Tensor) -> None:
            found[f"{name}.join"], found[f"{name}.conv"] = read[0], given

        return conv.register_forward_hook(see)

    with ExitStack() as stack, torch.inference_mode():
        for name, block in model.blocks.items():
            if isinstance(conv := getattr(block, "conv", None), nn.Conv2d):
                stack.callback(watch(name, conv).remove)
        values = model.values(images)
    return found | {name: value for name, value in values.items() if name != LOGITS}


def check_ranges_of(
    manifest: ModelManifest, ranges: Iterable[TensorRange], *, same: bool
) -> tuple[CheckResult, ...]:
    """Hold the quantisers against the preprocessing, and against what images really give.

    Args:
        manifest: of the model, with a quantisation.
        ranges: what was seen (`observe_ranges`).
        same: whether the images are those that the ranges were found on.
    """
    found = tuple(ranges)
    quantisation = manifest.quantisation
    if quantisation is None:
        return ()
    if not found:
        return ranges_unseen(manifest, "its channels were evened out")
    images = found[0].images
    if not same and images < LEAST_IMAGES:
        few = f"{images} images are too few to tell: give {LEAST_IMAGES} or more"
        return ranges_unseen(manifest, few)
    problems = tuple(_exact(found) if same else _about(found, quantisation))
    most = max(found, key=lambda one: one.saturated)
    ratios = [one.ratio for one in found]
    detail = (
        f"{len(found)} tensors on {images} images; the method that was used finds "
        f"{min(ratios):.2f} to {max(ratios):.2f} times their ranges there; of '{most.tensor}' "
        f"{100 * most.saturated:.2g} % lies beyond"
    )
    return (
        _reads(manifest),
        check_of(RUNG, RANGES, problems, detail),
        _single(found, quantisation, same=same, wrong=bool(problems)),
    )


def _single(
    found: Sequence[TensorRange], quantisation: Quantisation, *, same: bool, wrong: bool
) -> CheckResult:
    """Whether one scale is off by two, where that can be told."""
    images, calibration = found[0].images, quantisation.calibration
    why = ""
    if wrong:
        why = "ranges are not those of the images: single ones are not looked at"
    elif not same and calibration.method in LEAPING:
        why = f"ranges by {calibration.method} are not told so nearly on other images"
    elif not same and (images < SINGLE_IMAGES or calibration.images < FEW_CALIBRATED):
        why = (
            f"it takes {SINGLE_IMAGES} images of an int8 or fp8 network that was calibrated on "
            f"{FEW_CALIBRATED} or more, and these are {images} and {calibration.images}"
        )
    if why:
        return _unjudged(why)
    others = len(quantisation.tensors) - len(found)
    left = f"; nothing is said of {others} whose channels were evened out" if others else ""
    if same:
        good = f"{len(found)} tensors within {EXACT:.0%} of their ranges"
        return check_of(RUNG, SINGLE, (), f"{good}, and moved by {EXACT_MOVED:.0%} at most{left}")
    ratios = [one.ratio for one in found]
    median = float(np.median(ratios))
    problems = tuple(_off(found, median))
    if len(problems) > SINGLE_MOST:
        return _unjudged(
            f"{len(problems)} of {len(found)} tensors have other ranges on these images: they are "
            "unlike those that it was calibrated on, or many scales are wrong"
        )
    detail = (
        f"{len(found)} tensors are {min(ratios) / median:.2f} to {max(ratios) / median:.2f} times "
        f"the median, and {SINGLE_WIDE} to {SINGLE_NARROW} is allowed{left}; moved by "
        f"{max(abs(one.moved) for one in found):.1%} at most, and {SINGLE_MOVED:.0%} is allowed"
    )
    return check_of(RUNG, SINGLE, problems, detail)


def _unjudged(why: str) -> CheckResult:
    """That nothing is said of single scales."""
    detail = f"{why}; --calibrate with the images that it was calibrated on tells"
    return CheckResult(rung=RUNG, name=SINGLE, verdict="not verified", detail=detail)


def _off(found: Iterable[TensorRange], median: float) -> Iterator[Problem]:
    for one in found:
        if not SINGLE_WIDE <= one.ratio / median <= SINGLE_NARROW:
            how = "wide" if one.ratio < median else "narrow"
            yield _problem(
                one,
                f"; on these images it is {one.ratio:.2g} times that, and those of all tensors "
                f"{median:.2g} times theirs in the median: its scale is too {how}",
            )
        elif abs(one.moved) > SINGLE_MOVED:
            yield _problem(one, _beside(one, "on these images"))


def _problem(one: TensorRange, words: str) -> Problem:
    """What is wrong with a tensor's range, which is told first."""
    name = f"'{one.tensor}'"
    return Problem(name=name, one=f"the range of {name} is {one.low:.4g} to {one.high:.4g}{words}")


def _beside(one: TensorRange, where: str) -> str:
    side = "higher" if one.moved > 0 else "lower"
    return f"; {where} it lies {abs(one.moved):.1%} of itself {side}: its zero point is wrong"


def ranges_unseen(manifest: ModelManifest, why: str = UNSEEN) -> tuple[CheckResult, ...]:
    """What can be said without images."""
    unseen = CheckResult(rung=RUNG, name=RANGES, verdict="not verified", detail=why)
    return _reads(manifest), unseen, replace(unseen, name=SINGLE)


def same_images(quantisation: Quantisation, images: CalibrationImages) -> CheckResult:
    """Whether images are those of the manifest: the arrays that the network read, bit by bit.

    Args:
        quantisation: the manifest's.
        images: prepared as the manifest's preprocessing says.
    """
    recorded = quantisation.calibration.sha256
    if recorded == images.sha256:
        detail = f"{images.count} images, sha256 {recorded[:12]}"
        return CheckResult(rung=RUNG, name=SAME, verdict="passed", detail=detail)
    if quantisation.calibration.method == "qat":
        detail = "its ranges were learned in training, on images that were changed at random"
        return CheckResult(rung=RUNG, name=SAME, verdict="not applicable", detail=detail)
    detail = (
        f"its manifest names {quantisation.calibration.images} images with sha256 "
        f"{recorded[:12]}, and these {images.count}, prepared as the manifest says, have "
        f"{images.sha256[:12]}: they are others, or it was calibrated with another normalisation"
    )
    return CheckResult(rung=RUNG, name=SAME, verdict="failed", detail=detail)


def _reads(manifest: ModelManifest) -> CheckResult:
    tensors = {} if manifest.quantisation is None else manifest.quantisation.tensors
    name = PREPROCESSED if manifest.preprocessing.in_graph else IMAGES
    problem = check_ranges(tensors, manifest.preprocessing)
    if name not in tensors:
        detail = f"'{name}' is not quantised"
        return CheckResult(rung=RUNG, name=READS, verdict="not applicable", detail=detail)
    ends = reach(tensors[name])
    good = f"'{name}' is {ends.low:.3g} to {ends.high:.3g}"
    return check_of(RUNG, READS, (Problem(name=name, one=problem),) if problem else (), good)


def _exact(found: Iterable[TensorRange]) -> Iterator[Problem]:
    for one in found:
        if not 1 - EXACT <= one.ratio <= 1 + EXACT:
            yield _problem(
                one,
                f"; on the images that it was found on it is {one.ratio:.3g} times that (the "
                f"values lie between {one.least:.4g} and {one.greatest:.4g})",
            )
        elif abs(one.moved) > EXACT_MOVED:
            yield _problem(one, _beside(one, "on the images that it was found on"))


def _about(found: Sequence[TensorRange], quantisation: Quantisation) -> Iterator[Problem]:
    median = float(np.median([one.ratio for one in found]))
    few = quantisation.calibration.images < FEW_CALIBRATED
    if not WIDE <= median <= (NARROW_FEW if few else NARROW):
        worst = max(found, key=lambda one: abs(np.log(max(one.ratio, 1e-30))))
        words = (
            f"on these images the ranges are {median:.2g} times what the manifest says, in the "
            f"median of all tensors; those of '{worst.tensor}' {worst.ratio:.2g} times: is every "
            "scale off, or were other images, or another normalisation, calibrated on?"
        )
        yield Problem(name=f"'{worst.tensor}'", one=words)
    for one in found:
        if not FAR_WIDE <= one.ratio <= FAR_NARROW:
            yield _problem(one, f"; on these images it is {one.ratio:.2g} times that")
