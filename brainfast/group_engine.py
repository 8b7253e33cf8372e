"""The engine of a model of several subjects: one trunk pass, one latent, an answer for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .card import Card
from .engine import Engine, open_runtime, read_space
from .errors import BrainfastError
from .folded import Precision
from .folded_blobgpt import FoldedBlobGPT
from .golden import Golden
from .heads import read_heads
from .images import as_sequence, iter_pixels
from .response import Response
from .runtimes import TrunkRuntime
from .vertex_space import Selection, VertexSpace


class GroupEngine:
    """image -> trunk runtime -> tokens -> latent -> a Response for every subject.

    Built by `GroupEncoder.compile` or `GroupEngine.load`. spaces: the vertices of every subject;
    "group" answers for the union of all, without any subject's own map.
    """

    def __init__(
        self,
        runtime: TrunkRuntime,
        heads: Mapping[str, FoldedBlobGPT],
        spaces: Mapping[str, VertexSpace],
        card: Card,
    ) -> None:
        if not heads:
            raise BrainfastError("subjects", expected="at least one", got="none")
        self.runtime, self.card = runtime, card
        self.heads, self.spaces = dict(heads), dict(spaces)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        subjects: Sequence[str] | None = None,
        runtime: str = "auto",
        device: str = "auto",
        precision: Precision = "fp32",
        trunk_precision: Literal["fp32", "bf16"] = "fp32",
        vertices: Selection = None,
        threads: int | None = None,
    ) -> GroupEngine:
        """Load some subjects of a model folder, all without, and check their golden responses.

        The other arguments are those of `Engine.load`.
        """
        folder = Path(folder)
        card = Card.read(folder)
        chosen = tuple(card.subjects) if subjects is None else tuple(subjects)
        heads = in_precision(read_heads(folder, card, chosen), precision)
        spaces = {subject: read_space(folder, card, subject) for subject in chosen}
        trunk = open_runtime(folder, card, runtime, device, trunk_precision, threads)
        goldens = Golden.load_subjects(folder, chosen)
        Golden.check_subjects(goldens, trunk, heads, card.trunk.preprocessing)
        return cls(trunk, heads, spaces, card).take(vertices)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Who it answers for."""
        return tuple(self.heads)

    def of(self, subject: str) -> Engine:
        """The engine of one subject, on the same runtime and packed weights."""
        self._check([subject])
        return Engine(self.runtime, self.heads[subject], self.spaces[subject], self.card)

    def take(self, vertices: Selection) -> GroupEngine:
        """The same engine for some vertices of every subject, by region names; None keeps all."""
        if vertices is None:
            return self
        index = {subject: space.select(vertices) for subject, space in self.spaces.items()}
        return GroupEngine(
            self.runtime,
            {subject: head.take(index[subject]) for subject, head in self.heads.items()},
            {subject: space.take(index[subject]) for subject, space in self.spaces.items()},
            self.card,
        )

    def predict(
        self, images: Any, *, subjects: Sequence[str] | None = None, batch_size: int = 32
    ) -> dict[str, Response]:
        """Responses [B,V_s] in z units of every subject asked for, from one trunk pass an image."""
        chosen = self.subjects if subjects is None else tuple(subjects)
        self._check(chosen)
        rows: dict[str, list[Any]] = {subject: [] for subject in chosen}
        projection = self.heads[chosen[0]].projection
        preprocessing = self.card.trunk.preprocessing
        for pixels in iter_pixels(as_sequence(images), preprocessing, batch_size):
            latent = projection.run(self.runtime(pixels))
            for subject in chosen:
                rows[subject].append(self.heads[subject].readout(latent))
        return {
            subject: Response(np.concatenate(parts), self.spaces[subject])
            for subject, parts in rows.items()
        }

    def _check(self, subjects: Sequence[str]) -> None:
        unknown = [subject for subject in subjects if subject not in self.heads]
        if unknown or not subjects:
            raise BrainfastError(
                "subjects",
                expected=f"some of {', '.join(self.heads)}",
                got=", ".join(map(repr, unknown)) or "none",
                remedy="compile or load the engine with them",
            )

    def __repr__(self) -> str:
        first = next(iter(self.heads.values()))
        return (
            f"GroupEngine({self.card.trunk.name}, {', '.join(self.heads)}, head {first.precision},"
            f" trunk {self.runtime.name} {self.runtime.precision})"
        )


def in_precision(
    heads: Mapping[str, FoldedBlobGPT], precision: Precision
) -> dict[str, FoldedBlobGPT]:
    """The same heads in another precision, still on one projection, which is packed once."""
    if not heads:
        raise BrainfastError("subjects", expected="at least one", got="none")
    projection = next(iter(heads.values())).projection.with_precision(precision)
    return {subject: replace(head, projection=projection) for subject, head in heads.items()}
