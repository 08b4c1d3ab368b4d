"""What happened, as the protocol's statistics extension tells it.

Reference: the Triton Inference Server's docs/protocol/extension_statistics.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from parnet_deploy.serve.recording import Recorder, Tally
from parnet_deploy.serve.signature import VERSION

_NS = 1_000_000_000


def statistics(recorder: Recorder) -> dict[str, Any]:
    """The document that ``GET v2/models/NAME/stats`` answers with; durations are in nanoseconds.

    Requests that were turned away count as failed. Whatever its times, ``compute_input`` is
    parsing, decoding and preprocessing, and ``compute_output`` is putting the answer down.
    """
    with recorder.counted():
        errors = [*recorder.rejected_for.values(), *recorder.failed_for.values()]
        return {
            "model_stats": [
                {
                    "name": recorder.signature.name,
                    "version": VERSION,
                    "last_inference": recorder.last,
                    "inference_count": recorder.images,
                    "execution_count": sum(tally.count for tally in recorder.runs.values()),
                    "inference_stats": {
                        "success": _duration([recorder.total]),
                        "fail": _duration(errors),
                        "queue": _duration([recorder.queue]),
                        "compute_input": _duration([recorder.prepare]),
                        "compute_infer": _duration([recorder.infer]),
                        "compute_output": _duration([recorder.output]),
                        "cache_hit": _duration([]),
                        "cache_miss": _duration([]),
                        "cancel": _duration([recorder.cancelled_ones]),
                    },
                    "batch_stats": [
                        {
                            "batch_size": size,
                            "compute_input": _duration([]),
                            "compute_infer": _duration([recorder.runs[size]]),
                            "compute_output": _duration([]),
                        }
                        for size in sorted(recorder.runs)
                    ],
                }
            ]
        }


def _duration(tallies: Iterable[Tally]) -> dict[str, int]:
    tallies = list(tallies)
    return {
        "count": sum(tally.count for tally in tallies),
        "ns": round(sum(tally.seconds for tally in tallies) * _NS),
    }
