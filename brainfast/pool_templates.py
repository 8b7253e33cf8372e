"""Objectives as rows on a pool's features; those asked for last are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import BrainfastError
from .files import hash_arrays, load_tensors
from .objective import Objective
from .pool_file import BASIS_FILE, Index, damaged
from .pool_fill import flat_template, opened_with
from .recent import Recent

if TYPE_CHECKING:
    from .engine import Engine

Floats = npt.NDArray[np.float32]
_KEPT_BYTES = 1 << 28


def is_template(objective: Any) -> bool:
    """Whether it is a template that an engine made."""
    return hasattr(objective, "offset") and hasattr(objective, "score")


class Templates:
    """(rows [O,F], offset [O]) of objectives, read-only; an expression is folded once.

    On a projected pool an objective must be a weighted sum of those that it was projected on.
    """

    def __init__(self, path: Path, index: Index, engine: Engine | None) -> None:
        self._path, self._index, self._engine = path, index, engine
        self._kept: Recent[tuple[Floats, Floats]] = Recent(lambda found: found[0].nbytes)

    def of(self, objective: Any) -> tuple[Floats, Floats]:
        """Of objectives, or of a template that the engine made."""
        if is_template(objective):
            return self._checked(*flat_template(objective))
        goal = Objective.of(objective)
        texts = all(isinstance(term, str) for term in goal.terms)
        # Arrays make a new objective each time, unless the caller keeps one, which is then a key.
        key = goal.terms if texts else goal
        if (kept := self._kept.get(key)) is not None:
            return kept
        found = self._checked(*self._fold(goal))
        if texts or goal is objective:
            self._keep(key, found)
        return found

    def _fold(self, goal: Objective) -> tuple[Floats, Floats]:
        engine = opened_with(self._engine, "objective")
        if not self._index.basis:
            return flat_template(goal.fold(engine))
        rows = self._in_basis(goal, engine)
        return rows, np.zeros(len(rows), np.float32)

    def _checked(self, rows: Floats, offset: Floats) -> tuple[Floats, Floats]:
        if rows.shape[1] != self._index.features:
            raise BrainfastError(
                "template",
                expected=f"{self._index.features} features, as the pool has",
                got=str(rows.shape[1]),
            )
        return rows, offset

    def _keep(self, key: Any, found: tuple[Floats, Floats]) -> None:
        for part in found:
            part.flags.writeable = False
        self._kept.keep(key, found, _KEPT_BYTES)

    def _in_basis(self, goal: Objective, engine: Engine) -> Floats:  # [O,P]
        basis = read_basis(self._path, self._index).astype(np.float64)
        length = np.linalg.norm(basis, axis=1, keepdims=True)
        basis /= length
        weights = goal.weights(engine.space).astype(np.float64)
        found, rest = np.zeros((len(goal), len(basis))), weights
        products = basis @ basis.T
        for _ in range(2):  # the second step mends what the products of the basis have rounded
            found += np.linalg.lstsq(products, basis @ rest.T, rcond=None)[0].T
            rest = weights - found @ basis
        errors, largest = np.abs(rest).max(axis=1), np.abs(weights).max(axis=1)
        for name, wrong in zip(goal.names, errors > 1e-5 * largest, strict=True):
            if wrong:
                raise BrainfastError(
                    "objective",
                    expected=f"a weighted sum of {', '.join(self._index.basis)}",
                    got=repr(name),
                    remedy="build a pool without a projection, or with this objective in it",
                )
        return np.ascontiguousarray(found / length.T, dtype=np.float32)


def read_basis(folder: Path, index: Index) -> Floats:  # [P,V]
    """Weights of the objectives that a pool was projected on."""
    arrays = load_tensors(folder / BASIS_FILE)
    if hash_arrays(arrays) != index.key.basis_hash:
        raise damaged(folder / BASIS_FILE)
    return arrays["weights"]
