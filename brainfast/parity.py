"""The yardstick of every compiled form: Listing 1 in float64, and how far a form is from it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .card import ParityCard
from .engine import Engine
from .errors import BrainfastError
from .ops import reference
from .trunks import Trunk
from .vertex_space import VertexSpace


@torch.no_grad()
def twin(
    trunk: Trunk,
    head: Any,
    images: Any,
    vertices: NDArray[np.int64] | None = None,  # [n]
) -> NDArray[np.float64]:  # [B,n]
    """Responses by Listing 1 in float64, one image at a time, on the trunk's fp32 tokens."""
    head = copy.deepcopy(head).cpu().double()
    samples = head.config.samples
    chosen = np.arange(head.V) if vertices is None else vertices
    rows = torch.from_numpy((chosen[:, None] * samples + np.arange(samples)).reshape(-1))
    space, layer, scale = (selector[rows] for selector in head.selectors())
    weight, bias = head.weight[rows], head.bias[rows]
    parts = []
    for found in trunk.features(images, 1):
        tokens = found.map(lambda array: array.cpu().double())
        local, global_ = head.align(tokens)
        response = reference.factor_readout(local, global_, space, layer, scale, weight, bias)
        parts.append(response.reshape(-1, len(chosen), samples).mean(dim=2).numpy())
    return np.concatenate(parts)


def compare(
    expected: NDArray[np.float64],  # [B,V], the twin's
    space: VertexSpace,
    engine: Engine,
    images: Any,
) -> ParityCard:
    """Error of an engine's responses to `images`, in standard deviations of the twin's."""
    expected = expected[:, _positions(space, engine.space)]
    error = (engine.predict(images).values - expected) / expected.std()
    return ParityCard(
        form=engine.runtime.name,
        precision=engine.head.precision,
        trunk_precision=engine.runtime.precision,
        images=len(expected),
        max_error=float(np.abs(error).max()),
        rms_error=float(np.sqrt(np.square(error).mean())),
    )


def _positions(whole: VertexSpace, part: VertexSpace) -> NDArray[np.int64]:
    """Columns of `part`'s vertices in `whole`."""
    left = np.searchsorted(whole.lh, part.lh)
    right = np.searchsorted(whole.rh, part.rh) + whole.lh.size
    columns = np.concatenate([left, right]).astype(np.int64)
    if (columns >= whole.V).any() or whole.take(np.unique(columns)) != part:
        raise BrainfastError("engine", expected="vertices of this encoder", got="another encoder's")
    return columns
