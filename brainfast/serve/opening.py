"""Opening a session: its name, its log, and what was asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..errors import BrainfastError
from ..loop.design_file import design_path
from ..loop.log import read_header, read_log
from ..loop.session import Session
from .refusal import Refusal
from .requests import SESSION_NAME, OpenSession
from .subjects import Pools

# What a request hands on to the session as it is.
OPTIONS = tuple(
    field
    for field in OpenSession.__struct_fields__
    if field not in ("objective", "subject", "resume")
)


def check_name(name: str) -> None:
    """Refuse what is no session's name, which becomes a file's."""
    if not isinstance(name, str) or re.fullmatch(SESSION_NAME, name) is None:
        raise Refusal(
            "invalid",
            "session",
            expected="1 to 64 letters, digits, _ . or -, of which the first is a letter or digit",
            got=f"{name!r:.80}",
        )


def check_room(open_now: int, most: int) -> None:
    """Refuse a session beyond the most that may be open; to ask again later would not help."""
    if open_now >= most:
        raise Refusal(
            "too_many",
            "sessions",
            expected=f"at most {most} open",
            got="one more",
            remedy="close one that has ended, or serve with a larger --sessions",
        )


def check_log(name: str, request: OpenSession, log: Path) -> None:
    """Refuse to begin on a log that is there, or to go on with none or with another session's."""
    if not request.resume:
        there = next((path for path in (log, design_path(log)) if path.exists()), None)
        if there is not None:
            raise Refusal(
                "conflict",
                f"session {name}",
                expected="a new name",
                got=f"one whose {there.name} is there already",
                remedy="resume it with resume=true, or choose another name",
            )
        return
    if not log.exists():
        raise Refusal(
            "not_found",
            f"session {name}",
            expected="a log to go on with",
            got=f"no {log.name}",
            remedy="begin it with resume=false",
        )
    header = read_header(log)
    check_same(name, request, header.get("objectives", []), _begun_with(header))


def begun_by(request: OpenSession, log: Path) -> bool:
    """Whether a log was begun with just what a request says, and has no choice yet."""
    try:
        events = read_log(log, betas=False).events
    except BrainfastError:  # a line that is torn began nothing
        return False
    had = _begun_with(events[0])
    return (
        not any(event["event"] == "choice" for event in events)
        and events[0].get("objectives") == _texts(request)
        and request.subject in (None, had["subject"])
        and all(had.get(field) == getattr(request, field) for field in OPTIONS)
    )


def _begun_with(header: Mapping[str, Any]) -> dict[str, Any]:
    """By the first line of a log: the fields of a request, but its objective."""
    begun = {field: header.get(field) for field in ("deadline_ms", "subject")}
    return {**begun, **header.get("options", {})}


def check_same(
    name: str, request: OpenSession, objectives: Sequence[str], begun: Mapping[str, Any]
) -> None:
    """Refuse a request that says otherwise than a session was begun; its defaults say nothing."""
    plain = OpenSession()
    wanted = {
        field: getattr(request, field)
        for field in OPTIONS
        if getattr(request, field) != getattr(plain, field)
    }
    if request.subject:
        wanted["subject"] = request.subject
    had = {field: begun.get(field) for field in wanted}
    if request.objective is not None:
        wanted["objective"], had["objective"] = _texts(request), list(objectives)
    for field, value in wanted.items():
        before = had[field]
        if value != (list(before) if isinstance(before, tuple) else before):
            raise Refusal(
                "conflict",
                field,
                expected=f"{before!r}, with which session {name} was begun",
                got=repr(value),
                remedy="leave it out to resume, or begin a session of another name",
            )


def _texts(request: OpenSession) -> list[str]:
    objective = request.objective or []
    return [objective] if isinstance(objective, str) else list(objective)


def begin(
    name: str, pools: Pools, request: OpenSession, log: Path, *, again: bool = False
) -> Session:
    """The session of a request, on its log; see `Service.open_session`."""
    if again and not request.resume and log.exists() and begun_by(request, log):
        request = msgspec.structs.replace(request, resume=True)
    check_log(name, request, log)
    if request.resume:
        return Session.resume(log, pools.of_log(read_header(log).get("subject")))
    if request.objective is None:
        raise Refusal("invalid", "objective", expected="one, to begin a session", got="none")
    pool, engine = pools.of(request.subject)
    own = getattr(pool, "engine", None) is not None
    options = {field: getattr(request, field) for field in OPTIONS}
    return Session(pool, request.objective, engine=None if own else engine, log=log, **options)
