"""A disk that is slow, full or broken, and the files of an older session."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from brainfast.errors import BrainfastError
from brainfast.loop import Session, journal, read_log, replay, worker
from brainfast.loop.design_file import design_path
from brainfast.loop.log import LogWriter
from loop_world import TestClock, betas, edited, session

BROKEN = OSError(errno.EIO, "Input/output error")


def fail(*_: Any) -> None:
    raise BROKEN


def writer(path: Path) -> LogWriter:
    return LogWriter(path, None, lambda *_: None, lambda: 0.0)


def test_a_line_wakes_nobody_and_is_synced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waking a thread may cost the caller its turn on a busy processor."""
    log, synced = writer(tmp_path / "l"), threading.Event()
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), synced.set()))
    with monkeypatch.context() as patch:
        patch.setattr(log._condition, "notify_all", fail)
        patch.setattr(log._condition, "notify", fail)
        log.append({"event": "session"})
    assert synced.wait(30)
    log.close()


@pytest.mark.parametrize("end", ["flush", "close"])
def test_a_failed_sync_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(os, "fsync", fail)
    log = writer(tmp_path / "l")
    log.append({"event": "session"})
    with pytest.raises(BrainfastError, match=r"got Input/output error.*Session\.resume\(log\)"):
        getattr(log, end)()
    with pytest.raises(BrainfastError, match="close this session"):
        log.append({"event": "choice"})
    assert read_log_lines(tmp_path / "l") == 1


def read_log_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def test_after_one_failed_sync_the_scan_goes_on_by_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "s.jsonl"
    running = session(log=log)
    choice = running.next()
    running.flush()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        running.tell(choice, betas(choice))
        with pytest.raises(BrainfastError, match="Input/output"):
            running.flush()
    with pytest.raises(BrainfastError, match="close this session and go on with"):
        running.next()
    with pytest.raises(BrainfastError, match="Input/output"):
        running.close()
    with Session.resume(log) as again:
        assert again.outstanding == ()
        again.next()
    assert replay(log).difference is None


def test_nothing_is_glued_to_half_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "s.jsonl"
    running = session(log=log)
    running.next()
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, line: write(file, line[:20]))
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(BrainfastError, match="close this session"):
            running.next()
    with pytest.raises(BrainfastError, match="close this session"):
        running.next()
    with pytest.raises(BrainfastError):
        running.close()
    assert read_log(log).torn == 20
    with Session.resume(log) as again:
        assert again.dropped_bytes == 20
        assert again.next().trial == 1


def test_a_full_disk_says_to_call_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = writer(tmp_path / "l")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(BrainfastError, match="free some space and call again"):
            log.append({"event": "session"})
    log.append({"event": "session"})
    log.close()
    assert read_log_lines(tmp_path / "l") == 1


def slow(running: Session, clock: TestClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, every line takes 30 ms to be written."""
    append = running._journal._log.append  # type: ignore[union-attr]

    def later(event: Any) -> None:
        append(event)
        clock.time += 0.03

    monkeypatch.setattr(running._journal._log, "append", later)


def test_a_slow_write_makes_a_choice_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, clock = tmp_path / "s.jsonl", TestClock()
    with session(log=log, clock=clock, deadline_ms=20) as running:
        with running._condition:
            running._condition.wait_for(lambda: running._ranker.is_fresh(0), 30)
        slow(running, clock, monkeypatch)
        choice = running.next()
        assert (choice.source, choice.late) == ("fresh", True)
        assert choice.latency_ms == pytest.approx(30)
        assert running.outstanding == (choice,)
    events = read_log(log).events
    assert [event["event"] for event in events] == ["session", "choice", "overrun"]
    assert (events[1]["late"], events[2]["late"]) == (False, True)
    found = replay(log)
    assert (found.difference, found.choices, found.late) == (None, 1, 1)
    with Session.resume(log) as again:
        assert again.outstanding == (choice,)
        again.tell(choice, betas(choice))


def test_a_choice_late_before_it_is_written_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, clock = tmp_path / "s.jsonl", TestClock()
    with session(log=log, clock=clock, deadline_ms=20) as running:
        slow(running, clock, monkeypatch)
        clock.step = 0.03
        assert running.next().late
        clock.step = 0.0
    assert [event["event"] for event in read_log(log).events] == ["session", "choice"]
    assert replay(log).late == 1


@pytest.mark.parametrize("wrong", [{"trial": 9}, {"late": False}, {"latency_ms": "long"}])
def test_an_overrun_that_no_session_wrote_is_one_line(tmp_path: Path, wrong: Any) -> None:
    log = tmp_path / "s.jsonl"
    with session(log=log) as running:
        running.next()
    about = {"event": "overrun", "trial": 0, "late": True, "latency_ms": 30.0}

    def change(events: list[dict[str, Any]]) -> None:
        events.append({**about, **wrong, "mono_s": events[-1]["mono_s"]})

    with pytest.raises(BrainfastError, match="line 3: "):
        replay(edited(log, tmp_path / "o.jsonl", change))


def test_an_older_logs_numbers_are_not_overwritten(tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    session(log=log).close()
    kept = tmp_path / "kept.jsonl"
    log.rename(kept)
    before = design_path(log).read_bytes()
    with pytest.raises(BrainfastError, match="that of an older log"):
        session(log=log)
    assert design_path(log).read_bytes() == before
    assert not log.exists()


@pytest.mark.parametrize("what", ["save", "rank"])
def test_what_a_failed_start_created_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    log = tmp_path / "s.jsonl"
    monkeypatch.setattr(*((journal, "save_design") if what == "save" else (worker, "rank")), fail)
    with pytest.raises(OSError, match="Input/output"):
        session(log=log)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    session(log=log).close()


def test_a_log_that_is_there_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    session(log=log).close()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(BrainfastError, match="there already"):
        session(log=log)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_resumption_notes_its_versions(tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    session(log=log).close()
    Session.resume(log).close()
    first, again = read_log(log).events
    assert again["versions"] == first["versions"]
