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

    Tokens keep the dtype in which they are stored, and come out of a gather as float32.
    """

    local: tuple[torch.Tensor, ...]  # [n,C_l,H,W] a layer, float32 or bfloat16
    global_: tuple[torch.Tensor, ...]  # [n,C_l] a layer
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

        def pick(table: torch.Tensor) -> torch.Tensor:
            return table.index_select(0, rows).float()

        tokens = Tokens(
            tuple(pick(table) for table in self.local),
            tuple(pick(table) for table in self.global_),
            self.layers,
        )
        return tokens, pick(self.responses)

    def batch(
        self, indices: NDArray[np.int64], device: torch.device
    ) -> tuple[Tokens, torch.Tensor]:
        """Tokens and responses [B,V] of some images, on the device where they are: `device`."""
        return self.gather(torch.from_numpy(indices).to(self.device))
