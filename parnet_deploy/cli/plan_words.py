"""A plan in words: what it takes as given, and why it proposes what it does."""

from __future__ import annotations

from collections.abc import Iterable

from parnet_deploy.cli.planning import Planned, Prediction
from parnet_deploy.roofline import Device, Precision
from parnet_deploy.roofline.latency import HOST
from parnet_deploy.roofline.options import AS_GOOD

CLOSE = 0.05
"""Predictions nearer to each other than this part say nothing about which is faster."""

_WAYS = {
    "whole": "whole, on one device",
    "split-one-device": "split, on one device",
    "split-some-devices": "split, on some devices",
    "split": "split, on the devices",
}
_STEMS = {"replicate": "replicated", "share": "shared"}

_MILLISECONDS_FROM = 10e-3


def human_seconds(seconds: float) -> str:
    """A time as people write it: ``821 us``, ``131.0 ms``."""
    if seconds < _MILLISECONDS_FROM:
        return f"{1e6 * seconds:.0f} us"
    return f"{1e3 * seconds:.1f} ms"


def describe(prediction: Prediction) -> str:
    """``split, on the devices, stem shared``."""
    stem = f", stem {_STEMS[prediction.stem]}" if prediction.stem else ""
    return _WAYS[prediction.way] + stem


def place_words(prediction: Prediction) -> str:
    """``stream1, stream2 on cuda:0; stream3, fusion on cuda:1``."""
    on: dict[str, list[str]] = {}
    for stage, device in prediction.placement.items():
        on.setdefault(device, []).append(stage)
    return "; ".join(f"{', '.join(stages)} on {device}" for device, stages in on.items())


def reasons(planned: Planned) -> tuple[str, ...]:
    """Why that is proposed, one sentence each."""
    best = planned.proposed
    (whole,) = (p for p in planned.predictions if p.way == "whole")
    found = [_why_whole(planned, whole)] if best.way == "whole" else [_why_split(planned, whole)]
    found += _about_the_stem(planned)
    found += _about_rivals(planned)
    unused = [name for name in planned.devices if name not in best.placement.values()]
    if unused and len(planned.devices) > 1:
        found.append(f"{_list(unused)} {'is' if len(unused) == 1 else 'are'} left unused.")
    if best.stem is not None and planned.cut is not None and planned.cut != best.stem:
        found.append(
            f"This bundle's stem is {_STEMS[planned.cut]}: export the model again with "
            f"--stem {best.stem} for that."
        )
    return tuple(found)


def _why_whole(planned: Planned, whole: Prediction) -> str:
    split = min((p for p in planned.predictions if p.way != "whole"), key=lambda p: p.seconds)
    why = (
        "stages side by side only share the device that each of them fills"
        if split.way == "split-one-device"
        else "what the devices win is less than what crosses between them costs"
    )
    found = (
        f"One engine of the whole network takes {human_seconds(whole.seconds)}, the best split "
        f"({describe(split)}) {human_seconds(split.seconds)}"
    )
    if split.seconds < (1 + AS_GOOD) * whole.seconds:
        return f"Splitting is expected to win nothing: {found}, since {why}."
    more = 100 * (split.seconds / whole.seconds - 1)
    return f"Splitting is expected to lose: {found}, {more:.0f} % more, since {why}."


def _why_split(planned: Planned, whole: Prediction) -> str:
    best = planned.proposed
    wins = (
        f"Proposed is {describe(best)}: {human_seconds(best.seconds)}, "
        f"{best.seconds / whole.seconds:.2f} of the {human_seconds(whole.seconds)} that one engine "
        "of the whole network takes on one device"
    )
    if best.way == "split-one-device":
        idle = any(device.launch > 0 for device in planned.devices.values())
        why = (
            "a stream works where another waits for its next kernel to start"
            if idle
            else "streams side by side keep more of its cores busy"
        )
        return f"{wins}, since {why}."
    crossing = [t for t in planned.transfers if HOST not in (t.source, t.target)]
    taken = sum(transfer.end - transfer.start for transfer in crossing)
    count = len(set(best.placement.values()))
    copies = "1 copy" if len(crossing) == 1 else f"{len(crossing)} copies"
    return (
        f"{wins}, since streams run on {count} devices at once; {copies} between them "
        f"add up to {human_seconds(taken)}."
    )


def _about_the_stem(planned: Planned) -> list[str]:
    best = planned.proposed
    others = [p for p in planned.predictions if p.way == best.way and p.stem != best.stem]
    if best.stem is None or not others:
        return []
    (other,) = others[:1]
    how = (
        "every stream computes the stem that it needs, and only what streams end with crosses"
        if best.stem == "replicate"
        else "the stem is computed once, and its feature maps cross where streams stand elsewhere"
    )
    other_way = human_seconds(other.seconds)
    return [f"With the stem {_STEMS[best.stem]}, {how}; the other way it takes {other_way}."]


def _about_rivals(planned: Planned) -> list[str]:
    best = planned.proposed
    near = [
        p
        for p in planned.predictions
        if (p.way, p.stem) != (best.way, best.stem) and p.seconds < (1 + CLOSE) * best.seconds
    ]
    if not near:
        return []
    names = _list([describe(prediction) for prediction in near], separator="; ")
    return [f"Within {100 * CLOSE:.0f} % of it, so that only measuring tells: {names}."]


def assumptions(planned: Planned) -> tuple[str, ...]:
    """What the predictions take as given, one sentence each."""
    assumed = planned.assumed
    found = list(_figures(planned.devices.items(), assumed.precision))
    reached = f"Kernels reach {100 * assumed.efficiency:.0f} % of the peak rates"
    found.append(
        f"{reached}, as the measured stages did."
        if planned.measured
        else f"{reached}: assumed; --efficiency sets it, --measure measures it."
    )
    gpus = [device for device in planned.devices.values() if device.launch > 0]
    if gpus:
        found.append(
            f"A kernel that waits for another costs {1e6 * gpus[0].launch:.1f} us in a CUDA graph "
            "(assumed). A block is two, its squeeze and its convolution, with all else in them; "
            "those of one engine run one after the other."
        )
        found.append(
            f"A copy starts after {1e6 * gpus[0].link.latency:.0f} us (assumed), and runs at "
            f"{gpus[0].link.bandwidth / 1e9:.0f} GB/s between devices and at "
            f"{gpus[0].host.bandwidth / 1e9:.0f} GB/s from and to host memory."
        )
    found.append(
        "Stages side by side on one device share it: what they keep busy adds up, what they leave "
        "idle overlaps."
    )
    return tuple(found)


def _figures(devices: Iterable[tuple[str, Device]], precision: Precision) -> Iterable[str]:
    names: dict[str, list[str]] = {}
    kinds: dict[str, Device] = {}
    for name, device in devices:
        names.setdefault(device.name, []).append(name)
        kinds[device.name] = device
    for kind, device in kinds.items():
        yield (
            f"{_list(names[kind])}: {kind}, {device.bandwidth / 1e9:.0f} GB/s, "
            f"{device.rate(precision) / 1e12:.3g} * 10^12 operations per second in {precision}; "
            f"{device.origin}."
        )


def _list(names: Iterable[str], separator: str = ", ") -> str:
    return separator.join(names)
