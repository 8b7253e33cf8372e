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
T = TypeVar("T")
Clock = Callable[[], float]

BUSY_RETRY_S = 0.5

_log = logging.getLogger("brainfast.serve")


def _nothing() -> None:
    pass


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
        """Answer, or with an exception fail, from any thread."""
        with suppress(RuntimeError):  # the loop was closed: nobody waits
            self._loop.call_soon_threadsafe(self._settle, answer)

    def _settle(self, answer: Any) -> None:
        if self.future.done():
            return
        if not isinstance(answer, Exception):
            self.future.set_result(answer)
            return
        stops = isinstance(answer, StopIteration)  # which no future takes
        self.future.set_exception(RuntimeError(repr(answer)) if stops else answer)
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

    room: how many may wait; work: answers the payloads of a batch, each by what it asked for or an
    exception; joins: whether a waiting job goes with a batch (none does without); changed: called
    on the lane's thread when a batch begins, and when it ends, before anybody is answered; last:
    called there when the lane ends; dropped: called, on any thread, with what is never begun.
    """

    def __init__(
        self,
        name: str,
        room: int,
        work: Callable[[Sequence[P]], Sequence[Any]],
        *,
        joins: Callable[[P, Sequence[P]], bool] | None = None,
        clock: Clock = time.monotonic,
        changed: Callable[[], None] = _nothing,
        last: Callable[[], None] = _nothing,
        dropped: Callable[[P], None] | None = None,
    ) -> None:
        self.name, self.room = name, room
        self._dropped = dropped
        self._work, self._joins, self._clock = work, joins, clock
        self._changed, self._last = changed, last
        self._condition = threading.Condition()
        self._queue: deque[Job[P]] = deque()
        self._running: list[Job[P]] = []
        self._since: float | None = None
        self._held = 0
        self._refuse: Callable[[], Refusal] | None = None
        self._stopping = False
        self._ended = False
        self._tell_end: list[Callable[[], None]] = []
        # A daemon: one that hangs in a disk or a driver must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"brainfast-{name}", daemon=True)
        self._begun = False

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn, or are being prepared."""
        return self.queued + self._held

    @property
    def queued(self) -> int:
        """Jobs that wait for their turn."""
        return len(self._queue)

    @property
    def running_s(self) -> float:
        """For how long the present batch has been running; 0 without one."""
        since = self._since
        return 0.0 if since is None else self._clock() - since

    def place(self) -> Place:
        """Room for one job; a full or closed lane is a Refusal."""
        with self._condition:
            if self._refuse is not None:
                raise self._refuse()
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
                job.finish(self._refusal())
            else:
                self._queue.append(job)
                self._begin()
        place.release()
        if not keep:
            job.future.add_done_callback(lambda future: self._forget(job, future))
        return job

    async def answer(self, job: Job[P], seconds: float | None) -> Any:
        """Wait so long for a job; one that nobody waits for is not begun, unless it is kept."""
        future = asyncio.shield(job.future) if job.keep else job.future
        return await within(future, seconds, self.name)

    async def call(self, payload: P, seconds: float, *, keep: bool = False) -> Any:
        """`submit` and `answer`."""
        return await self.answer(self.submit(payload, seconds, keep=keep), seconds)

    def close(self, refuse: Callable[[], Refusal]) -> None:
        """Refuse what comes from now on; what was accepted is done, and then the lane ends."""
        with self._condition:
            self._refuse = self._refuse or refuse
            self._begin()
            self._condition.notify_all()

    async def ended(self, seconds: float) -> bool:
        """Wait so long for the end of a closed lane; whether it has come."""
        loop = asyncio.get_running_loop()
        end: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle)

        def settle() -> None:
            if not end.done():
                end.set_result(None)

        with self._condition:
            if self._ended:
                return True
            self._tell_end.append(tell)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await end
        return self._ended

    def abandon(self) -> None:
        """Refuse what is left of a closed lane; it ends after what it is at."""
        with self._condition:
            self._stopping = True
            left = [*self._running, *self._queue]
            self._queue.clear()
            self._condition.notify_all()
        for job in left:
            job.finish(self._refusal())

    def _refusal(self) -> Refusal:
        return self._refuse() if self._refuse is not None else _stopped(self.name)

    def _begin(self) -> None:
        """Start the thread, with the condition held; a lane that is never used has none."""
        if not self._begun:
            self._begun = True
            self._thread.start()

    def _give_back(self) -> None:
        with self._condition:
            self._held -= 1
            self._condition.notify_all()

    def _forget(self, job: Job[P], future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            with self._condition, suppress(ValueError):
                self._queue.remove(job)
                self._condition.notify_all()
                self._drop(job)

    def _run(self) -> None:
        while self._do_next():
            pass
        self._told(self._last)
        with self._condition:
            self._ended = True
        for tell in self._tell_end:
            tell()

    def _do_next(self) -> bool:
        """Answer the next batch, of which nothing is kept; whether there was one."""
        batch = self._take()
        if not batch:
            return False
        self._told(self._changed)
        answers = self._answers([job.payload for job in batch])
        with self._condition:
            self._running, self._since = [], None
        self._told(self._changed)
        for job, answer in zip(batch, answers, strict=True):
            job.finish(answer)
        return True

    def _answers(self, payloads: Sequence[P]) -> Sequence[Any]:
        try:
            return self._work(payloads)
        except BaseException as error:  # a lane that ends would leave all others waiting
            known = isinstance(error, Exception)
            return [error if known else RuntimeError(repr(error))] * len(payloads)

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
                    if self._joins(job.payload, [other.payload for other in batch]):
                        self._queue.remove(job)
                        batch += self._alive(job)
            self._running, self._since = batch, self._clock()
            return batch

    def _finished(self) -> bool:
        left = self._queue or self._held
        return self._stopping or (self._refuse is not None and not left)

    def _alive(self, job: Job[P]) -> list[Job[P]]:
        """The job, unless its turn came too late."""
        if job.keep or self._clock() < job.deadline:
            return [job]
        self._drop(job)
        job.finish(_timed_out(self.name, "its turn in time"))
        return []

    def _drop(self, job: Job[P]) -> None:
        if self._dropped is not None:
            self._dropped(job.payload)

    def _told(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            _log.exception("lane %s", self.name)


async def within(future: asyncio.Future[T], seconds: float | None, name: str) -> T:
    """Wait so long for a future, which is then cancelled; too long is a Refusal."""
    timer = asyncio.timeout(seconds)
    try:
        async with timer:
            return await future
    except TimeoutError:
        if not timer.expired():
            raise
        raise _timed_out(name, f"an answer within {seconds:g} s") from None


def each(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The work of a lane whose payloads are calls, one a batch."""
    return [call() for call in calls]


def _timed_out(name: str, expected: str) -> Refusal:
    return Refusal(
        "timed_out",
        name,
        expected=expected,
        got="none yet",
        remedy="ask again, or give it more time",
    )


def _stopped(name: str) -> Refusal:
    return Refusal("draining", name, expected="a running server", got="one that ends")
