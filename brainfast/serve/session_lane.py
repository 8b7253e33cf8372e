"""The lane of one session: its calls in order, and safe to repeat."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BrainfastError
from ..loop.choice import Choice
from ..loop.design import design_path
from ..loop.log import read_log
from ..loop.session import Session
from .events import ChoiceEvent, Event, SessionEvent, SkipEvent, TellEvent
from .lane import Clock, Job, Lane
from .limits import Limits
from .refusal import Refusal
from .requests import OpenSession, Outstanding, SessionState

T = TypeVar("T")
Work = Callable[[], Any]

_log = logging.getLogger("brainfast.serve")


class SessionLane:
    """A session on a thread of its own, behind a bounded queue.

    start: opens the session of a new log; pool: that a log is resumed with; publish: told of every
    event, on the lane's thread, before the call that made it is answered.

    A call that is asked for twice is done once. `next` with the number of a choice that was made
    answers with that choice; `tell` of the betas that were told, and `skip` of what was skipped, do
    nothing. What differs from what was done before is a "conflict". tell and skip, once accepted,
    are done even where nobody waits for their answer any more.
    """

    def __init__(
        self,
        name: str,
        request: OpenSession,
        log: Path,
        limits: Limits,
        *,
        start: Callable[[OpenSession, Path], Session],
        pool: Any,
        publish: Callable[[Event], None],
        clock: Clock,
    ) -> None:
        self.name, self.request, self.log = name, request, log
        self._limits, self._start, self._pool = limits, start, pool
        self._publish = publish
        self._session: Session | None = None
        self._objectives: list[str] = []
        self._lane: Lane[Work] = Lane(
            f"session {name}", limits.session_waiting, _call_each, clock=clock
        )
        self._opening: Job[Work] | None = None

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return self._lane.waiting

    @property
    def session(self) -> Session | None:
        """The session, once it is open."""
        return self._session

    async def open(self) -> SessionState:
        """Open the session, or wait with those who do; its state."""
        if self._opening is None:
            self._opening = self._lane.submit(self._open, float("inf"), keep=True)
        state: SessionState = await self._lane.answer(self._opening, self._limits.timeout_s)
        return state

    async def next(self, trial: int | None, objective: str | None) -> Choice:
        """The choice of a number, made where it is the next one; None makes one always."""
        choice: Choice = await self._call(lambda session: self._next(session, trial, objective))
        return choice

    async def tell(self, trial: int, betas: Any, subject: str | None) -> None:
        """What was measured for a choice."""
        await self._call(lambda session: self._tell(session, trial, betas, subject), keep=True)

    async def skip(self, trial: int) -> None:
        """Give up the measurement of a choice."""
        await self._call(lambda session: self._skip(session, trial), keep=True)

    async def state(self) -> SessionState:
        """Where the session is."""
        state: SessionState = await self._call(self._state)
        return state

    async def close(self, refusal: Refusal, seconds: float) -> bool:
        """Do what was accepted, sync the log and close it; whether that ended in time.

        A disk that fails is a BrainfastError.
        """
        ...

    async def _call(self, work: Callable[[Session], Any], *, keep: bool = False) -> Any:
        return await self._lane.call(
            lambda: work(self._opened()), self._limits.timeout_s, keep=keep
        )

    def _opened(self) -> Session:
        if self._session is None:
            raise Refusal(
                "not_found", f"session {self.name}", expected="an open one", got="one that is not"
            )
        return self._session
