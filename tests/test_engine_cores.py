"""Cores: divided by work among what runs at the same time, and none for ever idle."""

from __future__ import annotations

from itertools import product

import pytest
from conftest import tiny_spec
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.bundle import GraphStage
from parnet_deploy.engine.cores import divide_cores, side_by_side
from parnet_deploy.spec import StemMode, TensorSpec, stages


def graph(name: str, reads: tuple[str, ...], gives: tuple[str, ...]) -> GraphStage:
    def specs(names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=n, shape=("N", 1), dtype="float32") for n in names)

    return GraphStage(
        name=name, file=f"{name}.onnx", blocks=(), inputs=specs(reads), outputs=specs(gives)
    )


def of_a_parnet(streams: int, stem: StemMode) -> list[GraphStage]:
    widths, blocks = (8, 16, 24, 32)[:streams], (1, 2, 1, 1)[:streams]
    spec = tiny_spec(stream_widths=widths, stream_blocks=blocks, last_width=40)
    return [graph(s.name, s.inputs, s.outputs) for s in stages(spec, stem)]


@pytest.mark.parametrize("streams", [1, 2, 3, 4])
def test_streams_meet_and_what_is_before_and_behind_them_runs_alone(streams: int) -> None:
    together = [f"stream{number}" for number in range(1, streams + 1)]
    assert side_by_side(of_a_parnet(streams, "replicate")) == [together, ["fusion"]]
    assert side_by_side(of_a_parnet(streams, "share")) == [["stem"], together, ["fusion"]]


def test_a_stage_that_meets_two_that_do_not_meet_each_other_joins_them() -> None:
    chain = [graph("a", ("images",), ("x",)), graph("b", ("x",), ("y",))]
    beside = graph("c", ("images",), ("z",))
    end = graph("d", ("y", "z"), ("logits",))
    assert side_by_side([*chain, beside, end]) == [["a", "b", "c"], ["d"]]


def test_cores_go_where_the_work_is() -> None:
    found = of_a_parnet(3, "share")
    work = {"stem": 1, "stream1": 100, "stream2": 100, "stream3": 400, "fusion": 1}
    assert divide_cores(found, work, 6) == {
        "stem": 6,
        "stream1": 1,
        "stream2": 1,
        "stream3": 4,
        "fusion": 6,
    }
    assert divide_cores(found, work, 2) == {
        "stem": 2,
        "stream1": 1,
        "stream2": 1,
        "stream3": 1,
        "fusion": 2,
    }


@given(
    work=st.lists(st.integers(0, 1000), min_size=1, max_size=4),
    cores=st.integers(1, 9),
    stem=st.sampled_from(["replicate", "share"]),
)
def test_no_other_division_ends_sooner(work: list[int], cores: int, stem: StemMode) -> None:
    found = of_a_parnet(len(work), stem)
    streams = [f"stream{number}" for number in range(1, len(work) + 1)]
    operations = dict(zip(streams, work, strict=True)) | {"stem": 5, "fusion": 5}
    threads = divide_cores(found, operations, cores)
    assert set(threads) == {stage.name for stage in found}
    assert {threads[name] for name in threads if name not in streams} == {cores}
    taken = [threads[name] for name in streams]
    assert min(taken) >= 1
    assert sum(taken) == max(cores, len(streams))

    def longest(shares: tuple[int, ...]) -> float:
        return max(a / b for a, b in zip(work, shares, strict=True))

    possible = product(range(1, cores + 1), repeat=len(work))
    others = [shares for shares in possible if sum(shares) <= cores] or [(1,) * len(work)]
    assert longest(tuple(taken)) == min(map(longest, others))
