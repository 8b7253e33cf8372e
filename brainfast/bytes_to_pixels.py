"""Preprocessing as a torch module of constants: for a GPU, and for graphs that are exported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .resize_weights import UNIT, fixed_point_weights, plain_weights, rows_first

if TYPE_CHECKING:
    from .preprocessing import Preprocessing

# A weight is high * DIGIT + low, both of 11 bits at most and their sums below 2^24: every product
# and every sum is then exact in float32, and on tensor cores in TF32 as well.
DIGIT = 1 << 12
EXACT = 1 << 24


class BytesToPixels(nn.Module):
    """pixels = (resize(bytes) / 255 - mean) / std: what `images.preprocess` does, on any device.

    The resize is two products with constant matrices, of images of one `source` size (H, W). With
    antialias it gives the installed Pillow's bits as long as `exact`, which holds up to an 8-fold
    reduction for bicubic; else, a byte that lies between two may come out as its neighbour.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    white: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, source: tuple[int, int], preprocessing: Preprocessing) -> None:
        super().__init__()
        self.source, self.size = source, preprocessing.size
        self.fixed_point = preprocessing.antialias or preprocessing.interpolation == "nearest"
        self.exact, self.rows_first = self.fixed_point, False
        weights: list[NDArray[Any]]
        if self.fixed_point:
            weights = self._fixed_point(preprocessing.interpolation)
        else:
            sides = zip(self.source, self.size, strict=True)
            weights = [plain_weights(*pair, preprocessing.interpolation)[None] for pair in sides]
        self.register_buffer("rows", _constant(weights[0]))
        self.register_buffer("columns", _constant(weights[1].swapaxes(1, 2)))
        # A tensor on the device: by a number of the host's, CUDA multiplies with its reciprocal.
        self.register_buffer("white", torch.tensor(255.0))
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])

    def forward(
        self,
        images: torch.Tensor,  # [B,H0,W0,3], uint8
    ) -> torch.Tensor:  # [B,3,H,W], float32
        # Bytes become numbers first: TensorRT moves no bytes about.
        values = images.to(torch.float32).permute(0, 3, 1, 2)
        if self.fixed_point:
            values = values if self.rows_first else self._resize_columns(values)
            values = _rounded(self.rows[0] @ values, self.rows[1] @ values)
            values = self._resize_columns(values) if self.rows_first else values
        else:
            values = (self.rows[0] @ values) @ self.columns[0]
            values = torch.clamp(torch.round(values), 0, 255)
        return (values / self.white - self.mean) / self.std

    def _resize_columns(self, values: torch.Tensor) -> torch.Tensor:
        return _rounded(values @ self.columns[0], values @ self.columns[1])

    def _fixed_point(self, interpolation: str) -> list[NDArray[np.int64]]:
        """Two digits of every weight, [2,H,H0] of the rows and [2,W,W0] of the columns."""
        sides = zip(self.source, self.size, strict=True)
        whole = [fixed_point_weights(*pair, interpolation) for pair in sides]
        order = rows_first(whole[0], whole[1], interpolation)
        self.exact, self.rows_first = order is not None, bool(order)
        digits = []
        for weights in whole:
            high = (weights + DIGIT // 2) // DIGIT
            digits.append(np.stack([high, weights - high * DIGIT]))
            self.exact &= bool((255 * np.abs(digits[-1]).sum(axis=2) < EXACT).all())
        return digits


def _constant(weights: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float32))


def _rounded(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """clip((high * DIGIT + low + UNIT / 2) // UNIT) in steps that float32 holds exactly."""
    unit = UNIT // DIGIT
    return torch.clamp(torch.floor((high + unit // 2 + torch.floor(low / DIGIT)) / unit), 0, 255)
