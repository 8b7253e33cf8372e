"""Candidate images with what a head reads of them, computed once: objectives are then one product.

>>> pool = Pool.build(engine, "candidates/", path="candidates-subj01")
>>> pool.top("FFA - PPA", 10)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from .errors import BrainfastError
from .objective import Objective
from .pool_build import (
    adding_folder,
    build,
    check_adding,
    check_engine,
    check_place,
    finish_swap,
    list_items,
    make_index,
    swap_added,
    unchanged,
)
from .pool_choice import Candidate, Rows, as_count, as_distance, choose_apart
from .pool_file import (
    DATA_FILE,
    STORED,
    Dtype,
    Index,
    Items,
    damaged,
    describe,
    joined,
    layout,
    read_index,
    read_items,
    write_items,
)
from .pool_fill import Filling, Projection, opened_with, unflatten
from .pool_source import read_source
from .pool_templates import Templates, is_template, read_basis
from .pool_verify import problems_of
from .response import Response
from .target_pattern import TargetPattern

if TYPE_CHECKING:
    from .engine import Engine

Floats = npt.NDArray[np.float32]


class Pool:
    """N candidates and their features [N,F], memory-mapped; made by `build` or `open`.

    The features are all that the head reads of an image (aligned tokens, or the latent), or on
    request its scores on some objectives. A folder holds one safetensors file and JSON beside it,
    whose key names trunk, preprocessing, head and images: what is stale is refused.
    """

    def __init__(self, path: Path, index: Index, items: Items, engine: Engine | None) -> None:
        self.path, self.index, self.items, self.engine = path, index, items, engine
        places = layout(index).places
        flat = np.memmap(path / DATA_FILE, np.uint8, "r")

        def mapped(name: str, dtype: Any) -> Any:
            first, shape = places[name]
            size = math.prod(shape) * np.dtype(dtype).itemsize
            return flat[first : first + size].view(dtype).reshape(shape)

        scale = mapped("scale", np.float32) if "scale" in places else None
        self.rows = Rows(mapped("features", STORED[index.key.dtype][1]), scale)
        self._removed = np.zeros(index.items, dtype=bool)
        self._removed[list(items.removed)] = True
        self._templates = Templates(path, index, engine)
        self._row_of = {name: row for row, name in enumerate(items.names)}

    @classmethod
    def build(
        cls,
        engine: Engine,
        source: Any,
        *,
        path: str | Path,
        dtype: Dtype = "bf16",
        project: Any = None,
        categories: str | Path | None = None,
        batch_size: int = 32,
        skip_unreadable: bool = False,
        progress: bool = False,
    ) -> Pool:
        """Compute the features of every candidate, or go on where a killed run stopped.

        source, categories: see `pool_source.read_source`; dtype: fp32, bf16 or int8 with a factor a
        candidate; project: objectives, of whose scores alone the pool then consists, at most 256;
        skip_unreadable: a candidate whose image cannot be decoded counts as removed.
        After each batch the data are synced and then the index; the space is reserved first, and
        with `progress` its size is printed before that.

        Errors: BrainfastError for a stale pool, too little space, an unreadable image, or where
        no image can be read.
        """
        _check_dtype(dtype)
        batch_size = as_count("batch_size", batch_size)
        path = Path(path).resolve()
        check_place(path)
        sources = read_source(source, categories)
        projection = Projection(engine, project)
        items = list_items(sources, progress)
        index = make_index(projection, items, dtype)
        if progress:
            tqdm.write(describe(index))
        filling = Filling(projection, sources, batch_size, skip_unreadable)
        build(path, index, items, filling, progress)
        return cls.open(path, engine)

    @classmethod
    def open(cls, path: str | Path, engine: Engine | None = None) -> Pool:
        """Map a finished pool; with an engine, which must be the one it was built with, it takes
        objectives, without one templates alone."""
        path = Path(path).resolve()  # a pool grows beside itself, not beside a link to it
        finish_swap(path)
        index = read_index(path)
        items = read_items(path, index.items)
        if engine is not None:
            check_engine(path, index, engine)
        if not (path / DATA_FILE).is_file():
            raise BrainfastError(
                str(path),
                expected=f"features of {index.items} candidates",
                got=f"{index.done} of them",
                remedy="build it again to go on where it stopped",
            )
        place = layout(index)
        with (path / DATA_FILE).open("rb") as file:
            header = file.read(len(place.header))
        if (path / DATA_FILE).stat().st_size != place.size or header != place.header:
            raise damaged(path / DATA_FILE)
        return cls(path, index, items, engine)

    def with_engine(self, engine: Engine) -> Pool:
        """The same pool, to be asked through an engine, which must be the one it was built with."""
        check_engine(self.path, self.index, engine)
        found = copy(self)
        found.engine, found._removed = engine, self._removed.copy()
        found._templates = Templates(self.path, self.index, engine)
        return found

    def __len__(self) -> int:
        """How many candidates, without those removed."""
        return int((~self._removed).sum())

    @property
    def names(self) -> tuple[str, ...]:
        """Of the candidates that are not removed."""
        return tuple(name for name, row in self._row_of.items() if not self._removed[row])

    def templates(self, objective: Any) -> tuple[Floats, Floats]:
        """(rows [O,F], offset [O]) of objectives, or of a template that the engine made.

        On a projected pool an objective must be a weighted sum of those that it was projected on.
        """
        return self._templates.of(objective)

    def score(self, objective: Any) -> Floats:  # [N,O]
        """Scores of all candidates, in the order of their rows; of removed ones NaN.

        Of a target pattern too, for which the pool may not be a projection.
        """
        scores: list[Floats] = []
        blocks = self.rows.blocks(self.index.items)
        if isinstance(objective, TargetPattern):
            pattern = objective.fold(opened_with(self.engine, "pattern"))
            scores += [pattern.score(self._aligned("pattern", block)) for block in blocks]
        else:
            rows, offset = self.templates(objective)
            scores += [self.rows.decoded(block) @ rows.T + offset for block in blocks]
        found = np.concatenate(scores)
        found[self._removed] = np.nan
        return found

    def response(self, names: str | Sequence[str]) -> Response:
        """Responses [n,V] in z units to candidates, from what is stored of them, without a trunk.

        They are `Engine.predict`'s up to the rounding of the pool's dtype.

        Errors: BrainfastError for unknown names, a pool without its engine, or of scores alone.
        """
        names = (names,) if isinstance(names, str) else tuple(names)
        engine, rows = opened_with(self.engine, "response"), self._rows(names)
        found = np.empty((len(rows), engine.space.V), np.float32)
        for block in self.rows.blocks(len(rows)):
            found[block] = engine.head.readout(self._aligned("response", rows[block]))
        return Response(found, engine.space, names=names)

    def top(
        self,
        objective: Any,
        k: int,
        *,
        exclude: Sequence[str] = (),
        per_category: int | None = None,
        min_distance: float = 0.0,
    ) -> dict[str, list[Candidate]]:
        """The k best candidates of every objective, by the objective's name; ties by row.

        exclude: names of candidates, such as those shown; per_category: at most so many of one;
        min_distance: in the space of the features, between any two of the choices. With either of
        these the best is taken first, and then the best that may stand beside those taken. All
        objectives are scored in one pass over the pool, and more only where a choice needs them.

        Errors: BrainfastError for unknown names, and where fewer than k candidates are left.
        """
        k, apart = as_count("k", k), as_distance("min_distance", min_distance)
        most = None if per_category is None else as_count("per_category", per_category)
        out = self._removed.copy()
        out[self._rows(exclude)] = True
        left = int((~out).sum())
        if k > left:
            raise BrainfastError(
                "k",
                expected=f"1 to {left}, the candidates that are left",
                got=str(k),
                remedy="exclude fewer, or ask for fewer" if left else "add candidates",
            )
        free = most is None and apart == 0
        return {
            name: [
                self._candidate(row, score)
                for row, score in choose_apart(
                    ranked, self.rows, k, self.items.categories, most, apart
                )
            ]
            for name, ranked in self._ranked(objective, k, out, free)
        }

    def _ranked(
        self, objective: Any, k: int, out: npt.NDArray[np.bool_], free: bool
    ) -> Iterator[tuple[str, Iterator[tuple[int, float]]]]:
        """Names of objectives and (row, score) of candidates, best first; of `free` choices k."""
        if isinstance(objective, TargetPattern):
            scores = np.where(out, -np.inf, self.score(objective)[:, 0])
            order = np.argsort(-scores, kind="stable")[: int((~out).sum())]
            yield objective.kind, ((int(row), float(scores[row])) for row in order)
            return
        rows, offset = self.templates(objective)
        names = (
            [f"template {n}" for n in range(len(rows))]
            if is_template(objective)
            else Objective.of(objective).names
        )
        lists: list[Any] = (
            self.rows.best(rows, k, out)
            if free
            else [self.rows.ranked(row, k, out) for row in rows]
        )
        for name, some, constant in zip(names, lists, offset, strict=True):
            yield name, _shifted(some, float(constant))

    def _candidate(self, row: int, score: float) -> Candidate:
        return Candidate(self.items.names[row], row, score, self.items.categories[row])

    def _aligned(self, what: str, rows: npt.NDArray[np.int64] | slice) -> Any:
        if self.index.basis:
            raise BrainfastError(
                what,
                expected="a pool of all features",
                got="one of scores on some objectives",
                remedy="build a pool without a projection",
            )
        return unflatten(opened_with(self.engine, what).head, self.rows.decoded(rows))

    def add(
        self,
        source: Any,
        *,
        categories: str | Path | None = None,
        batch_size: int = 32,
        skip_unreadable: bool = False,
        progress: bool = False,
    ) -> Pool:
        """Compute further candidates into a new file, which then takes the old one's place.

        Candidates that were removed are left behind. The pool is whole at any moment: the old one
        until the new one is. A killed run goes on when it is called again.
        """
        batch_size = as_count("batch_size", batch_size)
        engine, sources = opened_with(self.engine, "add"), read_source(source, categories)
        more = list_items(sources, progress)
        with unchanged(self.path, self.index, self.items) as now:
            self._renew(now)
            kept = np.flatnonzero(~self._removed)
            items = joined(now, kept, more)
            basis = read_basis(self.path, self.index) if self.index.basis else None
            projection = Projection(engine, basis)
            index = make_index(projection, items, self.index.key.dtype)
            index = index.model_copy(update={"basis": self.index.basis})
            check_adding(self.path, index, items)
            if progress:
                tqdm.write(describe(index))
            filling = Filling(projection, sources, batch_size, skip_unreadable, self.rows, kept)
            build(adding_folder(self.path), index, items, filling, progress)
            swap_added(self.path)
        return Pool.open(self.path, engine)

    def remove(self, names: Sequence[str]) -> None:
        """Take candidates out of every choice from now on; their rows stay until something is
        added. What others removed meanwhile stays removed; a pool that was changed otherwise since
        it was opened is a BrainfastError."""
        rows = self._rows(names).tolist()
        with unchanged(self.path, self.index, self.items) as now:
            now = now.without(rows)
            write_items(self.path, now)
        self._renew(now)

    def _renew(self, items: Items) -> None:
        self.items = items
        self._removed[list(items.removed)] = True

    def verify(
        self,
        source: Any = None,
        *,
        categories: str | Path | None = None,
        progress: bool = False,
    ) -> list[str]:
        """What is wrong with the pool, a line each; an empty list says that it is sound.

        The file is read and compared with its hash and the features looked at. With the source,
        every image's bytes are compared with those that the pool was built from.
        """
        sources = None if source is None else read_source(source, categories)
        return problems_of(self, sources, progress)

    def _rows(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        return np.array([self._row(name) for name in names], dtype=np.int64)

    def _row(self, name: str) -> int:
        if name not in self._row_of:
            raise BrainfastError(
                "candidate", expected=f"a name in the pool {self.path}", got=repr(name)
            )
        return self._row_of[name]

    def __repr__(self) -> str:
        removed = len(self.items.removed)
        return f"Pool({self.path}, {describe(self.index, removed)}, {removed} removed)"


def _shifted(ranked: Iterable[tuple[int, float]], constant: float) -> Iterator[tuple[int, float]]:
    return ((row, score + constant) for row, score in ranked)


def _check_dtype(dtype: str) -> None:
    if dtype not in STORED:
        raise BrainfastError("dtype", expected="fp32, bf16 or int8", got=repr(dtype))
