"""A `Pool` as a session sees it, and objectives as one template on a pool's features."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from ..objective import Objective
from ..pool import Pool
from ..pool_choice import Rows
from ..pool_fill import flat_template, opened_with
from ..target_pattern import TargetPattern
from .candidates import Candidates, FoldedObjective, Pieces
from .design_build import Goal
from .measured import Space
from .pattern import FoldedPattern

if TYPE_CHECKING:
    from ..engine import Engine

Floats = NDArray[np.float32]


class PoolCandidates:
    """The candidates of a `Pool` that were not removed from it.

    features_hash: of all that decides a candidate's features but its image; the readout behind them
    is in the objective's template. model_hash, space: of the pool's engine, which has the readout
    too; "" and empty where the pool was opened without one.
    """

    def __init__(self, pool: Pool) -> None:
        removed = set(pool.items.removed)
        kept = [row for row in range(pool.index.items) if row not in removed]
        self._rows = np.array(kept, dtype=np.int64)
        self.ids = tuple(pool.items.names[row] for row in kept)
        self.categories = tuple(pool.items.categories[row] for row in kept)
        key = pool.index.key.model_dump(mode="json")
        images = key.pop("images_hash")
        self.features_hash = text_hash(repr(sorted(key.items())))
        self.preprocessing_hash = text_hash(pool.index.key.preprocessing.model_dump_json())
        self.hash = text_hash("\0".join((self.features_hash, images, *self.ids)))
        engine = pool.engine
        self.model_hash = engine.card.model_hash if engine else ""
        self.space = Space(engine.space.hash(), engine.space.subject) if engine else Space()
        self.projected = bool(pool.index.basis)
        self._pool = pool

    def __len__(self) -> int:
        return len(self.ids)

    def features(self, rows: NDArray[np.int64]) -> Floats:
        """Features float32 [n,F] of some candidates."""
        return self._pool.rows.decoded(self._rows[rows])

    @property
    def pieces(self) -> Pieces:
        """The same features [N,F] as `features[rows, columns]`, decoded as they are asked for."""
        return _Decoded(self._pool.rows, self._rows)

    def asked(self, engine: Engine | None) -> tuple[Pool, Engine]:
        """The pool with its engine: this one, or its own."""
        pool = self._pool if engine is None else self._pool.with_engine(engine)
        return pool, opened_with(pool.engine, "objective")


@dataclass(frozen=True)
class _Decoded:
    """Some rows of a pool's features, decoded piece by piece."""

    stored: Rows
    rows: NDArray[np.int64]

    def __getitem__(self, piece: tuple[slice, slice]) -> Floats:
        rows, columns = self.rows[piece[0]], piece[1]
        part = Rows(self.stored.features[:, columns], self.stored.scale)
        if rows[-1] - rows[0] == len(rows) - 1:  # none was removed: nothing is copied
            return part.decoded(slice(int(rows[0]), int(rows[-1]) + 1))
        return part.decoded(rows)


def as_candidates(pool: Any, engine: Engine | None = None) -> Candidates:
    """A pool of either kind; engine: what a `Pool` is to be asked through, without its own."""
    if isinstance(pool, Pool):
        return PoolCandidates(pool if engine is None else pool.with_engine(engine))
    if isinstance(pool, Candidates):
        return pool
    raise BrainfastError("pool", expected="a Pool, or Candidates", got=type(pool).__name__)


def sole(goals: tuple[Goal, ...]) -> FoldedObjective:
    """The one weighted objective of them; others are a BrainfastError."""
    if len(goals) > 1 or not isinstance(goals[0], FoldedObjective):
        names = ", ".join(goal.name for goal in goals)
        raise BrainfastError("objective", expected="one objective of weights", got=names)
    return goals[0]


def folded(objective: Any, pool: Candidates, engine: Engine | None) -> tuple[Goal, ...]:
    """What a session follows: as it is, or folded through the engine of the pool.

    objective: what `Objective` takes, a `FoldedObjective` or a `TargetPattern`, or a list with one
    of these two in it, of which the others are one `Objective`, so that their names differ
    """
    single = FoldedObjective | TargetPattern
    listed = isinstance(objective, list | tuple)
    if not (listed and any(isinstance(one, single) for one in objective)):
        return _folded(objective, pool, engine)
    terms = [one if isinstance(one, single) else Objective.of(one) for one in objective]
    others = [one for one in terms if isinstance(one, Objective)]
    rest = iter(_folded(Objective(others), pool, engine) if others else ())
    found: list[Goal] = []
    for one in terms:
        if isinstance(one, Objective):
            found += islice(rest, len(one))
        else:
            found += _folded(one, pool, engine)
    return tuple(_numbered(found))


def _folded(objective: Any, pool: Candidates, engine: Engine | None) -> tuple[Goal, ...]:
    if isinstance(objective, FoldedObjective):
        return (objective,)
    if isinstance(objective, TargetPattern):
        return (fold_pattern(objective, _pattern_engine(pool, engine)),)
    if isinstance(pool, PoolCandidates):
        asked, through = pool.asked(engine)
        goal = Objective.of(objective)
        return _several(goal, *asked.templates(goal), through)
    return _fold(objective, _engine_of(objective, pool, engine))


def fold_pattern(pattern: TargetPattern, engine: Engine) -> FoldedPattern:
    """A pattern on what the engine's head reads; one that the engine cannot follow is refused."""
    score, space = pattern.fold(engine), engine.space
    target = np.full(space.V, np.nan)
    chosen = space.select(pattern.vertices)
    target[chosen] = np.asarray(pattern.target, dtype=np.float64)[chosen]
    rows, _ = flat_template(engine.template(np.ones((1, space.V), np.float32)))
    return FoldedPattern(
        pattern.kind,
        target,
        pattern.kind == "correlation",
        engine.head.take(np.flatnonzero(np.isfinite(target))),
        score,
        rows.shape[1],
        space.hash(),
        space.subject,
    )


def _numbered(goals: list[Goal]) -> Iterator[Goal]:
    """Patterns of one kind have one name: from the second on, it gets a number."""
    seen: Counter[str] = Counter()
    for goal in goals:
        if isinstance(goal, FoldedPattern):
            seen[goal.name] += 1
            count = seen[goal.name]
            yield replace(goal, name=f"{goal.name} {count}") if count > 1 else goal
        else:
            yield goal


def _pattern_engine(pool: Candidates, engine: Engine | None) -> Engine:
    if not isinstance(pool, PoolCandidates):
        return _engine_of("a target pattern", pool, engine)
    asked, through = pool.asked(engine)
    if asked.index.basis:
        raise BrainfastError(
            "pattern",
            expected="a pool of all features",
            got="one of scores on some objectives",
            remedy="build a pool without a projection",
        )
    return through


def _engine_of(objective: Any, pool: Candidates, engine: Engine | None) -> Engine:
    """The engine of features that are no pool's."""
    if engine is None:
        raise BrainfastError(
            "objective",
            expected="a FoldedObjective, or the engine that the features are of",
            got=f"{objective!r:.40} and no engine",
            remedy="give engine=",
        )
    if pool.model_hash not in ("", engine.card.model_hash):
        raise BrainfastError(
            "engine",
            expected=f"the model that the features are of ({pool.model_hash[:12]})",
            got=f"another ({engine.card.model_hash[:12]})",
            remedy="load that model, or compute the features again",
        )
    return engine


def _fold(objective: Any, engine: Engine) -> tuple[FoldedObjective, ...]:
    goal = Objective.of(objective)
    return _several(goal, *flat_template(goal.fold(engine)), engine)


def _several(
    goal: Objective,
    templates: Floats,  # [O,F]
    offset: Floats,  # [O]
    engine: Engine,
) -> tuple[FoldedObjective, ...]:
    space = engine.space
    columns = zip(goal.names, goal.weights(space), templates, offset, strict=True)
    return tuple(FoldedObjective(*column, space.hash(), space.subject) for column in columns)


def text_hash(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
