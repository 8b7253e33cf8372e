"""Numbers for Prometheus."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from brainfast.errors import BrainfastError
from brainfast.serve.metrics import SECONDS, Metrics
from brainfast.serve.refusal import Refusal


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """(name, labels in the order of their names) -> value, as a scraper reads the text."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, "ok"),
        (Refusal("busy", "x", expected="y", got="z"), "busy"),
        (BrainfastError("x", expected="y", got="z"), "invalid"),
        (ZeroDivisionError(), "internal"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_a_request_is_counted_by_its_end(error: BaseException | None, code: str) -> None:
    metrics = Metrics()
    if error is None:
        with metrics.request("http", "next"):
            pass
    else:
        with pytest.raises(type(error)), metrics.request("http", "next"):
            raise error
    found = samples(metrics)
    assert found["brainfast_requests_total", code, "next", "http"] == 1
    assert found["brainfast_seconds_count", "next"] == 1


def test_buckets_go_from_half_a_millisecond_to_half_a_minute() -> None:
    metrics = Metrics()
    for seconds in (0.0004, 0.004, 29.0, 31.0):
        metrics.count("zmq", "predict", "ok", seconds)
    found = samples(metrics)
    by = {edge: found["brainfast_seconds_bucket", str(edge), "predict"] for edge in SECONDS}
    assert (by[0.0005], by[0.002], by[0.005], by[10.0], by[30.0]) == (1, 1, 2, 2, 3)
    assert (SECONDS[0], SECONDS[-1]) == (0.0005, 30.0)
    assert found["brainfast_requests_total", "ok", "predict", "zmq"] == 4


def test_servers_do_not_share_numbers() -> None:
    one, other = Metrics(), Metrics()
    one.images_total.inc(3)
    assert samples(one)["brainfast_images_total",] == 3
    assert samples(other)["brainfast_images_total",] == 0


def test_what_is_only_looked_at_when_somebody_asks() -> None:
    metrics = Metrics()
    metrics.before_text.append(lambda: metrics.sessions.set(5))
    assert samples(metrics)["brainfast_sessions",] == 5
