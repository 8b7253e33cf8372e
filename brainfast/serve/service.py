"""What a server does, whatever the wire: one engine, one pool and their sessions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine import Engine
from ..group_engine import GroupEngine
from ..loop.choice import Choice
from ..pool import Pool
from ..pool_choice import Candidate
from .about import about
from .engine_lane import EngineLane
from .events import ChoiceEvent, Event, Events, PredictEvent, State, StateEvent
from .lane import Clock, Lane, each
from .limits import Limits
from .metrics import Metrics
from .opening import begin, check_name, check_room
from .pictures import Image
from .refusal import Refusal, draining
from .requests import About, OpenSession, SessionState
from .scoring import goal_of
from .session_lane import SessionLane
from .subjects import Pools

STARTING_RETRY_S = 1.0

_log = logging.getLogger("brainfast.serve")


class Service:
    """An engine, a pool and their sessions, for several programs at once.

    engine: answers `predict` and `score`; pool: `select` and sessions; logs: the folder of the
    sessions' logs. Its methods are called on one event loop; what takes time runs on threads, each
    behind a bounded queue, so that one that stalls leaves the others alone. What cannot be answered
    is a `Refusal`, or another BrainfastError for a mistake in the request; see `refusal_of`.

    A choice is in the log before it is answered. Asked again with the same `trial`, `next` answers
    the same, and `tell` and `skip` do nothing: a client that got no answer asks again.
    """

    def __init__(
        self,
        engine: Engine | GroupEngine,
        *,
        name: str,
        pool: Pool | None = None,
        logs: Path | None = None,
        limits: Limits | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.engine, self.name, self.pool, self.logs = engine, name, pool, logs
        self.limits = limits or Limits()
        self.metrics, self.events = Metrics(), Events(self.limits.subscribers)
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engine_lane = EngineLane(
            engine, self.limits, self.metrics, clock=clock, changed=self._from_thread(self._watch)
        )
        self._pools = None if pool is None else Pools(pool, self._engine_lane.engines)
        self._pool_lane: Lane[Callable[[], Any]] = Lane(
            "pool", self.limits.waiting, each, clock=clock
        )
        self._session_lanes: dict[str, SessionLane] = {}
        self._warm = self._closed = False
        self._told: State | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._draining: asyncio.Task[None] | None = None
        self._about: About | None = None
        self.metrics.before_text.append(self._measure)

    @property
    def state(self) -> State:
        """Whether requests are taken: all in "ready", and those of the pool and of sessions, which
        need no engine, in "starting" and "stalled" too."""
        if self._closed:
            return "closed"
        if self._draining is not None:
            return "draining"
        if not self._warm:
            return "starting"
        return "stalled" if self._engine_lane.stalled else "ready"

    async def start(self) -> None:
        """Warm the engine up, in batches of 1, 2, 4, ... and the most; ready afterwards."""
        self._loop = asyncio.get_running_loop()
        self._tell_state()
        await self._engine_lane.warm_up()
        self._warm = True
        self._tell_state()

    def about(self) -> About:
        """What is served, put together when it is first asked for."""
        if self._about is None:
            self._about = about(self.engine, self.name, self.pool, self.limits)
        return self._about

    async def predict(
        self,
        images: Sequence[Image],
        *,
        subjects: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Responses {subject: [B,V]} in z units; the key is "" of a model of one.

        images: files (JPEG, PNG, WebP, ...) as bytes, or uint8 [H,W,3]; subjects: all without.
        """
        start = time.perf_counter()
        seconds = self._taking(timeout_s, warm=True)
        found = await self._engine_lane.predict(images, subjects, seconds)
        latency_ms = (time.perf_counter() - start) * 1e3
        self.events.publish(PredictEvent(len(images), latency_ms, time.time()))
        return found

    async def score(
        self,
        images: Sequence[Image],
        objective: Any,
        *,
        subject: str | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.float64]:
        """score_o = sum_v weights[o,v] response[v] of new images, [B,O].

        objective: what `Objective` takes; subject: needed where the model has several.
        """
        seconds = self._taking(timeout_s, warm=True)
        return await self._engine_lane.score(images, objective, subject, seconds)

    async def select(
        self,
        objective: Any,
        k: int = 10,
        *,
        exclude: Sequence[str] = (),
        subject: str | None = None,
        timeout_s: float | None = None,
    ) -> list[list[Candidate]]:
        """The k best candidates of every objective, [O][k]; it needs no engine that works.

        subject: needed where the model has several.
        """
        seconds = self._taking(timeout_s)
        pools = self._need_pool()
        self._check_k(k)

        def choose() -> list[list[Candidate]]:
            goal = goal_of(objective, self.limits.objectives)
            self._check_k(k, len(goal))
            pool, _ = pools.of(subject)
            found = pool.top(goal, k, exclude=exclude)
            return [found[name] for name in goal.names]

        chosen: list[list[Candidate]] = await self._pool_lane.call(choose, seconds)
        return chosen

    async def open_session(
        self, name: str, request: OpenSession, *, again: bool = False
    ) -> SessionState:
        """Begin a session on LOGS/<name>.jsonl, or with `resume` go on with it.

        Asked again, it is opened once, and until the first choice without `resume` too. again: a
        log without a choice that was begun by this very request is gone on with.
        Errors: "conflict" for a log that is there already, or a session of another request;
        "not_found" for no log to resume; "too_many" where `limits.sessions` are open.
        """
        self._taking(None)
        check_name(name)
        lane = self._session_lanes.get(name)
        if lane is not None:
            return await lane.again(request)
        lane = self._new_session(name, request, again)
        return await lane.opened()

    async def next(
        self, session: str, trial: int | None = None, *, objective: str | None = None
    ) -> Choice:
        """The choice number `trial`, made where it is the next one.

        None always makes one, which is not safe to ask for twice.
        """
        return await self._session(session).next(trial, objective)

    async def tell(
        self, session: str, trial: int, betas: NDArray[Any], *, subject: str | None = None
    ) -> None:
        """What was measured for a choice: z-scored betas [V], NaN where nothing was."""
        await self._session(session).tell(trial, betas, subject)

    async def skip(self, session: str, trial: int) -> None:
        """Give up the measurement of a choice; its image may be shown again."""
        await self._session(session).skip(trial)

    async def session(self, name: str) -> SessionState:
        """Where a session is."""
        return await self._session(name).state()

    def sessions(self) -> list[str]:
        """Names of the open ones."""
        return sorted(
            name for name, lane in self._session_lanes.items() if lane.session is not None
        )

    async def close_session(self, name: str) -> None:
        """Do what a session has accepted, sync its log and close it."""
        lane = self._session(name)
        lane.close(
            lambda: Refusal(
                "conflict", f"session {name}", expected="an open one", got="one that closes"
            )
        )
        if not await lane.ended(self.limits.timeout_s):
            raise Refusal(
                "timed_out",
                f"session {name}",
                expected=f"a log that is closed within {self.limits.timeout_s:g} s",
                got="a disk that is still at it",
                remedy="ask again",
            )

    async def drain(self) -> None:
        """Take nothing new, end what runs, sync and close every session's log; done once.

        What has not ended within `limits.drain_s` is refused and left behind.
        """
        if self._draining is None:
            self._loop = self._loop or asyncio.get_running_loop()
            self._draining = asyncio.ensure_future(self._drain())
        await asyncio.shield(self._draining)

    async def _drain(self) -> None:
        self._tell_state()
        lanes: dict[str, EngineLane | Lane[Any] | SessionLane] = {
            "engine": self._engine_lane,
            "pool": self._pool_lane,
            **{f"session {name}": lane for name, lane in self._session_lanes.items()},
        }
        for lane in lanes.values():
            lane.close(draining)
        waits = [lane.ended(self.limits.drain_s) for lane in lanes.values()]
        ends = await asyncio.gather(*waits, return_exceptions=True)
        for (name, lane), end in zip(lanes.items(), ends, strict=True):
            if isinstance(end, BaseException):
                _log.error("%s: %s", name, end)
            elif not end:
                _log.warning("%s did not end within %g s", name, self.limits.drain_s)
            lane.abandon()
        self._closed = True
        self._tell_state()
        self.events.close()

    def _taking(self, timeout_s: float | None, *, warm: bool = False) -> float:
        """Seconds that a request may take; a Refusal where none is taken now.

        warm: whether it needs the engine, and waits for its warm-up.
        """
        self._loop = self._loop or asyncio.get_running_loop()  # it may not have been started yet
        state = self.state
        if state in ("draining", "closed"):
            raise draining()
        if warm and state == "starting":
            raise Refusal(
                "starting",
                "server",
                expected="one that is ready",
                got="one that is warming up",
                remedy="ask again when /readyz says so",
                retry_after_s=STARTING_RETRY_S,
            )
        most = self.limits.timeout_s
        if timeout_s is None:
            return most
        if isinstance(timeout_s, bool) or not 0 < timeout_s <= most:
            raise Refusal(
                "invalid", "timeout_s", expected=f"above 0 and at most {most:g}", got=str(timeout_s)
            )
        return float(timeout_s)

    def _need_pool(self) -> Pools:
        if self._pools is None:
            raise Refusal(
                "not_found",
                "pool",
                expected="a server with a pool",
                got="one without",
                remedy="brainfast serve MODEL --pool POOL",
            )
        return self._pools

    def _check_k(self, k: int, objectives: int = 1) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise Refusal("invalid", "k", expected="a number from 1", got=repr(k))
        if k * objectives > self.limits.top:  # the loop writes all of them into one answer
            expected = f"at most {self.limits.top} candidates of all objectives together"
            raise Refusal("too_large", "k", expected=expected, got=str(k * objectives))

    def _new_session(self, name: str, request: OpenSession, again: bool) -> SessionLane:
        pools = self._need_pool()
        if self.logs is None:
            raise Refusal(
                "not_found",
                "logs",
                expected="a server that keeps logs",
                got="one without a folder for them",
                remedy="brainfast serve MODEL --pool POOL --logs DIR",
            )
        check_room(len(self._session_lanes), self.limits.sessions)
        lane = SessionLane(
            name,
            request,
            self.logs / f"{name}.jsonl",
            self.limits,
            start=lambda request, log: begin(name, pools, request, log, again=again),
            publish=self._from_thread(self._note),
            last=self._from_thread(lambda: self._forget(lane)),
            clock=self._clock,
        )
        self._session_lanes[name] = lane
        lane.when_opened(lambda error: None if error is None else self._give_up(lane))
        return lane

    def _give_up(self, lane: SessionLane) -> None:
        """A session that could not be opened leaves nothing."""
        lane.close(draining)
        self._forget(lane)

    def _forget(self, lane: SessionLane) -> None:
        self._measure_syncs(lane)
        if self._session_lanes.get(lane.name) is lane:
            del self._session_lanes[lane.name]

    def _session(self, name: str) -> SessionLane:
        self._taking(None)
        if name not in self._session_lanes:
            raise Refusal(
                "not_found",
                f"session {name!r:.80}",
                expected="an open session",
                got=f"one of {', '.join(self.sessions())}" if self.sessions() else "none",
                remedy="open it first, with resume=true where it has a log",
            )
        return self._session_lanes[name]

    def _note(self, event: Event) -> None:
        if isinstance(event, ChoiceEvent):
            self.metrics.choices_total.labels(event.source, str(event.late).lower()).inc()
        self.events.publish(event)

    def _from_thread(self, call: Callable[..., None]) -> Callable[..., None]:
        """The same call, made on the loop's thread from any other."""

        def schedule(*arguments: Any) -> None:
            if self._loop is not None:
                with suppress(RuntimeError):  # the loop was closed: nobody listens
                    self._loop.call_soon_threadsafe(call, *arguments)

        return schedule

    def _watch(self) -> None:
        """A batch began or ended: look again when it would have stalled."""
        if self._watching is not None:
            self._watching.cancel()
        if self._loop is not None:
            self._watching = self._loop.call_later(self.limits.stall_s, self._tell_state)
        self._tell_state()

    def _tell_state(self) -> None:
        state = self.state
        self.metrics.ready.set(state == "ready")
        self.metrics.stalled.set(state == "stalled")
        if state != self._told:
            self._told = state
            self.events.publish(StateEvent(state, time.time()))

    def _measure(self) -> None:
        """Numbers that are only looked at when somebody asks."""
        self._tell_state()
        lanes = list(self._session_lanes.values())
        self.metrics.sessions.set(len(self.sessions()))
        self.metrics.waiting.labels("engine").set(self._engine_lane.waiting)
        self.metrics.waiting.labels("pool").set(self._pool_lane.waiting)
        self.metrics.waiting.labels("sessions").set(sum(lane.waiting for lane in lanes))
        for lane in lanes:
            self._measure_syncs(lane)

    def _measure_syncs(self, lane: SessionLane) -> None:
        for seconds in lane.new_syncs():
            self.metrics.sync_seconds.observe(seconds)
