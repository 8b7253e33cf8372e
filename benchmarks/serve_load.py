"""Clients of a server, and how long each of their answers took."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainfast.machine import loaded_uncollected
from brainfast.serve.async_client import AsyncClient
from served_model import pictures

SESSION = {"objective": "FFA - PPA", "strategy": "greedy", "deadline_ms": 20.0, "repeats": 1000}
SUBJECT = "subject-{}"
OPEN_S = 120.0  # of a session: a pool is large, and all cores may be busy
# Fewer answers than these do not tell the quantile apart from the slowest.
QUANTILES = {"p50_ms": (0.5, 1), "p99_ms": (0.99, 100), "p999_ms": (0.999, 1000)}


@dataclass
class Answers:
    """What came back. seconds: of every answer by operation, from the call to the answer in the
    client; refused: of every operation by code; late: choices so marked; received: every choice
    that a client was given, (session, trial, image)."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    late: int = 0
    received: list[tuple[str, int, str]] = field(default_factory=list)

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Note an answer's time, or the code of its refusal."""
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            self.refused[operation][getattr(error, "code", type(error).__name__)] += 1
        else:
            self.seconds[operation].append(time.perf_counter() - start)

    def asked(self, operation: str) -> bool:
        """Whether it was asked for at all."""
        return bool(self.seconds.get(operation) or self.refused.get(operation))

    def row(self, operation: str) -> dict[str, Any]:
        """Count, quantiles and refusals of one operation."""
        seconds = np.asarray(self.seconds.get(operation, []))
        told = {
            name: round(1e3 * float(np.quantile(seconds, share)), 2)
            if len(seconds) >= least
            else None
            for name, (share, least) in QUANTILES.items()
        }
        worst = _milliseconds(seconds.max()) if len(seconds) else None
        refused = dict(self.refused.get(operation, {}))
        return {"answers": len(seconds), **told, "max_ms": worst, "refused": refused}


@dataclass
class Ask:
    """What one client does again and again, at once after the last time or every `pace_s`."""

    client: AsyncClient
    answers: Answers
    pace_s: float | None = None
    stopped: bool = False

    def stop(self) -> None:
        """Act no more."""
        self.stopped = True

    async def predict(self, image: bytes | NDArray[np.uint8], offset_s: float = 0.0) -> None:
        """The response to a new image."""

        async def act() -> None:
            with self.answers.timed("predict"):
                await self.client.predict([image])

        await self._again(act, offset_s)

    async def choose(self, session: Any, V: int, offset_s: float = 0.0) -> None:
        """A session's life: what was measured for the image before, and half a pace later the next;
        without a pace at once."""
        betas = np.random.default_rng(0).standard_normal(V).astype(np.float32)
        before: list[Any] = []

        async def act() -> None:
            if before:
                with self.answers.timed("tell"):
                    await session.tell(before[-1], betas)
                before.clear()
            if self.pace_s is not None:
                await asyncio.sleep(self.pace_s / 2)
            with self.answers.timed("next"):
                choice = await session.next()
                self.answers.received.append((session.name, choice.trial, choice.image))
                self.answers.late += choice.late
                before.append(choice)

        await self._again(act, offset_s)

    async def _again(self, act: Callable[[], Awaitable[object]], offset_s: float) -> None:
        clock = asyncio.get_running_loop().time
        due = clock() + offset_s
        while not self.stopped:
            if self.pace_s is not None:
                await asyncio.sleep(max(0.0, due - clock()))
                due = max(due + self.pace_s, clock())
            await act()


async def open_sessions(address: str, count: int) -> None:
    """A session each for so many clients."""
    async with AsyncClient(address, timeout_s=OPEN_S) as client:
        for number in range(count):
            await client.session(SUBJECT.format(number), **SESSION)


async def load(
    address: str,
    act: str,
    clients: int,
    pace_s: float | None,
    seconds: float,
    V: int,
    first: int = 0,
) -> Answers:
    """So many clients that `predict` or `choose` for some seconds.

    At a pace they start in turn, so that they do not all ask at the same moment. Those that choose
    go on with a session each of `open_sessions`, from number `first` on.
    """
    answers = Answers()
    images = pictures(clients, 224, seed=2)
    async with AsyncExitStack() as stack:
        stack.enter_context(loaded_uncollected())  # torch, which no client needs: 0.25 s each time
        opened = [await stack.enter_async_context(AsyncClient(address)) for _ in range(clients)]
        asks = [Ask(client, answers, pace_s) for client in opened]
        offsets = [(pace_s or 0.0) * number / clients for number in range(clients)]
        if act == "predict":
            runs = [ask.predict(*each) for ask, *each in zip(asks, images, offsets, strict=True)]
        else:
            sessions = [
                await client.session(SUBJECT.format(number), resume=True)
                for number, client in enumerate(opened, first)
            ]
            runs = [
                ask.choose(session, V, offset)
                for ask, session, offset in zip(asks, sessions, offsets, strict=True)
            ]
        going = asyncio.gather(*runs)
        await asyncio.wait([going], timeout=seconds)
        for ask in asks:
            ask.stop()
        await going
    return answers


def _milliseconds(seconds: Any) -> float:
    return round(1e3 * float(seconds), 2)
