"""What must not lose a decision: a client that dies, a full queue, a trunk that stalls, a server
that is killed. One that does not come about is a RuntimeError."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brainfast.loop import replay
from brainfast.loop.log import read_log
from brainfast.serve.async_client import AsyncClient
from serve_load import OPEN_S, SESSION, Answers, Ask
from served_model import pictures
from server_process import Server

WAITING = 16  # requests that the server lets wait: fewer than are asked at once
OPTIONS = ("--waiting", str(WAITING), "--stall-s", "3")  # of the server
FLOODING, EACH = 8, 25  # clients, and requests of each at once
PACE_S = 0.25  # of the session that goes on meanwhile
PATIENCE_S = 2.0  # of a request to the trunk that stalls
AGAIN_S = 0.1  # until it is asked again
HAPPENS_S = 120.0  # what has not come about by then does not
GIVEN = 3  # choices that the dying client has

# It sends one more request, reads no answer any more, and is killed.
DYING = """
import asyncio, json, sys, time
from brainfast.serve.async_client import AsyncClient

async def main(address, timeout_s, options, given):
    async with AsyncClient(address, timeout_s=timeout_s) as client:
        session = await client.session("dying", **options)

        async def ask():
            choice = await session.next()
            print(json.dumps([session.name, choice.trial, choice.image]), flush=True)

        for _ in range(given):
            await ask()
        under_way = asyncio.ensure_future(ask())
        await asyncio.sleep(0)
        time.sleep(timeout_s)

asyncio.run(main(*json.loads(sys.argv[1])))
"""


async def client_that_dies(server: Server, answers: Answers, V: int) -> dict[str, Any]:
    """A process that is killed with a request under way: another goes on with its session, where
    every choice is outstanding."""
    given = await _killed_client(server)
    answers.received += given
    async with AsyncClient(server.address, timeout_s=OPEN_S) as client:
        session = await client.session("dying", resume=True)
        for waiting in session.state.outstanding:
            choice = await session.next(waiting.trial)
            answers.received.append((session.name, choice.trial, choice.image))
            await session.tell(choice, np.zeros(V, np.float32))
        found = session.state
        await session.close()
    return {
        "given": len(given),
        "choices": found.trials,
        "outstanding": len(found.outstanding),
    }


async def _killed_client(server: Server) -> list[tuple[str, int, str]]:
    """The choices that it had; it is killed when the log has one more."""
    about = json.dumps([server.address, OPEN_S, SESSION, GIVEN])
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", DYING, about, stdout=PIPE)
    assert child.stdout is not None
    log = server.logs / "dying.jsonl"
    try:
        lines = [await child.stdout.readline() for _ in range(GIVEN)]
        if all(lines):
            await _until("the dying client's request arrived", lambda: _logged(log) > GIVEN)
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        rest, _ = await child.communicate()
    if rest or not all(lines):
        got = sum(map(bool, lines)) + len(rest.splitlines())
        raise RuntimeError(f"the dying client had {got} choices, not {GIVEN}, when it was killed")
    return [(str(name), int(trial), str(image)) for name, trial, image in map(json.loads, lines)]


def _logged(log: Path) -> int:
    """Choices in a log, which may be growing."""
    return sum(event["event"] == "choice" for event in read_log(log, betas=False).events)


async def full_queue(server: Server, answers: Answers, V: int) -> dict[str, Any]:
    """More requests at once than may wait, the first held up until one is refused: those beyond
    are refused, and a session goes on."""
    images = pictures(EACH, 224, seed=3)

    async def flood() -> None:
        async with AsyncExitStack() as stack:
            clients = [AsyncClient(server.address, timeout_s=60.0) for _ in range(FLOODING)]
            for client in clients:
                await stack.enter_async_context(client)
            asks = [_predict(client, answers, image) for client in clients for image in images]
            asking = asyncio.gather(*asks)
            with server.stalled():
                await _until("the queue was full", lambda: answers.refused["predict"]["busy"] > 0)
            await asking

    await _beside(server, answers, V, "beside-flood", flood)
    rows = {name: answers.row(name) for name in ("predict", "next")}
    return rows | {"asked": FLOODING * EACH, "waiting": WAITING}


async def stalled_trunk(server: Server, answers: Answers, V: int) -> dict[str, Any]:
    """A trunk that hangs: its requests time out and then are refused, a session goes on, and the
    next request after it came back is answered."""
    image = pictures(1, 224, seed=4)[0]
    recovered_s: list[float] = []

    async def hang() -> None:
        async with AsyncClient(server.address) as client:
            ask = partial(_predict, client, answers, image)
            impatient = partial(ask, timeout_s=PATIENCE_S)
            with server.stalled():
                refused = answers.refused["predict"]
                await _until("it was stalled", lambda: refused["stalled"] > 0, impatient)
            start = time.perf_counter()
            await _until("the trunk answered again", lambda: answers.seconds["predict"], ask)
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
        before = len(answers.seconds["next"])
        await _until("the session went on", lambda: len(answers.seconds["next"]) > before)
        await asyncio.sleep(10 * PACE_S)

    await _beside(server, answers, V, "beside-kill", kill)
    return {"next": answers.row("next"), "tell": answers.row("tell")}


FAULTS = {
    "client dies": client_that_dies,
    "queue full": full_queue,
    "trunk stalls": stalled_trunk,
    "server killed": killed_server,
}


def audit(logs: Path, received: Iterable[tuple[str, int, str]]) -> dict[str, int]:
    """Every choice that a client was given, looked up in the logs; every log, done over again."""
    logged: set[tuple[str, int, str]] = set()
    differ = 0
    paths = sorted(logs.glob("*.jsonl"))
    for path in paths:
        events = read_log(path, betas=False).events
        choices = [each for each in events if each["event"] == "choice"]
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


def check(audit: Mapping[str, int]) -> None:
    """A RuntimeError where the logs are not what clients were given, or not what comes out."""
    for name in ("received_but_not_logged", "logs_that_replay_otherwise"):
        if audit[name]:
            raise RuntimeError(f"expected no {name.replace('_', ' ')}, got {audit[name]}")


async def _until(
    what: str, happened: Callable[[], object], act: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Act, or wait, again and again until it has happened."""
    end = time.monotonic() + HAPPENS_S
    while True:
        if act is not None:
            await act()
        if happened():
            return
        if time.monotonic() > end:
            raise RuntimeError(f"expected that {what}, which did not come about")
        await asyncio.sleep(AGAIN_S)


async def _predict(
    client: AsyncClient, answers: Answers, image: Any, timeout_s: float | None = None
) -> None:
    with answers.timed("predict"):
        await client.predict([image], timeout_s=timeout_s)


async def _beside(
    server: Server, answers: Answers, V: int, name: str, work: Callable[[], Awaitable[None]]
) -> None:
    """A session that goes on at its pace until the work is done."""
    async with AsyncClient(server.address, timeout_s=OPEN_S) as client:
        session = await client.session(name, **SESSION)
        ask = Ask(client, answers, pace_s=PACE_S)
        going = asyncio.ensure_future(ask.choose(session, V))
        try:
            await asyncio.sleep(4 * PACE_S)
            await work()
        finally:
            ask.stop()
            await going
