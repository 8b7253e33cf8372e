"""What a page draws of a predicted response: the flat cortex, or bars where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from ..flat_mesh import check_drawable, data_boxes
from ..flat_plot import region_names
from ..pool import Pool
from ..vertex_space import VertexSpace
from .flat_raster import colour_limit, colour_table, flat_sides

Floats = NDArray[np.float32]

SAMPLED = 64  # candidates that the colours' range is taken from


@dataclass(frozen=True, eq=False)
class PageMap:
    """about: JSON, its `kind` "flat", "bars" or "none", and whose `subject`'s responses are drawn.

    raster: of "flat", see `FlatSide.pack`

    values: name of a candidate -> [V] of "flat", [R] of "bars", a number for each of `names`
    """

    about: bytes
    raster: bytes
    values: Callable[[str], Floats] | None


def page_map(pool: Pool | None) -> PageMap:
    """The map of a pool's candidates, in one range of colours for all of them.

    Without vertices on a flat mesh, means of regions; of a pool of scores alone, these scores.
    """
    if pool is None:
        return _nothing("The server has no pool: there is no choice to draw.")
    if not len(pool):
        return _nothing("The pool is empty: there is no candidate to draw.")
    if pool.index.basis:
        known = _Scores(pool)
        note = "The pool holds scores alone, so no map can be drawn; these are its scores."
        subject = None if pool.engine is None else pool.engine.space.subject
        return _bars(pool.index.basis, known, _sample(pool, known), note, subject)
    if pool.engine is None:
        return _nothing("The pool was opened without its engine: responses cannot be computed.")
    space = pool.engine.space
    respond = _Responses(pool)
    sample = _sample(pool, respond)
    if not _drawable(space):
        names = region_names(space, None) or ["all"]
        means = _Means([space.roi(name) for name in names], respond)
        note = "These vertices have no flat cortex to be drawn on; bars are the means of regions."
        rows = np.stack([means.of(row) for row in sample])
        return _bars(names, means, rows, note, space.subject)
    sides = flat_sides(space)
    about = {
        "kind": "flat",
        "units": "z",
        "V": space.V,
        "subject": space.subject,
        "limit": colour_limit(sample),
        "colours": colour_table().reshape(-1).tolist(),
        "sides": [side.about() for side in sides],
    }
    raster = b"".join(side.pack() for side in sides)
    return PageMap(msgspec.json.encode(about), raster, respond)


@dataclass(frozen=True, eq=False)
class _Responses:
    """Predicted responses [V]."""

    pool: Pool

    def __call__(self, name: str) -> Floats:
        return np.asarray(self.pool.response(name).values[0])


@dataclass(frozen=True, eq=False)
class _Means:
    """Means of regions [R]."""

    columns: Sequence[NDArray[np.int64]]
    respond: Callable[[str], Floats]

    def __call__(self, name: str) -> Floats:
        return self.of(self.respond(name))

    def of(self, values: Floats) -> Floats:  # [V]
        return np.array([values[columns].mean() for columns in self.columns], dtype=np.float32)


class _Scores:
    """What a projected pool holds of a candidate: its scores [R] on some objectives."""

    def __init__(self, pool: Pool) -> None:
        self._rows = pool.rows
        self._row_of = {name: row for row, name in enumerate(pool.items.names)}

    def __call__(self, name: str) -> Floats:
        row = np.array([self._row_of[name]])
        return np.asarray(self._rows.decoded(row)[0])


def _sample(pool: Pool, values: Callable[[str], Floats]) -> Floats:  # [n,V]
    names = pool.names
    chosen = np.unique(np.linspace(0, len(names) - 1, SAMPLED).round().astype(int))
    return np.stack([values(names[number]) for number in chosen])


def _drawable(space: VertexSpace) -> bool:
    try:
        check_drawable(space)
        data_boxes(space)
    except BrainfastError:
        return False
    return True


def _bars(
    names: Sequence[str],
    values: Callable[[str], Floats],
    sample: Floats,  # [n,R]
    note: str,
    subject: str | None,
) -> PageMap:
    about = {
        "kind": "bars",
        "units": "z",
        "limit": colour_limit(sample.reshape(1, -1)),  # a bar that is cut off would mislead
        "colours": colour_table().reshape(-1).tolist(),
        "names": list(names),
        "subject": subject,
        "note": note,
    }
    return PageMap(msgspec.json.encode(about), b"", values)


def _nothing(note: str) -> PageMap:
    return PageMap(msgspec.json.encode({"kind": "none", "note": note}), b"", None)
