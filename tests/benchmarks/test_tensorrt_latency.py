"""The latency statistics of benchmarks/tensorrt_latency.py, on a clock of its own."""

from __future__ import annotations

import itertools

import pytest

from tensorrt_latency import latency_ms


class Clock:
    """Time passes in calls, which take so many seconds one after another, and in sleep."""

    def __init__(self, seconds):
        self.now, self.seconds, self.began = 0.0, itertools.cycle(seconds), []

    def call(self):
        self.began.append(self.now)
        self.now += next(self.seconds)

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize("pace", [0.0, 1.5])
def test_the_first_call_stands_apart_and_calls_keep_their_pace(pace):
    clock = Clock([0.5, 0.001, 0.003, 0.002])
    found = latency_ms(clock.call, 3, pace, clock=lambda: clock.now, sleep=clock.sleep)
    assert found["first_ms"] == pytest.approx(500)
    assert found["p50_ms"] == pytest.approx(2)
    assert found["best_ms"] == pytest.approx(1)
    assert 2 < found["p99_ms"] < found["p99.9_ms"] < 3
    if pace:
        assert clock.began == pytest.approx([0, 1.5, 3, 4.5])
