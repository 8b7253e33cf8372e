"""Numbers for Prometheus, in a registry of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .refusal import code_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters and histograms of one server.

    way: "http" or "zmq"; operation: "predict", "next", ...; code: "ok", that of a refusal, or
    "cancelled" where the client went away.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        name = "brainfast_"
        self.requests_total = Counter(
            f"{name}requests_total",
            "Requests by their outcome",
            ["way", "operation", "code"],
            registry=registry,
        )
        self.seconds = Histogram(
            f"{name}seconds",
            "From a request to its answer",
            ["operation"],
            buckets=SECONDS,
            registry=registry,
        )
        self.waiting = Gauge(
            f"{name}waiting", "Requests that wait for their turn", ["lane"], registry=registry
        )
        self.images_total = Counter(f"{name}images_total", "Images answered", registry=registry)
        self.batch_images = Histogram(
            f"{name}batch_images", "Images of a batch", buckets=BATCHES, registry=registry
        )
        self.choices_total = Counter(
            f"{name}choices_total", "Images chosen", ["source", "late"], registry=registry
        )
        self.sessions = Gauge(f"{name}sessions", "Open sessions", registry=registry)
        self.ready = Gauge(f"{name}ready", "1 while requests are taken", registry=registry)
        self.stalled = Gauge(f"{name}stalled", "1 while a batch takes too long", registry=registry)
        self.sync_seconds = Histogram(
            f"{name}log_sync_seconds",
            "Syncs of a session's log to the disk",
            buckets=SECONDS,
            registry=registry,
        )
        self.before_text: list[Callable[[], None]] = []

    @contextmanager
    def request(self, way: str, operation: str) -> Iterator[None]:
        """Count a request and its seconds; an error counts by its code and goes on."""
        start, code = time.perf_counter(), "ok"
        try:
            yield
        except asyncio.CancelledError:
            code = "cancelled"
            raise
        except Exception as error:
            code = code_of(error)
            raise
        finally:
            self.count(way, operation, code, time.perf_counter() - start)

    def count(self, way: str, operation: str, code: str, seconds: float) -> None:
        """Count a request that took so long; code: "ok" or that of a refusal."""
        self.requests_total.labels(way, operation, code).inc()
        self.seconds.labels(operation).observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it; see `CONTENT_TYPE`."""
        for update in self.before_text:
            update()
        return generate_latest(self.registry)
