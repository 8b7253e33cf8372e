"""Sessions behind a server: retries, queues, disks that hang or refuse."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.loop import replay
from brainfast.loop.log import LogWriter
from brainfast.serve.limits import Limits
from serve_world import (
    Gate,
    TestClock,
    V,
    asked,
    betas,
    engine,
    happens,
    kinds,
    on_loop,
    opened,
    picture,
    pool,
    refusal,
    service,
    started,
)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A disk that hangs at the first `tell` of the session called slow."""
    gate, append = Gate(), LogWriter.append

    def slow(self: LogWriter, event: Any) -> None:
        if self.path.name == "slow.jsonl" and event["event"] == "tell":
            gate.wait()
        append(self, event)

    monkeypatch.setattr(LogWriter, "append", slow)
    return gate


@on_loop
async def test_a_session_from_its_opening_to_its_end(tmp_path: Path) -> None:
    served = await started(tmp_path)
    state = await served.open_session(
        "run-1", asked(strategy="ucb", exclude=["image-00"], min_distance=0.1)
    )
    assert (state.strategy, state.objectives, state.allowed) == ("ucb", ["FFA - PPA"], 11)
    assert served.sessions() == ["run-1"]
    choices = [await served.next("run-1", trial) for trial in range(3)]
    await served.tell("run-1", 1, betas(1))
    await served.skip("run-1", 0)
    state = await served.session("run-1")
    assert (state.trials, state.told, state.skipped, state.late) == (3, 1, 1, 0)
    assert [(one.trial, one.image) for one in state.outstanding] == [(2, choices[2].image)]
    await served.close_session("run-1")
    assert served.sessions() == []
    log = tmp_path / state.log
    assert kinds(log) == ["session", *["choice"] * 3, "tell", "skip"]
    assert replay(log).difference is None
    assert (await refusal(served.next("run-1", 0))).code == "not_found"


@on_loop
async def test_what_is_asked_twice_is_done_once(tmp_path: Path) -> None:
    served = await opened(tmp_path)
    first = await served.next("run", 0)
    assert await served.next("run", 0) == first
    second = await served.next("run", 1)
    assert await served.next("run", 0) == first
    for _ in range(2):
        await served.tell("run", 0, betas(0))
        await served.skip("run", 1)
    assert await served.next("run", 1) == second
    assert (await served.next("run")).trial == 2  # without a number it is another one each time
    assert (await served.next("run")).trial == 3
    await served.drain()
    expected = ["session", "choice", "choice", "tell", "skip", "choice", "choice"]
    assert kinds(tmp_path / "run.jsonl") == expected


@on_loop
async def test_what_differs_from_what_was_done_is_a_conflict(tmp_path: Path) -> None:
    served = await opened(tmp_path)
    conflicts = [served.next("run", 1), served.tell("run", 0, betas(0)), served.skip("run", 0)]
    for wrong in conflicts:  # trials of which there is none yet
        assert (await refusal(wrong)).code == "conflict"
    await served.next("run", 0)
    await served.next("run", 1)
    await served.tell("run", 0, betas(0))
    await served.skip("run", 1)
    for wrong in (
        served.tell("run", 0, betas(7)),
        served.tell("run", 1, betas(1)),
        served.skip("run", 0),
    ):
        error = await refusal(wrong)
        assert error.code == "conflict"
        assert "trial" in error.name
    assert (await served.session("run")).told == 1


@on_loop
async def test_retries_that_overlap_choose_once(tmp_path: Path) -> None:
    served = await opened(tmp_path)
    choices = await asyncio.gather(*(served.next("run", 0) for _ in range(5)))
    assert set(choices) == {choices[0]}
    assert (await served.session("run")).trials == 1


@pytest.mark.parametrize("trial", [-1, True, "0", 1.0])
@on_loop
async def test_a_trial_is_a_number(tmp_path: Path, trial: Any) -> None:
    served = await opened(tmp_path)
    for wrong in (
        served.next("run", trial),
        served.tell("run", trial, betas(0)),
        served.skip("run", trial),
    ):
        assert (await refusal(wrong)).code == "invalid"


@pytest.mark.parametrize(
    ("measured", "subject"),
    [
        (np.full(V, np.nan, np.float32), None),
        (np.full(V, np.inf, np.float32), None),
        (np.where(np.arange(V) % 3 == 2, np.nan, 0.0).astype(np.float32), None),  # all of PPA
        (np.zeros(V - 1, np.float32), None),
        (np.zeros((1, V), np.float32), None),
        (np.array(["x"] * V), None),
        (np.zeros(V, np.float32), "subj02"),
    ],
)
@on_loop
async def test_betas_that_cannot_be_told(tmp_path: Path, measured: Any, subject: Any) -> None:
    served = await opened(tmp_path)
    await served.next("run", 0)
    for _ in range(2):
        with pytest.raises(BrainfastError, match="measured"):
            await served.tell("run", 0, measured, subject=subject)
    assert len((await served.session("run")).outstanding) == 1
    some = betas(0)
    some[:2] = np.nan
    await served.tell("run", 0, some, subject="subj01")
    await served.tell("run", 0, some)  # NaN are the same NaN
    assert (await served.session("run")).told == 1


@on_loop
async def test_a_pool_that_is_used_up_and_one_with_nothing_to_choose(tmp_path: Path) -> None:
    names = list(pool().ids)
    served = await started(tmp_path)
    await served.open_session("run", asked(exclude=names[1:]))
    await served.next("run", 0)
    with pytest.raises(BrainfastError, match="pool"):
        await served.next("run", 1)
    assert (await served.session("run")).trials == 1
    state = await served.open_session("none", asked(exclude=names))
    assert (state.allowed, state.problem) == (0, None)
    with pytest.raises(BrainfastError, match="pool"):
        await served.next("none", 0)
    assert (await served.session("none")).trials == 0


@on_loop
async def test_a_disk_that_hangs_holds_up_its_own_session_alone(tmp_path: Path, held: Gate) -> None:
    served = await started(tmp_path, session_waiting=2)
    for name in ("slow", "fast"):
        await served.open_session(name, asked())
        await served.next(name, 0)
    hanging = asyncio.ensure_future(served.tell("slow", 0, betas(0)))
    await happens(held.entered)
    behind = [asyncio.ensure_future(served.next("slow", 1)) for _ in range(2)]
    await asyncio.sleep(0)
    assert (await refusal(served.next("slow", 1))).code == "busy"
    for trial in range(4):
        await served.tell("fast", trial, betas(trial))
        assert (await served.next("fast", trial + 1)).trial == trial + 1
    assert not hanging.done()
    held.open()
    await hanging
    assert [choice.trial for choice in await asyncio.gather(*behind)] == [1, 1]
    assert kinds(tmp_path / "slow.jsonl") == ["session", "choice", "tell", "choice"]


@on_loop
async def test_a_tell_that_nobody_waits_for_is_done_and_a_next_is_not(
    tmp_path: Path, held: Gate
) -> None:
    served = await started(tmp_path)
    await served.open_session("slow", asked())
    for trial in range(3):
        await served.next("slow", trial)
    calls = [served.tell("slow", 0, betas(0)), served.next("slow", 3)]
    calls += [served.tell("slow", 1, betas(1)), served.skip("slow", 2)]
    tasks = [asyncio.ensure_future(call) for call in calls]
    await happens(held.entered)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    held.open()
    state = await served.session("slow")
    assert (state.trials, state.told, state.skipped) == (3, 2, 1)


@on_loop
async def test_a_call_that_takes_too_long_can_be_asked_again(tmp_path: Path, held: Gate) -> None:
    served = await started(tmp_path)
    await served.open_session("slow", asked())
    await served.next("slow", 0)
    lane = served._session_lanes["slow"]
    lane._limits, patient = Limits(timeout_s=0.02), lane._limits
    late = await refusal(served.tell("slow", 0, betas(0)))
    assert late.code == "timed_out"
    lane._limits = patient
    held.open()
    await served.tell("slow", 0, betas(0))
    assert (await served.session("slow")).told == 1
    await served.close_session("slow")
    assert kinds(tmp_path / "slow.jsonl") == ["session", "choice", "tell"]


@on_loop
async def test_a_disk_that_refuses_a_line_is_no_mistake_of_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await opened(tmp_path)
    write, full = os.write, threading.Event()

    def refuse(file: int, data: Any) -> int:
        if full.is_set() and b'"event":"choice"' in bytes(data):
            raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(os, "write", refuse)
    full.set()
    error = await refusal(served.next("run", 0))
    assert (error.code, error.retry_after_s) == ("stalled", 1.0)
    assert "No space left" in str(error)
    full.clear()
    assert (await served.next("run", 0)).trial == 0
    assert kinds(tmp_path / "run.jsonl") == ["session", "choice"]


@on_loop
async def test_a_log_that_cannot_be_synced_is_told_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await opened(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(5, "I/O error")))
    await served.next("run", 0)
    error = await refusal(served.close_session("run"))
    assert (error.code, "I/O error" in str(error)) == ("internal", True)
    assert served.sessions() == []


@on_loop
async def test_the_objective_of_a_choice(tmp_path: Path) -> None:
    served = await opened(tmp_path)
    await served.open_session("both", asked(objective=["FFA", "PPA - V1"]))
    asked_for = ["PPA - V1", None, "PPA - V1", "FFA"]
    choices = [
        await served.next("both", trial, objective=name) for trial, name in enumerate(asked_for)
    ]
    assert [one.objective for one in choices] == ["PPA - V1", "FFA", "PPA - V1", "FFA"]
    assert await served.next("both", 1) == choices[1]
    assert await served.next("both", 1, objective="FFA") == choices[1]
    conflict = await refusal(served.next("both", 0, objective="FFA"))
    assert (conflict.code, conflict.name) == ("conflict", "objective")
    state = await served.session("both")
    assert (state.objectives, state.trials) == (["FFA", "PPA - V1"], 4)
    with pytest.raises(BrainfastError, match="objective"):
        await served.next("run", 0, objective="FFA")


@on_loop
async def test_sessions_go_on_while_the_trunk_stalls(tmp_path: Path) -> None:
    clock, model = TestClock(), engine()
    served = service(model, logs=tmp_path, candidates=pool(), clock=clock)
    await served.start()
    await served.open_session("run", asked())
    gate = model.runtime.next_gate()
    first = asyncio.ensure_future(served.predict([picture(0)]))
    await happens(gate.entered)
    clock.now += 11
    assert served.state == "stalled"
    choice = await served.next("run", 0)
    await served.tell("run", 0, betas(0))
    assert (await served.open_session("other", asked())).trials == 0
    assert choice.trial == 0
    gate.open()
    await first
