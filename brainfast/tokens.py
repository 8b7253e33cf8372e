"""A trunk's answer to a batch of images, and its reduction to a common grid."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BrainfastError

Array = Any  # numpy.ndarray or torch.Tensor: one implementation serves both


@dataclass(frozen=True, eq=False)
class Tokens:
    """Local and global tokens of every chosen layer for a batch of images.

    `local[i]` [B,C,H,W] and `global_[i]` [B,C] belong to trunk layer `layers[i]`; channels and
    grid may differ between layers. Arrays are numpy or torch, all of one kind.
    Errors: BrainfastError where counts or shapes disagree.
    """

    local: tuple[Array, ...]
    global_: tuple[Array, ...]
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        for field in ("local", "global_", "layers"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not len(self.local) == len(self.global_) == len(self.layers) > 0:
            raise BrainfastError(
                "tokens",
                expected="as many local as global arrays and layers, at least one",
                got=f"{len(self.local)}, {len(self.global_)} and {len(self.layers)}",
            )
        for layer, local, global_ in zip(self.layers, self.local, self.global_, strict=True):
            shape, want = tuple(local.shape), (self.local[0].shape[0], *local.shape[1:2])
            if len(shape) != 4 or tuple(global_.shape) != want or shape[:2] != want:
                raise BrainfastError(
                    f"tokens of layer {layer}",
                    expected="local [B,C,H,W] and global [B,C] of one B and C",
                    got=f"{list(shape)} and {list(global_.shape)}",
                )

    @property
    def B(self) -> int:
        """Number of images."""
        return int(self.local[0].shape[0])

    @property
    def L(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each layer."""
        return tuple(int(local.shape[1]) for local in self.local)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Token grid (H, W) of each layer."""
        return tuple((int(local.shape[2]), int(local.shape[3])) for local in self.local)

    def __len__(self) -> int:
        return self.B

    def __getitem__(self, index: Any) -> Tokens:
        """Tokens of some images: a slice, an index array, a mask, or one number (kept as B=1)."""
        if isinstance(index, int | np.integer):
            if not -self.B <= index < self.B:
                raise IndexError(f"image {index} of {self.B}")
            index = slice(int(index) % self.B, int(index) % self.B + 1)
        return self.map(lambda array: array[index])

    def map(self, function: Callable[[Array], Array]) -> Tokens:
        """Apply `function` to every array, such as `lambda a: a.to("cuda")`."""
        return Tokens(
            tuple(function(array) for array in self.local),
            tuple(function(array) for array in self.global_),
            self.layers,
        )

    def check_finite(self, name: str = "tokens") -> None:
        """Raise a BrainfastError that names the first layer with a NaN or an infinity."""
        for layer, *arrays in zip(self.layers, self.local, self.global_, strict=True):
            for kind, array in zip(("local", "global"), arrays, strict=True):
                if not bool((abs(array) < math.inf).all()):
                    raise BrainfastError(
                        name,
                        expected="finite tokens",
                        got=f"NaN or infinity in {kind}.{layer}",
                        remedy="check the images and the trunk's weights and precision",
                    )


def downsample(
    tokens: Tokens,  # local [B,C,H,W] of any grid
    grid: tuple[int, int] = (8, 8),
) -> Tokens:  # local [B,C,*grid]
    """Bilinear resampling of the local tokens to `grid`, align_corners=False, no antialias.

    Smaller grids are up-sampled; global tokens pass through. Numpy and torch arrays give the same
    numbers to 1e-6 of their scale, and keep their dtype (numpy: float32 or float64).
    Source: FactorTopy, Listing 1.
    """
    if len(grid) != 2 or min(grid) < 1:
        raise BrainfastError("grid", expected="two sides of at least 1", got=str(grid))
    local = tuple(
        array if tuple(array.shape[2:]) == tuple(grid) else _resample(array, grid)
        for array in tokens.local
    )
    return Tokens(local, tokens.global_, tokens.layers)


def _resample(array: Array, grid: tuple[int, int]) -> Array:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return torch.nn.functional.interpolate(
            array, size=tuple(grid), mode="bilinear", align_corners=False
        )
    return _resample_axis(_resample_axis(array, grid[0], axis=2), grid[1], axis=3)


def _resample_axis(array: npt.NDArray[Any], size: int, *, axis: int) -> npt.NDArray[Any]:
    old = array.shape[axis]
    number = array.dtype.type  # torch places the samples in the tokens' own precision
    places = np.arange(size, dtype=array.dtype)
    centre = np.maximum((places + number(0.5)) * number(old / size) - number(0.5), number(0))
    low = np.floor(centre).astype(np.int64)
    high = np.minimum(low + 1, old - 1)
    shape = [1, 1, 1, 1]
    shape[axis] = size
    weight = (centre - low.astype(array.dtype)).reshape(shape)
    first, second = np.take(array, low, axis), np.take(array, high, axis)
    return np.asarray(first * (1 - weight) + second * weight)
