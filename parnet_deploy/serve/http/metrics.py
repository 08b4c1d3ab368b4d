"""What the transport did, as Prometheus reads it, beside what the data plane did."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from parnet_deploy.serve.transport.budget import Budget
from parnet_deploy.serve.transport.traffic import Traffic


class HttpMetrics(Collector):
    """Answers by status, connections, and bytes of bodies in memory."""

    def __init__(self, traffic: Traffic, budget: Budget) -> None:
        """Show these."""
        self._traffic = traffic
        self._budget = budget

    def collect(self) -> Iterator[Metric]:
        """What is so at this moment."""
        answers = CounterMetricFamily(
            "parnet_http_responses",
            "Answers over HTTP (499: the client had gone).",
            labels=["status"],
        )
        for status, count in sorted(self._traffic.answers.items()):
            answers.add_metric([str(status)], count)
        yield answers
        yield GaugeMetricFamily(
            "parnet_http_connections", "Open connections.", self._traffic.connections
        )
        yield GaugeMetricFamily(
            "parnet_http_buffered_bytes", "Bytes of bodies in memory.", self._budget.used
        )
