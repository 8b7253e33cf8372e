"""A made-up head whose selectors are as smooth as a trained model's."""

from __future__ import annotations

import numpy as np

from ..folded import FoldedFactorTopy


def made_up_head(
    vertices: int,
    layers: int,
    dim: int,
    *,
    channels: int = 1,
    grid: tuple[int, int] = (8, 8),
    seed: int = 0,
) -> FoldedFactorTopy:
    """Two hemispheres, each seeing the other side of the image, most vertices near its centre,
    layers and scale rising from the back to the front; bottlenecks that keep a token's variance."""
    rng = np.random.default_rng(seed)
    along, across = rng.random(vertices), rng.random(vertices)
    side = np.where(np.arange(vertices) < vertices // 2, 1.0, -1.0)
    eccentricity = 0.05 * ((1.0 / 0.05 + 1.0) ** across - 1.0)
    angle = np.pi / 2 * np.sin(2 * np.pi * 2.5 * along)  # mirrored from each area to the next
    space = np.stack([side * np.cos(angle), np.sin(angle)], axis=1) * eccentricity[:, None]
    depth = np.arange(layers) / max(layers - 1, 1)
    layer = np.exp(-np.square(depth - along[:, None]) / 0.05)
    arrays = {
        "space": space,
        "layer": layer / layer.sum(axis=1, keepdims=True),
        "scale": 1 / (1 + np.exp(-6 * (along - 0.5))),
        "weight": rng.standard_normal((vertices, dim)),
        "bias": 0.1 * rng.standard_normal(vertices),
        "offset_local": 0.1 * rng.standard_normal((layers, dim)),
        "offset_global": 0.1 * rng.standard_normal((layers, dim)),
    }
    bottlenecks = rng.standard_normal((2, layers, dim, channels), np.float32) / channels**0.5
    local, global_ = bottlenecks.astype(np.float32)
    return FoldedFactorTopy(
        **{name: array.astype(np.float32) for name, array in arrays.items()},
        bottleneck_local=tuple(local),
        bottleneck_global=tuple(global_),
        layers=tuple(range(layers)),
        grid=grid,
    )
