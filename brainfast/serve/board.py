"""What the live page shows: a record of sessions and latencies, kept from the service's events."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec

from ..errors import BrainfastError
from .events import ChoiceEvent, Event, PredictEvent, SessionEvent, SkipEvent, StateEvent, TellEvent
from .latencies import EDGES_MS, Latencies
from .refusal import Refusal
from .service import Service

TRIALS_KEPT = 200  # of a session
SESSIONS_KEPT = 32
MESSAGES_KEPT = 512  # that a page which comes back is still given one by one
PAGES = 32  # that may watch at once
ALIVE_S = 2.0
LATENCY_S = 0.5  # histograms are made at most so often, once for all pages


class Trial(msgspec.Struct):
    """A choice, and what became of it: "outstanding", "told" or "skipped"."""

    trial: int
    image: str
    objective: str
    score: float | None
    uncertainty: float | None
    ties: int
    source: str
    late: bool
    latency_ms: float
    wall_s: float
    status: str = "outstanding"
    measured: float | None = None


@dataclass(eq=False)
class SessionRecord:
    """A session as far as the page shows it; the service knows all of it."""

    name: str
    open: bool = True
    deadline_ms: float | None = None
    objectives: list[str] = field(default_factory=list)
    strategy: str = ""
    subject: str | None = None
    problem: str | None = None
    fresh: bool = True  # the latest choice
    trials: dict[int, Trial] = field(default_factory=dict)
    latency: Latencies = field(default_factory=Latencies)

    def add(self, trial: Trial) -> None:
        """A new choice. Trials with its number or a later one are of an older session."""
        for number in [number for number in self.trials if number >= trial.trial]:
            del self.trials[number]
        self.trials[trial.trial] = trial
        while len(self.trials) > TRIALS_KEPT:
            del self.trials[next(iter(self.trials))]
        self.latency.add(trial.latency_ms, trial.late)

    def about(self) -> dict[str, Any]:
        """Without its trials."""
        return {
            "name": self.name,
            "open": self.open,
            "deadline_ms": self.deadline_ms,
            "objectives": self.objectives,
            "strategy": self.strategy,
            "subject": self.subject,
            "problem": self.problem,
        }


class Board:
    """Follows a service's events and hands them on to pages, numbered.

    A page that comes back with the number of the last message it had gets what it missed; where
    that is not known any more, or the server is another, it gets a snapshot of everything.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._life = uuid4().hex[:12]  # numbers of another process mean nothing here
        self._count = 0
        self._messages: deque[tuple[int, bytes]] = deque(maxlen=MESSAGES_KEPT)
        self._sessions: dict[str, SessionRecord] = {}
        self._predict = Latencies()
        self._seen, self._shown = 0, -1  # latencies, and of them those in the summary
        self._summary: dict[str, Any] = {}
        self._summary_text, self._summary_at = b"", -math.inf
        self._pages: set[asyncio.Event] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Follow, on the running loop, until the service ends or `stop`; begun once."""
        if self._following is not None:
            return self._following
        subscription = self._service.events.subscribe()
        for name in self._service.sessions():
            self._look_up(self._session(name))
        for event in self._service.events.latest:
            self._take(event)
        self._following = asyncio.create_task(self._follow(subscription))
        return self._following

    async def stop(self) -> None:
        """Follow no longer."""
        for task in (self._following, *self._tasks):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def stream(self, last: str) -> AsyncIterator[bytes]:
        """Server-sent events, from the one after `last` on ("" for a new page), until the end.

        Raises Refusal where as many pages watch as may.
        """
        if len(self._pages) >= PAGES:
            raise Refusal(
                "busy",
                "events",
                expected=f"at most {PAGES} pages",
                got="one more",
                remedy="close a page",
                retry_after_s=5.0,
            )
        return self._stream(last)

    async def _stream(self, last: str) -> AsyncIterator[bytes]:
        news = asyncio.Event()
        self._pages.add(news)
        try:
            yield b"retry: 1000\n\n"
            cursor, told, heard_at = self._cursor(last), b"", 0.0
            while True:
                news.clear()
                if cursor is None or self._lost(cursor):
                    cursor, told = self._count, self._latency()  # what comes later comes after
                    yield _message("snapshot", self.snapshot(), self._id(cursor))
                    continue  # a page that was slow to take it may be behind again
                for number, text in self._after(cursor):
                    cursor = number
                    yield text
                if told is not self._latency():
                    told = self._latency()
                    yield told
                if time.monotonic() - heard_at >= ALIVE_S:
                    heard_at = time.monotonic()
                    yield _message("alive", {"state": self._service.state, "now": time.time()})
                if self._service.state == "closed":  # an open stream would hold the server up
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), LATENCY_S)
        finally:
            self._pages.discard(news)

    def snapshot(self) -> dict[str, Any]:
        """Everything that the page shows."""
        self._latency()
        return {
            "life": self._life,
            "about": self._about(),
            "state": self._service.state,
            "now": time.time(),
            "edges_ms": EDGES_MS,
            "sessions": [
                record.about() | {"trials": list(record.trials.values())}
                for record in self._sessions.values()
            ],
            "latency": self._summary,
        }

    def _about(self) -> dict[str, Any]:
        about = self._service.about()
        return {"model": about.model, "version": about.version, "subjects": about.subjects}

    def _latency(self) -> bytes:
        """The message of all latencies, the same one until there is a new one."""
        now = time.monotonic()
        if self._seen != self._shown and now - self._summary_at >= LATENCY_S:
            self._shown, self._summary_at = self._seen, now
            sessions = {name: record.latency.summary() for name, record in self._sessions.items()}
            self._summary = {"sessions": sessions, "predict": self._predict.summary()}
            self._summary_text = _message("latency", self._summary)
        return self._summary_text

    async def _follow(self, subscription: AsyncIterator[Event]) -> None:
        async for event in subscription:
            self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case ChoiceEvent():
                record = self._session(event.session)
                trial = Trial(**{name: getattr(event, name) for name in _CHOICE_FIELDS})
                record.add(trial)
                self._seen += 1
                self._tell("choice", {"session": event.session, "trial": trial})
                fresh, record.fresh = record.fresh, event.source == "fresh"
                if not (fresh and record.fresh):  # why the ranking is behind, or that it is not
                    self._look_up(record)
            case TellEvent():
                self._settle(event, "told", event.response)
            case SkipEvent():
                self._settle(event, "skipped", None)
            case SessionEvent():
                record = self._session(event.session)
                record.open = event.what == "opened"
                self._tell("session", record.about())
                if record.open:
                    self._look_up(record)
            case PredictEvent():
                self._predict.add(event.latency_ms)
                self._seen += 1
            case StateEvent():
                self._tell("state", {"state": event.state})

    def _settle(self, event: TellEvent | SkipEvent, status: str, measured: float | None) -> None:
        trial = self._session(event.session).trials.get(event.trial)
        if trial is not None:
            trial.status, trial.measured = status, measured
            self._tell("choice", {"session": event.session, "trial": trial})

    def _session(self, name: str) -> SessionRecord:
        if name not in self._sessions:
            if len(self._sessions) >= SESSIONS_KEPT:
                closed = (old for old, record in self._sessions.items() if not record.open)
                del self._sessions[next(closed, next(iter(self._sessions)))]
            self._sessions[name] = SessionRecord(name)
        return self._sessions[name]

    def _look_up(self, record: SessionRecord) -> None:
        """Ask the service for what events do not tell; a session that hangs holds nobody up."""
        task = asyncio.create_task(self._complete(record))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _complete(self, record: SessionRecord) -> None:
        with suppress(BrainfastError):  # closed meanwhile, or too slow: the page does without
            state = await self._service.session(record.name)
            record.deadline_ms, record.problem = state.deadline_ms, state.problem
            record.objectives, record.strategy = state.objectives, state.strategy
            record.subject = state.subject
            self._tell("session", record.about())

    def _tell(self, kind: str, data: dict[str, Any]) -> None:
        self._count += 1
        self._messages.append((self._count, _message(kind, data, self._id(self._count))))
        for news in self._pages:
            news.set()

    def _id(self, number: int) -> str:
        return f"{self._life}.{number}"

    def _cursor(self, last: str) -> int | None:
        life, _, number = last.partition(".")
        known = life == self._life and number.isascii() and number.isdigit() and len(number) < 16
        return int(number) if known and int(number) <= self._count else None

    def _lost(self, cursor: int) -> bool:
        return bool(self._messages) and cursor < self._messages[0][0] - 1

    def _after(self, cursor: int) -> list[tuple[int, bytes]]:
        return [message for message in self._messages if message[0] > cursor]


_CHOICE_FIELDS = tuple(
    name for name in Trial.__struct_fields__ if name in ChoiceEvent.__struct_fields__
)


def _message(kind: str, data: Any, number: str = "") -> bytes:
    head = f"id: {number}\n" if number else ""
    return f"{head}event: {kind}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"
