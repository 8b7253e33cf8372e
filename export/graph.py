"""The graph that every target is made from: image bytes in, responses or scores out."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ..bytes_to_pixels import BytesToPixels
from ..errors import BrainfastError
from ..preprocessing import MAX_SIZE
from ..runtimes import matrices_to
from ..trunks import Trunk
from .about import TrunkPrecision
from .heads import BlobGPTHead, FactorTopyHead

HALVES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
PIXELS = "pixels"  # the preprocessed image, an input or a value inside the graph


class ExportGraph(nn.Module):
    """images [B,H0,W0,3] uint8, or pixels [B,3,H,W] float32 -> the head's outputs.

    With images, the pixels are one output more, the last. The trunk holds the blocks that are read
    and no others. Its matrices are stored in `precision` and multiply operands of it, as torch's
    autocast does; norms, residual stream and head stay fp32.
    """

    def __init__(
        self,
        trunk: Trunk,
        head: FactorTopyHead | BlobGPTHead,
        *,
        source: tuple[int, int] | None,
        precision: TrunkPrecision,
    ) -> None:
        super().__init__()
        check_source(source)
        self.to_pixels = None if source is None else BytesToPixels(source, trunk.preprocessing)
        self.trunk = copy.deepcopy(trunk).cpu()
        self.operands = HALVES.get(precision)
        if self.operands is not None:
            matrices_to(self.trunk, self.operands)
        self.head = head
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All outputs."""
        pixels = images if self.to_pixels is None else self.to_pixels(images)
        with self._mode():
            tokens = self.trunk(pixels)
        outputs = self.head(tokens.map(lambda array: array.float()))
        return outputs if self.to_pixels is None else (*outputs, pixels)

    def example(self) -> torch.Tensor:
        """An input of two images."""
        if self.to_pixels is None:
            return torch.zeros(2, 3, *self.trunk.config.size)
        return torch.zeros(2, *self.to_pixels.source, 3, dtype=torch.uint8)

    def _mode(self) -> AbstractContextManager[Any]:
        if self.operands is None:
            return nullcontext()
        mode: AbstractContextManager[Any] = torch.autocast("cpu", dtype=self.operands)
        return mode


def check_source(source: tuple[int, int] | None) -> None:
    """A size that no image has is a BrainfastError."""
    if source is not None and not all(1 <= side <= MAX_SIZE for side in source):
        raise BrainfastError(
            "source", expected=f"height and width in 1..{MAX_SIZE}", got=f"{source}"
        )
