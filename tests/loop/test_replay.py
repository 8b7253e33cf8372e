"""The log at every byte where it may end, edits of it, a killed process, and doing it over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.loop import Session, read_log, replay
from brainfast.loop.clock import SystemClock
from brainfast.loop.design_file import design_path
from brainfast.loop.log import LogWriter, decode_betas, encode_betas, read_header
from brainfast.loop.replay import _Rankings
from loop_world import TestClock, V, betas, edited, play, pool, session

STRATEGIES = ["greedy", "ucb", "thompson", "explore", "random"]


def played(path: Path, **options: Any) -> Path:
    with session(log=path, **options) as running:
        play(running, 8)
    return path


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_choice_is_reproduced(tmp_path: Path, strategy: Any) -> None:
    log = played(tmp_path / "s.jsonl", strategy=strategy, repeats=2, kappa=0.5)
    found = replay(log, pool())
    assert found.difference is None
    assert (found.choices, found.told, found.skipped, found.late) == (8, 5, 1, 0)


def test_stale_choices_and_fallbacks_are_reproduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that gives up at once: what was ready depends on the threads, and the log tells."""
    log = tmp_path / "s.jsonl"
    with session(log=log, clock=TestClock(), strategy="thompson", deadline_ms=0.001) as running:
        for _ in range(12):
            choice = running.next()
            running.tell(choice, betas(choice))
    found = replay(log)
    assert found.difference is None
    assert found.choices == 12


class WholeSeconds(SystemClock):
    def monotonic(self) -> int:
        return int(super().monotonic())


def test_a_clock_may_count_whole_seconds(tmp_path: Path) -> None:
    """And a log holds floats."""
    log = played(tmp_path / "s.jsonl", clock=WholeSeconds())
    assert replay(log).difference is None
    assert {type(event["mono_s"]) for event in read_log(log).events} == {float}


def test_nan_betas_are_kept_to_the_bit() -> None:
    given = np.array([np.nan, -0.0, 1e-42, 3.4e38], np.float32)
    assert decode_betas(encode_betas(given)).tobytes() == given.tobytes()


def test_a_log_may_end_at_any_byte(tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    with session(log=log, ceiling=np.full(V, 0.3), components=3) as running:
        first, second = running.next(), running.next()
        running.tell(second, betas(second))
        running.skip(first)
        assert running.wait(30)
        running.next()
    data, cut = log.read_bytes(), tmp_path / "cut.jsonl"
    shutil.copy(design_path(log), design_path(cut))
    ends = [index + 1 for index, byte in enumerate(data) if byte == 10]
    whole = read_log(log).events
    for size in range(len(data) + 1):
        cut.write_bytes(data[:size])
        lines = sum(end <= size for end in ends)
        if not lines:
            with pytest.raises(BrainfastError, match="no whole line"):
                read_log(cut)
            continue
        found = replay(cut)
        kinds = [event["event"] for event in whole[:lines]]
        assert found.difference is None
        assert found.torn_bytes == size - ends[lines - 1]
        assert (found.choices, found.told) == (kinds.count("choice"), kinds.count("tell"))
        if found.torn_bytes == 0:
            assert read_log(cut).events == whole[:lines]


def test_a_session_resumes_from_any_byte(tmp_path: Path) -> None:
    """Whole lines and torn ones: what is chosen next is what an unbroken session chose."""
    log = tmp_path / "s.jsonl"
    played(log, strategy="thompson", ceiling=np.full(V, 0.3))
    data, cut = log.read_bytes(), tmp_path / "cut.jsonl"
    events = read_log(log).events
    shutil.copy(design_path(log), design_path(cut))
    ends = [index + 1 for index, byte in enumerate(data) if byte == 10]
    for lines, end in enumerate(ends, start=1):
        for size in {end, min(end + 1, len(data)), min(end + 200, len(data))}:
            cut.write_bytes(data[:size])
            after = sum(e <= size for e in ends)
            with Session.resume(cut, pool()) as running:
                assert running.dropped_bytes == size - ends[after - 1]
                waiting = {choice.trial for choice in running.outstanding}
                choice = running.next()
            known = events[:after]
            shown = {event["trial"] for event in known if event["event"] == "choice"}
            settled = {event["trial"] for event in known if event["event"] in ("tell", "skip")}
            assert waiting == shown - settled
            if after < len(events) and events[after]["event"] == "choice":
                assert choice.image == events[after]["image"]
                assert choice.value == events[after]["value"]
            found = replay(cut)
            assert found.difference is None
            assert found.resumed == 1
            assert lines <= after


def test_choices_from_before_the_resumption_can_be_told(tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    with session(log=log) as running:
        before = running.next()
    with Session.resume(log) as again:
        assert again.outstanding == (before,)
        again.tell(before, betas(before))
        assert again.outstanding == ()
    assert replay(log, pool()).told == 1


CHILD = """
import sys
sys.path.insert(0, {tests!r})
from loop_world import betas, session
with session(log={log!r}, repeats=100000, strategy="ucb") as running:
    while True:
        choice = running.next()
        print(choice.trial, choice.image, flush=True)
        running.tell(choice, betas(choice))
"""


def test_a_killed_process_loses_no_choice_that_was_made(tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    code = CHILD.format(tests=str(Path(__file__).parents[1]), log=str(log))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    seen = [child.stdout.readline().split() for _ in range(25)]
    os.kill(child.pid, signal.SIGKILL)
    seen += [line.split() for line in child.stdout.read().splitlines() if " " in line]
    assert child.wait() == -signal.SIGKILL
    choices = [event for event in read_log(log).events if event["event"] == "choice"]
    for trial, image in seen:
        if image in pool().ids:  # the last line of a killed process may be half a line
            assert choices[int(trial)]["image"] == image
    assert replay(log).difference is None
    with Session.resume(log, pool()) as running:
        assert running.next().trial == len(choices)


@pytest.mark.parametrize("threads", ["1", "2", "7"])
def test_threads_of_blas_change_no_bit(tmp_path: Path, threads: str) -> None:
    log = played(tmp_path / "s.jsonl", strategy="ucb", pool=pool(n=1500), seed=3)
    code = f"from brainfast.loop import replay; print(replay({str(log)!r}).difference)"
    env = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.stdout == "None\n", run.stderr


def test_one_flipped_byte_anywhere_is_found(tmp_path: Path) -> None:
    log = played(tmp_path / "s.jsonl")
    data, other = log.read_bytes(), tmp_path / "o.jsonl"
    random = np.random.default_rng(0)
    for place in random.choice(len(data) - 1, 150, replace=False):
        altered = bytearray(data)
        altered[place] ^= 1
        if 10 in (data[place], altered[place]):
            continue
        other.write_bytes(altered)
        line = data[:place].count(b"\n") + 1
        with pytest.raises(BrainfastError, match=f"line {line}:"):
            read_log(other)


def test_betas_may_be_left_out_once_they_were_checked(tmp_path: Path) -> None:
    log = played(tmp_path / "s.jsonl")
    whole, bare = read_log(log), read_log(log, betas=False)
    for event, kept in zip(whole.events, bare.events, strict=True):
        assert ("measured" in event) == (event["event"] == "tell")
        assert kept == {name: value for name, value in event.items() if name != "measured"}
    assert (bare.size, bare.torn, bare.seal) == (whole.size, whole.torn, whole.seal)
    data = bytearray(log.read_bytes())
    data[data.index(b'"measured":"') + 15] ^= 1
    log.write_bytes(data)
    with pytest.raises(BrainfastError, match="as it was written"):
        read_log(log, betas=False)


def test_the_header_alone_is_read_and_refused_as_a_log_is(tmp_path: Path) -> None:
    log = played(tmp_path / "s.jsonl")
    data, header = log.read_bytes(), read_log(log).header
    end = data.index(b"\n") + 1
    log.write_bytes(data[:end] + b"never looked at\n")
    assert read_header(log) == header
    for wrong in (b"", data[: end - 1], data[:9] + b"?" + data[10:end], data[end:]):
        log.write_bytes(wrong)
        told = []
        for read in (read_header, read_log):
            with pytest.raises(BrainfastError) as caught:
                read(log)
            told.append(str(caught.value))
        assert told[0] == told[1]


def test_replay_keeps_no_version_that_no_choice_will_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = played(tmp_path / "s.jsonl", strategy="ucb")
    right, kept = _Rankings.note, list[int]()

    def note(self: _Rankings, number: int) -> None:
        right(self, number)
        kept.append(len(self._trials))

    monkeypatch.setattr(_Rankings, "note", note)
    assert replay(log).difference is None
    assert len(kept) == len(read_log(log).events)
    assert max(kept) == 1


@pytest.mark.parametrize("line", [1, 2, 5])
def test_a_missing_or_doubled_line_is_found(tmp_path: Path, line: int) -> None:
    log = played(tmp_path / "s.jsonl")
    lines = log.read_bytes().splitlines(keepends=True)
    for changed in ([*lines[: line - 1], *lines[line:]], [*lines[:line], *lines[line - 1 :]]):
        log.write_bytes(b"".join(changed))
        with pytest.raises(BrainfastError, match="as it was written"):
            read_log(log)


def _set(index: int, name: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(events: list[dict[str, Any]]) -> None:
        events[index][name] = value

    return change


@pytest.mark.parametrize(
    ("change", "line", "field"),
    [
        (lambda e: e[3].update(score=np.nextafter(e[3]["score"], 9)), 4, "score"),
        (_set(3, "image", "image-00"), 4, "image"),
        (_set(3, "image", "nobody"), 4, "image"),
        (_set(3, "ties", 5), 4, "ties"),
        (_set(3, "posterior", "0" * 16), 4, "posterior"),
        (_set(3, "trial", 7), 4, "trial"),
        (lambda e: e[4].update(response=[np.nextafter(e[4]["response"][0], 9)]), 5, "response"),
        (_set(4, "measured", encode_betas(np.zeros(V, np.float32))), 5, "response"),
    ],
)
def test_the_first_difference_is_told(
    tmp_path: Path, change: Callable[[Any], Any], line: int, field: str
) -> None:
    log = played(tmp_path / "s.jsonl")
    assert [event["event"] for event in read_log(log).events[3:5]] == ["choice", "tell"]
    found = replay(edited(log, tmp_path / "o.jsonl", change)).difference
    assert found is not None
    assert (found.line, found.field) == (line, field)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(4, "mono_s", 1.0), "line 5: .*clock set back"),
        (_set(4, "mono_s", None), "line 5: .*clock"),
        (_set(4, "event", "dance"), "line 5: .*event of a session"),
        (_set(4, "trial", 99), "line 5: .*outstanding, got trial 99"),
        (_set(4, "measured", "AAA"), "line 5: .*base64"),
        (_set(4, "measured", encode_betas(np.zeros(4, np.float32))), r"line 5: .*\[6\]"),
        (_set(3, "version", 77), "line 4: .*version"),
        (_set(0, "format_version", 1), "format_version 2"),
        (_set(0, "options", None), "line 1: .*header"),
        (_set(0, "design_hash", "0"), "written with this log"),
    ],
)
def test_what_no_session_wrote_is_one_line(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    log = edited(played(tmp_path / "s.jsonl"), tmp_path / "o.jsonl", change)
    with pytest.raises(BrainfastError, match=message) as caught:
        replay(log)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("use", [replay, Session.resume])
@pytest.mark.parametrize(
    ("other", "message"),
    [(pool(model_hash="other"), "of this model"), (pool(seed=9), "of this pool")],
)
def test_a_log_of_another_model_or_pool_is_refused(
    tmp_path: Path, use: Callable[..., Any], other: Any, message: str
) -> None:
    log = played(tmp_path / "s.jsonl")
    before = log.read_bytes()
    with pytest.raises(BrainfastError, match=message):
        use(log, other)
    assert log.read_bytes() == before


def test_a_log_is_never_overwritten_nor_written_by_two(tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    with session(log=log):
        with pytest.raises(BrainfastError, match="there already"):
            session(log=log)
        with pytest.raises(BrainfastError, match="nobody writes"):
            Session.resume(log)
    Session.resume(log).close()


def test_a_log_that_grew_since_it_was_read_is_not_cut(tmp_path: Path) -> None:
    log = played(tmp_path / "s.jsonl")
    data = log.read_bytes()
    log.write_bytes(data[: data.rindex(b"\n", 0, -1) + 1])
    before = read_log(log)
    log.write_bytes(data)
    with pytest.raises(BrainfastError, match="nobody writes"):
        LogWriter(log, before, lambda *_: None, lambda: 0.0)
    assert log.read_bytes() == data


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "l", None, lambda *_: None, lambda: 0.0)
    writer.append({"event": "session"})
    writer.close()
    with pytest.raises(BrainfastError, match="a closed one"):
        writer.append({"event": "choice"})


def test_a_full_disk_leaves_whole_lines_and_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "s.jsonl"
    with session(log=log) as running:
        first = running.next()
        write = os.write
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda file, line: write(file, line[:20]))
            with pytest.raises(BrainfastError, match="disk"):
                running.next()
        assert read_log(log).torn == 0
        running.tell(first, betas(first))
        assert running.next().trial == 1
    assert replay(log).difference is None


def test_lines_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), fsync(file)))
    writer = LogWriter(tmp_path / "l", None, lambda *_: None, lambda: 0.0)
    writer.append({"event": "session"})
    writer.flush()
    assert len(synced) == 1
    writer.append({"event": "choice"})
    writer.close()
    assert len(synced) == 2


def test_the_clock_of_lsl_is_kept_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fake:
        @staticmethod
        def local_clock() -> float:
            return 12.5

    monkeypatch.setitem(sys.modules, "pylsl", Fake)
    log = played(tmp_path / "s.jsonl")
    assert {event["lsl_s"] for event in read_log(log).events} == {12.5}
    monkeypatch.setitem(sys.modules, "pylsl", None)
    assert "lsl_s" not in read_log(played(tmp_path / "t.jsonl")).events[1]
