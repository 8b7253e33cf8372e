"""Tokens and responses of a split on the device that trains: a batch is gathered there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .tokens import Tokens


@dataclass(frozen=True, eq=False)
class ResidentExamples:
    """Tokens and responses of n images, all on one device.

    Tokens keep the dtype in which they are stored, float32 or bfloat16, and come out of a gather
    as float32. Layers of as many channels lie in one tensor, so that a gather is one operation.
    """

    local: torch.Tensor | tuple[torch.Tensor, ...]  # [L,n,C,H,W], or [n,C_l,H,W] a layer
    global_: torch.Tensor | tuple[torch.Tensor, ...]  # [L,n,C], or [n,C_l] a layer
    layers: tuple[int, ...]
    responses: torch.Tensor  # [n,V] float32

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.responses.device

    def gather(
        self,
        rows: torch.Tensor,  # [B] int64, on the device
    ) -> tuple[Tokens, torch.Tensor]:
        """Tokens in float32 and responses [B,V] of some images; the host waits for nothing."""

        tokens = Tokens(_pick(self.local, rows), _pick(self.global_, rows), self.layers)
        return tokens, self.responses.index_select(0, rows)

    def tables(self) -> Tokens:
        """Tokens of all images, in the dtype in which they are stored, without a copy."""
        return Tokens(tuple(self.local), tuple(self.global_), self.layers)

    def batch(
        self, indices: NDArray[np.int64], device: torch.device
    ) -> tuple[Tokens, torch.Tensor]:
        """Tokens and responses [B,V] of some images, on the device where they are: `device`."""
        return self.gather(torch.from_numpy(indices).to(self.device))


def empty_examples(
    like: Tokens,  # of some image
    count: int,
    vertices: int,
    device: torch.device,
) -> ResidentExamples:
    """Room for `count` images; torch.OutOfMemoryError where there is none."""

    def room(parts: tuple[torch.Tensor, ...]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        shapes = [(count, *part.shape[1:]) for part in parts]
        if len(set(shapes)) == 1:
            return torch.empty(len(parts), *shapes[0], dtype=parts[0].dtype, device=device)
        return tuple(torch.empty(s, dtype=parts[0].dtype, device=device) for s in shapes)

    responses = torch.empty(count, vertices, device=device)
    return ResidentExamples(room(like.local), room(like.global_), like.layers, responses)


def _pick(
    tables: torch.Tensor | tuple[torch.Tensor, ...], rows: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Rows of every layer, float32."""
    if isinstance(tables, torch.Tensor):
        return tables.index_select(1, rows).float().unbind()
    return tuple(table.index_select(0, rows).float() for table in tables)
