"""The best candidates, one at a time where they must stand apart."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _C
from .errors import BrainfastError
from .pool_file import decode

_BF16_EXPONENT = np.uint16(0x7F80)  # all ones in infinities and NaN
_BLOCK_BYTES = 1 << 26  # of decoded features


@dataclass(frozen=True)
class Candidate:
    """A choice: its name, its row in the pool, its score, and its category."""

    name: str
    row: int
    score: float
    category: str


@dataclass(frozen=True)
class Rows:
    """Features of N candidates as they are stored."""

    features: npt.NDArray[Any]  # [N,F]
    scale: npt.NDArray[np.float32] | None  # [N]

    @cached_property
    def _plan(self) -> _C.ScoreTopkPlan:
        return _C.ScoreTopkPlan(self.features, self.scale)

    def stored(self, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """Some rows as they lie in the file."""
        found = {"features": self.features[rows]}
        return found if self.scale is None else found | {"scale": self.scale[rows]}

    def best(
        self,
        templates: npt.NDArray[np.float32],  # [O,F]
        k: int,
        exclude: npt.NDArray[np.bool_],  # [N]
    ) -> list[list[tuple[int, float]]]:
        """(row, score) of the k best of every template, best first; fewer where fewer have a
        finite score. The features are read once."""
        scores, rows = self._plan.run(templates, k, exclude)
        return [
            [(row, score) for row, score in zip(*pair, strict=True) if row >= 0]
            for pair in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def blocks(self, count: int) -> Iterator[slice]:
        """Parts of `count` candidates, of which one may be decoded at a time."""
        size = max(1, _BLOCK_BYTES // (4 * self.features.shape[1]))
        for begin in range(0, count, size):
            yield slice(begin, min(begin + size, count))

    def decoded(self, rows: npt.NDArray[np.int64] | slice) -> npt.NDArray[np.float32]:
        """Some candidates' features as float32."""
        return decode(self.features[rows], None if self.scale is None else self.scale[rows])

    def finite(self, rows: slice) -> npt.NDArray[np.bool_]:
        """Of which candidates all features are finite; read as they are stored."""
        features = self.features[rows]
        if self.scale is not None:
            return np.isfinite(self.scale[rows])
        narrow = features.dtype == np.uint16
        finite = (features & _BF16_EXPONENT) != _BF16_EXPONENT if narrow else np.isfinite(features)
        whole: npt.NDArray[np.bool_] = finite.all(axis=1)
        return whole

    def ranked(
        self,
        template: npt.NDArray[np.float32],  # [F]
        k: int,
        exclude: npt.NDArray[np.bool_],  # [N]
    ) -> Iterator[tuple[int, float]]:
        """All candidates, best first; more than k are ranked as they are asked for."""
        left, done, count = int((~exclude).sum()), 0, k
        while done < left:
            count = min(left, max(count, 4 * done))
            found = self.best(template[None], count, exclude)[0]
            yield from found[done:]
            if len(found) < count:
                return
            done = count


def as_count(name: str, given: Any) -> int:
    """A plain int of 1 or more, from numpy's too; anything else is a BrainfastError."""
    try:
        count = operator.index(given)
    except TypeError:
        count = 0
    if count < 1:
        raise BrainfastError(name, expected="a whole number, 1 or more", got=repr(given))
    return count


def as_distance(name: str, given: Any) -> float:
    """A plain float of 0 or more; anything else is a BrainfastError."""
    try:
        distance = float(given)
    except (TypeError, ValueError):
        distance = -1.0
    if not 0 <= distance < math.inf:
        raise BrainfastError(name, expected="a finite number, 0 or more", got=repr(given))
    return distance


def choose_apart(
    ranked: Iterable[tuple[int, float]],
    rows: Rows,
    k: int,
    categories: Sequence[str],
    per_category: int | None,
    min_distance: float,
) -> list[tuple[int, float]]:
    """(row, score) of k candidates: each the best that may stand beside those before it."""
    chosen: list[tuple[int, float]] = []
    counts: Counter[str] = Counter()
    taken: list[npt.NDArray[np.float32]] = []
    for row, score in ranked:
        if per_category is not None and counts[categories[row]] >= per_category:
            continue
        if min_distance > 0:
            here = rows.decoded(np.array([row]))[0]
            if any(float(np.linalg.norm(here - other)) < min_distance for other in taken):
                continue
            taken.append(here)
        counts[categories[row]] += 1
        chosen.append((row, score))
        if len(chosen) == k:
            return chosen
    raise BrainfastError(
        "k",
        expected=f"at most {len(chosen)}, which the constraints and finite scores leave",
        got=str(k),
        remedy="loosen per_category or min_distance, or ask for fewer",
    )
