"""Where a batch comes from: tokens and responses on the host, or on the device that trains."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import BrainfastError
from ..machine import available_memory
from ..resident import ResidentExamples, empty_examples
from ..tokens import Tokens

Resident = bool | Literal["auto"]

_CHUNK = 64  # images on their way to the device at a time


class Responses(Protocol):
    """Measured responses [n,V] in z units, in memory or mapped from disk."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


class Batches(Protocol):
    """Images with tokens and responses, a batch at a time."""

    def __len__(self) -> int: ...
    def batch(
        self, indices: NDArray[np.int64], device: torch.device
    ) -> tuple[Tokens, torch.Tensor]: ...


@dataclass(frozen=True)
class Examples:
    """Tokens and responses of the same n images; tokens are float32 or bfloat16 on the CPU."""

    tokens: Callable[[Sequence[int]], Tokens]
    responses: Responses

    def __len__(self) -> int:
        return len(self.responses)

    def batch(
        self, indices: NDArray[np.int64], device: torch.device
    ) -> tuple[Tokens, torch.Tensor]:
        """Tokens in float32 and responses [B,V] of some images, on `device`."""

        def move(part: torch.Tensor) -> torch.Tensor:
            if device.type == "cuda":  # so that the copy runs beside the host
                part = part.pin_memory()
            return part.to(device, non_blocking=True).float()

        return self.tokens(indices.tolist()).map(move), move(self._measured(indices))

    def nbytes(self) -> int:
        """Size of all tokens, in the dtype that they have, and of the responses in float32."""
        first = self.tokens([0])
        image: int = sum(part.nbytes for part in (*first.local, *first.global_))
        return len(self) * (image + self._measured(np.arange(1)).nbytes)

    def load(self, device: torch.device) -> ResidentExamples:
        """All of them on `device`; torch.OutOfMemoryError where they do not fit."""
        vertices, count = self._measured(np.arange(1)).shape[1], len(self)
        examples = empty_examples(self.tokens([0]), count, vertices, device)
        room = examples.tables()
        for start in range(0, count, _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, count))
            tokens = self.tokens(rows.tolist())
            parts = (*tokens.local, *tokens.global_, self._measured(rows))
            tables = (*room.local, *room.global_, examples.responses)
            for to, part in zip(tables, parts, strict=True):
                to[start : start + len(rows)].copy_(part)
        return examples

    def _measured(self, indices: NDArray[np.int64]) -> torch.Tensor:  # [B,V]
        measured = np.ascontiguousarray(self.responses[indices], dtype=np.float32)
        return torch.from_numpy(measured)


def placed(
    examples: Examples,
    name: str,
    device: torch.device,
    *,
    resident: Resident,
    reserve: int,
    tell: bool,
) -> Examples | ResidentExamples:
    """The examples on `device` where they are wanted there and fit, else as they are.

    resident: "auto" loads them to a GPU that has their bytes and `reserve` more free; True demands
    it of any device, False leaves them on the host. Errors: BrainfastError where they are demanded
    and do not fit, before anything is allocated. tell: print the estimate.
    """
    if resident != "auto" and not isinstance(resident, bool):
        raise BrainfastError("resident", expected="auto, True or False", got=repr(resident))
    if resident is False or (resident == "auto" and device.type != "cuda"):
        return examples
    needed, free = examples.nbytes(), free_bytes(device)
    fits = needed + reserve <= free
    if tell:
        tqdm.write(
            f"{name}: {needed / 1e9:.3g} GB of tokens and responses; {device} has"
            f" {free / 1e9:.3g} GB free, {reserve / 1e9:.3g} GB of them for training: "
            + ("kept there" if fits else "streamed from the host"),
            file=sys.stderr,
        )
    if fits:
        return examples.load(device)
    if resident is True:
        raise BrainfastError(
            f"memory of {device}",
            expected=f"{needed + reserve:,} bytes for {name}, resident, and for training",
            got=f"{free:,} free",
            remedy='take resident="auto", cache_dtype="bf16" or fewer layers',
        )
    return examples


def free_bytes(device: torch.device) -> int:
    """Memory of a device that can still be taken."""
    if device.type != "cuda":
        return available_memory()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


class Sampler:
    """Indices of every step, from the seed and the step alone, so that a resumed run sees the
    batches that it would have seen."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed = count, min(batch, count), seed
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def indices(self, step: int) -> NDArray[np.int64]:
        """Indices [B] of `step`; every image comes once in each pass over the data."""
        position = step * self.batch + np.arange(self.batch)
        return np.array([self._pass(p // self.count)[p % self.count] for p in position.tolist()])

    def _pass(self, number: int) -> NDArray[np.int64]:
        if self._order[0] != number:
            self._order = (
                number,
                np.random.default_rng([self.seed, number]).permutation(self.count),
            )
        return self._order[1]
