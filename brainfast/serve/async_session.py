"""A session at a server, asked for one choice after another."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from . import wire
from .array_frames import Array, as_array
from .connection import Deadline, ServerRefusal
from .refusal import Refusal
from .requests import OpenSession, SessionState
from .wire import Choice

if TYPE_CHECKING:
    from .async_client import AsyncClient

# What may be otherwise a moment later; of these, what may have been done for all that.
PASSING = ("busy", "stalled", "starting", "draining", "timed_out")
PERHAPS_DONE = ("stalled", "draining", "timed_out")
PAUSE_S, PAUSE_MOST_S = 0.05, 1.0

R = TypeVar("R", bound=wire.Reply)


class AsyncSession:
    """A session that `AsyncClient.session` opened.

    A request that is refused for the moment, or that a server took with it, is repeated until its
    time is over. That is safe: a choice is asked for by its number, so no image is chosen twice,
    and one that came too late is what the next call gets. Where the server was started anew, the
    session is resumed from its log, and where the one before began the log of a session and did
    not say so, the session goes on with it.

    state: as it was when the session was opened, or resumed.
    """

    state: SessionState

    def __init__(self, client: AsyncClient, name: str, options: OpenSession) -> None:
        self.name, self._client, self._options = name, client, options
        self._connection = client.connection
        self._in_order = asyncio.Lock()
        self._next = 0
        self._unanswered: dict[int, str | None] = {}  # trial: the objective it was asked for
        self._opened_by = 0  # the connection on which the server knew the session

    async def open(self, *, timeout_s: float | None = None) -> None:
        """Begin it, or go on with it."""
        async with self._within(timeout_s) as deadline:
            await self._open(deadline, self._options)
        self._next = self.state.trials

    async def next(
        self,
        trial: int | None = None,
        *,
        objective: str | None = None,
        timeout_s: float | None = None,
    ) -> Choice:
        """The image to show now; of several calls at once each gets its own, in their order.

        trial: number of the choice; without it, the one after the last that was got here. Where
        that one was asked for before and the answer did not come in time, it may be chosen already,
        so it is asked for with the objective of then; `choice.objective` tells.
        """
        _check_text(objective)
        async with self._within(timeout_s) as deadline, self._in_order:
            number = self._next if trial is None else number_of(trial)
            first = self._unanswered.setdefault(number, objective)
            wanted = first if trial is None else objective
            request = wire.Next(session=self.name, trial=number, objective=wanted)
            try:
                reply, _ = await self._insist(deadline, request, wire.Chosen)
            except Refusal as refusal:
                if refusal.code not in PASSING and wanted == first:  # it was not chosen
                    del self._unanswered[number]
                raise
            del self._unanswered[number]
            self._next = max(self._next, reply.choice.trial + 1)
            return reply.choice

    async def tell(
        self,
        choice: Choice | int,
        betas: Any,
        *,
        subject: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """What was measured for a choice, or for its number: z-scored betas [V], NaN where none."""
        request = wire.Tell(session=self.name, trial=number_of(choice), subject=subject)
        # Copied: a message that is given up may leave later, and must not bear the next betas.
        own = as_betas(betas).copy()
        async with self._within(timeout_s) as deadline:
            await self._insist(deadline, request, wire.Done, [own])

    async def skip(self, choice: Choice | int, *, timeout_s: float | None = None) -> None:
        """Give up the measurement of a choice; its image may be shown again."""
        request = wire.Skip(session=self.name, trial=number_of(choice))
        async with self._within(timeout_s) as deadline:
            await self._insist(deadline, request, wire.Done)

    async def ask_state(self, *, timeout_s: float | None = None) -> SessionState:
        """Where the session is now."""
        async with self._within(timeout_s) as deadline:
            reply, _ = await self._insist(deadline, wire.AskSession(session=self.name), wire.State)
        return reply.state

    async def close(self, *, timeout_s: float | None = None) -> None:
        """End it at the server, where its log stays; one that is not open there is ended."""
        async with self._within(timeout_s) as deadline:
            try:
                await self._connection.ask(deadline, wire.Close(session=self.name), wire.Done)
            except Refusal as refusal:
                if refusal.code != "not_found":
                    raise

    def _within(self, timeout_s: float | None) -> AbstractAsyncContextManager[Deadline]:
        return self._connection.within(self._client.seconds(timeout_s))

    async def _open(self, deadline: Deadline, options: OpenSession) -> None:
        request = wire.Open(session=self.name, options=options)
        try:
            reply, _ = await self._insist(deadline, request, wire.State)
        except ServerRefusal as refusal:
            if refusal.code != "conflict" or not refusal.repeated or options.resume:
                raise
            # The log may be what an earlier sending of the same request began.
            request = msgspec.structs.replace(request, again=True)
            reply, _ = await self._insist(deadline, request, wire.State)
        self.state, self._opened_by = reply.state, self._connection.count

    async def _insist(
        self, deadline: Deadline, request: wire.Request, kind: type[R], arrays: Sequence[Array] = ()
    ) -> tuple[R, list[Array]]:
        repeated = False
        while True:
            opened_by = self._opened_by
            try:
                return await self._connection.ask(deadline, request, kind, arrays)
            except Refusal as refusal:
                if isinstance(refusal, ServerRefusal):
                    refusal.repeated |= repeated
                    repeated = refusal.repeated or refusal.code in PERHAPS_DONE
                if refusal.code == "not_found" and not isinstance(request, wire.Open):
                    await self._resume(deadline, opened_by, refusal)
                else:
                    await self._pause(deadline, refusal)

    async def _resume(self, deadline: Deadline, opened_by: int, refusal: Refusal) -> None:
        """Go on with the log where another server answers than the one that had the session."""
        if self._opened_by != opened_by:
            return  # another request has seen to it
        if self._connection.count == opened_by:
            raise refusal
        await self._open(deadline, msgspec.structs.replace(self._options, resume=True))

    async def _pause(self, deadline: Deadline, refusal: Refusal) -> None:
        seconds = min(max(refusal.retry_after_s or 0.0, PAUSE_S), PAUSE_MOST_S)
        if refusal.code not in PASSING or seconds >= deadline.left():
            raise refusal
        await asyncio.sleep(seconds)


def number_of(choice: Choice | int) -> int:
    """The number of a choice, for which the number itself may stand; else a BrainfastError."""
    number: Any = getattr(choice, "trial", choice)
    try:
        return operator.index(number)
    except TypeError:
        got = f"{choice!r:.80}"
        raise BrainfastError("trial", expected="a choice, or its number", got=got) from None


def _check_text(objective: Any) -> None:
    if not isinstance(objective, str | None):
        raise BrainfastError("objective", expected="a text", got=type(objective).__name__)


def as_betas(betas: Any) -> NDArray[Any]:
    """Floats [V]; else a BrainfastError."""
    found = as_array("betas", betas, expected="numbers [V]")
    if found.ndim != 1 or found.dtype.kind not in "fiu" or not found.size:
        raise BrainfastError(
            "betas", expected="numbers [V]", got=f"{found.dtype} {list(found.shape)}"
        )
    return found if found.dtype in (np.float32, np.float64) else found.astype(np.float64)
