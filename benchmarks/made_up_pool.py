"""Pools of made-up candidates: real heads and the real writer, and numbers in place of a trunk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from brainfast.bench.made_up import made_up_head
from brainfast.folded import Array
from brainfast.folded_blobgpt import BlobProjection, FoldedBlobGPT
from brainfast.preprocessing import Preprocessing
from brainfast.tokens import Tokens
from brainfast.vertex_space import VertexSpace

ROIS = 256
CHANNELS = 16  # of the trunk's made-up tokens, so that aligning them takes no time


@dataclass(frozen=True)
class PoolCase:
    """Sizes of one pool.

    N: candidates; dtype: as they are stored; P: objectives of a projected pool, 0 of one of all
    features; V: vertices; L, D, side: of FactorTopy; K: of BlobGPT.
    """

    head: Literal["factortopy", "blobgpt"]
    N: int
    dtype: Literal["bf16", "int8"]
    P: int = 0
    V: int = 37_984
    L: int = 12
    D: int = 128
    side: int = 8
    K: int = 1024

    @property
    def name(self) -> str:
        """Such as factortopy-N10000-int8, or factortopy-N10000-P24-bf16."""
        projected = f"-P{self.P}" if self.P else ""
        return f"{self.head}-N{self.N}{projected}-{self.dtype}"

    @property
    def features(self) -> int:
        """Numbers that the head reads of a candidate."""
        return self.K if self.head == "blobgpt" else self.L * self.D * (self.side**2 + 1)

    @property
    def objectives(self) -> list[str]:
        """Those of a projected pool: the first regions."""
        return [f"R{n}" for n in range(self.P)]


@dataclass(frozen=True)
class Number:
    """A candidate whose tokens are drawn from the generator of its number."""

    number: int
    category: str = ""

    @property
    def name(self) -> str:
        """As long as that of a file in a folder."""
        return f"category-{self.number % 80:02d}/image-{self.number:012d}.jpg"

    def image(self) -> int:
        """The number."""
        return self.number

    def digest(self) -> str:
        """SHA-256 of the name."""
        return hashlib.sha256(self.name.encode()).hexdigest()


class MadeUpEngine:
    """What a pool asks of an engine: tokens of `Number`s and a folded head of full size."""

    def __init__(self, case: PoolCase) -> None:
        rng = np.random.default_rng(3)

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape, np.float32)

        if case.head == "factortopy":
            sizes = case.V, case.L, case.D
            grid = case.side, case.side
            self.head: Any = made_up_head(*sizes, channels=CHANNELS, grid=grid)
            self._shape = case.L, CHANNELS, *grid
        else:
            channels = case.K // 4
            parts = (normal(case.K, channels) / 8,), (normal(case.K, 1),)
            projection = BlobProjection(*parts, normal(case.K), (0,), ((1, 1),), False)
            self.head = FoldedBlobGPT(projection, normal(case.V, case.K), normal(case.V))
            self._shape = 1, channels, 1, 1
        index, half = np.arange(case.V), case.V // 2
        self.space = VertexSpace(
            "custom",
            np.arange(half),
            np.arange(case.V - half),
            {f"R{n}": index % ROIS == n for n in range(ROIS)},
            "made-up",
        )
        mean = (0.5, 0.5, 0.5)
        trunk = SimpleNamespace(
            name="made-up",
            weights_hash="0" * 64,
            preprocessing=Preprocessing(size=(8, 8), mean=mean, std=mean),
            layers=self.head.layers,
        )
        self.card = SimpleNamespace(trunk=trunk)
        self.runtime = SimpleNamespace(precision="fp32")

    def tokens(self, images: Any, *, batch_size: int = 32) -> Tokens:
        """Standard normal ones."""
        layers, *shape = self._shape
        count = len(images)
        rng = np.random.default_rng(images[0])
        local = rng.standard_normal((layers, count, *shape), np.float32)
        global_ = rng.standard_normal((layers, count, shape[0]), np.float32)
        return Tokens(tuple(local), tuple(global_), self.head.layers)

    def template(self, weights: Array) -> Any:
        """See `Engine.template`."""
        return self.head.template(weights)
