"""Benchmark results as tests need them: seeded latencies, described as a contest describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from parnet_deploy.bench.contestant import Contestant, Group
from parnet_deploy.bench.result import (
    Absence,
    BenchResult,
    Conditions,
    Floor,
    Outcome,
    Parity,
    Settings,
)
from parnet_deploy.bench.statistics import Ratio, compare, describe
from parnet_deploy.runtime.timeline import Span

CPU = "AMD EPYC, 2 threads"
GPU = "NVIDIA H200"

NEAR = Parity(max_abs=1e-6, max_rel=1.2e-7, same_top1=64, images=64)


def latencies(
    centre: float, *, spread: float = 0.01, rounds: int = 12, runs: int = 20, seed: int = 0
) -> tuple[tuple[float, ...], ...]:
    """Milliseconds around a centre, round by round; `spread` is relative."""
    rng = np.random.default_rng(seed)
    found = centre * (1 + spread * rng.standard_normal((rounds, runs)))
    return tuple(tuple(map(float, round_)) for round_ in np.abs(found))


def outcome(
    name: str,
    centre: float = 10.0,
    *,
    group: Group = "ours",
    network: str = "l",
    schedule: str | None = None,
    settings: Mapping[str, Any] | None = None,
    devices: tuple[str, ...] = ("cpu",),
    rounds: Sequence[Sequence[float]] | None = None,
    spread: float = 0.01,
    seed: int | None = None,
    parity: Parity | None = NEAR,
    opener: str | None = None,
    **others: Any,
) -> Outcome:
    """One contestant's outcome. Its ratio is put right by `result`."""
    if rounds is None:
        rounds = latencies(centre, spread=spread, seed=sum(name.encode()) if seed is None else seed)
    settings = dict(settings or {}) | ({"schedule": schedule} if schedule else {})
    latency = describe(rounds)
    return Outcome(
        contestant=Contestant(
            name=name,
            group=group,
            network=network,
            opener=opener or ("engine" if group == "ours" else "onnxruntime"),
            path=f"engines/{name}",
            images="images.npz",
            devices=devices,
            settings=settings,
        ),
        rounds=tuple(tuple(round_) for round_ in rounds),
        latency=latency,
        ratio=Ratio(median=1.0, low=1.0, high=1.0),
        throughput=1000 / latency.p50,
        first_answer=(1.2, 1.3, 1.25),
        host_memory=300 * 2**20,
        parity=parity,
        **others,
    )


def result(*outcomes: Outcome, absent: Sequence[Absence] = (), **others: Any) -> BenchResult:
    """A benchmark of these, the fastest of each network first; the first given is the reference."""
    references: dict[str, Outcome] = {}
    for found in outcomes:
        references.setdefault(found.contestant.network, found)
    described = [
        _with_ratio(found, compare(found.rounds, references[found.contestant.network].rounds))
        for found in outcomes
    ]
    networks = list(references)
    described.sort(key=lambda o: (networks.index(o.contestant.network), o.latency.p50))
    given: dict[str, Any] = {
        "title": "ParNet-L on a CPU",
        "command": "parnet-deploy bench engines/l --against onnxruntime",
        "settings": Settings(),
        "conditions": Conditions(
            hardware=(CPU,), versions={"onnxruntime": "1.31.0", "parnet-deploy": "0.1.0"}
        ),
        "date": "2026-12-01T10:00:00+00:00",
    }
    return BenchResult(outcomes=tuple(described), absent=tuple(absent), **(given | others))


def timeline() -> tuple[Span, ...]:
    """A split run: three streams side by side, then what joins them."""
    return (
        Span(stage="upload", device="cpu", start=0.0, end=0.0004),
        Span(stage="stream1", device="cpu", start=0.0004, end=0.0052),
        Span(stage="stream2", device="cpu", start=0.0005, end=0.0061),
        Span(stage="stream3", device="cpu", start=0.0005, end=0.0070),
        Span(stage="fusion", device="cpu", start=0.0070, end=0.0096),
        Span(stage="download", device="cpu", start=0.0096, end=0.0098),
    )


def contest() -> BenchResult:
    """A contest as they come: four schedules, peers, one that is unstable, one that is absent."""
    floor = Floor(device="AMD EPYC, measured", roofline=2.0, launches=0.1)
    return result(
        outcome(
            "onnxruntime on the unfused export",
            11.0,
            group="peer",
            settings={"form": "unfused"},
            floor=floor,
        ),
        outcome("whole", 9.0, schedule="whole", floor=floor),
        outcome(
            "split, 1 device",
            9.9,
            schedule="split-one-device",
            timeline=timeline(),
            floor=floor,
        ),
        outcome("openvino", 9.5, group="peer", floor=floor),
        outcome("torch eager", 16.0, group="peer", spread=0.2, floor=floor),
        outcome("ncnn", 6.0, group="peer", floor=floor),
        absent=[Absence(name="tensorrt", network="l", reason="there is no GPU here")],
    )


def _with_ratio(found: Outcome, ratio: Ratio) -> Outcome:
    return replace(found, ratio=ratio)
