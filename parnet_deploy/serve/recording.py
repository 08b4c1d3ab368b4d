"""What happened to requests: the interface that the data plane reports to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What one request took, in seconds.

    Attributes:
        prepare: decoding and preprocessing.
        queue: waiting for the engine.
        infer: the engine's run, of the whole batch that the request was part of.
        total: from the body being there to the answer being ready.
    """

    prepare: float
    queue: float
    infer: float
    total: float
