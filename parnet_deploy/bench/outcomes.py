"""From what contestants did to what is said of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from parnet_deploy.bench.contest.holding import Record
from parnet_deploy.bench.entries.images import read_labels
from parnet_deploy.bench.entries.reference import compare_answers, read_answers
from parnet_deploy.bench.result import Absence, Outcome, Parity
from parnet_deploy.bench.statistics import compare, describe
from parnet_deploy.bench.tolerances import Graph, tolerance

PROBABILITIES = "probabilities"

NO_ANSWER = "its answers are missing, of another shape than the network's, or not finite"


class Measured(NamedTuple):
    """Outcomes, and those whose answers are none: what is wrong has no latency."""

    outcomes: tuple[Outcome, ...]
    absent: tuple[Absence, ...]


def outcomes(
    records: Sequence[Record],
    batch: int,
    *,
    references: Mapping[str, Path],
    graphs: Mapping[str, Graph],
) -> Measured:
    """What every contestant did, network by network, the fastest first.

    Whose answers are missing, of another shape or not finite is absent. The first contestant of
    a network is the one that the others of it are compared with.

    Args:
        records: of those who took part to the end, in the order in which they were named.
        batch: images per run.
        references: ``.npy`` files of what is right, by contestants' keys.
        graphs: what contestants were made of, by their keys, where that is known.
    """
    allowed = {
        r.contestant.key: _tolerance(r, graphs.get(r.contestant.key, Graph())) for r in records
    }
    parities = {
        r.contestant.key: _parity(r, references.get(r.contestant.key), allowed[r.contestant.key])
        for r in records
    }
    answering = [r for r in records if _answers(parities[r.contestant.key])]
    first: dict[str, Record] = {}
    for record in answering:
        first.setdefault(record.contestant.network, record)
    networks = list(first)
    found = [
        replace(
            _outcome(r, first[r.contestant.network], batch),
            parity=parities[r.contestant.key],
            tolerance=allowed[r.contestant.key],
        )
        for r in answering
    ]
    return Measured(
        outcomes=tuple(
            sorted(found, key=lambda o: (networks.index(o.contestant.network), o.ratio.median))
        ),
        absent=tuple(
            Absence(name=r.contestant.name, network=r.contestant.network, reason=NO_ANSWER)
            for r in records
            if not _answers(parities[r.contestant.key])
        ),
    )


def _outcome(
    record: Record,
    reference: Record,
    batch: int,
) -> Outcome:
    latency = describe(record.rounds)
    told, end = record.opened, record.finished
    return Outcome(
        contestant=record.contestant,
        rounds=tuple(record.rounds),
        latency=latency,
        compute=describe(record.compute) if record.compute else None,
        ratio=compare(record.rounds, reference.rounds),
        throughput=1000 * batch / latency.mean,
        first_answer=tuple(record.first_answer),
        host_memory=end.host_memory if end else 0,
        gpu_memory=end.gpu_memory if end else None,
        timeline=end.timeline if end else (),
        precision=told.precision if told else "fp32",
        kernels=told.kernels if told else None,
    )


def _tolerance(record: Record, graph: Graph) -> float:
    return tolerance(graph, record.opened.precision if record.opened else graph.precision)


def _parity(record: Record, reference: Path | None, allowed: float) -> Parity | None:
    right = None if reference is None else read_answers(reference)
    if right is None or record.opened is None:
        return None
    softmax = record.opened.output == PROBABILITIES
    labels = read_labels(Path(record.contestant.images))
    return compare_answers(
        read_answers(record.answers), right, softmax=softmax, labels=labels, tolerance=allowed
    )


def _answers(parity: Parity | None) -> bool:
    return parity is None or math.isfinite(parity.max_abs)
