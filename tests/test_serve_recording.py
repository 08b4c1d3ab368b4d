"""What happened to requests, as Prometheus and as the protocol's clients read it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from served import SIGNATURE

from parnet_deploy.serve.engine.unanswered import FAILED, REJECTED, Reason
from parnet_deploy.serve.metrics import exposition, registry_of
from parnet_deploy.serve.recording import BUCKETS, Histogram, Levels, Recorder, Timing
from parnet_deploy.serve.statistics import statistics

LABELS = {"engine": "tiny", "precision": "fp32"}


def recorder_of(*totals: float) -> Recorder:
    """Answered requests that took so long: a tenth each of preparing and of waiting, half of it
    of running.
    """
    recorder = Recorder(SIGNATURE)
    for total in totals:
        timing = Timing(prepare=total / 10, queue=total / 10, infer=total / 2, total=total)
        recorder.answered(timing, 2)
    return recorder


def samples(recorder: Recorder) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What a scrape gives, without the two labels that all have."""
    text, content_type = exposition(registry_of(recorder))
    assert content_type.startswith("text/plain")
    return dict(read(text.decode()))


def read(text: str) -> Iterator[tuple[tuple[str, frozenset[tuple[str, str]]], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = set(sample.labels.items())
            if sample.name.startswith("parnet_"):
                assert labels >= set(LABELS.items())
            yield (sample.name, frozenset(labels - set(LABELS.items()))), sample.value


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


@given(st.lists(st.floats(0, 200, allow_nan=False), max_size=30))
def test_a_histogram_counts_what_is_not_longer_than_its_bounds(durations: list[float]) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    for index, bound in enumerate(BUCKETS):
        assert sum(histogram.buckets[: index + 1]) == sum(d <= bound for d in durations)
    assert sum(histogram.buckets) == histogram.count == len(durations)
    assert histogram.seconds == pytest.approx(math.fsum(durations))


def test_buckets_begin_at_a_tenth_of_a_millisecond() -> None:
    assert BUCKETS[0] == 0.0001
    assert list(BUCKETS) == sorted(set(BUCKETS))


def test_prometheus_reads_what_was_recorded() -> None:
    recorder = recorder_of(0.0004, 0.004, 400.0)
    recorder.ran(8, 0.001)
    recorder.ran(1, 0.001)
    recorder.refused(Reason.QUEUE_FULL, 0.001)
    recorder.refused(Reason.ENGINE, 0.001)
    recorder.refused(Reason.ENGINE, 0.001)
    recorder.cancelled(0.001)
    recorder.watch(lambda: Levels(in_flight=5, waiting=3, ready=True, engine_failures=1))
    found = samples(recorder)
    expected = {
        key("parnet_request_total_seconds_count"): 3,
        key("parnet_request_total_seconds_sum"): 400.0044,
        key("parnet_request_total_seconds_bucket", le="0.0002"): 0,
        key("parnet_request_total_seconds_bucket", le="0.0005"): 1,
        key("parnet_request_total_seconds_bucket", le="0.005"): 2,
        key("parnet_request_total_seconds_bucket", le="60.0"): 2,
        key("parnet_request_total_seconds_bucket", le="+Inf"): 3,
        key("parnet_request_prepare_seconds_sum"): 40.00044,
        key("parnet_request_queue_seconds_count"): 3,
        key("parnet_request_infer_seconds_sum"): 200.0022,
        key("parnet_requests_answered_total"): 3,
        key("parnet_requests_cancelled_total"): 1,
        key("parnet_requests_rejected_total", reason="queue full"): 1,
        key("parnet_requests_rejected_total", reason="invalid"): 0,
        key("parnet_requests_failed_total", reason="engine"): 2,
        key("parnet_requests_failed_total", reason="not finite"): 0,
        key("parnet_images_answered_total"): 6,
        key("parnet_engine_runs_total"): 2,
        key("parnet_engine_failures_total"): 1,
        key("parnet_engine_ready"): 1,
        key("parnet_requests_in_flight"): 5,
        key("parnet_requests_waiting"): 3,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


def test_every_reason_is_there_from_the_beginning() -> None:
    found = samples(Recorder(SIGNATURE))
    for reason in REJECTED:
        assert found[key("parnet_requests_rejected_total", reason=reason.value)] == 0
    for reason in FAILED:
        assert found[key("parnet_requests_failed_total", reason=reason.value)] == 0
    assert set(REJECTED) | set(FAILED) == set(Reason)
    assert not set(REJECTED) & set(FAILED)


def test_the_process_is_shown_as_well() -> None:
    found = samples(Recorder(SIGNATURE))
    assert found[key("process_resident_memory_bytes")] > 1e6
    assert found[key("process_open_fds")] > 0


def test_the_documentation_tells_of_every_metric_and_of_its_labels() -> None:
    """Those with the two labels are named by how they begin."""
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    table = page.partition("### What is counted")[2].partition("Histograms are of")[0]
    said = set(re.findall(r"parnet_[a-z_]+", table))
    own = {metric.name for metric in registry_of(recorder_of(0.1)).collect()}
    for name in (name for name in own if name.startswith("parnet_")):
        assert said & {name, f"{name}_total"}, name
        assert name.startswith(tuple(re.findall(r"`(parnet_[a-z]+_)\*`", table))), name
    assert not {name for name in said if name.startswith(("parnet_http", "parnet_grpc"))} & own


def test_openmetrics_is_given_where_it_is_asked_for() -> None:
    accept = "application/openmetrics-text; version=1.0.0"
    text, content_type = exposition(registry_of(recorder_of(0.1)), accept)
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


def test_two_models_can_be_recorded_in_one_process() -> None:
    assert samples(recorder_of(1.0)) != samples(recorder_of(1.0, 2.0))


def test_statistics_are_what_was_recorded_in_nanoseconds() -> None:
    recorder = recorder_of(0.010, 0.020)
    recorder.ran(4, 0.005)
    recorder.ran(1, 0.003)
    recorder.ran(4, 0.006)
    recorder.refused(Reason.INVALID, 0.001)
    recorder.refused(Reason.TIMEOUT, 0.002)
    recorder.cancelled(0.004)
    (model,) = statistics(recorder)["model_stats"]
    assert (model["name"], model["version"]) == ("tiny", "1")
    assert model["inference_count"] == 4
    assert model["execution_count"] == 3
    assert model["last_inference"] > 1_700_000_000_000
    assert model["inference_stats"] == {
        "success": {"count": 2, "ns": 30_000_000},
        "fail": {"count": 2, "ns": 3_000_000},
        "queue": {"count": 2, "ns": 3_000_000},
        "compute_input": {"count": 2, "ns": 3_000_000},
        "compute_infer": {"count": 2, "ns": 15_000_000},
        "compute_output": {"count": 2, "ns": 9_000_000},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
        "cancel": {"count": 1, "ns": 4_000_000},
    }
    assert [batch["batch_size"] for batch in model["batch_stats"]] == [1, 4]
    assert model["batch_stats"][1]["compute_infer"] == {"count": 2, "ns": 11_000_000}


def test_nothing_has_happened_at_the_beginning() -> None:
    (model,) = statistics(Recorder(SIGNATURE))["model_stats"]
    assert (model["inference_count"], model["execution_count"], model["last_inference"]) == (
        0,
        0,
        0,
    )
    assert model["batch_stats"] == []


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10), st.floats(0, 10))
def test_the_parts_of_a_time_are_not_negative(a: float, b: float, c: float, d: float) -> None:
    """Clocks are read at different moments: the rest may come out below 0."""
    assert Timing(prepare=a, queue=b, infer=c, total=d).output >= 0
    whole = Timing(prepare=a, queue=b, infer=c, total=a + b + c + d)
    assert whole.output == pytest.approx(d, abs=1e-12)
