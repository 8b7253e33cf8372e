"""The service as its servers see it: its states, its end, and what it says of itself."""

from __future__ import annotations

import asyncio
import json
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
from brainfast.loop import replay
from brainfast.objective import Objective
from brainfast.pool import Pool
from brainfast.serve.events import ChoiceEvent, SessionEvent
from serve_world import (
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
        {"items": 6, "dtype": "fp32", "kind": "latent", "subject": "subj01"},
        type(served.about().pool),
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
async def test_a_warm_up_that_fails_is_no_start() -> None:
    served = service()
    served.engine.runtime.poison = None
    served.engine.warm_up = lambda sizes: 1 / 0
    with pytest.raises(ZeroDivisionError):
        await served.start()
    assert served.state == "starting"
    for request in (served.predict([picture(1)]), served.score([picture(1)], "FFA - PPA")):
        assert (await refusal(request)).code == "starting"
    await served.drain()
    assert (await refusal(served.next("run", 0))).code == "draining"


@on_loop
async def test_a_session_of_a_server_that_was_not_started_is_counted_and_closed(
    tmp_path: Path,
) -> None:
    served = service(logs=tmp_path, candidates=pool())
    await served.open_session("run", asked())
    shown = await served.next("run", 0)
    await served.close_session("run")
    await served.open_session("run", asked(resume=True))
    assert (await served.next("run", 0)).image == shown.image
    assert b'choices_total{late="false",source="fresh"} 1.0' in served.metrics.text()
    await served.drain()


@on_loop
async def test_a_session_goes_on_before_the_engine_is_warm(tmp_path: Path) -> None:
    first = service(logs=tmp_path, candidates=pool())
    await first.start()
    await first.open_session("run", asked())
    shown = await first.next("run", 0)
    await first.drain()

    served = service(logs=tmp_path, candidates=pool())
    gate = served.engine.runtime.next_gate()
    warming = asyncio.ensure_future(served.start())
    await happens(gate.entered)
    assert served.state == "starting"
    await served.open_session("run", asked(resume=True))
    await served.tell("run", 0, betas(0))
    assert (await served.next("run", 0)).image == shown.image
    assert (await served.next("run", 1)).trial == 1
    assert (await refusal(served.predict([picture(1)]))).code == "starting"
    gate.open()
    await warming
    assert served.state == "ready"
    assert (await served.predict([picture(1)]))[""].shape == (1, 30)
    await served.drain()


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
