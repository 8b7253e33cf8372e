"""Trunks of a few families of timm, small and of random weights."""

from __future__ import annotations

import numpy as np

from brainfast.trunks import Trunk

FAMILIES = {
    "vit_tiny_patch16_224": (32, 1.0),
    "eva02_tiny_patch14_224": (28, 3.0),
    "vit_wee_patch16_reg1_gap_256": (32, 1.0),
    "resnet18": (32, 1.0),
}
LAYERS = (0, 2)


def make(name: str = "vit_tiny_patch16_224", **options) -> Trunk:
    size, gain = FAMILIES[name]
    given = {"size": size, "layers": LAYERS, "block_gain": gain} | options
    return Trunk.create(name, pretrained=False, **given)


def pixels_for(trunk: Trunk, images: int = 3) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.standard_normal((images, 3, *trunk.config.size)).astype(np.float32)


def arrays(tokens) -> list[np.ndarray]:
    return [np.asarray(array) for array in (*tokens.local, *tokens.global_)]
