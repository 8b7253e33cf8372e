"""The end of a service: what was accepted is answered, and nothing that hangs holds it up."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from brainfast.loop import Session, read_log
from brainfast.loop.log import LogWriter
from brainfast.serve import engine_lane
from brainfast.serve.pictures import decoded
from serve_world import (
    PATIENCE_S,
    Gate,
    asked,
    betas,
    file,
    happens,
    on_loop,
    picture,
    pool,
    refusal,
    service,
)


@on_loop
async def test_drain_answers_what_was_accepted_and_refuses_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = hold_tells(monkeypatch, "run.jsonl")
    served = service(logs=tmp_path, candidates=pool())
    await served.start()
    await served.open_session("run", asked())
    await served.next("run", 0)
    trunk = served.engine.runtime.next_gate()
    accepted = [served.predict([picture(0)]), served.predict([file(1)])]
    accepted += [served.tell("run", 0, betas(0)), served.next("run", 1), served.skip("run", 1)]
    tasks = [asyncio.ensure_future(request) for request in accepted]
    await happens(trunk.entered)
    await happens(disk.entered)
    drains = [asyncio.ensure_future(served.drain()) for _ in range(2)]
    await asyncio.sleep(0)
    assert served.state == "draining"
    for request in (
        served.predict([picture(2)]),
        served.score([picture(2)], "FFA"),
        served.select("FFA"),
        served.open_session("other", asked()),
        served.next("run", 2),
        served.tell("run", 1, betas(1)),
        served.session("run"),
        served.close_session("run"),
    ):
        assert (await refusal(request)).code == "draining"
    assert not any(task.done() for task in (*tasks, *drains))
    trunk.open()
    disk.open()
    answers = await asyncio.gather(*tasks)
    assert [len(answer[""]) for answer in answers[:2]] == [1, 1]
    assert answers[3].trial == 1
    await asyncio.gather(*drains)
    await served.drain()
    assert served.state == "closed"
    kinds = [event["event"] for event in read_log(tmp_path / "run.jsonl").events]
    assert kinds == ["session", "choice", "tell", "choice", "skip"]
    Session.resume(tmp_path / "run.jsonl", pool()).close()  # nobody holds it any more


@on_loop
async def test_drain_waits_for_images_that_are_still_being_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = hold_decoding(monkeypatch)
    served = service()
    await served.start()
    accepted = asyncio.ensure_future(served.predict([file(1)]))
    await happens(gate.entered)
    drain = asyncio.ensure_future(served.drain())
    await asyncio.sleep(0)
    assert (await refusal(served.predict([picture(1)]))).code == "draining"
    gate.open()
    assert len((await accepted)[""]) == 1
    await drain


@on_loop
async def test_images_that_are_being_decoded_take_room_until_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = hold_decoding(monkeypatch)
    served = service(waiting=1)
    await served.start()
    gone = asyncio.ensure_future(served.predict([file(1)]))
    await happens(gate.entered)
    gone.cancel()
    await asyncio.wait([gone])
    assert (await refusal(served.predict([picture(1)]))).code == "busy"
    gate.open()
    while served._engine_lane.waiting:
        await asyncio.sleep(0)
    assert len((await served.predict([picture(1)]))[""]) == 1


@on_loop
async def test_a_trunk_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = service(logs=tmp_path, candidates=pool(), drain_s=0.02)
    await served.start()
    await served.open_session("run", asked())
    choice = await served.next("run", 0)
    session_lane = served._session_lanes["run"]
    gate = served.engine.runtime.next_gate()
    running = asyncio.ensure_future(served.predict([picture(0)]))
    await happens(gate.entered)
    waiting = asyncio.ensure_future(served.predict([picture(1)]))
    while served._engine_lane._lane.queued == 0:
        await asyncio.sleep(0)
    with caplog.at_level(logging.WARNING, "brainfast.serve"):
        await served.drain()
    assert served.state == "closed"
    assert "engine did not end" in caplog.text
    for request in (running, waiting):
        assert (await refusal(request)).code == "draining"
    assert await session_lane.ended(PATIENCE_S)  # a busy machine may need longer than drain_s
    with Session.resume(tmp_path / "run.jsonl", pool()) as session:
        assert session.choices == (choice,)
    gate.open()


@on_loop
async def test_a_disk_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = hold_tells(monkeypatch, "slow.jsonl")
    served = service(logs=tmp_path, candidates=pool(), drain_s=0.2)
    await served.start()
    for name in ("slow", "fast"):
        await served.open_session(name, asked())
        await served.next(name, 0)
    slow, fast = (served._session_lanes[name] for name in ("slow", "fast"))
    hanging = asyncio.ensure_future(served.tell("slow", 0, betas(0)))
    await happens(disk.entered)
    await served.drain()
    assert (await refusal(hanging)).code == "draining"
    assert await fast.ended(PATIENCE_S)
    Session.resume(tmp_path / "fast.jsonl", pool()).close()
    disk.open()
    assert await slow.ended(PATIENCE_S)  # what the thread was at is done, and the log closed
    with Session.resume(tmp_path / "slow.jsonl", pool()) as session:
        assert session.status(0) == "told"


@on_loop
async def test_the_end_before_the_beginning() -> None:
    served = service()
    await served.drain()
    assert served.state == "closed"
    assert (await refusal(served.predict([picture(1)]))).code == "draining"


def hold_decoding(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The gate at which images wait to be decoded."""
    gate = Gate()

    def slow(*given: Any) -> Any:
        gate.wait()
        return decoded(*given)

    monkeypatch.setattr(engine_lane, "decoded", slow)
    return gate


def hold_tells(monkeypatch: pytest.MonkeyPatch, log: str) -> Gate:
    """The gate at which the disk holds up what is told to one session."""
    gate, append = Gate(), LogWriter.append

    def slow(self: LogWriter, event: Any) -> None:
        if self.path.name == log and event["event"] == "tell":
            gate.wait()
        append(self, event)

    monkeypatch.setattr(LogWriter, "append", slow)
    return gate
