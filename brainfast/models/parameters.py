"""How heads begin, and what is taken out of them."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """A parameter drawn from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as torch's layers begin."""
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


def as_float32(tensor: torch.Tensor) -> NDArray[np.float32]:
    """A copy in host memory, contiguous, that no later step changes."""
    array: NDArray[np.float32] = tensor.detach().float().cpu().contiguous().numpy()
    return array.copy()
