"""The lane of one session: its calls in order, and safe to repeat."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import BrainfastError
from ..loop.choice import Choice
from ..loop.session import Session
from .events import ChoiceEvent, Event, SessionEvent, SkipEvent, TellEvent
from .lane import Clock, Job, Lane, each
from .limits import Limits
from .opening import check_same
from .refusal import Code, Refusal
from .requests import OpenSession, Outstanding, SessionState

Call: TypeAlias = Callable[[], Any]
Start: TypeAlias = Callable[[OpenSession, Path], Session]

_log = logging.getLogger("brainfast.serve")


class SessionLane:
    """A session on a thread of its own, behind a bounded queue; opening it is the first call.

    start: begins or resumes a session on its log; publish: told of every event, on the lane's
    thread, before the call that made it is answered; last: called there when the lane has ended.

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
        start: Start,
        publish: Callable[[Event], None],
        last: Callable[[], None],
        clock: Clock,
    ) -> None:
        self.name, self.request, self.log = name, request, log
        self.session: Session | None = None
        self._limits, self._start, self._publish, self._tell_end = limits, start, publish, last
        self._not_opened = Exception("not opened yet")
        self._failure: Exception | None = None
        self._syncs = 0
        self._lane: Lane[Call] = Lane(
            f"session {name}", limits.session_waiting, _calls, clock=clock, last=self._end
        )
        self._opening: Job[Call] = self._lane.submit(self._open, float("inf"), keep=True)

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return self._lane.waiting

    async def opened(self) -> SessionState:
        """Wait until the session is open; its state then."""
        state: SessionState = await self._lane.answer(self._opening, self._limits.timeout_s)
        return state

    async def again(self, request: OpenSession) -> SessionState:
        """The session's state for whoever opens it once more, with what it was opened with."""
        if request.resume:
            state: SessionState = await self._call(lambda session: self._rejoined(session, request))
            return state
        state = await self._call(self._state)
        if state.trials or request != self.request:
            raise Refusal(
                "conflict",
                f"session {self.name}",
                expected="a new name",
                got="that of an open session",
                remedy="go on with it by resume=true, or choose another name",
            )
        return state

    def when_opened(self, call: Callable[[BaseException | None], None]) -> None:
        """Call on the loop when the session is open, or could not be."""
        self._opening.future.add_done_callback(lambda future: call(future.exception()))

    async def next(self, trial: int | None, objective: str | None) -> Choice:
        """The choice of a number, made where it is the next one; None makes one always."""
        if trial is not None:
            _check_trial(trial)
        choice: Choice = await self._call(lambda session: self._next(session, trial, objective))
        return choice

    async def tell(self, trial: int, betas: Any, subject: str | None) -> None:
        """What was measured for a choice."""
        _check_trial(trial)
        await self._call(lambda session: self._tell(session, trial, betas, subject), keep=True)

    async def skip(self, trial: int) -> None:
        """Give up the measurement of a choice."""
        _check_trial(trial)
        await self._call(lambda session: self._skip(session, trial), keep=True)

    async def state(self) -> SessionState:
        """Where the session is."""
        state: SessionState = await self._call(self._state)
        return state

    def close(self, refuse: Callable[[], Refusal]) -> None:
        """Refuse what comes from now on; what was accepted is done, and the log closed then."""
        self._lane.close(refuse)

    async def ended(self, seconds: float) -> bool:
        """Wait so long for the end of a closed lane; whether it has come, with the log synced.

        A disk that failed is an error.
        """
        done = await self._lane.ended(seconds)
        if self._failure is not None:
            raise self._failure
        return done

    def abandon(self) -> None:
        """Refuse what is left of a closed lane."""
        self._lane.abandon()

    def new_syncs(self) -> tuple[float, ...]:
        """Seconds of the log's syncs since the last call."""
        if self.session is None:
            return ()
        syncs = self.session.stages()["sync"]
        seen, self._syncs = min(self._syncs, len(syncs)), len(syncs)
        return syncs[seen:]

    async def _call(self, work: Callable[[Session], Any], *, keep: bool = False) -> Any:
        def call() -> Any:
            if self.session is None:
                raise self._not_opened
            return work(self.session)

        return await self._lane.call(call, self._limits.timeout_s, keep=keep)

    def _open(self) -> SessionState:
        try:
            session = self._start(self.request, self.log)
        except Exception as error:
            self._not_opened = _of_the_disk(error)
            raise self._not_opened from error
        self.session = session
        self._publish(SessionEvent(self.name, "opened", time.time()))
        return self._state(self.session)

    def _rejoined(self, session: Session, request: OpenSession) -> SessionState:
        begun = {"deadline_ms": session.deadline_ms, "subject": session.space.subject}
        begun |= asdict(session.options)
        check_same(self.name, request, session.objectives, begun)
        return self._state(session)

    def _end(self) -> None:
        try:
            if self.session is not None:
                self.session.close()
        except Exception as error:
            _log.warning("session %s was not closed well: %s", self.name, error)
            self._failure = _not_synced(error)
        if self.session is not None:
            self._publish(SessionEvent(self.name, "closed", time.time()))
        self._tell_end()

    def _next(self, session: Session, trial: int | None, objective: str | None) -> Choice:
        choices = session.choices
        made = len(choices)
        if trial is not None and trial < made:
            return _asked_before(choices[trial], objective)
        if trial is not None and trial > made:
            raise Refusal(
                "conflict",
                "trial",
                expected=f"{made}, the next one, or one before it",
                got=str(trial),
                remedy=f"ask for {made}",
            )
        choice = session.next(objective)
        self._publish(
            ChoiceEvent(
                session=self.name,
                trial=choice.trial,
                image=choice.image,
                objective=choice.objective,
                score=choice.score,
                uncertainty=choice.uncertainty,
                ties=choice.ties,
                source=choice.source,
                late=choice.late,
                latency_ms=choice.latency_ms,
                wall_s=time.time(),
            )
        )
        return choice

    def _tell(self, session: Session, trial: int, betas: Any, subject: str | None) -> None:
        choice = self._choice(session, trial)
        status = session.status(trial)
        if status != "outstanding":
            if not session.has_told(trial, betas, subject=subject):
                raise _done_already(trial, status, "the betas that were told, or none")
            return
        session.tell(choice, betas, subject=subject)
        response = session.responses(trial)[session.objectives.index(choice.objective)]
        self._publish(TellEvent(self.name, trial, choice.image, response, time.time()))

    def _skip(self, session: Session, trial: int) -> None:
        choice = self._choice(session, trial)
        status = session.status(trial)
        if status == "skipped":
            return
        if status != "outstanding":
            raise _done_already(trial, status, "a choice that waits for its measurement")
        session.skip(choice)
        self._publish(SkipEvent(self.name, trial, choice.image, time.time()))

    def _choice(self, session: Session, trial: int) -> Choice:
        choices = session.choices
        if trial >= len(choices):
            raise Refusal(
                "conflict",
                "trial",
                expected=f"one of the {len(choices)} choices of session {self.name}",
                got=str(trial),
                remedy="ask for it with next first",
            )
        return choices[trial]

    def _state(self, session: Session) -> SessionState:
        choices = session.choices
        status = [session.status(choice.trial) for choice in choices]
        return SessionState(
            name=self.name,
            objectives=list(session.objectives),
            strategy=session.options.strategy,
            deadline_ms=session.deadline_ms,
            trials=len(choices),
            told=status.count("told"),
            skipped=status.count("skipped"),
            late=sum(choice.late for choice in choices),
            outstanding=[
                Outstanding(choice.trial, choice.image, choice.objective, choice.score, choice.late)
                for choice in session.outstanding
            ],
            allowed=int(session.allowed().sum()),
            problem=session.problem,
            log=self.log.name,
            dropped_bytes=session.dropped_bytes,
            subject=session.space.subject,
        )


def _asked_before(choice: Choice, objective: str | None) -> Choice:
    """A choice that is there, unless it was for another objective than it is asked for now."""
    if objective not in (None, choice.objective):
        raise Refusal(
            "conflict",
            "objective",
            expected=f"{choice.objective!r}, for which trial {choice.trial} was chosen",
            got=repr(objective),
            remedy="ask for the next trial",
        )
    return choice


def _check_trial(trial: int) -> None:
    if isinstance(trial, bool) or not isinstance(trial, int) or trial < 0:
        raise Refusal("invalid", "trial", expected="a number from 0", got=repr(trial))


def _calls(batch: Sequence[Call]) -> list[Any]:
    try:
        return each(batch)
    except Exception as error:
        return [_of_the_disk(error)]


def _of_the_disk(error: Exception) -> Exception:
    """A disk that refused a line took no part of it, so the request may be repeated.

    So may one for a log that another server has, which may be about to end; a log that another has
    just made is a conflict.
    """
    if isinstance(error.__cause__, FileExistsError):
        return _refused(error, "conflict")
    return _refused(error, "stalled", retry_after_s=1.0)


def _not_synced(error: Exception) -> Exception:
    """A log whose end may not be on the disk, of a session that is closed: nothing to repeat."""
    return _refused(error, "internal")


def _refused(error: Exception, code: Code, retry_after_s: float | None = None) -> Exception:
    """A disk's error as a Refusal, since it is no mistake of the request; any other as it is."""
    if not isinstance(error, BrainfastError) or not isinstance(error.__cause__, OSError):
        return error
    return Refusal(
        code,
        error.name,
        expected=error.expected,
        got=error.got,
        remedy=error.remedy,
        retry_after_s=retry_after_s,
    )


def _done_already(trial: int, status: str, expected: str) -> Refusal:
    return Refusal(
        "conflict", f"trial {trial}", expected=expected, got=f"another, of one that was {status}"
    )
