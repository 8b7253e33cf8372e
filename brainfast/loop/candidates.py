"""What a session needs of a pool and of an objective, and the plainest form of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from ..files import hash_arrays
from .measured import Weighted

Floats = NDArray[np.float32]


@runtime_checkable
class Candidates(Protocol):
    """N images that may be shown, with the features that a folded objective is linear in."""

    @property
    def ids(self) -> Sequence[str]:
        """What each candidate is called, all different."""
        ...

    @property
    def hash(self) -> str:
        """Of the ids and features."""
        ...

    @property
    def model_hash(self) -> str:
        """Of the model that the features were made with, "" where it is not known."""
        ...

    def __len__(self) -> int: ...

    def features(self, rows: NDArray[np.int64]) -> Floats:
        """Features float32 [n,F] of some candidates."""
        ...


class Pieces(Protocol):
    """Features float32 [N,F] that are made as they are asked for, from several threads at once.

    A class of candidates that has them as its own property `pieces` is asked for these instead of
    `features` where a design goes through the whole pool.
    """

    def __getitem__(self, piece: tuple[slice, slice], /) -> NDArray[np.floating[Any]]: ...


def pieces_of(pool: Candidates) -> Pieces | None:
    """Those of a pool whose very class has them.

    Of one that passes on what it does not know, or that inherits them and has `features` of its
    own, they may be of other candidates.
    """
    if "pieces" not in vars(type(pool)):
        return None
    pieces: Pieces = cast(Any, pool).pieces
    return pieces


@dataclass(frozen=True, eq=False)
class ArrayCandidates:
    """Candidates whose features lie in memory, such as a lab's own: values [N,F], float32.

    model_hash, preprocessing_hash: of what made the features, where there is such a thing; a log
    keeps both. categories: one a candidate, where a session is to balance them.
    """

    values: Floats  # [N,F]
    ids: Sequence[str]
    model_hash: str = ""
    preprocessing_hash: str = ""
    categories: Sequence[str] = ()
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if values.ndim != 2 or values.dtype.kind != "f" or len(values) != len(self.ids):
            raise BrainfastError(
                "features",
                expected=f"floats [N,F] of {len(self.ids)} candidates",
                got=f"{values.dtype} {list(values.shape)}",
            )
        wrong = [name for name in self.ids if not isinstance(name, str)]
        if wrong:
            raise BrainfastError(
                "ids",
                expected="texts",
                got=f"{wrong[0]!r} of type {type(wrong[0]).__name__}",
                remedy="give str(id)",
            )
        if len(self.categories) not in (0, len(values)):
            raise BrainfastError(
                "categories", expected=f"{len(values)}, or none", got=str(len(self.categories))
            )
        values = np.ascontiguousarray(values, dtype=np.float32)
        names = np.frombuffer("\0".join(self.ids).encode(), dtype=np.uint8)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "ids", tuple(self.ids))
        object.__setattr__(self, "hash", hash_arrays({"ids": names, "features": values}))

    def __len__(self) -> int:
        return len(self.values)

    def features(self, rows: NDArray[np.int64]) -> Floats:
        """Features float32 [n,F] of some candidates."""
        return self.values[rows]


@dataclass(frozen=True, eq=False)
class FoldedObjective:
    """score = features . template + offset, which is weights . response of the model.

    weights [V] float32 on the engine's vertices; template [F] float32.
    space_hash, subject: of these vertices, where known; betas of others are then refused
    """

    name: str
    weights: Floats  # [V]
    template: Floats  # [F]
    offset: float
    space_hash: str = ""
    subject: str | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "template"):
            given: NDArray[Any] = np.asarray(getattr(self, name))
            array = given.reshape(-1) if given.ndim == 2 and len(given) == 1 else given
            whole = array.ndim == 1 and array.size and array.dtype.kind in "fiu"
            if not (whole and np.isfinite(array).all()):
                raise BrainfastError(
                    f"{name} of {self.name}",
                    expected="one objective: finite numbers in one row",
                    got=f"{given.dtype} {list(given.shape)}",
                    remedy="give a list of objectives, one each",
                )
            object.__setattr__(self, name, np.ascontiguousarray(array, dtype=np.float32))
        if not self.weights.any():
            raise BrainfastError(
                f"weights of {self.name}", expected="one that is not 0", got="zeros only"
            )
        object.__setattr__(self, "offset", float(self.offset))
        if not math.isfinite(self.offset):
            raise BrainfastError(
                f"offset of {self.name}", expected="a finite number", got=str(self.offset)
            )

    @property
    def V(self) -> int:
        """Vertices of a measurement."""
        return len(self.weights)

    @property
    def F(self) -> int:
        """Features of a candidate."""
        return len(self.template)

    def reading(
        self,
        sample: Floats,  # [n,F]
        noise: NDArray[np.float64],  # [V]
        model_share: float,
    ) -> Weighted:
        """How betas become the objective's response."""
        return Weighted(self.weights, noise)

    def scores(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:  # [n,F] -> [n]
        """What the model expects of candidates."""
        return np.asarray(features @ self.template.astype(np.float64) + self.offset)


def check_candidates(pool: Candidates) -> tuple[str, ...]:
    """The ids of a pool that has candidates, each of another name."""
    ids = tuple(str(name) for name in pool.ids)
    if not ids or len(ids) != len(pool):
        raise BrainfastError(
            "pool",
            expected="at least one candidate, and an id for each",
            got=f"{len(pool)} candidates, {len(ids)} ids",
            remedy="add images to the pool",
        )
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise BrainfastError("pool", expected="ids that differ", got=f"{twice!r} twice")
    return ids
