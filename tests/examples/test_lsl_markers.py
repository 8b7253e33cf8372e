"""Markers as a recorder gets them, and a log's times: against the real library of LSL."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import loop_world
from brainfast.loop import read_log

EXAMPLES = Path(__file__).parents[2] / "examples"
pylsl = pytest.importorskip("pylsl", reason="pylsl with its library", exc_type=Exception)


@pytest.fixture
def markers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import lsl_markers

    return lsl_markers


def printed(log: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "lsl_markers.py"), str(log)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_recorder_gets_choices_and_onsets_with_their_times(markers: Any) -> None:
    outlet = markers.Markers("run-1")
    found = pylsl.resolve_byprop("source_id", "brainfast-run-1", timeout=20)
    if not found:
        pytest.skip("LSL finds no streams on this machine: no multicast")
    inlet = pylsl.StreamInlet(found[0])
    inlet.open_stream(timeout=20)
    with loop_world.session() as session:
        choice = session.next()
    before = pylsl.local_clock()
    outlet.choice(choice)
    outlet.onset(choice.trial, choice.image)
    outlet.onset(None, "fallback.png")
    after = pylsl.local_clock()

    samples = [inlet.pull_sample(timeout=20) for _ in range(3)]
    inlet.close_stream()
    events = [json.loads(sample[0]) for sample, _ in samples]
    assert [event["event"] for event in events] == ["choice", "onset", "onset"]
    assert {event["session"] for event in events} == {"run-1"}
    assert events[0]["trial"] == choice.trial
    assert events[0]["score"] == choice.score
    assert events[1] == {
        "event": "onset",
        "session": "run-1",
        "trial": choice.trial,
        "image": choice.image,
    }
    assert events[2]["trial"] is None
    stamps = [moment for _, moment in samples]
    assert stamps == sorted(stamps)
    assert before <= stamps[0]
    assert stamps[-1] <= after


def test_a_log_is_printed_on_the_clock_of_lsl(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    before = pylsl.local_clock()
    with loop_world.session(log=log) as session:
        loop_world.play(session, trials=6)
    after = pylsl.local_clock()
    done = printed(log)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    events = [
        event for event in read_log(log).events if event["event"] in ("choice", "tell", "skip")
    ]
    assert [row["event"] for row in rows] == [event["event"] for event in events]
    assert [int(row["trial"]) for row in rows] == [event["trial"] for event in events]
    assert [float(row["lsl_s"]) for row in rows] == [event["lsl_s"] for event in events]
    assert before <= float(rows[0]["lsl_s"]) <= float(rows[-1]["lsl_s"]) <= after


def test_a_log_without_lsl_says_what_was_missing(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    with loop_world.session(log=log) as session:
        session.next()

    def without(events: list[dict[str, Any]]) -> None:
        for event in events:
            del event["lsl_s"]

    done = printed(loop_world.edited(log, tmp_path / "without.jsonl", without))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "install pylsl where brainfast serve runs" in done.stderr


def test_a_missing_log_is_one_line(tmp_path: Path) -> None:
    done = printed(tmp_path / "none.jsonl")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "none.jsonl" in done.stderr
