"""Opening a session: its name, its log, and what was asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..group_engine import GroupEngine
from ..loop.design import design_path
from ..loop.log import read_log
from ..loop.session import Session
from .refusal import Refusal
from .requests import SESSION_NAME, OpenSession


def check_name(name: str) -> None:
    """Refuse what is no session's name, which becomes a file's."""
    if not isinstance(name, str) or re.fullmatch(SESSION_NAME, name) is None:
        raise Refusal(
            "invalid",
            "session",
            expected="1 to 64 letters, digits, _ . or -, of which the first is a letter or digit",
            got=f"{name!r:.80}",
        )


def check_log(name: str, request: OpenSession, log: Path) -> dict[str, Any] | None:
    """The header of the log that a request goes on with; None where it begins one.

    Refused: to begin on a log that is there, to go on with none, or with that of another session.
    """
    there = next((path for path in (log, design_path(log)) if path.exists()), None)
    if not request.resume:
        if there is not None:
            raise Refusal(
                "conflict",
                f"session {name}",
                expected="a new name",
                got=f"one whose {there.name} is there already",
                remedy="resume it with resume=true, or choose another name",
            )
        return None
    if not log.exists():
        raise Refusal(
            "not_found",
            f"session {name}",
            expected="a log to go on with",
            got=f"no {log.name}",
            remedy="begin it with resume=false",
        )
    header = read_log(log).header
    for field, logged, wanted in _asked(request, header):
        if logged != wanted:
            raise Refusal(
                "conflict",
                field,
                expected=f"{logged!r}, as in the log of session {name}",
                got=repr(wanted),
                remedy="leave it out to resume, or begin a session of another name",
            )
    return header


def _asked(request: OpenSession, header: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, logged, wanted) of what a request says otherwise than by default."""
    logged = {**header["options"], **header}
    plain = OpenSession()
    asked = [
        (field, logged.get(field), getattr(request, field))
        for field in request.__struct_fields__
        if field not in ("objective", "resume") and getattr(request, field) != getattr(plain, field)
    ]
    if request.objective is not None:
        texts = [request.objective] if isinstance(request.objective, str) else request.objective
        asked.append(("objective", header["objective"], ", ".join(texts)))
    return asked


def begin(pool: Any, engine: Any, request: OpenSession, log: Path) -> Session:
    """The session of a request, on its log."""
    if request.resume:
        return Session.resume(log, pool)
    if request.objective is None:
        raise Refusal("invalid", "objective", expected="one, to begin a session", got="none")
    own = getattr(pool, "engine", None) is not None or isinstance(engine, GroupEngine)
    options = {
        field: getattr(request, field)
        for field in request.__struct_fields__
        if field not in ("objective", "resume")
    }
    return Session(pool, request.objective, engine=None if own else engine, log=log, **options)
