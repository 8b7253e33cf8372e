"""What pools and objectives ask of an engine, without a trunk to load."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from brainfast.bench.made_up import made_up_head
from brainfast.folded_blobgpt import BlobProjection, FoldedBlobGPT
from brainfast.images import as_images, preprocess
from brainfast.preprocessing import Preprocessing
from brainfast.tokens import Tokens
from brainfast.vertex_space import VertexSpace


class ToyEngine:
    """What a pool asks of an engine: a head of random constants, and a matrix for the trunk."""

    def __init__(self, kind: str, vertices: int = 30) -> None:
        rng = np.random.default_rng(5)

        def normal(*shape: int) -> Any:
            return rng.standard_normal(shape, np.float32)

        self._mix = normal(8 * 8 * 3, 2 * 5 * 5) / 50
        if kind == "factortopy":
            head: Any = made_up_head(vertices, 2, 4, grid=(2, 2))
            square = tuple(normal(4, 5) for _ in range(2))
            self.head = replace(head, bottleneck_local=square, bottleneck_global=square)
        else:
            parts = [tuple(normal(7, size) for _ in range(2)) for size in (5, 5)]
            grids = ((2, 2),) * 2
            projection = BlobProjection(*parts, normal(7), (0, 1), grids, True)
            self.head = FoldedBlobGPT(projection, normal(vertices, 7), normal(vertices))
        index = np.arange(vertices)
        masks = {"FFA-1": index < 9, "PPA": index % 3 == 2, "V1v": index > 20}
        half = vertices // 2
        self.space = VertexSpace(
            "fsaverage5", np.arange(half), np.arange(vertices - half), masks, "subj01"
        )
        mean = (0.5, 0.5, 0.5)
        trunk = SimpleNamespace(
            name="toy",
            weights_hash="0" * 64,
            preprocessing=Preprocessing(size=(8, 8), mean=mean, std=mean),
            layers=self.head.layers,
        )
        self.card = SimpleNamespace(trunk=trunk, model_hash=f"toy {kind} of {vertices}")
        self.runtime = SimpleNamespace(precision="fp32")
        self.batches = 0

    def tokens(self, images: Any, *, batch_size: int = 32) -> Tokens:
        """Of the pixels, by a matrix."""
        self.batches += 1
        pixels = preprocess(as_images(images), self.card.trunk.preprocessing)
        flat = (pixels.reshape(len(pixels), -1) @ self._mix).reshape(-1, 2, 5, 5)
        return Tokens(
            tuple(np.ascontiguousarray(flat[:, n, :, :4]).reshape(-1, 5, 2, 2) for n in (0, 1)),
            tuple(np.ascontiguousarray(flat[:, n, :, 4]) for n in (0, 1)),
            self.head.layers,
        )

    def template(self, weights: Any) -> Any:
        return self.head.template(weights)

    def response(self, images: Any) -> Any:  # [B,V]
        return self.head.run(self.tokens(images))
