"""What is asked of a session and told about it: structs for JSON and msgpack alike."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from .limits import Limits

PROTOCOL = 1

SESSION_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"

# As `brainfast.loop.options.Strategy`, which a client would have to import an engine for.
Strategy = Literal["greedy", "ucb", "thompson", "explore", "random"]
Id = Annotated[str, msgspec.Meta(max_length=1024)]


class OpenSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A session to begin, or with `resume` one to go on with.

    objective: "FFA - PPA", or what else a JSON list of these may hold; subject: whose it is, needed
    where the model has several; the other fields are those of `brainfast.Session`. To resume, none
    is needed: those of the log count, and what is given and differs is a conflict.
    """

    objective: str | list[str] | None = None
    subject: Id | None = None
    strategy: Strategy = "greedy"
    kappa: float = 1.0
    repeats: int = 1
    seed: int = 0
    fallback: Id = "random"
    exclude: list[Id] = msgspec.field(default_factory=list)
    deadline_ms: float = 20.0
    model_share: float = 0.5
    balance: bool = False
    min_distance: float = 0.0
    resume: bool = False


class Outstanding(msgspec.Struct, frozen=True):
    """A choice that waits for its measurement."""

    trial: int
    image: str
    objective: str
    score: float | None
    late: bool


class SessionState(msgspec.Struct, frozen=True):
    """Where a session is.

    trials: choices so far, of which told, skipped, and late ones; allowed: candidates that may
    still be shown; problem: why the latest ranking failed, if it did; log: name of the file;
    dropped_bytes: torn off its end when it was resumed; subject: whose it is, if that has a name.
    """

    name: str
    objectives: list[str]
    strategy: str
    deadline_ms: float
    trials: int
    told: int
    skipped: int
    late: int
    outstanding: list[Outstanding]
    allowed: int
    problem: str | None
    log: str
    dropped_bytes: int
    subject: str | None = None


class PoolAbout(msgspec.Struct, frozen=True):
    """The candidates.

    kind: "latent", "tokens" or "projection"; "" of a lab's own; subject: the only one who can be
    asked about, None where all subjects of the model can be, or where that one has no name.
    """

    items: int
    dtype: str
    kind: str
    subject: str | None = None


class About(msgspec.Struct, frozen=True):
    """What a server answers for. subjects: [] of a model of one, whose key below is then ""."""

    version: str
    model: str
    model_hash: str
    subjects: list[str]
    vertices: dict[str, int]
    rois: dict[str, list[str]]
    pool: PoolAbout | None
    limits: Limits
    protocol: int = PROTOCOL
