"""Clients of `brainfast serve` over ZeroMQ: with an event loop, and for a loop that draws frames.

>>> client = Client("ipc:///tmp/brainfast.sock")
>>> session = client.session("run-1", "FFA - PPA").result()
>>> pending = session.ask_next()
>>> while not pending.ready():
...     window.flip()
>>> choice = pending.result()

They need msgspec, numpy and pyzmq, and neither torch nor a model.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from array import array
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from .array_frames import is_array
from .async_client import AsyncClient
from .async_session import AsyncSession
from .connection import MOST, closed
from .refusal import Refusal
from .requests import About, SessionState
from .wire import Candidate, Choice, Objective

__all__ = ["AsyncClient", "AsyncSession", "Candidate", "Choice", "Client", "Pending", "Session"]

CLOSE_S = 5.0

T = TypeVar("T")

_log = logging.getLogger("brainfast.serve.client")


class Pending(Generic[T]):
    """An answer that is on its way. One that fails and is never looked at is logged."""

    def __init__(self, future: concurrent.futures.Future[T]) -> None:
        self._future, self._seen = future, False

    def ready(self) -> bool:
        """Whether `result` returns, or raises, at once."""
        return self._future.done()

    def result(self, timeout_s: float | None = None) -> T:
        """The answer, or its error; waits for it, at most as long as the request may take.

        With timeout_s it waits no longer than that, and raises a Refusal, "timed_out"; the request
        goes on, and its result can be asked for again.
        """
        done, _ = concurrent.futures.wait([self._future], timeout_s)
        if not done:
            raise Refusal(
                "timed_out", "result", expected=f"an answer within {timeout_s} s", got="none yet"
            )
        self._seen = True
        try:
            return self._future.result()
        except concurrent.futures.CancelledError:
            raise closed() from None

    def __del__(self) -> None:
        if not self._seen:
            self._future.add_done_callback(_log_failure)


def _log_failure(future: concurrent.futures.Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _log.error("%s", error)


class Client:
    """Asks a server without ever waiting for it: each call returns a `Pending` at once.

    A thread of its own does the rest, as `AsyncClient` does; see there for what is asked again. It
    reads files and decodes pictures too, so images must stay as they are until the answer is there;
    betas, objectives and names are copied. What is wrong with any of them `result` raises, and a
    call only that the client is closed, or "busy". Calls may come from any thread. timeout_s: of
    each request that does not tell its own.
    """

    def __init__(self, address: str, *, token: str | None = None, timeout_s: float = 30.0) -> None:
        self._client = AsyncClient(address, token=token, timeout_s=timeout_s)
        self._quick: set[concurrent.futures.Future[Any]] = set()
        self._slow: set[concurrent.futures.Future[Any]] = set()
        self._closed = False
        # ZeroMQ needs a loop that watches sockets, which on Windows is not the default.
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._run, name="brainfast-client", daemon=True)
        self._thread.start()

    def about(self, *, timeout_s: float | None = None) -> Pending[About]:
        """What the server answers for."""
        return self.submit(self._client.about(timeout_s=timeout_s))

    def predict(
        self,
        images: Any,
        *,
        subjects: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Pending[dict[str, NDArray[np.float32]]]:
        """Responses {subject: [B,V]} in z units, see `AsyncClient.predict`."""
        work = self._client.predict(images, subjects=_own(subjects), timeout_s=timeout_s)
        return self.submit(work, slow=True)

    def score(
        self,
        images: Any,
        objective: Objective,
        *,
        subject: str | None = None,
        timeout_s: float | None = None,
    ) -> Pending[NDArray[np.float64]]:
        """Scores [B,O] of images."""
        goal = _own(objective)
        work = self._client.score(images, goal, subject=subject, timeout_s=timeout_s)
        return self.submit(work, slow=True)

    def select(
        self,
        objective: Objective,
        k: int = 10,
        *,
        exclude: Sequence[str] = (),
        subject: str | None = None,
        timeout_s: float | None = None,
    ) -> Pending[list[list[Candidate]]]:
        """The k best candidates of every objective, [O][k]."""
        goal, without = _own(objective), _own(exclude)
        work = self._client.select(goal, k, exclude=without, subject=subject, timeout_s=timeout_s)
        return self.submit(work, slow=True)

    def session(
        self,
        name: str,
        objective: Objective | None = None,
        *,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Pending[Session]:
        """Begin a session, or go on with one: resume=True. options: see `OpenSession`."""
        goal = _own(objective)
        own = {field: _own(value) for field, value in options.items()}

        async def opened() -> Session:
            session = await self._client.session(name, goal, timeout_s=timeout_s, **own)
            return Session(self, session)

        return self.submit(opened())

    def ask_next(
        self, session: Session, trial: int | None = None, *, timeout_s: float | None = None
    ) -> Pending[Choice]:
        """The image to show now, see `Session.ask_next`."""
        return session.ask_next(trial, timeout_s=timeout_s)

    def tell(
        self, session: Session, choice: Choice | int, betas: Any, *, timeout_s: float | None = None
    ) -> Pending[None]:
        """What was measured for a choice, see `Session.tell`."""
        return session.tell(choice, betas, timeout_s=timeout_s)

    def submit(self, work: Coroutine[Any, Any, T], *, slow: bool = False) -> Pending[T]:
        """Have something done on the client's thread; refused where MOST things already are.

        slow: predictions, scores and selections, which are counted by themselves.
        """
        pending = self._slow if slow else self._quick
        try:
            if self._closed:
                raise closed()
            if len(pending) >= MOST:
                most = f"at most {MOST} requests at once"
                raise Refusal("busy", "client", expected=most, got="one more")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except BaseException:
            work.close()
            raise
        pending.add(future)
        future.add_done_callback(pending.discard)
        return Pending(future)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Wait until what was asked is answered, so long at most; then end the thread."""
        if self._closed:
            return
        self._closed = True
        concurrent.futures.wait((*self._quick, *self._slow), timeout_s)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        self._client.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class Session:
    """A session that `Client.session` opened; see `AsyncSession` for what is asked again.

    state: as it was when the session was opened, or resumed.
    """

    def __init__(self, client: Client, session: AsyncSession) -> None:
        self._client, self._session = client, session

    @property
    def name(self) -> str:
        """What it is called, as its log is."""
        return self._session.name

    @property
    def state(self) -> SessionState:
        """Where the session was when it was opened, or resumed."""
        return self._session.state

    def ask_next(
        self,
        trial: int | None = None,
        *,
        objective: str | None = None,
        timeout_s: float | None = None,
    ) -> Pending[Choice]:
        """The image to show now.

        trial: number of the choice; without it, the one after the last that was got here. A choice
        that came too late is therefore what the next call gets.
        """
        return self._client.submit(
            self._session.next(trial, objective=objective, timeout_s=timeout_s)
        )

    def tell(
        self,
        choice: Choice | int,
        betas: Any,
        *,
        subject: str | None = None,
        timeout_s: float | None = None,
    ) -> Pending[None]:
        """What was measured for a choice, or for its number: z-scored betas [V], NaN where none."""
        own = _own(betas)
        return self._client.submit(
            self._session.tell(choice, own, subject=subject, timeout_s=timeout_s)
        )

    def skip(self, choice: Choice | int, *, timeout_s: float | None = None) -> Pending[None]:
        """Give up the measurement of a choice; its image may be shown again."""
        return self._client.submit(self._session.skip(choice, timeout_s=timeout_s))

    def ask_state(self, *, timeout_s: float | None = None) -> Pending[SessionState]:
        """Where the session is now."""
        return self._client.submit(self._session.ask_state(timeout_s=timeout_s))

    def close(self, *, timeout_s: float | None = None) -> Pending[None]:
        """End it at the server, where its log stays."""
        return self._client.submit(self._session.close(timeout_s=timeout_s))


def _own(given: Any) -> Any:
    """A copy of what programs fill anew for the next trial: an array of any kind, or a list."""
    if isinstance(given, list):
        return given.copy()
    if isinstance(given, array | memoryview) or is_array(given):
        with suppress(Exception):  # what is wrong with it, the result tells
            return np.asarray(given).copy()
    return given
