"""What is wanted of the cortex: weighted sums over its vertices, folded onto the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import BrainfastError
from .expression import expression_weights
from .files import file_size
from .vertex_space import HEMISPHERES, MESH_VERTICES, VertexSpace

if TYPE_CHECKING:
    from .engine import Engine

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class MeshWeights:
    """Weights of each hemisphere's whole mesh, or of its vertices in the space alone."""

    lh: Floats
    rh: Floats

    def weights(self, space: VertexSpace) -> npt.NDArray[np.float64]:  # [V]
        """Weights [V]; another number of vertices is a BrainfastError."""
        parts = []
        for side in HEMISPHERES:
            given, wanted = getattr(self, side), getattr(space, side)
            if len(given) == MESH_VERTICES.get(space.name):
                given = given[wanted]
            elif len(given) != len(wanted):
                whole = MESH_VERTICES.get(space.name)
                raise BrainfastError(
                    f"weights of {side}",
                    expected=f"{len(wanted)} vertices"
                    + (f", or the {whole} of {space.name}" if whole else ""),
                    got=str(len(given)),
                )
            parts.append(given)
        return np.concatenate(parts).astype(np.float64)


Term: TypeAlias = str | MeshWeights | Floats


@dataclass(frozen=True, eq=False, init=False)
class Objective:
    """score_o = sum_v weights[o,v] response[v]: O objectives, of which more is better.

    terms: an expression such as "FFA - PPA" or "mean(V1v) + 0.5*EBA", where a name is the mean over
    that region's vertices (see `expression.expression_weights`), weights [V] or [O,V], or a
    sequence of expressions, weights [V] and other objectives. Nothing is looked up before a subject
    is there.
    """

    terms: tuple[Term, ...]

    def __init__(self, terms: Any) -> None:
        object.__setattr__(self, "terms", _as_terms(terms))

    @classmethod
    def of(cls, what: Any) -> Objective:
        """An objective as it is, or what `Objective` takes."""
        return what if isinstance(what, Objective) else cls(what)

    @classmethod
    def from_gifti(cls, lh: str | Path, rh: str | Path) -> Objective:
        """Weights from one GIFTI file a hemisphere, the first array of each.

        On the whole mesh of the subject's space, or on the subject's vertices.
        """
        return cls([MeshWeights(_read_gifti(lh), _read_gifti(rh))])

    @property
    def names(self) -> tuple[str, ...]:
        """An expression as it was written; other weights by their number."""
        return tuple(
            term if isinstance(term, str) else f"weights {index}"
            for index, term in enumerate(self.terms)
        )

    def __len__(self) -> int:
        return len(self.terms)

    def weights(self, space: VertexSpace) -> Floats:  # [O,V]
        """Weights [O,V] on the vertices of one subject.

        Errors: BrainfastError for an absent region, with those that the subject has, another number
        of vertices, weights that are not finite, or all zero.
        """
        found = np.empty((len(self), space.V), np.float32)
        for row, (name, term) in enumerate(zip(self.names, self.terms, strict=True)):
            found[row] = _weights_of(name, term, space)
            if not np.isfinite(found[row]).all() or not found[row].any():
                raise BrainfastError(
                    "objective",
                    expected="finite weights that are not all zero",
                    got=f"NaN or infinity in {name!r}"
                    if found[row].any()
                    else f"zeros in {name!r}",
                )
        return found

    def fold(self, engine: Engine) -> Any:
        """The objectives on what the engine's head reads: a template of `folded`.

        Its `score` gives, for aligned tokens or latents, what the full response would.
        """
        return engine.template(self.weights(engine.space))


def _as_terms(given: Any) -> tuple[Term, ...]:
    if isinstance(given, str | MeshWeights):
        return (given,)
    if isinstance(given, Objective):
        return given.terms
    named = str | MeshWeights | Objective
    if isinstance(given, Sequence) and any(isinstance(item, named) for item in given):
        return tuple(term for item in given for term in _as_terms(item))
    try:
        array = np.array(given, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise _not_an_objective(f"{type(given).__name__}") from error
    if array.ndim not in (1, 2) or not len(array):
        raise _not_an_objective(f"an array of shape {list(array.shape)}")
    return tuple(np.atleast_2d(array))


def _weights_of(name: str, term: Term, space: VertexSpace) -> npt.NDArray[Any]:  # [V]
    if isinstance(term, str):
        return expression_weights(term, space)
    if isinstance(term, MeshWeights):
        return term.weights(space)
    if len(term) != space.V:
        raise BrainfastError(
            "objective", expected=f"{space.V} weights, one a vertex", got=f"{len(term)} in {name!r}"
        )
    return term


def _not_an_objective(got: str) -> BrainfastError:
    return BrainfastError(
        "objective",
        expected="an expression such as 'FFA - PPA', weights [V] or [O,V], or a list of these",
        got=got,
    )


def _read_gifti(path: str | Path) -> Floats:  # [vertices]
    file_size(path)
    import nibabel

    try:
        image: Any = nibabel.load(path)
        values = np.asarray(image.darrays[0].data, dtype=np.float32)
    except Exception as error:  # its readers raise whatever a damaged file leads them to
        raise BrainfastError(
            str(path), expected="a GIFTI file with an array", got=str(error) or type(error).__name__
        ) from error
    if values.ndim != 1:
        raise BrainfastError(
            str(path), expected="one number a vertex", got=f"shape {list(values.shape)}"
        )
    return values
