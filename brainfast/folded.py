"""Folded heads: plain arrays and three verbs, `run`, `template` and `take`.

A folded head is what is left of a trained head once everything that does not depend on the image
has been evaluated. It is numpy over the compiled core: no torch is needed to use one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import _C
from .errors import BrainfastError
from .tokens import Tokens

Array = NDArray[np.float32]
Precision = Literal["fp32", "bf16", "bf16x3"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "bf16x3")


@dataclass(frozen=True)
class AlignedTokens:
    """Tokens of every layer in the shared channel space: all that a FactorTopy readout sees.

    local [B,L,D,H,W] and global_ [B,L,D], float32.
    """

    local: Array  # [B,L,D,H,W]
    global_: Array  # [B,L,D]

    def flat(self) -> Array:
        """Both parts as one row an image, [B, L*D*(H*W+1)], local first."""
        images = len(self.local)
        local, global_ = self.local.reshape(images, -1), self.global_.reshape(images, -1)
        return np.concatenate([local, global_], axis=1)

    def __len__(self) -> int:
        return len(self.local)


@dataclass(frozen=True)
class Template:
    """An objective on the response, folded onto the tokens: score = tokens . template + offset."""

    tokens: AlignedTokens  # [O] of them
    offset: Array  # [O]

    def score(self, aligned: AlignedTokens) -> Array:
        """Scores [B,O] of images whose aligned tokens are given; no vertex is touched."""
        return aligned.flat() @ self.tokens.flat().T + self.offset


@dataclass(frozen=True)
class FoldedFactorTopy:
    """FactorTopy as constants: y = mean_D(weight * sum_l layer_l * token_l(space, scale)) + bias.

    space [V*samples,2], layer [V*samples,L], scale [V*samples], weight [V*samples,D],
    bias [V*samples] (the rows of one vertex's samples are neighbours, and are summed);
    bottleneck_local and bottleneck_global: [D,C_l] a layer; offset_local and offset_global [L,D],
    what the standardisation of the tokens leaves behind; all float32. Responses are in z units.
    Source: Yang et al., Brain Decodes Deep Nets, Listing 1.
    """

    space: Array
    layer: Array
    scale: Array
    weight: Array
    bias: Array
    bottleneck_local: tuple[Array, ...]
    bottleneck_global: tuple[Array, ...]
    offset_local: Array
    offset_global: Array
    layers: tuple[int, ...]
    grid: tuple[int, int] = (8, 8)
    samples: int = 1
    pool_space: bool = False
    precision: Precision = "fp32"
    _plan: _C.FactorReadoutPlan = field(init=False, repr=False, compare=False)

    kind = "factortopy"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        _check_shapes(self)
        parameters = (self.space, self.layer, self.scale, self.weight, self.bias)
        plan = _C.FactorReadoutPlan(*parameters, *self.readout_grid, precision=self.precision)
        object.__setattr__(self, "_plan", plan)

    @property
    def V(self) -> int:
        """Number of vertices."""
        return len(self.bias) // self.samples

    @property
    def channels(self) -> tuple[int, ...]:
        """Trunk channels C_l of every layer."""
        return tuple(matrix.shape[1] for matrix in self.bottleneck_local)

    @property
    def readout_grid(self) -> tuple[int, int]:
        """Height and width of the grid that is sampled; 1 x 1 where space is averaged."""
        return (1, 1) if self.pool_space else self.grid

    def align(self, tokens: Tokens) -> AlignedTokens:
        """Raw trunk tokens -> AlignedTokens: down-sampled to the grid, C_l -> D a layer.

        A token that is not finite is a BrainfastError.
        """
        self._check_tokens(tokens)
        tokens = tokens.map(lambda array: np.asarray(array, dtype=np.float32))
        try:
            local, global_ = self._aligner.run(tokens.local, tokens.global_)
        except ValueError:
            tokens.check_finite()  # names the layer
            raise
        return AlignedTokens(local, global_)

    def readout(self, aligned: AlignedTokens) -> Array:
        """Aligned tokens -> response [B,V] in z units."""
        response: Array = self._plan.run(aligned.local, aligned.global_)
        if self.samples == 1:
            return response
        summed: Array = response.reshape(len(response), self.V, self.samples).sum(axis=2)
        return summed

    def run(self, tokens: Tokens) -> Array:
        """Raw trunk tokens -> response [B,V] in z units."""
        return self.readout(self.align(tokens))

    def template(self, weights: Array) -> Template:
        """Fold objectives `weights` [O,V] on the response through the adjoint of the readout."""
        weights = np.ascontiguousarray(weights, dtype=np.float32)
        if weights.ndim != 2 or weights.shape[1] != self.V:
            raise BrainfastError(
                "weights", expected=f"[O,{self.V}] (one weight a vertex)", got=f"{weights.shape}"
            )
        weights = np.repeat(weights, self.samples, axis=1)
        local, global_ = self._plan.adjoint(weights)
        return Template(AlignedTokens(local, global_), weights @ self.bias)

    def take(self, vertices: Sequence[int] | NDArray[np.int64]) -> FoldedFactorTopy:
        """The same head for some of its vertices: an exact slice, nothing is evaluated again."""
        index = np.asarray(vertices, dtype=np.int64)
        if index.ndim != 1 or (index.size and (index.min() < 0 or index.max() >= self.V)):
            raise BrainfastError(
                "vertices", expected=f"indices in 0..{self.V - 1}", got=f"{vertices!r:.60}"
            )
        rows = (index[:, None] * self.samples + np.arange(self.samples)).reshape(-1)
        return replace(
            self,
            space=self.space[rows],
            layer=self.layer[rows],
            scale=self.scale[rows],
            weight=self.weight[rows],
            bias=self.bias[rows],
        )

    def with_precision(self, precision: Precision) -> FoldedFactorTopy:
        """The same constants, computed in another precision.

        Of the operands, tokens and weight; sums are fp32. "bf16": rounded to bfloat16, rms error
        below 5e-3 standard deviations of the response. "bf16x3": high and low half of both, below
        1e-5. The same on every machine, whatever it multiplies with.
        """
        return replace(self, precision=precision)

    def contributions(self, tokens: Tokens, by: Literal["layer", "scale"] = "layer") -> Array:
        """Exact split of the response: response - bias = sum over the second axis.

        by="layer" gives [B,L,V]; by="scale" gives [B,2,V], local tokens then global tokens.
        """
        aligned = self.align(tokens)
        zero = replace(self, bias=np.zeros_like(self.bias))
        if by == "layer":
            parts = [zero._one_layer(index, aligned) for index in range(len(self.layers))]
        elif by == "scale":
            local_only = replace(aligned, global_=np.zeros_like(aligned.global_))
            global_only = replace(aligned, local=np.zeros_like(aligned.local))
            parts = [zero.readout(local_only), zero.readout(global_only)]
        else:
            raise BrainfastError("by", expected="'layer' or 'scale'", got=repr(by))
        return np.stack(parts, axis=1)

    def arrays(self) -> dict[str, Array]:
        """The arrays by the names that they have in `folded.safetensors`."""
        arrays = {name: getattr(self, name) for name in _VERTEX_ARRAYS}
        for index, layer in enumerate(self.layers):
            arrays[f"bottleneck.local.{layer}"] = self.bottleneck_local[index]
            arrays[f"bottleneck.global.{layer}"] = self.bottleneck_global[index]
        return arrays | {"offset.local": self.offset_local, "offset.global": self.offset_global}

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, np.ndarray],
        *,
        name: str,
        layers: Sequence[int],
        grid: tuple[int, int],
        samples: int = 1,
        pool_space: bool = False,
    ) -> FoldedFactorTopy:
        """Build from the arrays of a file called `name`; wrong or missing ones are errors."""
        wanted = [*_VERTEX_ARRAYS, "offset.local", "offset.global"]
        wanted += [f"bottleneck.{scale}.{layer}" for scale in _SCALES for layer in layers]
        missing = sorted(set(wanted) - set(arrays))
        extra = sorted(set(arrays) - set(wanted))
        if missing or extra:
            raise BrainfastError(
                name,
                expected="the arrays of a folded FactorTopy head",
                got=f"missing {missing}, not known {extra}",
                remedy="save the encoder again",
            )
        for key in wanted:
            check_array(f"{name}: {key}", arrays[key])
        local, global_ = (
            tuple(arrays[f"bottleneck.{scale}.{layer}"] for layer in layers) for scale in _SCALES
        )
        return cls(
            space=arrays["space"],
            layer=arrays["layer"],
            scale=arrays["scale"],
            weight=arrays["weight"],
            bias=arrays["bias"],
            bottleneck_local=local,
            bottleneck_global=global_,
            offset_local=arrays["offset.local"],
            offset_global=arrays["offset.global"],
            layers=tuple(layers),
            grid=grid,
            samples=samples,
            pool_space=pool_space,
        )

    def _one_layer(self, index: int, aligned: AlignedTokens) -> Array:
        head = replace(
            self,
            layer=np.ascontiguousarray(self.layer[:, index : index + 1]),
            bottleneck_local=self.bottleneck_local[index : index + 1],
            bottleneck_global=self.bottleneck_global[index : index + 1],
            offset_local=self.offset_local[index : index + 1],
            offset_global=self.offset_global[index : index + 1],
            layers=self.layers[index : index + 1],
        )
        one = slice(index, index + 1)
        return head.readout(
            AlignedTokens(
                np.ascontiguousarray(aligned.local[:, one]),
                np.ascontiguousarray(aligned.global_[:, one]),
            )
        )

    @cached_property
    def _aligner(self) -> _C.AlignTokensPlan:
        """The bottlenecks, packed when tokens are first aligned: parts of a head never do."""
        return _C.AlignTokensPlan(
            self.bottleneck_local,
            self.bottleneck_global,
            self.offset_local,
            self.offset_global,
            self.grid,
            self.pool_space,
        )

    def _check_tokens(self, tokens: Tokens) -> None:
        if tokens.layers != self.layers or tokens.channels != self.channels:
            raise BrainfastError(
                "tokens",
                expected=f"layers {self.layers} with channels {self.channels}",
                got=f"layers {tokens.layers} with channels {tokens.channels}",
                remedy="use the trunk that this head was trained on",
            )


_VERTEX_ARRAYS = ("space", "layer", "scale", "weight", "bias")
_SCALES = ("local", "global")


def check_precision(precision: str) -> None:
    """A precision that no head has is a BrainfastError."""
    if precision not in PRECISIONS:
        raise BrainfastError(
            "precision", expected=" or ".join(map(repr, PRECISIONS)), got=repr(precision)
        )


def check_array(name: str, array: np.ndarray) -> None:
    """An array that is not float32, or holds what is not finite, is a BrainfastError."""
    if array.dtype != np.float32:
        raise BrainfastError(name, expected="float32", got=str(array.dtype))
    if not np.isfinite(array).all():
        raise BrainfastError(name, expected="finite numbers", got="NaN or infinity")


def _check_shapes(head: FoldedFactorTopy) -> None:
    if head.bias.ndim != 1:
        raise BrainfastError("bias", expected="shape [V*samples]", got=f"shape {head.bias.shape}")
    rows, layers = len(head.bias), len(head.layers)
    if head.samples < 1 or rows % head.samples:
        raise BrainfastError("samples", expected=f"a divisor of {rows} rows", got=str(head.samples))
    dim = head.weight.shape[1] if head.weight.ndim == 2 else -1
    expected: dict[str, tuple[Array, tuple[int, ...]]] = {
        "space": (head.space, (rows, 2)),
        "layer": (head.layer, (rows, layers)),
        "scale": (head.scale, (rows,)),
        "weight": (head.weight, (rows, dim)),
        "bias": (head.bias, (rows,)),
        "offset.local": (head.offset_local, (layers, dim)),
        "offset.global": (head.offset_global, (layers, dim)),
    }
    for index, layer in enumerate(head.layers):
        local, global_ = head.bottleneck_local[index], head.bottleneck_global[index]
        channels = local.shape[1] if local.ndim == 2 else -1
        expected[f"bottleneck.local.{layer}"] = (local, (dim, channels))
        expected[f"bottleneck.global.{layer}"] = (global_, (dim, channels))
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise BrainfastError(name, expected=f"shape {shape}", got=f"shape {array.shape}")
