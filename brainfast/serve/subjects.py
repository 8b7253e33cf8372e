"""Whom a server answers for: the engine of each subject, and a pool read through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engine import Engine
from ..group_engine import GroupEngine
from ..pool import Pool
from .refusal import Refusal


def by_subject(engine: Engine | GroupEngine) -> dict[str, Engine]:
    """Engines by subject; the key is "" of a model of one."""
    if isinstance(engine, GroupEngine):
        return {subject: engine.of(subject) for subject in engine.subjects}
    return {"": engine}


def key_of(engines: Mapping[str, Engine], subject: str | None) -> str:
    """The key of a subject; None is the only one."""
    if subject in engines:
        return str(subject)
    only = next(iter(engines.values())) if len(engines) == 1 else None
    if only is not None and subject in (None, only.space.subject):
        return next(iter(engines))
    known = [name or engine.space.subject or "" for name, engine in engines.items()]
    raise Refusal(
        "invalid",
        "subject",
        expected=f"one of {', '.join(filter(None, known)) or 'none, of this model'}",
        got=repr(subject),
    )


class Pools:
    """The candidates of a server, asked through the engine of each subject.

    All subjects of a model read the same features; of scores alone one does, and `Pool` refuses the
    others. Used from any thread.
    """

    def __init__(self, pool: Any, engines: Mapping[str, Engine]) -> None:
        self.pool, self._engines = pool, engines
        self._made: dict[str, Any] = {}

    def of(self, subject: str | None) -> tuple[Any, Engine]:
        """The pool and the engine of a subject, None of the only one; the first time takes long."""
        key = key_of(self._engines, subject)
        if key not in self._made:
            self._made[key] = self._through(key)
        return self._made[key], self._engines[key]

    def of_log(self, subject: str | None) -> Any:
        """The pool for a log of a subject; of a model of one it is the pool."""
        return self.of(subject)[0] if len(self._engines) > 1 else self.pool

    def _through(self, key: str) -> Any:
        engine, own = self._engines[key], getattr(self.pool, "engine", None)
        same = own is not None and own.head is engine.head
        if not key or same or not isinstance(self.pool, Pool):
            return self.pool
        return self.pool.with_engine(engine)
