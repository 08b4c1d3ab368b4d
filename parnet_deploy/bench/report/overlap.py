"""How much of a run's stages works at the same time."""

from __future__ import annotations

from collections.abc import Sequence

from parnet_deploy.runtime.timeline import Span

COPIES = ("upload", "download")
"""Names of spans that are no stages."""


def overlap(spans: Sequence[Span]) -> float:
    """The share of a run in which at least two stages worked at once.

    Args:
        spans: of one run; copies from and to host memory do not count as stages.

    Returns:
        From 0 to 1, of the time from the first span's start to the last one's end.
    """
    if not spans:
        return 0.0
    stages = [span for span in spans if span.stage not in COPIES]
    # At equal times an end comes before a start: stages that follow each other do not overlap.
    events = sorted(event for span in stages for event in ((span.start, 1), (span.end, -1)))
    together, working, since = 0.0, 0, 0.0
    for time, change in events:
        if working >= 2:
            together += time - since
        working += change
        since = time
    whole = max(span.end for span in spans) - min(span.start for span in spans)
    return together / whole if whole > 0 else 0.0
