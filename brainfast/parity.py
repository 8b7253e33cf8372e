"""The yardstick of every compiled form: Listing 1 in float64, and how far a form is from it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .analysis.scores import r2
from .card import ParityCard
from .engine import Engine
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
    measured: NDArray[np.float32] | None = None,  # [B,V]
) -> ParityCard:
    """Error of an engine's responses to `images`, in standard deviations of the twin's."""
    columns = space.positions(engine.space)
    found = engine.predict(images).values
    return parity_card(
        (engine.runtime.name, engine.runtime.precision, engine.head.precision),
        found,
        expected[:, columns],
        None if measured is None else measured[:, columns],
    )


def parity_card(
    form: tuple[str, str, str],  # trunk runtime, trunk precision, head precision
    found: NDArray[np.float32],  # [B,V]
    expected: NDArray[np.float64],  # [B,V], the twin's
    measured: NDArray[np.float32] | None = None,  # [B,V]
) -> ParityCard:
    """error = (found - expected) / sd(expected): its max and root mean square.

    r2_change, where measured responses are given: the largest |R2(found) - R2(expected)| of a
    vertex, over those that have an R2.
    """
    runtime, trunk_precision, precision = form
    error = (found - expected) / expected.std()
    change = None
    if measured is not None:
        changes = np.abs(r2(found, measured) - r2(expected, measured))
        change = float(np.nanmax(changes)) if np.isfinite(changes).any() else None
    return ParityCard(
        form=runtime,
        precision=precision,
        trunk_precision=trunk_precision,
        images=len(expected),
        max_error=float(np.abs(error).max()),
        rms_error=float(np.sqrt(np.square(error).mean())),
        r2_change=change,
    )
