"""The embedding of BlobGPT: principal components of the training responses of all subjects."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from sklearn.decomposition import IncrementalPCA
from sklearn.utils.extmath import randomized_svd
from tqdm import tqdm

from ..errors import BrainfastError
from ..files import hash_arrays, load_tensors, save_tensors
from ..machine import available_memory
from ..vertex_space import VertexSpace
from .group import GroupSplit, Missing

Floats: TypeAlias = npt.NDArray[np.float32]
Indices: TypeAlias = npt.NDArray[np.int64]
Doubles: TypeAlias = npt.NDArray[np.float64]
Method: TypeAlias = Literal["randomized", "incremental"]
Progress: TypeAlias = bool | Callable[[int, int], None]

OVERSAMPLES = 10
CHUNK_BYTES = 64 << 20
LEAST_ROWS = 256  # pairs of one step of the incremental fit, or R and some where that is more
FLOAT32, FLOAT64 = 4, 8  # bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Basis:
    """response = weight activity + bias: an orthonormal basis and the mean response.

    weight: float32 [V,R], columns of length 1, orthogonal, by falling variance; they are not
        scaled by it, as in the report ("the PCA basis and center"). The entry of the largest size
        in each column is positive
    bias: float32 [V], mean of each vertex over the pairs in which it is present
    explained: float32 [R], share of the total variance; None for a file that does not say
    space_hash, split_hash, responses_hash: vertices, training part and its responses that it was
        fitted on, where known
    missing, method: how it was fitted, where known

    Source: the BlobGPT report, "PCA fMRI activity embedding".
    """

    weight: Floats
    bias: Floats
    explained: Floats | None = None
    space_hash: str | None = None
    split_hash: str | None = None
    responses_hash: str | None = None
    missing: Missing | None = None
    method: Method | None = None

    def __post_init__(self) -> None:
        V = len(self.weight)
        good = self.weight.ndim == 2 and self.bias.shape == (V,) and self.weight.size > 0
        good = good and self.weight.dtype == self.bias.dtype == np.float32
        if not good or not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise BrainfastError(
                "basis",
                expected="weight [V,R] and bias [V], float32 and finite",
                got=f"{_describe(self.weight)} and {_describe(self.bias)}",
            )

    @property
    def V(self) -> int:
        """Vertices."""
        return int(self.weight.shape[0])

    @property
    def R(self) -> int:
        """Components."""
        return int(self.weight.shape[1])

    @property
    def hash(self) -> str:
        """SHA-256 of weight and bias."""
        return hash_arrays({"weight": self.weight, "bias": self.bias})

    def check(self, space: VertexSpace) -> None:
        """Refuse another vertex space; a basis that does not name its own needs V to match."""
        if self.V != space.V or self.space_hash not in (None, space.hash()):
            raise BrainfastError(
                "basis",
                expected=f"the {space.V} vertices of this group, as {space.hash()[:12]}",
                got=f"{self.V} vertices of {(self.space_hash or 'an unknown space')[:12]}",
                remedy="fit a basis to these subjects",
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: `weight`, `bias`, `explained`, the rest as metadata."""
        tensors = {"weight": self.weight, "bias": self.bias}
        if self.explained is not None:
            tensors["explained"] = self.explained
        known = {name: getattr(self, name) for name in _METADATA}
        save_tensors(path, tensors, {name: value for name, value in known.items() if value})

    @staticmethod
    def load(path: str | Path, space: VertexSpace | None = None) -> Basis:
        """Read what `save` wrote, or any safetensors file with `weight` [V,R] and `bias` [V].

        With `space`, a basis of another one is refused (see `check`).
        """
        tensors = load_tensors(path)
        if not {"weight", "bias"} <= tensors.keys() <= {"weight", "bias", "explained"}:
            raise BrainfastError(
                str(path),
                expected="a basis: weight [V,R] and bias [V]",
                got=", ".join(sorted(tensors)) or "no arrays",
            )
        with safe_open(path, framework="numpy") as file:
            stored = file.metadata() or {}
        known: dict[str, Any] = {name: stored.get(name) for name in _METADATA}
        for name, kinds in (("missing", get_args(Missing)), ("method", get_args(Method))):
            if known[name] not in (None, *kinds):
                raise BrainfastError(
                    str(path), expected=f"{name} {' or '.join(kinds)}", got=repr(known[name])
                )
        try:
            basis = Basis(
                tensors["weight"], tensors["bias"], explained=tensors.get("explained"), **known
            )
            if space is not None:
                basis.check(space)
        except BrainfastError as error:
            raise error.renamed("basis", str(path)) from error
        return basis


_METADATA = ("space_hash", "split_hash", "responses_hash", "missing", "method")


def fit_basis(
    split: GroupSplit,
    components: int,
    *,
    seed: int = 0,
    memory_limit: int | None = None,
    method: Method | None = None,
    progress: Progress = False,
) -> Basis:
    """Principal components of the n responses of a split, which should be the training part.

    A vertex that only some subjects have enters with its mean over the pairs that have it in place
    of what is missing (missing="mask"), which neither moves the mean nor adds variance, or with
    zeros, which do both (missing="zero", as in the report).

    components: R, at most n and V
    memory_limit: bytes; half of what is free without it. Where the randomized SVD (Halko,
        Martinsson and Tropp 2011), which holds all responses, would take more, the incremental
        PCA (Ross et al. 2008) is used: close to it but many times slower, some R pairs at a time,
        in an order that `seed` draws, since subject after subject the first would be forgotten
    method: to force one of the two, so that another machine gives the same basis
    progress: a bar, or a function called with pairs read and their number; the memory estimate is
        logged, and shown with the bar, before the work starts

    Raises BrainfastError where there are fewer pairs or vertices than components, and where no
    method fits the memory.
    """
    n, V = len(split), split.V
    if not 1 <= components <= min(n, V):
        raise BrainfastError(
            "components",
            expected=f"1 to {min(n, V)}, the fewer of {n} pairs and {V} vertices",
            got=str(components),
            remedy="ask for fewer components or give more images",
        )
    chosen = _choose(n, V, components, memory_limit, method)
    estimate = f"{chosen} PCA of {n} x {V} responses to {components} components"
    estimate += f": about {basis_memory(n, V, components, chosen) / 1e9:.2g} GB of memory"
    log.info(estimate)
    with _bar(progress, 2 * n, estimate) as tell:
        mean = _mean(split, tell)
        fit = _incremental if chosen == "incremental" else _randomized
        weight, singular, squares = fit(split, mean.astype(np.float32), components, seed, tell)
    weight = weight * _signs(weight)
    explained = singular**2 / squares if squares > 0 else np.zeros_like(singular)
    return Basis(
        weight=np.ascontiguousarray(weight, dtype=np.float32),
        bias=mean.astype(np.float32),
        explained=explained.astype(np.float32),
        space_hash=split.space.hash(),
        split_hash=split.hash,
        responses_hash=split.responses_hash,
        missing=split.missing,
        method=chosen,
    )


def basis_memory(n: int, V: int, components: int, method: Method = "randomized") -> int:
    """Bytes that `fit_basis` takes at its peak for n pairs, about; the multiples are measured."""
    wide = components + OVERSAMPLES
    if method == "randomized":
        return FLOAT32 * (n * V + 6 * (n + V) * wide)
    stacked = wide + int(np.diff(_incremental_edges(n, components)).max()) + 1
    return FLOAT64 * 7 * stacked * V


def _choose(
    n: int, V: int, components: int, memory_limit: int | None, method: Method | None
) -> Method:
    """The first method that fits into the memory, or the one asked for."""
    if method is not None and method not in get_args(Method):
        raise BrainfastError("method", expected=" or ".join(get_args(Method)), got=repr(method))
    limit = available_memory() // 2 if memory_limit is None else memory_limit
    methods: tuple[Method, ...] = get_args(Method) if method is None else (method,)
    sizes = {name: basis_memory(n, V, components, name) for name in methods}
    for name, size in sizes.items():
        if size <= limit:
            return name
    raise BrainfastError(
        "memory for the basis",
        expected=f"at least {min(sizes.values()) / 1e9:.2g} GB",
        got=f"a limit of {limit / 1e9:.2g} GB",
        remedy="ask for fewer components, raise memory_limit, or free some memory",
    )


def _incremental_edges(n: int, components: int) -> Indices:
    """Where the blocks of the incremental fit begin and end, [blocks + 1].

    They are equal but for one pair, so that none has fewer pairs than components, which some
    releases of scikit-learn refuse.
    """
    blocks = max(1, n // max(components + OVERSAMPLES, LEAST_ROWS))
    return np.arange(blocks + 1, dtype=np.int64) * n // blocks


def _chunk_rows(V: int) -> int:
    return max(1, CHUNK_BYTES // (FLOAT32 * V))


def _mean(split: GroupSplit, tell: Callable[[int, int], None]) -> Doubles:
    """Mean of every vertex over the pairs that have it [V]; 0 where none has."""
    n, step = len(split), _chunk_rows(split.V)
    total, count = np.zeros(split.V), np.zeros(split.V)
    for start in range(0, n, step):
        stop = min(start + step, n)
        values, present = split.responses(slice(start, stop))
        total += values.sum(axis=0, dtype=np.float64)  # what is missing is 0
        count += present.sum(axis=0)
        tell(stop, 2 * n)
    return np.asarray(total / np.maximum(count, 1))


def _centred(split: GroupSplit, centre: Floats, pairs: Indices) -> Floats:
    """Responses of some pairs less the mean [len(pairs),V]; 0 where one is missing."""
    values, present = split.responses(pairs)
    values -= centre
    values *= present
    return values


def _randomized(
    split: GroupSplit,
    centre: Floats,  # [V]
    components: int,
    seed: int,
    tell: Callable[[int, int], None],
) -> tuple[Floats, Doubles, float]:
    """Basis [V,R], singular values [R] and the sum of all squares."""
    n, step = len(split), _chunk_rows(split.V)
    whole = np.empty((n, split.V), dtype=np.float32)
    squares = 0.0
    for start in range(0, n, step):
        pairs = np.arange(start, min(start + step, n))
        whole[pairs] = _centred(split, centre, pairs)
        squares += _squares(whole[start : start + step])
        tell(n + len(pairs) + start, 2 * n)
    _, singular, rows = randomized_svd(
        whole, components, n_oversamples=OVERSAMPLES, random_state=seed, flip_sign=False
    )
    return rows.T, np.asarray(singular, dtype=np.float64), squares


def _incremental(
    split: GroupSplit,
    centre: Floats,  # [V]
    components: int,
    seed: int,
    tell: Callable[[int, int], None],
) -> tuple[Floats, Doubles, float]:
    """The same, some pairs at a time; a few components more are followed, as `_randomized` does."""
    n = len(split)
    fit = IncrementalPCA(min(components + OVERSAMPLES, n, split.V), copy=False)
    squares = 0.0
    order = np.random.default_rng(seed).permutation(n)
    for start, stop in pairwise(_incremental_edges(n, components).tolist()):
        block = _centred(split, centre, np.sort(order[start:stop]))
        squares += _squares(block)
        fit.partial_fit(block, check_input=False)
        tell(n + stop, 2 * n)
    singular = np.asarray(fit.singular_values_[:components], dtype=np.float64)
    return fit.components_[:components].T, singular, squares


def _squares(block: Floats) -> float:
    return float(np.einsum("ij,ij->", block, block, dtype=np.float64))


def _signs(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sign of the largest entry of each column [R], so that every method gives the same one."""
    largest = np.abs(weight).argmax(axis=0)
    return np.where(weight[largest, np.arange(weight.shape[1])] < 0, -1, 1).astype(weight.dtype)


@contextmanager
def _bar(progress: Progress, total: int, estimate: str) -> Iterator[Callable[[int, int], None]]:
    if progress is not True:
        yield progress if callable(progress) else lambda _done, _total: None
        return
    tqdm.write(estimate, file=sys.stderr)
    with tqdm(desc="basis", unit="pair", total=total) as bar:
        yield lambda done, _total: bar.update(done - bar.n)


def _describe(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
