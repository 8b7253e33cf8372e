"""What must not lose a decision: a client that dies, a full queue, a trunk that stalls, a server
that is killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from brainfast.loop import replay
from brainfast.loop.log import read_log
from brainfast.serve.async_client import AsyncClient
from serve_load import SESSION, Answers, Ask
from served_model import pictures
from server_process import Server

FLOODING, EACH = 8, 25  # clients, and requests of each at once: more than may wait
PACE_S = 0.25  # of the session that goes on meanwhile
PATIENCE_S = 2.0  # of a request to the trunk that stalls
AGAIN_S = 0.1  # until it is asked again

DYING = """
import asyncio, os, signal, sys
from brainfast.serve.async_client import AsyncClient

async def main():
    async with AsyncClient(sys.argv[1]) as client:
        session = await client.session("dying", **eval(sys.argv[2]))
        for _ in range(3):
            await session.next()
        asked = asyncio.ensure_future(session.next())
        while not asked.done():
            await asyncio.sleep(0)
            if client.connection.count:
                os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def client_that_dies(server: Server, answers: Answers) -> dict[str, Any]:
    """A process that is killed with a request under way: another goes on with its session, where
    every choice is outstanding."""
    command = [sys.executable, "-c", DYING, server.address, repr(SESSION)]
    died = await asyncio.to_thread(subprocess.run, command, check=False)
    async with AsyncClient(server.address) as client:
        session = await client.session("dying", resume=True)
        for waiting in session.state.outstanding:
            choice = await session.next(waiting.trial)
            answers.received.append((session.name, choice.trial, choice.image))
        found = session.state
        await session.close()
    return {
        "exit_code": died.returncode,
        "choices": found.trials,
        "outstanding": len(found.outstanding),
    }


async def full_queue(server: Server, answers: Answers, V: int) -> dict[str, Any]:
    """More requests at once than may wait: those beyond are refused, and a session goes on."""
    images = pictures(EACH, 224, seed=3)

    async def flood() -> None:
        async with AsyncExitStack() as stack:
            clients = [AsyncClient(server.address, timeout_s=60.0) for _ in range(FLOODING)]
            for client in clients:
                await stack.enter_async_context(client)
            asks = [_predict(client, answers, image) for client in clients for image in images]
            await asyncio.gather(*asks)

    await _beside(server, answers, V, "beside-flood", flood)
    return {name: answers.row(name) for name in ("predict", "next")} | {"asked": FLOODING * EACH}


async def stalled_trunk(server: Server, answers: Answers, V: int, stall: Path) -> dict[str, Any]:
    """A trunk that hangs: its requests time out or are refused, a session goes on, and the next
    request after it came back is answered."""
    image = pictures(1, 224, seed=4)[0]
    recovered_s: list[float] = []

    async def hang() -> None:
        async with AsyncClient(server.address, timeout_s=PATIENCE_S) as client:
            stall.touch()
            for _ in range(4):
                await _predict(client, answers, image)
            stall.unlink()
            start = time.perf_counter()
            while answers.seconds["predict"] == []:
                await _predict(client, answers, image)
                await asyncio.sleep(AGAIN_S)
            recovered_s.append(round(time.perf_counter() - start, 2))

    await _beside(server, answers, V, "beside-stall", hang)
    rows = {name: answers.row(name) for name in ("predict", "next")}
    return rows | {"answered_again_after_s": recovered_s[0]}


async def killed_server(server: Server, answers: Answers, V: int) -> dict[str, Any]:
    """SIGKILL in the middle of a session, and another server over the same logs."""

    async def kill() -> None:
        await asyncio.sleep(10 * PACE_S)
        server.kill()
        await asyncio.to_thread(server.restart)
        await asyncio.sleep(10 * PACE_S)

    await _beside(server, answers, V, "beside-kill", kill)
    return {"next": answers.row("next"), "tell": answers.row("tell")}


def audit(logs: Path, received: Iterable[tuple[str, int, str]]) -> dict[str, int]:
    """Every choice that a client was given, looked up in the logs; every log, done over again."""
    logged: set[tuple[str, int, str]] = set()
    differ = 0
    paths = sorted(logs.glob("*.jsonl"))
    for path in paths:
        choices = [each for each in read_log(path).events if each["event"] == "choice"]
        logged |= {(path.stem, each["trial"], each["image"]) for each in choices}
        differ += replay(path).difference is not None
    given = set(received)
    return {
        "logs": len(paths),
        "choices_logged": len(logged),
        "choices_received": len(given),
        "received_but_not_logged": len(given - logged),
        "logs_that_replay_otherwise": differ,
    }


async def _predict(client: AsyncClient, answers: Answers, image: Any) -> None:
    with answers.timed("predict"):
        await client.predict([image])


async def _beside(
    server: Server, answers: Answers, V: int, name: str, work: Callable[[], Awaitable[None]]
) -> None:
    """A session that goes on at its pace until the work is done."""
    async with AsyncClient(server.address, timeout_s=120.0) as client:
        session = await client.session(name, **SESSION)
        ask = Ask(client, answers, pace_s=PACE_S)
        going = asyncio.ensure_future(ask.choose(session, V))
        try:
            await asyncio.sleep(4 * PACE_S)
            await work()
        finally:
            ask.stop()
            await going
