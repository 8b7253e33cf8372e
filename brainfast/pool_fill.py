"""What a pool is filled with: features of images, and the rows of the pool that it grew from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import BrainfastError
from .files import hash_arrays
from .folded import AlignedTokens, FoldedFactorTopy
from .folded_blobgpt import Latent
from .images import as_images
from .objective import Objective
from .pool_choice import Rows
from .pool_file import Dtype, encode
from .pool_source import Images, Item

if TYPE_CHECKING:
    from .engine import Engine

Floats = npt.NDArray[np.float32]
MOST_PROJECTIONS = 256
_MEND = "replace it, or leave broken ones out with skip_unreadable; then run again to go on"


class Projection:
    """What is kept of a candidate: all that the head reads, or scores on some objectives."""

    def __init__(self, engine: Engine, project: Any) -> None:
        self.engine = engine
        self.objective = None if project is None else Objective.of(project)
        self.weights: Floats | None = None  # [P,V]
        self.rows = self.offset = np.empty(0, np.float32)  # [P,F] and [P]
        if self.objective is not None:
            if len(self.objective) > MOST_PROJECTIONS:
                raise BrainfastError(
                    "project",
                    expected=f"at most {MOST_PROJECTIONS} objectives",
                    got=str(len(self.objective)),
                )
            self.weights = self.objective.weights(engine.space)
            self.rows, self.offset = flat_template(engine.template(self.weights))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the objectives."""
        return () if self.objective is None else self.objective.names

    @property
    def size(self) -> int:
        """Numbers F that are kept of a candidate."""
        head: Any = self.engine.head
        if self.weights is not None:
            return len(self.weights)
        if isinstance(head, FoldedFactorTopy):
            return head.offset_local.size * (math.prod(head.readout_grid) + 1)
        latent: int = head.projection.K
        return latent

    def hash(self) -> str | None:
        """Of the objectives' weights."""
        return None if self.weights is None else hash_arrays({"weights": self.weights})

    def features(self, images: Sequence[Any]) -> Floats:  # [B,F]
        """Of some images; what is not finite is a BrainfastError."""
        aligned = self.engine.head.align(self.engine.tokens(images, batch_size=len(images)))
        rows = aligned.flat()
        if self.weights is not None:
            rows = rows @ self.rows.T + self.offset
        found = np.ascontiguousarray(rows, dtype=np.float32)
        if not np.isfinite(found).all():
            raise BrainfastError("features", expected="finite numbers", got="NaN or infinity")
        return found


def opened_with(engine: Engine | None, what: str) -> Engine:
    """The engine that a pool was opened with; without one, `what` is a BrainfastError."""
    if engine is None:
        raise BrainfastError(
            what,
            expected="a pool opened with its engine",
            got="one without",
            remedy="Pool.open(path, engine)",
        )
    return engine


def flat_template(template: Any) -> tuple[Floats, Floats]:
    """(rows [O,F], offset [O]) of a template of `folded` or `folded_blobgpt`."""
    parts = template.tokens if hasattr(template, "tokens") else template.latent
    return np.ascontiguousarray(parts.flat(), dtype=np.float32), np.asarray(template.offset)


def unflatten(head: Any, features: Floats) -> Any:
    """What a head reads of images, from its flat form [B,F]."""
    if not isinstance(head, FoldedFactorTopy):
        return Latent(features)
    shape = (*head.offset_local.shape, *head.readout_grid)
    local, global_ = np.split(features, [math.prod(shape)], axis=1)
    return AlignedTokens(
        np.ascontiguousarray(local).reshape(-1, *shape),
        np.ascontiguousarray(global_).reshape(-1, *shape[:2]),
    )


class Part(NamedTuple):
    """Some candidates' rows as they are stored, and which of them have an unreadable image."""

    rows: dict[str, npt.NDArray[Any]]
    unreadable: list[int]


@dataclass(frozen=True)
class Filling:
    """All rows of a pool, in order: first those kept of another, then those of `sources`.

    skip: where an image cannot be read its row is zero and it is told, else it is a BrainfastError.
    """

    projection: Projection
    sources: Sequence[Item]
    batch_size: int
    skip: bool = False
    old: Rows | None = None
    kept: npt.NDArray[np.int64] | None = None  # rows of `old`

    def parts(self, done: int, dtype: Dtype) -> Iterator[Part]:
        """From row `done` on, a bounded number at a time."""
        before = 0
        if self.old is not None and self.kept is not None:
            before, left = len(self.kept), self.kept[done:]
            for block in self.old.blocks(len(left)):
                yield Part(self.old.stored(left[block]), [])
        for begin in range(max(done - before, 0), len(self.sources), self.batch_size):
            features, unreadable = self._features(self.sources[begin : begin + self.batch_size])
            yield Part(encode(features, dtype), unreadable)

    def _features(self, some: Sequence[Item]) -> tuple[Floats, list[int]]:
        try:
            return self.projection.features(Images(some)), []
        except BrainfastError as error:
            unreadable = [row for row, item in enumerate(some) if not _is_readable(item)]
            if not unreadable:
                raise
            if not self.skip:
                raise BrainfastError(
                    error.name, expected=error.expected, got=error.got, remedy=_MEND
                ) from error
        whole = [row for row in range(len(some)) if row not in unreadable]
        found = np.zeros((len(some), self.projection.size), np.float32)
        if whole:
            found[whole] = self.projection.features(Images([some[row] for row in whole]))
        return found, unreadable


def _is_readable(item: Item) -> bool:
    try:
        as_images([item.image()])
    except BrainfastError:
        return False
    return True
