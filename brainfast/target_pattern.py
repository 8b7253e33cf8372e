"""A pattern of responses that is wanted, as an objective: the nearer a response, the better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import BrainfastError
from .folded_blobgpt import FoldedBlobGPT, Latent
from .vertex_space import Selection

if TYPE_CHECKING:
    from .engine import Engine

Kind: TypeAlias = Literal["correlation", "squared error"]
Doubles: TypeAlias = npt.NDArray[np.float64]


class PatternScore(Protocol):
    """A folded pattern: scores [B,1] of aligned tokens or latents."""

    def score(self, aligned: Any) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True, eq=False)
class TargetPattern:
    """How like a target pattern the response is, over some vertices.

    kind: "correlation", over those vertices, or "squared error", less its mean: -mean (y - t)^2;
    target: [V] in z units, measured or wished for; where it is NaN, a vertex does not count;
    vertices: region names, indices or a mask that narrow it further

    Neither is linear in the response. Folded for BlobGPT they are a quadratic form on the latent,
    G = weight^T weight [K,K], and no vertex is touched; for FactorTopy the response of exactly
    those vertices is computed.
    """

    target: npt.ArrayLike
    kind: Kind = "correlation"
    vertices: Selection = None

    def fold(self, engine: Engine) -> PatternScore:
        """The pattern on what the engine's head reads.

        Errors: BrainfastError for another number of vertices, too few that are known, or a pattern
        that is the same everywhere, which nothing correlates with.
        """
        target = np.asarray(self.target, dtype=np.float64)
        if self.kind not in ("correlation", "squared error"):
            raise BrainfastError(
                "kind", expected="'correlation' or 'squared error'", got=repr(self.kind)
            )
        if target.shape != (engine.space.V,):
            raise BrainfastError(
                "target",
                expected=f"{engine.space.V} responses, one a vertex",
                got=f"{target.shape}",
            )
        chosen = engine.space.select(self.vertices)
        chosen = chosen[np.isfinite(target[chosen])]
        correlates = self.kind == "correlation"
        if len(chosen) < 1 + correlates or (correlates and np.ptp(target[chosen]) == 0):
            raise BrainfastError(
                "target",
                expected="known responses that differ" if correlates else "a known response",
                got=f"{len(chosen)} known vertices" + (" of one value" if len(chosen) > 1 else ""),
            )
        part: Any = engine.head.take(chosen)
        if isinstance(part, FoldedBlobGPT):
            return _fold_latent(part, target[chosen], correlates)
        return _OnVertices(part, target[chosen], correlates)


@dataclass(frozen=True)
class _OnVertices:
    """By the response of the pattern's vertices."""

    head: Any  # of those vertices
    target: Doubles  # [n]
    correlates: bool

    def score(self, aligned: Any) -> npt.NDArray[np.float32]:  # [B,1]
        response = self.head.readout(aligned).astype(np.float64)
        if not self.correlates:
            return _column(-np.square(response - self.target).mean(axis=1))
        centred, wanted = _centred(response.T).T, _unit(self.target)
        return _column(_ratio(centred @ wanted, np.square(centred).sum(axis=1)))


@dataclass(frozen=True)
class _OnLatent:
    """squares = z^T gram z + z . slope + constant of a latent z; along: z . direction + offset."""

    gram: Doubles  # [K,K]
    slope: Doubles  # [K]
    constant: float
    direction: Doubles | None  # [K]; without one the score is -squares
    offset: float

    def score(self, aligned: Latent) -> npt.NDArray[np.float32]:  # [B,1]
        z = aligned.values.astype(np.float64)
        squares = ((z @ self.gram + self.slope) * z).sum(axis=1) + self.constant
        if self.direction is None:
            return _column(-squares)
        return _column(_ratio(z @ self.direction + self.offset, squares))


def _fold_latent(head: FoldedBlobGPT, target: Doubles, correlates: bool) -> _OnLatent:
    weight, bias = head.weight.astype(np.float64), head.bias.astype(np.float64)
    if not correlates:
        rest, count = bias - target, len(target)
        gram, slope = weight.T @ weight / count, 2 * rest @ weight / count
        return _OnLatent(gram, slope, float(rest @ rest) / count, None, 0.0)
    weight, bias, wanted = _centred(weight), _centred(bias), _unit(target)
    return _OnLatent(
        weight.T @ weight,
        2 * bias @ weight,
        float(bias @ bias),
        wanted @ weight,
        float(wanted @ bias),
    )


def _centred(values: Doubles) -> Doubles:  # over the first axis
    centred: Doubles = values - values.mean(axis=0)
    return centred


def _unit(target: Doubles) -> Doubles:
    centred = _centred(target)
    unit: Doubles = centred / np.linalg.norm(centred)
    return unit


def _ratio(along: Doubles, squares: Doubles) -> Doubles:
    """Correlations; 0 where a response is the same everywhere."""
    length = np.sqrt(np.maximum(squares, 0))
    return np.divide(along, length, out=np.zeros_like(along), where=length > 0)


def _column(scores: Doubles) -> npt.NDArray[np.float32]:
    return scores.astype(np.float32)[:, None]
