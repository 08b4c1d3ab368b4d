"""From what contestants did to what is said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from parnet_deploy.bench.contest import Record
from parnet_deploy.bench.reference import compare_answers, read_answers
from parnet_deploy.bench.result import Outcome, Parity
from parnet_deploy.bench.statistics import compare, describe

PROBABILITIES = "probabilities"


def outcomes(
    records: Sequence[Record],
    batch: int,
    *,
    references: Mapping[str, Path],
) -> tuple[Outcome, ...]:
    """What every contestant did, network by network, the fastest first.

    The first contestant of a network is the one that the others of it are compared with.

    Args:
        records: of those who took part to the end, in the order in which they were named.
        batch: images per run.
        references: ``.npy`` files of what is right, by contestants' keys.
    """
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(record.contestant.network, record)
    networks = list(first)
    found = [
        _outcome(record, first[record.contestant.network], batch, references) for record in records
    ]
    return tuple(
        sorted(found, key=lambda o: (networks.index(o.contestant.network), o.ratio.median))
    )


def _outcome(
    record: Record,
    reference: Record,
    batch: int,
    references: Mapping[str, Path],
) -> Outcome:
    key = record.contestant.key
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
        parity=_parity(record, references.get(key)),
        timeline=end.timeline if end else (),
        precision=told.precision if told else "fp32",
        kernels=told.kernels if told else None,
    )


def _parity(record: Record, reference: Path | None) -> Parity | None:
    right = None if reference is None else read_answers(reference)
    if right is None or record.opened is None:
        return None
    softmax = record.opened.output == PROBABILITIES
    return compare_answers(read_answers(record.answer), right, softmax=softmax)
