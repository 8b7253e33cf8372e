"""Measured volumes and betas, as a session's model takes them: one response of the objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from ..errors import BrainfastError
from ..response import Response

DEFAULT_CEILING = 0.3  # of a vertex about which nothing is known; data correct it
NOISE_CORRELATION = 0.2
MOST_LEVELS = 64  # weights that tell regions apart; more of them are a map
LEAST_SHARE = 0.5  # of a group's weight that must have been measured
MOST_LENT = 0.05  # of a side's weight that its other groups may stand in for


class Space(NamedTuple):
    """Whose betas a session takes; hash: of the vertices, "" where they are not known."""

    hash: str = ""
    subject: str | None = None

    def __str__(self) -> str:
        vertices = f"vertices {self.hash[:12]}" if self.hash else "vertices of an unknown space"
        return f"{self.subject or 'an unnamed subject'} ({vertices})"

    def fits(self, other: Space) -> bool:
        """Whether nothing that both know differs."""
        return all(
            not mine or not theirs or mine == theirs
            for mine, theirs in zip(self, other, strict=True)
        )


class Measurement(NamedTuple):
    """The objective's response, and its noise variance over that of a whole measurement."""

    response: float
    relative_noise: float


def as_columns(measurements: Sequence[Measurement]) -> dict[str, list[float]]:
    """How a log holds what betas say of every objective: {"response": [O], ...}."""
    columns = zip(*measurements, strict=True)
    return {name: list(column) for name, column in zip(Measurement._fields, columns, strict=True)}


def from_columns(event: Mapping[str, Any], objectives: int) -> tuple[Measurement, ...]:
    """Back from `as_columns`; KeyError, TypeError or ValueError where it is none."""
    columns = [[float(number) for number in event[name]] for name in Measurement._fields]
    if {len(column) for column in columns} != {objectives}:
        raise ValueError(f"{Measurement._fields[0]} of other than {objectives} objectives")
    return tuple(map(Measurement, *columns))


def project(
    volume: NDArray[np.floating[Any]],  # [X,Y,Z]
    matrix: scipy.sparse.sparray | scipy.sparse.spmatrix,  # [V,X*Y*Z]
) -> NDArray[np.float32]:
    """values_v = sum_i matrix[v,i] * volume.reshape(-1)[i], float32 [V].

    Voxels are counted in C order, the last axis fastest. NaN at vertices whose row is empty (they
    lie outside the volume) or that read a voxel which is NaN.
    """
    volume = np.asarray(volume)
    given = scipy.sparse.csr_array(matrix, copy=True)
    if volume.ndim != 3 or given.shape[1] != volume.size:
        raise BrainfastError(
            "project",
            expected="a volume [X,Y,Z] and a sparse matrix [V,X*Y*Z]",
            got=f"{list(volume.shape)} and {list(given.shape)}",
        )
    given.eliminate_zeros()  # a stored 0 would read a NaN voxel
    values = np.asarray(given @ volume.reshape(-1).astype(np.float64))
    values[np.diff(given.indptr) == 0] = np.nan
    return values.astype(np.float32)


def betas_of(measured: Any, subject: str | None, own: Space) -> Any:
    """What `tell` was given, once it is known to be of the session's vertices and subject.

    measured: betas [V], or a `Response` to one image, whose space is compared; subject: of betas,
    or of a response that names none, or the same
    """
    given = Space("", subject)
    if isinstance(measured, Response):
        if len(measured) != 1:
            raise BrainfastError(
                "measured", expected="the response to one image", got=f"to {len(measured)}"
            )
        named = measured.space.subject
        if subject and named and subject != named:
            raise BrainfastError(
                "subject", expected=f"{named}, whose response was given", got=str(subject)
            )
        given = Space(measured.space.hash(), subject or named)
        measured = measured.values[0]
    if not own.fits(given):
        raise BrainfastError(
            "measured",
            expected=f"betas of {own}",
            got=f"those of {given}",
            remedy="give each subject's betas to its own session",
        )
    return measured


def check_betas(measured: Any, V: int) -> NDArray[np.float32]:
    """Betas float32 [V], NaN where nothing was measured; wrong ones are a BrainfastError."""
    try:
        given = np.asarray(measured)
        got = f"{given.dtype} {list(given.shape)}"
    except ValueError:  # numpy's for rows of several lengths
        given, got = np.empty(0), "rows of several lengths"
    except Exception as error:  # whatever numpy or a tensor raises
        given, got = np.empty(0), " ".join(str(error).split())[:80]
    if given.shape != (V,) or given.dtype.kind not in "fiu":
        raise BrainfastError(
            "measured",
            expected=f"z-scored betas [{V}], one for each vertex of this session's subject",
            got=got,
            remedy="give the betas of this subject, in the engine's vertices",
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes an infinity
        betas = given.astype(np.float32)
    if np.isinf(betas).any():
        raise BrainfastError(
            "measured",
            expected="finite betas, or NaN",
            got=f"{int(np.isinf(betas).sum())} infinite",
        )
    if np.isnan(betas).all():
        raise BrainfastError(
            "measured",
            expected="a beta at one vertex at least",
            got="NaN at all of them",
            remedy="skip(choice) gives up a lost trial",
        )
    return betas


@dataclass(frozen=True, eq=False)
class Weighted:
    """The objective as weights on vertices, and the variance of a trial's noise at each."""

    weights: NDArray[np.float32]  # [V]
    noise: NDArray[np.float64]  # [V]

    @property
    def V(self) -> int:
        """Vertices of a measurement."""
        return len(self.weights)

    @cached_property
    def variance(self) -> float:
        """Of the noise in the response of a whole trial."""
        return noise_variance(self.weights.astype(np.float64), self.noise)

    def variance_of(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:  # [n]
        """The same, which does not depend on the score."""
        return np.full(len(scores), self.variance)

    def measure(self, betas: NDArray[np.float32]) -> Measurement:  # [V]
        """response = sum_v weights_v * betas_v.

        Where betas are NaN, the weights of those that are there grow so that each group of vertices
        keeps its sum: the mean of a region stays a mean. A group is the vertices of one weight; so
        two regions whose vertices weigh exactly the same are one group. Of a map, whose weights are
        more than 64 or fewer than two vertices share one on average, those of one sign are a group.
        A group of which less than half is there, by weight, keeps what is there, and the whole side
        grows instead: the overlap of two regions does not refuse both. No region may stand in for
        another by that: more than 5 % of a side's weight lost so is a BrainfastError.

        Where the noiseless responses of a group's vertices have one expectation, the response has
        that of the whole sum; where a side stands in, it is off by no more than 5 % of the side's
        weight times the difference between the groups. The relative noise is that of the grown
        weights: it says what the NaN cost.
        """
        whole = self.weights.astype(np.float64)
        there = np.isfinite(betas)
        kept = np.where(there, whole, 0.0)
        lacking = bool((~there & (whole != 0)).any())
        if lacking:
            kept *= _growth(whole, kept)
        response = float(np.einsum("v,v->", kept, np.where(there, betas, 0.0).astype(np.float64)))
        if not lacking:
            return Measurement(response, 1.0)
        return Measurement(response, noise_variance(kept, self.noise) / self.variance)


def _growth(
    whole: NDArray[np.float64],  # [V]
    kept: NDArray[np.float64],  # [V]
) -> NDArray[np.float64]:  # [V]
    """By how much what is kept must grow, so that each group, or else its side, keeps its sum."""
    levels, group = np.unique(whole, return_inverse=True)
    is_map = np.count_nonzero(levels) > min(MOST_LEVELS, np.count_nonzero(whole) / 2)
    if is_map:
        levels, group = np.unique(np.sign(whole), return_inverse=True)
    group = group.reshape(-1)
    full, left = (np.bincount(group, np.abs(part), len(levels)) for part in (whole, kept))
    share = np.divide(left, full, out=np.ones_like(full), where=full > 0)
    own = np.where(share < LEAST_SHARE, 1.0, 1.0 / np.maximum(share, LEAST_SHARE))
    side = np.sign(levels).astype(np.int64) + 1
    whole_side = np.bincount(side, full, 3)[side]
    lost = np.where(share < LEAST_SHARE, full - left, 0.0)
    lost = np.divide(lost, whole_side, out=lost, where=whole_side > 0)
    lent = np.bincount(side, lost, 3)[side]
    if lent.max() > MOST_LENT:
        worst = int(np.argmax(np.where(lent > MOST_LENT, lost, 0.0)))
        raise BrainfastError(
            "measured",
            expected="betas at half of the weight, at least, of every group of vertices",
            got=f"{100 * share[worst]:.0f} % of the {np.count_nonzero(group == worst)} vertices"
            f" of {'sign' if is_map else 'weight'} {levels[worst]:.4g}",
            remedy="skip(choice) gives up a lost trial",
        )
    return np.asarray((own / (1.0 - lent))[group])


def vertex_noise(
    ceiling: NDArray[np.floating[Any]] | None,  # [V]
    V: int,
) -> NDArray[np.float64]:
    """Variance 1 - ceiling of a single trial's noise at every vertex, in units of z-scored betas.

    ceiling: noise ceilings of single trials as fractions; 0.3 everywhere without; NaN counts as 0
    """
    if ceiling is None:
        return np.full(V, 1.0 - DEFAULT_CEILING)
    given = np.asarray(ceiling)
    share = np.nan_to_num(given.astype(np.float64)) if given.dtype.kind in "fiu" else given
    if given.shape != (V,) or share.dtype.kind != "f" or (share < 0).any() or (share > 1).any():
        raise BrainfastError(
            "ceiling",
            expected=f"noise ceilings of single trials [{V}] as fractions, 0 to 1",
            got=f"{given.dtype} {list(given.shape)}",
            remedy="divide a ceiling in percent by 100",
        )
    # A ceiling of 1 would make a trial certain.
    return np.maximum(1.0 - share, 1e-3)


def noise_variance(
    weights: NDArray[np.float64],  # [V]
    noise: NDArray[np.float64],  # [V]
) -> float:
    """Variance of the objective's noise: (1-c) sum (w sd)^2 + c sum_sides (sum w sd)^2, c = 0.2.

    c is the correlation assumed between the noise of two vertices on the same side of the objective
    (weights of the same sign): neighbours' noise does not average out. None is assumed between the
    sides, so a contrast is not believed to cancel any.
    """
    scaled = weights * np.sqrt(noise)
    own = float(np.einsum("v,v->", scaled, scaled))
    sides = [float(np.einsum("v->", part)) for part in (scaled.clip(min=0), scaled.clip(max=0))]
    common = sum(side**2 for side in sides)
    return (1.0 - NOISE_CORRELATION) * own + NOISE_CORRELATION * common
