"""Clients, the wire, and the service itself on a toy engine: a session as a lab runs it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast.loop.replay import replay
from brainfast.serve.client import AsyncClient
from brainfast.serve.refusal import Refusal
from brainfast.serve.service import Service
from brainfast.serve.zmq_server import ZmqServer
from serve_world import V, betas, engine, file, group, happens, on_loop, picture, pool, service

OPTIONS = {"deadline_ms": 60_000.0, "seed": 3}


@asynccontextmanager
async def serving(place: Path, on: Any = None, **limits: Any) -> AsyncIterator[Service]:
    served = service(on, logs=place, candidates=pool(), **limits)
    await served.start()
    async with ZmqServer(served, f"ipc://{place / 'socket'}"):
        try:
            yield served
        finally:
            await served.drain()


def asking(place: Path) -> AsyncClient:
    return AsyncClient(f"ipc://{place / 'socket'}")


def events(log: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, log.read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


@on_loop
async def test_answers_are_the_engines(tmp_path: Path) -> None:
    own = engine()
    async with serving(tmp_path, own), asking(tmp_path) as client:
        about = await client.about()
        assert (about.vertices, about.subjects) == ({"": V}, [])
        seeds = range(5)
        found = await client.predict([file(0), *map(picture, seeds[1:])])
        expected = own.predict([picture(seed) for seed in seeds]).values
        np.testing.assert_array_equal(found[""], expected)
        scores = await client.score(file(2), ["FFA", "FFA - PPA"])
        ffa, ppa = (expected[2, own.space.roi(name)].mean() for name in ("FFA", "PPA"))
        np.testing.assert_allclose(scores, [[ffa, ffa - ppa]], rtol=1e-5)


@on_loop
async def test_each_subject_has_its_own_responses(tmp_path: Path) -> None:
    both = group()
    async with serving(tmp_path, both), asking(tmp_path) as client:
        assert (await client.about()).vertices == {"a": 30, "b": 20}
        expected = both.predict([picture(1)])
        for subjects in (None, ["b"], ["b", "a"]):
            found = await client.predict(picture(1), subjects=subjects)
            assert set(found) == set(subjects or ["a", "b"])
            for name, response in found.items():
                np.testing.assert_array_equal(response, expected[name].values)
        with pytest.raises(Refusal, match="subject"):
            await client.predict(picture(1), subjects=["c"])


@on_loop
async def test_sixteen_clients_get_their_own_responses(tmp_path: Path) -> None:
    own = engine()

    async def one(seed: int) -> None:
        async with asking(tmp_path) as client:
            found = await asyncio.gather(*(client.predict(picture(seed)) for _ in range(3)))
            expected = own.predict([picture(seed)]).values
            for each in found:
                np.testing.assert_array_equal(each[""], expected)

    async with serving(tmp_path, own):
        await asyncio.gather(*map(one, range(16)))


@on_loop
async def test_a_session_survives_its_server(tmp_path: Path) -> None:
    """Three servers one after another; the client's program does not see it."""
    shown: list[tuple[int, str]] = []
    async with asking(tmp_path) as client:
        session = None
        for _ in range(3):
            async with serving(tmp_path):
                session = session or await client.session("run", "FFA - PPA", **OPTIONS)
                for _ in range(2):
                    choice = await session.next()
                    shown.append((choice.trial, choice.image))
                    await session.tell(choice, betas(choice.trial))
                again = await session.next(choice.trial)
                assert again.image == choice.image
    assert [trial for trial, _ in shown] == list(range(6))
    log = tmp_path / "run.jsonl"
    assert [event["image"] for event in events(log, "choice")] == [image for _, image in shown]
    assert len(events(log, "tell")) == 6
    assert replay(log).difference is None


@on_loop
async def test_a_client_that_dies_goes_on_where_it_was(tmp_path: Path) -> None:
    async with serving(tmp_path):
        async with asking(tmp_path) as client:
            session = await client.session("run", "FFA - PPA", **OPTIONS)
            first = await session.next()
        async with asking(tmp_path) as client:
            session = await client.session("run", "FFA - PPA", resume=True, **OPTIONS)
            assert session.state.trials == 1
            assert [left.trial for left in session.state.outstanding] == [0]
            assert await session.next(0) == first
            await session.tell(0, betas(0))
            await session.tell(0, betas(0))
            with pytest.raises(Refusal, match="trial 0") as caught:
                await session.tell(0, betas(1))
            assert caught.value.code == "conflict"
            assert (await session.next()).trial == 1


@on_loop
async def test_mistakes_leave_the_session_as_it_was(tmp_path: Path) -> None:
    async with serving(tmp_path), asking(tmp_path) as client:
        with pytest.raises(Refusal, match="nose") as caught:
            await client.session("run", "nose", **OPTIONS)
        assert caught.value.code == "invalid"
        with pytest.raises(Refusal) as caught:
            await client.session("../run", "FFA", **OPTIONS)
        assert caught.value.code == "invalid"
        session = await client.session("run", "FFA", **OPTIONS)
        choice = await session.next()
        wrong = [betas(0)[:-1], np.full(V, np.nan), np.full(V, np.inf)]
        for each in wrong:
            with pytest.raises(Refusal) as caught:
                await session.tell(choice, each)
            assert caught.value.code == "invalid"
        with pytest.raises(Refusal) as caught:
            await session.next(7)
        assert caught.value.code == "conflict"
        with pytest.raises(Refusal) as caught:
            await client.predict(b"not a picture")
        assert caught.value.code == "invalid"
        await session.tell(choice, betas(0))
        state = await session.ask_state()
        assert (state.trials, state.told) == (1, 1)


@on_loop
async def test_a_session_goes_on_beside_an_engine_that_hangs(tmp_path: Path) -> None:
    own = engine()
    async with serving(tmp_path, own, waiting=1) as served, asking(tmp_path) as client:
        session = await client.session("run", "FFA", **OPTIONS)
        gate = own.runtime.next_gate()
        try:
            held = asyncio.create_task(client.predict(picture(1)))
            await happens(gate.entered)
            others = [asyncio.create_task(client.predict(picture(2))) for _ in range(2)]
            done, (waiting,) = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            with pytest.raises(Refusal) as caught:
                done.pop().result()
            assert caught.value.code == "busy"
            choice = await session.next()
            await session.tell(choice, betas(0))
        finally:
            gate.open()
        for each, seed in ((held, 1), (waiting, 2)):
            expected = own.predict([picture(seed)]).values
            np.testing.assert_array_equal((await each)[""], expected)
        assert served.state == "ready"
