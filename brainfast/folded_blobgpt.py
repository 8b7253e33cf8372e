"""BlobGPT folded: one projection for every subject, one matrix for each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import _C
from .errors import BrainfastError
from .folded import Array, Precision, check_array, check_precision
from .tokens import Tokens

GROUP = "group"  # the name of the prediction that leaves the subject out


def is_subject_name(name: str) -> bool:
    """Whether a subject may bear it: it names arrays, folders, and stands between commas."""
    return re.fullmatch(r"[\w-]+", name) is not None and name != GROUP


@dataclass(frozen=True)
class Latent:
    """All that a BlobGPT readout sees of an image: values [B,K], float32."""

    values: Array  # [B,K]

    def flat(self) -> Array:
        """One row an image, [B,K]."""
        return self.values

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class LatentTemplate:
    """An objective on the response, folded onto the latent: score = latent . template + offset."""

    latent: Latent  # [O] of them
    offset: Array  # [O]

    def score(self, aligned: Latent) -> Array:
        """Scores [B,O] of images whose latents are given; no vertex is touched."""
        scores: Array = aligned.flat() @ self.latent.flat().T + self.offset
        return scores


@dataclass(frozen=True)
class BlobProjection:
    """latent_k = sum_l sum_t map_l[k,t] (filter_l[k] . x_l[t]) + latent_bias_k.

    filters: [K,C_l] a layer, with BatchNorm and the mean over layers multiplied in; maps: [K,T_l] a
    layer, the class token first where the trunk has one; latent_bias [K]; all float32.
    Source: Lane et al., the BlobGPT report, section "Feature projection".
    """

    filters: tuple[Array, ...]
    maps: tuple[Array, ...]
    latent_bias: Array
    layers: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    class_token: bool
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        _check_projection(self)

    @property
    def K(self) -> int:
        """Size of the latent."""
        return len(self.latent_bias)

    @property
    def channels(self) -> tuple[int, ...]:
        """Trunk channels C_l of every layer."""
        return tuple(matrix.shape[1] for matrix in self.filters)

    def run(self, tokens: Tokens) -> Latent:
        """Raw trunk tokens of B images -> latent [B,K]; a token that is not finite is an error."""
        self._check_tokens(tokens)
        tokens = tokens.map(lambda array: np.ascontiguousarray(array, dtype=np.float32))
        global_ = tokens.global_ if self.class_token else None
        values = self._plan.run(tokens.local, global_)
        if not np.isfinite(values).all():
            tokens.check_finite()
        return Latent(values)

    def with_precision(self, precision: Precision) -> BlobProjection:
        """The same constants, computed in another precision."""
        return replace(self, precision=precision)

    def one_layer(self, index: int) -> BlobProjection:
        """What one layer adds to the latent, without the bias."""
        one = slice(index, index + 1)
        return replace(
            self,
            filters=self.filters[one],
            maps=self.maps[one],
            latent_bias=np.zeros_like(self.latent_bias),
            layers=self.layers[one],
            grids=self.grids[one],
        )

    def arrays(self) -> dict[str, Array]:
        """The arrays by the names that they have in `folded.safetensors`."""
        arrays = {}
        for index, layer in enumerate(self.layers):
            arrays[f"filters.{layer}"] = self.filters[index]
            arrays[f"maps.{layer}"] = self.maps[index]
        return arrays | {"latent_bias": self.latent_bias}

    @cached_property
    def _plan(self) -> _C.FactorProjectionPlan:
        return _C.FactorProjectionPlan(
            self.filters, self.maps, self.latent_bias, precision=self.precision
        )

    def _check_tokens(self, tokens: Tokens) -> None:
        grids = tuple((part.shape[2], part.shape[3]) for part in tokens.local)
        found = (tokens.layers, tokens.channels, grids)
        wanted = (self.layers, self.channels, self.grids)
        if found != wanted:
            raise BrainfastError(
                "tokens",
                expected=f"layers, channels and grids {wanted}",
                got=f"{found}",
                remedy="use the trunk that this head was trained on",
            )


@dataclass(frozen=True)
class FoldedBlobGPT:
    """One subject of BlobGPT as constants: y = weight latent + bias.

    weight [V,K] is the PCA embedding times shared plus subject map, bias [V] their offsets, both
    float32. Responses are in z units. The projection is common to all subjects of a model, so that
    several of them answer from one latent.
    """

    projection: BlobProjection
    weight: Array  # [V,K]
    bias: Array  # [V]

    kind = "blobgpt"

    def __post_init__(self) -> None:
        if self.weight.shape != (len(self.bias), self.projection.K) or self.bias.ndim != 1:
            raise BrainfastError(
                "weight and bias",
                expected=f"shapes [V,{self.projection.K}] and [V]",
                got=f"{list(self.weight.shape)} and {list(self.bias.shape)}",
            )

    @property
    def V(self) -> int:
        """Number of vertices."""
        return len(self.bias)

    @property
    def layers(self) -> tuple[int, ...]:
        """The trunk's blocks that are read."""
        return self.projection.layers

    @property
    def channels(self) -> tuple[int, ...]:
        """Trunk channels C_l of every layer."""
        return self.projection.channels

    @property
    def precision(self) -> Precision:
        """Of the operands: filters, tokens, latent and weight."""
        return self.projection.precision

    @property
    def offset(self) -> Array:
        """What every vertex answers when all tokens are zero, [V]."""
        offset: Array = self.weight @ self.projection.latent_bias + self.bias
        return offset

    def align(self, tokens: Tokens) -> Latent:
        """Raw trunk tokens -> Latent, the same for every subject of the model."""
        return self.projection.run(tokens)

    def readout(self, aligned: Latent) -> Array:
        """Latent -> response [B,V] in z units."""
        response: Array = self._plan.run(aligned.values)
        return response

    def run(self, tokens: Tokens) -> Array:
        """Raw trunk tokens -> response [B,V] in z units."""
        return self.readout(self.align(tokens))

    def template(self, weights: Array) -> LatentTemplate:
        """Fold objectives `weights` [O,V] on the response onto the latent."""
        weights = np.ascontiguousarray(weights, dtype=np.float32)
        if weights.ndim != 2 or weights.shape[1] != self.V:
            raise BrainfastError(
                "weights", expected=f"[O,{self.V}] (one weight a vertex)", got=f"{weights.shape}"
            )
        return LatentTemplate(Latent(self._plan.adjoint(weights)), weights @ self.bias)

    def take(self, vertices: Sequence[int] | NDArray[np.int64]) -> FoldedBlobGPT:
        """The same head for some of its vertices: an exact slice, to the last bit."""
        index = np.asarray(vertices, dtype=np.int64)
        if index.ndim != 1 or (index.size and (index.min() < 0 or index.max() >= self.V)):
            raise BrainfastError(
                "vertices", expected=f"indices in 0..{self.V - 1}", got=f"{vertices!r:.60}"
            )
        return replace(self, weight=self.weight[index], bias=self.bias[index])

    def with_precision(self, precision: Precision) -> FoldedBlobGPT:
        """The same constants, computed in another precision; sums are fp32 in all."""
        return replace(self, projection=self.projection.with_precision(precision))

    def contributions(self, tokens: Tokens, by: Literal["layer", "scale"] = "layer") -> Array:
        """Exact split over layers, [B,L,V]: the response is the sum and `offset`."""
        if by != "layer":
            raise BrainfastError("by", expected="'layer', all that BlobGPT has", got=repr(by))
        head = replace(self, bias=np.zeros_like(self.bias))
        parts = []
        for index in range(len(self.layers)):
            one = slice(index, index + 1)
            alone = Tokens(tokens.local[one], tokens.global_[one], tokens.layers[one])
            parts.append(head.readout(self.projection.one_layer(index).run(alone)))
        return np.stack(parts, axis=1)

    @cached_property
    def _plan(self) -> _C.VertexEmbedPlan:
        return _C.VertexEmbedPlan(self.weight, self.bias, precision=self.precision)


def read_blobgpt(
    arrays: Mapping[str, np.ndarray],
    *,
    name: str,
    layers: Sequence[int],
    grids: tuple[tuple[int, int], ...],
    class_token: bool,
    subjects: Sequence[str],
) -> dict[str, FoldedBlobGPT]:
    """Heads of `subjects` from the arrays of a file called `name`; wrong or missing ones are
    errors, those of other subjects are not looked at."""
    wanted = ["latent_bias", *(f"{kind}.{n}" for kind in ("filters", "maps") for n in layers)]
    wanted += [f"subject.{s}.{part}" for s in subjects for part in ("weight", "bias")]
    missing = sorted(set(wanted) - set(arrays))
    if missing:
        raise BrainfastError(
            name,
            expected="the arrays of a folded BlobGPT head",
            got=f"missing {missing}",
            remedy="save the encoder again",
        )
    for key in wanted:
        check_array(f"{name}: {key}", arrays[key])
    projection = BlobProjection(
        filters=tuple(arrays[f"filters.{layer}"] for layer in layers),
        maps=tuple(arrays[f"maps.{layer}"] for layer in layers),
        latent_bias=arrays["latent_bias"],
        layers=tuple(layers),
        grids=grids,
        class_token=class_token,
    )
    return {
        subject: FoldedBlobGPT(
            projection, arrays[f"subject.{subject}.weight"], arrays[f"subject.{subject}.bias"]
        )
        for subject in subjects
    }


def _check_projection(head: BlobProjection) -> None:
    count = len(head.layers)
    if not count == len(head.filters) == len(head.maps) == len(head.grids):
        raise BrainfastError(
            "filters and maps",
            expected=f"one of each for {count} layers",
            got=f"{len(head.filters)} and {len(head.maps)}, {len(head.grids)} grids",
        )
    if head.latent_bias.ndim != 1:
        raise BrainfastError("latent_bias", expected="[K]", got=str(head.latent_bias.shape))
    parts = zip(head.layers, head.grids, head.filters, head.maps, strict=True)
    for layer, (height, width), filters, maps in parts:
        channels = filters.shape[1] if filters.ndim == 2 else -1
        expected = ((head.K, channels), (head.K, height * width + head.class_token))
        if (filters.shape, maps.shape) != expected:
            raise BrainfastError(
                f"layer {layer}",
                expected=f"filters and maps of shapes {expected}",
                got=f"{(filters.shape, maps.shape)}",
            )
