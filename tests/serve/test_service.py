"""The service as its servers see it: its states, its end, and what it says of itself."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.loop import Session, read_log, replay
from brainfast.loop.log import LogWriter
from brainfast.objective import Objective
from brainfast.pool import Pool
from brainfast.serve import engine_lane
from brainfast.serve.events import ChoiceEvent, SessionEvent
from brainfast.serve.pictures import decoded
from serve_world import (
    PATIENCE_S,
    Gate,
    asked,
    betas,
    engine,
    file,
    group,
    happens,
    on_loop,
    picture,
    pool,
    refusal,
    service,
)

CHILD = """
import asyncio, json, sys
from dataclasses import asdict
from pathlib import Path
from serve_world import asked, betas, pool, service

async def main():
    served = service(logs=Path(sys.argv[1]), candidates=pool())
    await served.start()
    await served.open_session("run", asked(strategy="thompson", seed=4))
    for trial in range(11):
        choice = await served.next("run", trial)
        print(json.dumps(asdict(choice)), flush=True)
        if trial % 3 == 1:
            await served.skip("run", trial)
        elif trial % 3 == 2:
            await served.tell("run", trial - 2, betas(trial - 2))
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def real_pool(tmp_path: Path) -> Pool:
    """Latents of six images, built by an engine like the one that serves them."""
    folder = tmp_path / "candidates"
    folder.mkdir()
    for seed in range(6):
        (folder / f"{seed}.png").write_bytes(file(seed))
    return Pool.build(engine(), folder, path=tmp_path / "pool", dtype="fp32")


def test_a_killed_server_comes_back_with_the_same_trials(tmp_path: Path) -> None:
    answered = 7
    place = {"cwd": Path(__file__).parents[1], "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], **place) as child:
        assert child.stdout is not None
        told = [json.loads(child.stdout.readline()) for _ in range(answered)]
        child.send_signal(signal.SIGKILL)

    @on_loop
    async def resumed() -> None:
        served = service(logs=tmp_path, candidates=pool())
        await served.start()
        state = await served.open_session("run", asked(resume=True))
        assert state.trials >= answered
        again = [asdict(await served.next("run", trial)) for trial in range(answered)]
        assert again == told
        assert (await served.next("run", state.trials)).trial == state.trials
        await served.tell("run", 0, betas(0))  # whether it was told before or not
        await served.drain()

    resumed()
    assert replay(tmp_path / "run.jsonl").difference is None


@on_loop
async def test_what_is_served() -> None:
    served = service(candidates=pool(), images=7)
    about = served.about()
    assert (about.model, about.model_hash, about.protocol) == ("toy", "a" * 64, 1)
    assert (about.subjects, about.vertices) == ([], {"": 30})
    assert about.rois[""] == ["V1", "V1v", "FFA", "FFA-1", "PPA"]
    assert about.pool is not None
    assert (about.pool.items, about.limits.images) == (12, 7)
    for coder in (msgspec.json, msgspec.msgpack):
        assert coder.decode(coder.encode(about), type=type(about)) == about
    many = service(group()).about()
    assert (many.subjects, many.vertices, many.pool) == (["a", "b"], {"a": 30, "b": 20}, None)


@on_loop
async def test_select_is_the_pools_order(real_pool: Pool) -> None:
    served = service(candidates=real_pool)
    await served.start()
    assert served.about().pool == msgspec.convert(
        {"items": 6, "dtype": "fp32", "kind": "latent"}, type(served.about().pool)
    )
    first, again, other = await served.select(["FFA", "FFA", "PPA - V1"], 3)
    scores = await served.score([picture(seed) for seed in range(6)], ["FFA", "PPA - V1"])
    for chosen, column in ((first, 0), (other, 1)):
        order = np.argsort(-scores[:, column], kind="stable")[:3]
        assert [one.row for one in chosen] == order.tolist()
        np.testing.assert_allclose(
            [one.score for one in chosen], scores[order, column], rtol=1e-4, atol=1e-5
        )
    assert again == first
    (left,) = await served.select("FFA", 3, exclude=[first[0].name])
    assert left[:2] == first[1:]
    with pytest.raises(BrainfastError, match="k: expected 1 to 6"):
        await served.select("FFA", 7)
    with pytest.raises(BrainfastError, match="candidate"):
        await served.select("FFA", 3, exclude=["nobody"])


@pytest.mark.parametrize(
    ("objective", "k", "code"),
    [
        ("FFA", 0, "invalid"),
        ("FFA", True, "invalid"),
        ("FFA", "3", "invalid"),
        ("FFA", 1001, "too_large"),
        (["FFA", "PPA"], 501, "too_large"),
        (["FFA"] * 65, 1, "too_large"),
        ("FFA" + " + FFA" * 1000, 1, "too_large"),
    ],
)
@on_loop
async def test_a_selection_has_its_bounds(
    real_pool: Pool, objective: Any, k: Any, code: str
) -> None:
    served = service(candidates=real_pool)
    await served.start()
    assert (await refusal(served.select(objective, k))).code == code


@on_loop
async def test_without_a_pool_nothing_is_selected() -> None:
    served = service()
    await served.start()
    missing = await refusal(served.select("FFA"))
    assert (missing.code, missing.name) == ("not_found", "pool")


@on_loop
async def test_selections_go_on_while_the_trunk_stalls(real_pool: Pool) -> None:
    served = service(candidates=real_pool)
    await served.start()
    gate = served.engine.runtime.next_gate()
    first = asyncio.ensure_future(served.predict([picture(0)]))
    await happens(gate.entered)
    assert len((await served.select("FFA", 2))[0]) == 2
    gate.open()
    await first


@on_loop
async def test_a_session_on_a_pool_of_images(real_pool: Pool, tmp_path: Path) -> None:
    served = service(candidates=real_pool, logs=tmp_path / "logs")
    await served.start()
    await served.open_session("run", asked())
    choice = await served.next("run", 0)
    (best,) = await served.select("FFA - PPA", 1)
    assert choice.image == best[0].name
    scores = await served.score([picture(best[0].row)], "FFA - PPA")
    assert choice.score == pytest.approx(scores[0, 0], abs=1e-4)


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


@on_loop
async def test_a_warm_up_that_fails_is_no_start() -> None:
    served = service()
    served.engine.runtime.poison = None
    served.engine.warm_up = lambda sizes: 1 / 0
    with pytest.raises(ZeroDivisionError):
        await served.start()
    assert served.state == "starting"
    for request in (served.next("run", 0), served.session("run"), served.close_session("run")):
        assert (await refusal(request)).code == "starting"
    await served.drain()
    assert (await refusal(served.next("run", 0))).code == "draining"


@on_loop
async def test_what_happens_is_told(tmp_path: Path) -> None:
    served = service(logs=tmp_path, candidates=pool())
    events = served.events.subscribe()
    await served.start()
    await served.open_session("run", asked())
    choices = [await served.next("run", 0) for _ in range(2)]
    for _ in range(2):
        await served.tell("run", 0, betas(0))
    await served.next("run", 1)
    await served.skip("run", 1)
    await served.predict([picture(1)] * 2)
    await served.drain()
    told = [msgspec.to_builtins(event) async for event in events]
    expected = ["state", "state", "session", "choice", "tell", "choice", "skip", "predict"]
    assert [event["kind"] for event in told] == [*expected, "state", "session", "state"]
    states = [event["state"] for event in told if event["kind"] == "state"]
    assert states == ["starting", "ready", "draining", "closed"]
    choice = next(event for event in served.events.latest if isinstance(event, ChoiceEvent))
    assert (choice.image, choice.score, choice.objective) == (
        choices[0].image,
        choices[0].score,
        "FFA - PPA",
    )
    assert told[7]["B"] == 2
    weights = Objective.of("FFA - PPA").weights(served.engine.space)[0].astype(np.float64)
    assert told[4]["response"] == pytest.approx(weights @ betas(0), abs=1e-6)
    assert isinstance(served.events.latest[-2], SessionEvent)


@on_loop
async def test_sessions_are_counted(tmp_path: Path) -> None:
    served = service(logs=tmp_path, candidates=pool())
    await served.start()
    await served.open_session("run", asked())
    for trial in range(3):
        await served.next("run", trial)
    await served.next("run", 0)
    text = served.metrics.text().decode()
    for line in (
        'choices_total{late="false",source="fresh"} 3.0',
        "sessions 1.0",
        "ready 1.0",
        'waiting{lane="sessions"} 0.0',
    ):
        assert f"brainfast_{line}" in text
    await served.close_session("run")
    text = served.metrics.text().decode()
    assert "brainfast_sessions 0.0" in text
    count = next(line for line in text.splitlines() if "sync_seconds_count" in line)
    assert 1 <= float(count.split()[1]) <= 4  # one sync may cover several lines
    assert served.metrics.text().decode().count(count) == 1


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
