"""One thread and a bounded queue before it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from .refusal import Refusal

P = TypeVar("P")
Clock = Callable[[], float]

BUSY_RETRY_S = 0.5

_log = logging.getLogger("brainfast.serve")


class Job(Generic[P]):
    """A payload on its way through a lane; `future` is for the loop that handed it in.

    deadline: of the lane's clock, after which it is not begun; keep: it is done even where nobody
    waits for it any more.
    """

    def __init__(self, payload: P, deadline: float, keep: bool) -> None:
        self.payload, self.deadline, self.keep = payload, deadline, keep
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def finish(self, answer: Any) -> None:
        """Answer, from any thread."""
        self._call(self._settle, answer, None)

    def fail(self, error: BaseException) -> None:
        """Answer with an error, from any thread."""
        self._call(self._settle, None, error)

    def _call(self, what: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits
            self._loop.call_soon_threadsafe(what, *arguments)

    def _settle(self, answer: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(answer)
            return
        self.future.set_exception(error)
        self.future.exception()  # whoever waited may have gone: it is no error of the loop's


class Place:
    """Room for one job that is still being prepared; given back once."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def release(self) -> None:
        """Give the room back, from any thread."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class Lane(Generic[P]):
    """Does jobs in the order they came, some together, on a thread of its own.

    room: how many may wait; work: does a batch, and finishes or fails each of its jobs; joins:
    whether a waiting job goes with a batch (none does without); changed: called on the lane's
    thread when a batch begins and when it ends.
    """

    def __init__(
        self,
        name: str,
        room: int,
        work: Callable[[Sequence[Job[P]]], None],
        *,
        joins: Callable[[Job[P], Sequence[Job[P]]], bool] | None = None,
        clock: Clock = time.monotonic,
        changed: Callable[[], None] | None = None,
    ) -> None:
        self.name, self.room = name, room
        self._work, self._joins, self._clock = work, joins, clock
        self._changed = changed
        self._condition = threading.Condition()
        self._queue: deque[Job[P]] = deque()
        self._running: list[Job[P]] = []
        self._since: float | None = None
        self._held = 0
        self._closed: Refusal | None = None
        self._stopping = False
        self._ended = threading.Event()
        self._on_end: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name=f"brainfast-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn, or are being prepared."""
        return len(self._queue) + self._held

    @property
    def running_s(self) -> float:
        """For how long the present batch has been running; 0 without one."""
        since = self._since
        return 0.0 if since is None else self._clock() - since

    def place(self) -> Place:
        """Room for one job; a full or closed lane is a Refusal."""
        with self._condition:
            if self._closed is not None:
                raise self._closed
            if len(self._queue) + self._held >= self.room:
                raise Refusal(
                    "busy",
                    self.name,
                    expected=f"at most {self.room} requests that wait",
                    got="one more",
                    remedy="ask again a little later",
                    retry_after_s=BUSY_RETRY_S,
                )
            self._held += 1
        return Place(self._give_back)

    def submit(
        self, payload: P, seconds: float, *, place: Place | None = None, keep: bool = False
    ) -> Job[P]:
        """Hand in a job that must begin within so many seconds, on the loop's thread."""
        place = place or self.place()
        job = Job(payload, self._clock() + seconds, keep)
        with self._condition:
            if self._stopping:
                job.fail(self._closed or _ended(self.name))
            else:
                self._queue.append(job)
        place.release()
        if not keep:
            job.future.add_done_callback(lambda future: self._forget(job, future))
        return job

    async def answer(self, job: Job[P], seconds: float) -> Any:
        """Wait so long for a job; one that nobody waits for is not begun, unless it is kept."""
        future = asyncio.shield(job.future) if job.keep else job.future
        timer = asyncio.timeout(seconds)
        try:
            async with timer:
                return await future
        except TimeoutError:
            if not timer.expired():
                raise
            raise _timed_out(self.name, seconds) from None

    async def call(self, payload: P, seconds: float, *, keep: bool = False) -> Any:
        """`submit` and `answer`."""
        return await self.answer(self.submit(payload, seconds, keep=keep), seconds)

    def close(self, refusal: Refusal) -> None:
        """Refuse what comes from now on, by a lane that goes on with what it has accepted."""
        with self._condition:
            self._closed = self._closed or refusal
            self._condition.notify_all()

    async def drain(self, seconds: float) -> bool:
        """Wait so long until a closed lane has done all that it accepted; whether it has.

        What is left is then refused, and the thread ends after what it is at.
        """
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def tell() -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda: ended.done() or ended.set_result(None))

        with self._condition:
            self._on_end = tell
            if self._ended.is_set():
                return True
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await ended
        if not self._ended.is_set():
            self._abandon()
        return self._ended.is_set()

    def _abandon(self) -> None:
        with self._condition:
            self._stopping = True
            left = [*self._running, *self._queue]
            self._queue.clear()
            self._condition.notify_all()
        for job in left:
            job.fail(self._closed or _ended(self.name))

    def _give_back(self) -> None:
        with self._condition:
            self._held -= 1
            self._condition.notify_all()

    def _forget(self, job: Job[P], future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            with self._condition, suppress(ValueError):
                self._queue.remove(job)
                self._condition.notify_all()

    def _run(self) -> None:
        while batch := self._take():
            self._tell_change()
            try:
                self._work(batch)
            except BaseException as error:  # a lane that ends would leave all others waiting
                for job in batch:
                    job.fail(error)
            with self._condition:
                self._running, self._since = [], None
            self._tell_change()
        with self._condition:
            self._ended.set()
            if self._on_end is not None:
                self._on_end()

    def _take(self) -> list[Job[P]]:
        """The next batch; none where the lane ends."""
        with self._condition:
            while True:
                self._condition.wait_for(lambda: self._queue or self._finished())
                if self._finished():
                    return []
                batch = self._alive(self._queue.popleft())
                if batch:
                    break
            if self._joins is not None:
                for job in tuple(self._queue):
                    if self._joins(job, batch):
                        self._queue.remove(job)
                        batch += self._alive(job)
            self._running, self._since = batch, self._clock()
            return batch

    def _finished(self) -> bool:
        left = self._queue or self._held
        return self._stopping or (self._closed is not None and not left)

    def _alive(self, job: Job[P]) -> list[Job[P]]:
        """The job, unless its turn came too late."""
        if job.keep or self._clock() < job.deadline:
            return [job]
        job.fail(_timed_out(self.name, None))
        return []

    def _tell_change(self) -> None:
        if self._changed is None:
            return
        try:
            self._changed()
        except Exception:
            _log.exception("a change of lane %s was not told", self.name)


def _timed_out(name: str, seconds: float | None) -> Refusal:
    return Refusal(
        "timed_out",
        name,
        expected="an answer in time" if seconds is None else f"an answer within {seconds:g} s",
        got="none yet",
        remedy="ask again, or give it more time",
    )


def _ended(name: str) -> Refusal:
    return Refusal("draining", name, expected="a running server", got="one that has ended")
