"""How well responses are predicted: R2, correlation, noise ceilings and the challenge's score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import BrainfastError
from ..files import hash_arrays, load_tensors, read_json, save_tensors, write_json
from .sums import MaskedSums

if TYPE_CHECKING:
    from ..vertex_space import VertexSpace

Floats = npt.NDArray[np.float64]

FORMAT_VERSION = 1
NO_CEILING = "no noise ceiling was given"
ROWS_AT_ONCE = 128  # images turned to float64 at a time: bounds the working memory, not the result
MEASURES = ("r2", "r", "ceiling", "normalised")


def r2(
    predicted: npt.ArrayLike,  # [N,V]
    measured: npt.ArrayLike,  # [N,V]
) -> Floats:
    """R2 = 1 - sum (measured - predicted)^2 / sum (measured - mean of measured)^2, per vertex [V].

    The mean is that of the N images scored (FactorTopy, section 4); those for which a vertex is NaN
    in `measured` are left out for it. Sums are float64 whatever the input. A vertex whose
    measurement is constant, or that has fewer than 2, has no R2 and gets NaN.
    """
    return _accumulate(predicted, measured).r2()


def pearson(
    predicted: npt.ArrayLike,  # [N,V]
    measured: npt.ArrayLike,  # [N,V]
) -> Floats:
    """r = cov(predicted, measured) / (sd(predicted) sd(measured)), per vertex [V], float64.

    Images are left out as in `r2`. A measurement that is constant gives NaN: there is nothing to
    predict. A prediction that is constant where the measurement is not gives 0: it predicts
    nothing, and must not drop out of a mean.
    """
    return _accumulate(predicted, measured).pearson()


def noise_ceiling(
    ncsnr: npt.ArrayLike,  # [V]
    n1: int = 0,
    n2: int = 0,
    n3: int = 0,
) -> Floats:
    """NC = ncsnr^2 / (ncsnr^2 + t),  t = (n3/3 + n2/2 + n1) / (n1 + n2 + n3), per vertex [V].

    The share of variance, 0 to 1, that a perfect model can explain when n1, n2 and n3 of the scored
    images were seen once, twice and three times and repeats are averaged (Algonauts 2023). `ncsnr`
    is NSD's ratio of signal to noise standard deviations of single trials; NaN stays NaN.
    """
    ratio = np.asarray(ncsnr, dtype=np.float64)
    if ratio.ndim != 1 or np.isinf(ratio).any() or (ratio < 0).any():
        raise BrainfastError(
            "ncsnr",
            expected="one finite ratio, 0 or more, a vertex [V]",
            got=_describe(ratio),
            remedy="pass NSD's ncsnr as it is, not the ceiling in percent",
        )
    if min(n1, n2, n3) < 0 or n1 + n2 + n3 == 0:
        raise BrainfastError(
            "n1, n2, n3",
            expected="how many images were seen once, twice, three times; at least one image",
            got=f"{n1}, {n2}, {n3}",
        )
    noise = (n3 / 3 + n2 / 2 + n1) / (n1 + n2 + n3)
    signal = ratio**2
    return np.asarray(signal / (signal + noise), dtype=np.float64)


def challenge_score(
    r: npt.ArrayLike,  # [V]
    ceiling: npt.ArrayLike,  # [V]
) -> Floats:
    """min(1, max(r, 0)^2 / ceiling), with a ceiling of 0 read as 1e-14, per vertex [V].

    The noise-normalised score of Algonauts 2023; a subject's score is its mean over vertices.
    `ceiling` is a share of variance, 0 to 1. NaN in either gives NaN.
    """
    correlation = np.asarray(r, dtype=np.float64)
    share = _check_ceiling(ceiling, correlation.shape)
    explained = np.maximum(correlation, 0.0) ** 2
    with np.errstate(over="ignore"):  # a vanishing ceiling: infinity, clipped
        return np.minimum(explained / np.where(share == 0.0, 1e-14, share), 1.0)


def score(
    predicted: npt.ArrayLike,  # [N,V]
    measured: npt.ArrayLike,  # [N,V]
    ceiling: npt.ArrayLike | None = None,  # [V]
    **about: Any,
) -> Scores:
    """Scores of one split held in memory; `about` is passed to `ScoreAccumulator.scores`."""
    return _accumulate(predicted, measured).scores(ceiling, **about)


class ScoreAccumulator:
    """R2 and r of every vertex over the trials that measured it, updated batch by batch.

    The N x V responses never need to be in memory; see `MaskedSums`. n: images so far in which any
    vertex was measured.
    """

    def __init__(self) -> None:
        self.n = 0
        self._sums = MaskedSums(0)

    def update(
        self,
        predicted: npt.ArrayLike,  # [B,V]
        measured: npt.ArrayLike,  # [B,V]
    ) -> None:
        """Add a batch; a prediction that is not finite, or another size, is a BrainfastError."""
        guess, truth = np.asarray(predicted), np.asarray(measured)
        if guess.ndim != 2 or guess.shape != truth.shape:
            raise BrainfastError(
                "predicted, measured",
                expected="two arrays [B,V] of one size",
                got=f"{list(guess.shape)} and {list(truth.shape)}",
            )
        V = guess.shape[1]
        if self._sums.V not in (0, V):
            raise BrainfastError(
                "predicted", expected=f"{self._sums.V} vertices, as before", got=f"{V}"
            )
        if not np.isfinite(guess).all():
            raise BrainfastError("predicted", expected="finite values", got="NaN or infinity")
        if np.isinf(truth).any():
            raise BrainfastError(
                "measured", expected="finite values, or NaN where none", got="infinity"
            )
        if self._sums.V == 0:
            self._sums = MaskedSums(V)
        for start in range(0, len(guess), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            self._sums.merge(np.stack([guess[rows], truth[rows]]).astype(np.float64))
        self.n += int((~np.isnan(truth)).any(axis=1).sum())

    def r2(self) -> Floats:
        """R2 over all images so far, per vertex [V]; see `r2`."""
        self._check_count()
        return self._sums.r2()

    def pearson(self) -> Floats:
        """Correlation over all images so far, per vertex [V]; see `pearson`."""
        self._check_count()
        return self._sums.pearson()

    def scores(
        self,
        ceiling: npt.ArrayLike | None = None,  # [V]
        *,
        reason: str | None = None,
        split_hash: str = "",
        model_hash: str = "",
    ) -> Scores:
        """Scores of all images so far; `reason` says why there is no ceiling, if there is none."""
        return Scores(
            r2=self.r2(),
            r=self.pearson(),
            ceiling=None if ceiling is None else np.asarray(ceiling, dtype=np.float64),
            n=self.n,
            split_hash=split_hash,
            model_hash=model_hash,
            reason=reason,
        )

    def _check_count(self) -> None:
        if self.n < 2:
            raise BrainfastError("scores", expected="at least 2 images measured", got=f"{self.n}")


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """R2, r and the noise-normalised score of every vertex, with what they were computed from.

    Arrays are float64 [V]. Without a ceiling `normalised` is NaN everywhere and `reason` says why.
    """

    r2: Floats  # [V]
    r: Floats  # [V]
    ceiling: Floats | None  # [V], share of variance, 0 to 1
    n: int  # images scored: those in which any vertex was measured
    split_hash: str = ""
    model_hash: str = ""
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.r2.ndim != 1 or self.r.shape != self.r2.shape:
            raise BrainfastError(
                "scores",
                expected="r2 and r [V] of one size",
                got=f"{list(self.r2.shape)} and {list(self.r.shape)}",
            )
        if self.ceiling is None:
            object.__setattr__(self, "reason", self.reason or NO_CEILING)
            return
        _check_ceiling(self.ceiling, self.r.shape)
        object.__setattr__(self, "reason", None)

    @property
    def V(self) -> int:
        """Vertices."""
        return self.r2.size

    @property
    def normalised(self) -> Floats:
        """Challenge score per vertex [V]; NaN where there is no ceiling."""
        if self.ceiling is None:
            return np.full(self.V, np.nan)
        return challenge_score(self.r, self.ceiling)

    def summary(self) -> dict[str, float]:
        """Mean and median over vertices of each measure (`r2_mean`, ...), `n` and `vertices`.

        Vertices whose measure is NaN are left out; a measure without any is NaN.
        """
        numbers: dict[str, float] = {"n": self.n, "vertices": self.V}
        for measure, values in self._measures().items():
            numbers[f"{measure}_mean"] = _over_finite(np.mean, values)
            numbers[f"{measure}_median"] = _over_finite(np.median, values)
        return numbers

    def roi_table(
        self, space: VertexSpace, *, hemispheres: bool = False
    ) -> list[dict[str, str | int | float]]:
        """Means over each region that the space has, after a first row `all`.

        Rows hold `roi vertices r2 r ceiling normalised`, NaN where a measure has no value; with
        `hemispheres`, rows `lh.X` and `rh.X` follow each region. Regions without a vertex are
        left out.
        """
        if space.V != self.V:
            raise BrainfastError(
                "space", expected=f"the {self.V} vertices that were scored", got=f"{space.V}"
            )
        left = np.zeros(self.V, dtype=bool)
        left[: space.lh.size] = True
        rows = []
        for name in ["all", *space.roi_names()]:
            inside = np.zeros(self.V, dtype=bool)
            inside[slice(None) if name == "all" else space.roi(name)] = True
            rows.append(self._row(name, inside))
            if hemispheres:
                rows.append(self._row(f"lh.{name}", inside & left))
                rows.append(self._row(f"rh.{name}", inside & ~left))
        return [row for row in rows if row["vertices"]]

    def save(self, folder: str | Path) -> None:
        """Write `scores.safetensors` (r2, r, normalised, ceiling) and `scores.json`, atomically.

        The JSON comes last and holds the arrays' hash, so that a kill between the two shows.
        """
        arrays = self._measures()
        if self.ceiling is None:
            del arrays["ceiling"]
        save_tensors(Path(folder) / "scores.safetensors", arrays)
        summary = {k: None if math.isnan(v) else v for k, v in self.summary().items()}
        about = {
            "format_version": FORMAT_VERSION,
            "n": self.n,
            "split_hash": self.split_hash,
            "model_hash": self.model_hash,
            "reason": self.reason,
            "arrays_hash": hash_arrays(arrays),
            "summary": summary,
        }
        write_json(Path(folder) / "scores.json", about)

    @staticmethod
    def load(folder: str | Path) -> Scores:
        """Read what `save` wrote; files that do not belong together are a BrainfastError."""
        path = Path(folder) / "scores.json"
        about = _check_about(path, read_json(path))
        arrays = load_tensors(Path(folder) / "scores.safetensors")
        if hash_arrays(arrays) != about["arrays_hash"]:
            raise BrainfastError(
                str(path),
                expected="the hash of scores.safetensors",
                got="another",
                remedy="evaluate again",
            )
        if not {"r2", "r"} <= arrays.keys() <= set(MEASURES):
            raise BrainfastError(
                str(path), expected=f"arrays {', '.join(MEASURES)}", got=", ".join(sorted(arrays))
            )
        numbers = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
        return Scores(
            r2=numbers["r2"],
            r=numbers["r"],
            ceiling=numbers.get("ceiling"),
            n=about["n"],
            split_hash=about["split_hash"],
            model_hash=about["model_hash"],
            reason=about["reason"],
        )

    def _measures(self) -> dict[str, Floats]:
        ceiling = np.full(self.V, np.nan) if self.ceiling is None else self.ceiling
        return {"r2": self.r2, "r": self.r, "ceiling": ceiling, "normalised": self.normalised}

    def _row(self, name: str, inside: npt.NDArray[np.bool_]) -> dict[str, str | int | float]:
        row: dict[str, str | int | float] = {"roi": name, "vertices": int(inside.sum())}
        for measure, values in self._measures().items():
            row[measure] = _over_finite(np.mean, values[inside])
        return row

    def __repr__(self) -> str:
        numbers = self.summary()
        normalised = f"normalised {numbers['normalised_mean']:.3f}"
        if self.ceiling is None:
            normalised = f"not normalised ({self.reason})"
        return (
            f"Scores({self.n} images, {self.V} vertices: R2 {numbers['r2_mean']:.3f}, "
            f"median {numbers['r2_median']:.3f}; r {numbers['r_mean']:.3f}; {normalised})"
        )


def _accumulate(predicted: npt.ArrayLike, measured: npt.ArrayLike) -> ScoreAccumulator:
    accumulator = ScoreAccumulator()
    accumulator.update(predicted, measured)
    return accumulator


def _over_finite(statistic: Any, values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(statistic(finite)) if finite.size else math.nan


def _check_ceiling(ceiling: npt.ArrayLike, shape: tuple[int, ...]) -> Floats:
    share = np.asarray(ceiling, dtype=np.float64)
    if share.shape != shape or (share < 0).any() or (share > 1).any():
        raise BrainfastError(
            "ceiling",
            expected=f"shares of variance, 0 to 1, of size {list(shape)}",
            got=_describe(share),
            remedy="divide a ceiling in percent by 100",
        )
    return share


def _check_about(path: Path, about: Any) -> Mapping[str, Any]:
    kinds = {"n": int, "split_hash": str, "model_hash": str, "arrays_hash": str}
    if isinstance(about, dict) and about.get("format_version") == FORMAT_VERSION:
        whole = all(isinstance(about.get(key), kind) for key, kind in kinds.items())
        if whole and isinstance(about.get("reason"), str | None):
            return about
    raise BrainfastError(
        str(path),
        expected=f"scores of format {FORMAT_VERSION}",
        got="something else",
        remedy="evaluate again",
    )


def _describe(values: Floats) -> str:
    if not values.size or np.isnan(values).all():
        return f"{list(values.shape)} without a number"
    return f"{list(values.shape)} from {np.nanmin(values):.4g} to {np.nanmax(values):.4g}"
