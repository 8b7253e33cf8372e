"""Latency: what is counted, when calls start, and the commands around it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from brainfast.bench import latency
from brainfast.bench.latency import Opened, bench_latency
from brainfast.errors import BrainfastError
from command_line import brainfast


class Clock:
    """Time that passes only when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now, self.starts = 0.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds

    def work(self, seconds):
        """A call that takes so long, the n-th of `seconds` at its n-th turn."""
        turns = iter(seconds)

        def answer(images):
            assert images.shape[1:] == (40, 50, 3)
            assert images.dtype == np.uint8
            self.starts.append(self.now)
            self.now += next(turns)

        return answer


def bench(clock, seconds, **options):
    def open_():
        clock.now += 7
        return Opened("it", (40, 50), clock.work(seconds), 3, "cpu")

    timing = {"clock": clock, "sleep": clock.sleep, "progress": False}
    return bench_latency(open_, **timing, **options)


def test_opening_the_first_answer_and_the_quantiles():
    seconds = [3.0, 1.0, *(0.001 * (n + 1) for n in range(200))]
    table = bench(Clock(), seconds, calls=200)
    assert (table.open_s, table.first_ms) == (7, 3000)
    (row,) = table.rows
    assert (row.batch, row.pace_s, row.calls) == (1, None, 200)
    assert row.p50_ms == pytest.approx(101)
    assert row.p99_ms == pytest.approx(199)
    assert row.p999_ms is None
    assert row.max_ms == pytest.approx(200)
    assert (table.machine["threads"], table.machine["device"]) == (3, "cpu")


def test_quantiles_that_few_calls_do_not_tell_are_left_out():
    few = bench(Clock(), [1.0] * 101, calls=99).rows[0]
    assert (few.p50_ms, few.p99_ms, few.p999_ms) == (1000, None, None)
    many = bench(Clock(), [1.0] * 1100, calls=1000).rows[0]
    assert many.p999_ms == 1000


def test_a_pace_starts_a_call_every_so_long_whatever_the_last_took():
    clock = Clock()
    seconds = [1, 1, 1, 1, 1, 0.5, 4.0, 0.5, 0.5]
    table = bench(clock, seconds, calls=3, pace_s=2.0)
    tight, paced = table.rows
    assert (tight.pace_s, paced.pace_s) == (None, 2.0)
    starts = np.diff(clock.starts[-3:])
    assert starts.tolist() == [2.0, 4.0]  # the slow second call delays the third and no other
    assert paced.max_ms == 4000


def test_every_batch_size_has_its_rows():
    table = bench(Clock(), [1.0] * 100, calls=2, batches=(1, 3), pace_s=0.1)
    assert [(row.batch, row.pace_s) for row in table.rows] == [
        (1, None),
        (1, 0.1),
        (3, None),
        (3, 0.1),
    ]
    json.dumps(table.as_json())


@pytest.mark.parametrize("options", [{"calls": 0}, {"batches": (0,)}, {"pace_s": 0.0}])
def test_mistakes(options):
    with pytest.raises(BrainfastError, match="expected"):
        bench(Clock(), [], **options)


@pytest.fixture
def answers(monkeypatch):
    """The models that the command opened, with the options it gave."""
    asked = []

    def open_model(model, **options):
        asked.append((model, options))
        return Opened("it", (40, 50), lambda images: None, 3, "cuda:0 (a GPU)")

    monkeypatch.setattr(latency, "open_model", open_model)
    return asked


def test_the_command_prints_what_was_timed(answers, tmp_path):
    options = ("--runtime", "onnx", "--pace", "1ms", "--calls", "3", "--batch", "2")
    done = brainfast("bench", tmp_path, *options)
    assert done.code == 0, done.err
    assert answers[0][0] == tmp_path
    assert answers[0][1]["runtime"] == "onnx"
    assert "it, images of 40 x 50" in done.out
    assert "every 0.001 s" in done.out
    assert "p99.9 from 1000" in done.out
    assert done.out.splitlines()[1].startswith("cuda:0 (a GPU); ")
    assert done.out.splitlines()[1].endswith(", 3 threads")
    assert answers[0][1]["trunk_precision"] is None
    done = brainfast("bench", tmp_path, *options, "--json")
    assert [row["pace_s"] for row in json.loads(done.out)["rows"]] == [None, 0.001]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--runtime", "onnx"), "bench: expected a model folder or an exported file"),
        (("nowhere.onnx",), "nowhere.onnx: expected a file, got nothing there"),
        (("nowhere", "--runtime", "onnx"), "expected a model folder with config.json"),
        (("x", "--pace", "soon"), "--pace: expected a time such as 1.5s or 800ms, got 'soon'"),
        (("x", "--pace", "0s"), "--pace: expected a time"),
        (("x.onnx", "--runtime", "torch"), "expected runtime onnx and the subjects that are in"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = brainfast("bench", *arguments)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert message in done.err
