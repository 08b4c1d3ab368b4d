"""What happened, as Prometheus reads it.

The counts are the recorder's own, and are shown when they are asked for: a request is recorded
once, whoever reads it, and costs it a microsecond or two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from parnet_deploy.serve.engine.unanswered import Reason
from parnet_deploy.serve.recording import BUCKETS, Histogram, Recorder, Tally

_LABELS = ("engine", "precision")


def registry_of(recorder: Recorder) -> CollectorRegistry:
    """A registry of what a recorder has counted, and of the process's memory, CPU and files."""
    registry = CollectorRegistry(auto_describe=True)
    registry.register(_Recorded(recorder))
    ProcessCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """What ``GET /metrics`` answers with.

    Args:
        registry: what is shown.
        accept: the request's Accept header.

    Returns:
        The body, and its content type: Prometheus's text, or OpenMetrics where it is asked for.
    """
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Recorded(Collector):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._labels = (recorder.signature.name, recorder.signature.precision)

    def collect(self) -> Iterator[Metric]:
        levels = self._recorder.levels()
        with self._recorder.counted():
            families = [*self._histograms(), *self._counters()]
        yield from families
        yield self._counter(
            "parnet_engine_failures", "Runs that the engine failed.", levels.engine_failures
        )
        for name, help_text, value in (
            ("parnet_requests_in_flight", "Requests not answered yet.", levels.in_flight),
            ("parnet_requests_waiting", "Requests prepared or waiting.", levels.waiting),
            ("parnet_engine_ready", "1 where the engine takes requests.", int(levels.ready)),
        ):
            gauge = GaugeMetricFamily(name, help_text, labels=_LABELS)
            gauge.add_metric(self._labels, value)
            yield gauge

    def _histograms(self) -> Iterator[Metric]:
        recorder = self._recorder
        for name, help_text, histogram in (
            ("prepare", "Parsing, decoding and preprocessing.", recorder.prepare),
            ("queue", "Waiting for the engine.", recorder.queue),
            ("infer", "The engine's run.", recorder.infer),
            ("total", "From body to answer.", recorder.total),
        ):
            family = HistogramMetricFamily(
                f"parnet_request_{name}_seconds", help_text, labels=_LABELS
            )
            family.add_metric(self._labels, _cumulated(histogram), histogram.seconds)
            yield family

    def _counters(self) -> Iterator[Metric]:
        recorder = self._recorder
        runs = sum(tally.count for tally in recorder.runs.values())
        cancelled = recorder.cancelled_ones.count
        yield self._counter("parnet_requests_answered", "Answered.", recorder.total.count)
        yield self._counter("parnet_requests_cancelled", "Left by their clients.", cancelled)
        yield self._counter("parnet_images_answered", "Images answered.", recorder.images)
        yield self._counter("parnet_engine_runs", "Runs of the engine.", runs)
        yield self._by_reason(
            "parnet_requests_rejected", "Turned away before the engine.", recorder.rejected_for
        )
        yield self._by_reason(
            "parnet_requests_failed", "Taken in and not answered.", recorder.failed_for
        )

    def _counter(self, name: str, help_text: str, value: int) -> Metric:
        family = CounterMetricFamily(name, help_text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family

    def _by_reason(self, name: str, help_text: str, tallies: Mapping[Reason, Tally]) -> Metric:
        family = CounterMetricFamily(name, help_text, labels=(*_LABELS, "reason"))
        for reason, tally in tallies.items():
            family.add_metric((*self._labels, reason.value), tally.count)
        return family


def _cumulated(histogram: Histogram) -> list[tuple[str, float]]:
    """Bounds, and how many durations are not longer."""
    pairs = []
    below = 0
    for bound, count in zip((*map(str, BUCKETS), "+Inf"), histogram.buckets, strict=True):
        below += count
        pairs.append((bound, float(below)))
    return pairs
