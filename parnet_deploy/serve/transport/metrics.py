"""What the transports did, as Prometheus reads it, beside what the data plane did."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from parnet_deploy.serve.transport.budget import Budget
from parnet_deploy.serve.transport.traffic import Traffic


class TransportMetrics(Collector):
    """Answers by status, what is open and under way, and bytes of bodies in memory."""

    def __init__(self, budget: Budget, http: Traffic, grpc: Traffic | None) -> None:
        """Show these.

        Args:
            budget: of both.
            http: requests.
            grpc: calls; None where there are none.
        """
        self._budget = budget
        self._http = http
        self._grpc = grpc

    def collect(self) -> Iterator[Metric]:
        """What is so at this moment."""
        yield _answers(
            "parnet_http_responses",
            "Answers over HTTP (499: the client had gone).",
            "status",
            self._http,
        )
        yield GaugeMetricFamily(
            "parnet_http_connections", "Open connections of HTTP.", self._http.connections
        )
        if self._grpc is not None:
            yield _answers("parnet_grpc_responses", "Answers over gRPC.", "code", self._grpc)
            yield GaugeMetricFamily(
                "parnet_grpc_calls", "Calls over gRPC that are under way.", self._grpc.active
            )
        yield GaugeMetricFamily(
            "parnet_buffered_bytes",
            "Bytes of bodies in memory, of all transports.",
            self._budget.used,
        )


def _answers(name: str, help_text: str, label: str, traffic: Traffic) -> Metric:
    family = CounterMetricFamily(name, help_text, labels=[label])
    for status, count in sorted((str(s), count) for s, count in traffic.answers.items()):
        family.add_metric([status], count)
    return family
