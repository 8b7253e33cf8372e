"""A session at a server that is started anew: what is opened again, and what is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.loop.replay import replay
from brainfast.serve.async_session import PASSING
from brainfast.serve.client import AsyncClient, AsyncSession
from brainfast.serve.refusal import CODES, Refusal
from brainfast.serve.service import Service
from brainfast.serve.zmq_server import ZmqServer
from fake_service import FakeService, in_loop, killed
from serve_world import asked, betas, kinds, started

OPTIONS = {"deadline_ms": 60_000.0, "seed": 3}


def address(place: Path) -> str:
    return f"ipc://{place / 'socket'}"


@asynccontextmanager
async def serving(place: Path) -> AsyncIterator[Service]:
    served = await started(place)
    async with ZmqServer(served, address(place)):
        yield served
        await served.drain()


async def server_that_ends(place: Path, end: str, *, opens: bool) -> tuple[asyncio.Event, Any]:
    """A server that gives no answer to `open`, and how it ends: killed, or told to.

    opens: whether it begins the log before it ends.
    """
    service = await started(place, drain_s=0.01)
    server = ZmqServer(service, address(place))
    await server.start()
    reached, real = asyncio.Event(), service.open_session

    async def open_session(name: str, request: Any, **options: Any) -> None:
        if opens:
            await real(name, request)
        reached.set()
        await asyncio.Event().wait()

    service.open_session = open_session  # type: ignore[method-assign]

    async def ends() -> None:
        await (killed(server) if end == "killed" else server.stop())
        await service.drain()

    return reached, ends


async def begun_by_another(place: Path, choices: int, **options: Any) -> None:
    service = await started(place)
    await service.open_session("run", asked(**(OPTIONS | options)))
    for trial in range(choices):
        await service.next("run", trial)
    await service.drain()


async def opened_across_a_restart(
    client: AsyncClient, place: Path, end: str, *, opens: bool, between: Any = None
) -> AsyncSession:
    """The session of a client whose server ended before it answered."""
    reached, ends = await server_that_ends(place, end, opens=opens)
    opening = asyncio.create_task(client.session("run", "FFA - PPA", **OPTIONS))
    await reached.wait()
    await ends()
    if between is not None:
        await between
    async with serving(place):
        session = await opening
        choice = await session.next()
        await session.tell(choice, betas(0))
        assert choice.trial == 0
    return session


@pytest.mark.parametrize("end", ["killed", "told"])
@pytest.mark.parametrize("opens", [False, True])
@in_loop
async def test_an_open_that_a_server_took_with_it_is_done_once(
    end: str, opens: bool, tmp_path: Path
) -> None:
    async with AsyncClient(address(tmp_path)) as client:
        session = await opened_across_a_restart(client, tmp_path, end, opens=opens)
    assert (session.state.trials, session.state.objectives) == (0, ["FFA - PPA"])
    log = tmp_path / "run.jsonl"
    assert kinds(log).count("tell") == 1
    assert ("resumed" in kinds(log)) == opens
    assert replay(log).difference is None


@pytest.mark.parametrize("end", ["killed", "told"])
@pytest.mark.parametrize(
    ("choices", "options"), [(1, {}), (0, {"seed": 4}), (0, {"objective": "FFA"})]
)
@in_loop
async def test_the_log_of_another_is_a_conflict_still(
    choices: int, options: dict[str, Any], end: str, tmp_path: Path
) -> None:
    """It was begun while there was no server: it has choices, or other options."""
    another = begun_by_another(tmp_path, choices, **options)
    async with AsyncClient(address(tmp_path)) as client:
        with pytest.raises(Refusal, match="session run: expected a new name") as caught:
            await opened_across_a_restart(client, tmp_path, end, opens=False, between=another)
    assert caught.value.code == "conflict"
    assert kinds(tmp_path / "run.jsonl").count("choice") == choices


@in_loop
async def test_an_open_that_was_sent_once_does_not_resume(tmp_path: Path) -> None:
    await begun_by_another(tmp_path, 0)
    async with AsyncClient(address(tmp_path)) as client:
        early = asyncio.create_task(client.session("run", "FFA - PPA", **OPTIONS))
        await asyncio.sleep(0)  # it waits for the server, and is sent when there is one
        async with serving(tmp_path):
            for opening in (early, client.session("run", "FFA - PPA", **OPTIONS)):
                with pytest.raises(Refusal, match="session run: expected a new name") as caught:
                    await opening
                assert caught.value.code == "conflict"
    assert "resumed" not in kinds(tmp_path / "run.jsonl")


@pytest.mark.parametrize("code", [code for code in CODES if code not in PASSING])
@in_loop
async def test_what_is_refused_for_good_is_asked_once(code: Any, tmp_path: Path) -> None:
    service = FakeService()
    refusal = Refusal(code, "server", expected="another request", got="this", retry_after_s=0.01)
    async with ZmqServer(service, address(tmp_path)), AsyncClient(address(tmp_path)) as client:
        service.refuse = [refusal]
        with pytest.raises(Refusal, match="server: expected another request") as caught:
            await client.session("run", "FFA")
        assert caught.value.code == code
        session = await client.session("run", "FFA")
        service.refuse = [refusal]
        with pytest.raises(Refusal, match="server: expected another request"):
            await session.next()
        assert (service.calls["open"], service.calls["next"]) == (2, 1)


def test_room_for_no_more_sessions_is_not_waited_for() -> None:
    assert "busy" in PASSING
    assert "too_many" not in PASSING


@in_loop
async def test_betas_that_wait_for_a_server_are_those_of_the_call(tmp_path: Path) -> None:
    logs: dict[str, Any] = {}
    measured = np.ones(100_000)
    async with AsyncClient(address(tmp_path)) as client:
        async with ZmqServer(FakeService(logs=logs), address(tmp_path)):
            session = await client.session("run", "FFA")
            await session.next()
        telling = asyncio.create_task(session.tell(0, measured))
        await asyncio.sleep(0)
        measured[:] = 2
        async with ZmqServer(FakeService(logs=logs), address(tmp_path)):
            await telling
    np.testing.assert_array_equal(logs["run"][0][1], np.ones(100_000))


@pytest.mark.parametrize("choice", ["a", None, 1.5, [0], -1, np.float64(0)])
@in_loop
async def test_what_is_no_choice_is_told(choice: Any, tmp_path: Path) -> None:
    service = FakeService()
    async with ZmqServer(service, address(tmp_path)), AsyncClient(address(tmp_path)) as client:
        session = await client.session("run", "FFA")
        asks = [session.tell(choice, [1.0]), session.skip(choice)]
        asks += [] if choice is None else [session.next(choice)]
        for ask in asks:
            with pytest.raises(BrainfastError, match=r"^(trial|tell|skip|next): expected"):
                await ask
        assert service.calls == {"open": 1}
        assert (await session.next()).trial == 0
        assert (await session.next(np.int64(0))).trial == 0


@pytest.mark.parametrize("objective", [5, np.ones(3), ["FFA"], b"FFA"])
@in_loop
async def test_an_objective_that_is_no_text_is_told_and_forgotten(
    objective: Any, tmp_path: Path
) -> None:
    service = FakeService()
    async with ZmqServer(service, address(tmp_path)), AsyncClient(address(tmp_path)) as client:
        session = await client.session("run", "FFA")
        with pytest.raises(BrainfastError, match=r"^objective: expected a text"):
            await session.next(objective=objective)
        assert (await session.next(objective=np.str_("PPA"))).objective == "PPA"


@in_loop
async def test_a_session_does_not_ask_again_when_there_is_no_time(tmp_path: Path) -> None:
    refusal = Refusal("busy", "server", expected="room", got="none", retry_after_s=100)
    service = FakeService()
    async with ZmqServer(service, address(tmp_path)), AsyncClient(address(tmp_path)) as client:
        session = await client.session("run", "FFA")
        service.refuse = [refusal]
        with pytest.raises(Refusal, match="server: expected room"):
            await session.next(timeout_s=0.5)


@in_loop
async def test_a_session_that_somebody_closed_is_not_opened_again(tmp_path: Path) -> None:
    service = FakeService()
    async with ZmqServer(service, address(tmp_path)), AsyncClient(address(tmp_path)) as client:
        session = await client.session("run", "FFA")
        await service.close_session("run")
        with pytest.raises(Refusal, match="expected an open one"):
            await session.next()
        assert service.calls["open"] == 1
