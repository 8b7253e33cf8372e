"""What a server does, whatever the wire: one engine, one pool and their sessions."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine import Engine
from ..group_engine import GroupEngine
from ..loop.choice import Choice
from ..pool import Pool
from ..pool_choice import Candidate
from .engine_lane import EngineLane
from .events import Events, State
from .lane import Clock
from .limits import Limits
from .metrics import Metrics
from .pictures import Image
from .refusal import Refusal
from .requests import About, OpenSession, SessionState
from .session_lane import SessionLane

_log = logging.getLogger("brainfast.serve")


class Service:
    """An engine, a pool and their sessions, for several programs at once.

    engine: answers `predict` and `score`; pool: `select` and sessions; logs: the folder of the
    sessions' logs. Its methods are called on one event loop; what takes time runs on threads, each
    with a bounded queue, so that one that stalls leaves the others alone. What cannot be answered
    is a `Refusal`, or another BrainfastError for a mistake in the request.
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
        self.metrics = Metrics()
        self.events = Events(self.limits.subscribers)

    @property
    def state(self) -> State:
        """Whether requests are taken: only in "ready"."""
        raise NotImplementedError

    async def start(self) -> None:
        """Warm the engine up; ready afterwards."""
        raise NotImplementedError

    def about(self) -> About:
        """What is served."""
        raise NotImplementedError

    async def predict(
        self,
        images: Sequence[Image],
        *,
        subjects: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Responses {subject: [B,V]} in z units; the key is "" of a model of one."""
        raise NotImplementedError

    async def score(
        self,
        images: Sequence[Image],
        objective: Any,
        *,
        subject: str | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.float64]:
        """Scores [B,O] of new images."""
        raise NotImplementedError

    async def select(
        self,
        objective: Any,
        k: int = 10,
        *,
        exclude: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> list[list[Candidate]]:
        """The k best candidates of every objective, [O][k]."""
        raise NotImplementedError

    async def open_session(self, name: str, request: OpenSession) -> SessionState:
        """Begin a session, or go on with one; asked twice, it is opened once."""
        raise NotImplementedError

    async def next(
        self, session: str, trial: int | None = None, *, objective: str | None = None
    ) -> Choice:
        """The choice number `trial`, made where it is the next one."""
        raise NotImplementedError

    async def tell(
        self, session: str, trial: int, betas: NDArray[Any], *, subject: str | None = None
    ) -> None:
        """What was measured for a choice [V]."""
        raise NotImplementedError

    async def skip(self, session: str, trial: int) -> None:
        """Give up the measurement of a choice."""
        raise NotImplementedError

    async def session(self, name: str) -> SessionState:
        """Where a session is."""
        raise NotImplementedError

    def sessions(self) -> list[str]:
        """Names of the open ones."""
        raise NotImplementedError

    async def close_session(self, name: str) -> None:
        """Sync a session's log and close it."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Take nothing new, end what runs, close every session; asked twice, done once."""
        raise NotImplementedError
