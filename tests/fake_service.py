"""A service without an engine, whose answers can be held back, and ways to serve it."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np

from brainfast.loop import Choice
from brainfast.pool_choice import Candidate
from brainfast.serve.limits import Limits
from brainfast.serve.metrics import Metrics
from brainfast.serve.refusal import Refusal
from brainfast.serve.requests import About, OpenSession, SessionState
from brainfast.serve.zmq_server import ZmqServer

LONG = 60.0  # seconds, only against a test that hangs


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """An asynchronous test as pytest calls it."""

    @functools.wraps(test)
    def run(*args: Any, **given: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(LONG):
                await test(*args, **given)

        asyncio.run(bounded())

    return run


class FakeService:
    """Answers like a `Service`; while `gate` is shut, no request is answered.

    logs: what is left of sessions when a server ends: {name: [[image, told betas or None], ...]}.
    refuse: errors that are raised, one a call, before anything is done. calls: by name, as they
    begin; answered: as they end.
    """

    def __init__(self, limits: Limits | None = None, logs: dict[str, Any] | None = None) -> None:
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.logs = {} if logs is None else logs
        self.refuse: list[Exception] = []
        self.calls: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self.gate.set()
        self._open: set[str] = set()
        self._changed = asyncio.Event()

    async def begun(self, name: str, count: int = 1) -> None:
        """Return when so many of these calls have begun."""
        await self._until(lambda: self.calls[name] >= count)

    async def ended(self, name: str, count: int = 1) -> None:
        """Return when so many of these calls have ended, well or not."""
        await self._until(lambda: self.answered[name] >= count)

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._changed.clear()
            await self._changed.wait()

    async def _pass(self, name: str) -> None:
        self.calls[name] += 1
        self._changed.set()
        try:
            if self.refuse:
                raise self.refuse.pop(0)
            await self.gate.wait()
        finally:
            self.answered[name] += 1
            self._changed.set()

    def about(self) -> About:
        rois = {"": ["FFA", "PPA"]}
        return About("0", "toy", "f" * 64, [], {"": 2}, rois, None, self.limits)

    async def predict(self, images: Any, *, subjects: Any = None, timeout_s: Any = None) -> Any:
        """Of each image its bytes' sum and number; of each subject as many as letters more."""
        await self._pass("predict")
        rows = [np.frombuffer(np.asarray(image).tobytes(), np.uint8) for image in images]
        answer = np.array([[row.sum(), row.size] for row in rows], np.float32)
        return {name: answer + len(name) for name in subjects or [""]}

    async def score(
        self, images: Any, objective: Any, *, subject: Any = None, timeout_s: Any = None
    ) -> Any:
        await self._pass("score")
        objectives = [objective] if isinstance(objective, str) else objective
        return np.array([[len(str(each)) for each in objectives] for _ in images], np.float64)

    async def select(
        self,
        objective: Any,
        k: int = 10,
        *,
        exclude: Any = (),
        subject: str | None = None,
        timeout_s: Any = None,
    ) -> Any:
        await self._pass("select")
        objectives = [objective] if isinstance(objective, str) else objective
        names = [name for name in "abcdef" if name not in exclude][:k]
        return [[Candidate(name, ord(name), 1.5, "") for name in names] for _ in objectives]

    async def open_session(
        self, name: str, request: OpenSession, *, again: bool = False
    ) -> SessionState:
        await self._pass("open")
        begun = request.resume or (again and not self.logs.get(name))
        if name in self.logs and name not in self._open and not begun:
            raise Refusal("conflict", "session", expected="a new name", got=repr(name))
        self.logs.setdefault(name, [])
        self._open.add(name)
        return self._state(name, request)

    async def next(self, session: str, trial: Any = None, *, objective: Any = None) -> Choice:
        """The choice is in the log before the gate is passed, as if its answer were late."""
        trials = self._trials(session)
        number = len(trials) if trial is None else trial
        if number > len(trials):
            raise Refusal("conflict", "trial", expected=f"{len(trials)} at most", got=str(number))
        if self.refuse:
            await self._pass("next")
        if number == len(trials):
            trials.append([f"image-{number}", None])
        await self._pass("next")
        image = trials[number][0]
        return Choice(
            image=image,
            trial=number,
            objective=objective or "FFA",
            score=0.5,
            value=float("inf"),
            uncertainty=None,
            ties=1,
            source="fresh",
            late=False,
            latency_ms=0.25,
        )

    async def tell(self, session: str, trial: int, betas: Any, *, subject: Any = None) -> None:
        await self._pass("tell")
        self._trials(session)[trial][1] = betas

    async def skip(self, session: str, trial: int) -> None:
        await self._pass("skip")
        self._trials(session)[trial][1] = "skipped"

    async def session(self, name: str) -> SessionState:
        await self._pass("session")
        self._trials(name)
        return self._state(name, OpenSession())

    async def close_session(self, name: str) -> None:
        await self._pass("close")
        self._trials(name)
        self._open.remove(name)

    def _trials(self, name: str) -> Any:
        if name not in self._open:
            raise Refusal("not_found", "session", expected="an open one", got=repr(name))
        return self.logs[name]

    def _state(self, name: str, request: OpenSession) -> SessionState:
        told = sum(betas is not None for _, betas in self.logs[name])
        return SessionState(
            name=name,
            objectives=[str(request.objective)],
            strategy=request.strategy,
            deadline_ms=request.deadline_ms,
            trials=len(self.logs[name]),
            told=told,
            skipped=0,
            late=0,
            outstanding=[],
            allowed=6,
            problem=None,
            log=f"{name}.jsonl",
            dropped_bytes=0,
        )


async def killed(server: ZmqServer) -> None:
    """End a server as SIGKILL would: no answer leaves it any more."""
    server._reader.cancel()
    server._socket.close(linger=0)
    for task in server._tasks:
        task.cancel()
    await asyncio.gather(server._reader, *server._tasks, return_exceptions=True)
    await asyncio.to_thread(server._context.term)


class ServerThread:
    """A fake service and its server, on a thread with a loop of its own."""

    def __init__(self, address: str, logs: dict[str, Any] | None = None) -> None:
        self._given, self._logs = address, logs
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something on the loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LONG)

    def gate(self, open_: bool) -> None:
        """Let answers out, or hold them back."""

        async def turn() -> None:
            (self.service.gate.set if open_ else self.service.gate.clear)()

        self.run(turn())

    def __enter__(self) -> ServerThread:
        async def start() -> None:
            self.service = FakeService(logs=self._logs)
            self.server = ZmqServer(self.service, self._given)
            await self.server.start()

        self._thread.start()
        self.run(start())
        self.address = self.server.address
        return self

    def __exit__(self, *_: object) -> None:
        self.gate(True)
        self.run(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LONG)
        self._loop.close()
