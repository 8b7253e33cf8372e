"""Several processes that train one model: who has which images, and sums over all of them."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..errors import BrainfastError


def process_rank() -> int:
    """This process's place in a `torchrun`, 0 without one.

    Schedulers leave variables of the same names behind: only torchrun's count.
    """
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


class Ranks:
    """The processes of a `torchrun`; one process where there was none.

    Every method is called by all of them, in the same order.
    """

    def __init__(self, device: torch.device) -> None:
        self.size = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
        self.rank = process_rank()
        if device.type == "cuda" and self.size > 1:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        self.device = device
        if self.size > 1 and not dist.is_initialized():
            # One process may work for hours while the others wait: on a PCA, on a token cache.
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(days=7))
            # Not after each run: a second group would meet the addresses of the first.
            atexit.register(dist.destroy_process_group)

    @property
    def first(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Which of `count` things are this process's: neighbours, as many as anybody's."""
        if count % self.size:
            raise BrainfastError(
                "batch",
                expected=f"a multiple of the {self.size} processes",
                got=str(count),
                remedy=f"use a batch of {count - count % self.size or self.size}",
            )
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, own: torch.Tensor, dim: int) -> torch.Tensor:
        """Everybody's tensors, of equal shape, one after another along `dim`."""
        if self.size == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts, dim)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def collect(self, item: Any) -> list[Any]:
        """Everybody's item, in the order of the ranks."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Make every gradient the sum of everybody's."""
        if self.size == 1:
            return
        found = [p for p in parameters if p.requires_grad]
        for parameter in found:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self.sum(parameter.grad)

    def wait(self) -> None:
        """Until everybody is here."""
        if self.size > 1:
            dist.barrier()
