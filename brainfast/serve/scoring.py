"""Scores of new images: an objective folded onto what is cheapest to compute of an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..engine import Engine
from ..folded_blobgpt import FoldedBlobGPT
from ..objective import Objective
from ..pool_fill import flat_template
from ..recent import Recent
from .refusal import Refusal

Doubles: TypeAlias = NDArray[np.float64]
Basis: TypeAlias = Literal["features", "response"]

CACHE_BYTES = 256 << 20
LONGEST_TEXT = 4096
CORNERS = 4  # tokens around the place where a vertex looks


@dataclass(frozen=True, eq=False)
class Folded:
    """score_o = matrix_o . row + offset_o in float64, of one row of features or responses.

    matrix [O,F] or [O,V], offset [O]. Rows are multiplied one by one: a batch's size is not in the
    bits of an image's score.
    """

    basis: Basis
    matrix: Doubles
    offset: Doubles

    def score(self, rows: NDArray[np.float32]) -> Doubles:  # [B,F or V] -> [B,O]
        """Scores [B,O]."""
        scores = [self.matrix @ row.astype(np.float64) + self.offset for row in rows]
        return np.stack(scores)


def goal_of(objective: Any, most: int) -> Objective:
    """What `Objective` takes; more than `most`, and endless texts, are a Refusal."""
    goal = Objective.of(objective)
    longest = max(len(name) for name in goal.names)
    if len(goal) > most or longest > LONGEST_TEXT:
        raise Refusal(
            "too_large",
            "objective",
            expected=f"at most {most}, of {LONGEST_TEXT} letters",
            got=f"{len(goal)}, of {longest}",
        )
    return goal


def fold(engine: Engine, objective: Any, most: int) -> Folded:
    """An objective on features, or on the response where those cost more or stay on a GPU.

    Errors: BrainfastError for what the subject does not have; Refusal for more than `most`
    objectives.
    """
    goal = goal_of(objective, most)
    weights = goal.weights(engine.space)
    if not reads_features(engine, len(goal)):
        return Folded("response", weights.astype(np.float64), np.zeros(len(goal)))
    rows, offset = flat_template(engine.template(weights))
    return Folded("features", rows.astype(np.float64), offset.astype(np.float64))


def reads_features(engine: Engine, objectives: int) -> bool:
    """Whether products with all features cost less than a response and products with it.

    Counted in multiplications of one image behind the trunk. On a GPU the features would have to
    leave it first, so there the response is taken.
    """
    if getattr(engine.runtime, "on_gpu", False):
        return False
    features, vertex = _sizes(engine.head)
    return objectives * features <= engine.space.V * (vertex + objectives)


def _sizes(head: Any) -> tuple[int, int]:
    """Numbers that a head reads of an image, and multiplications of one vertex's readout."""
    if isinstance(head, FoldedBlobGPT):
        return head.projection.K, head.projection.K
    layers, dims = head.offset_local.shape
    height, width = head.readout_grid
    return layers * dims * (height * width + 1), layers * dims * (CORNERS + 1) * head.samples


class FoldedCache:
    """The objectives that were folded last, by subject and text, up to `CACHE_BYTES`.

    Of weights that are no text none is kept. Used from any thread.
    """

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most = most_bytes
        self._kept: Recent[Folded] = Recent(lambda folded: folded.matrix.nbytes)

    def get(self, subject: str, objective: Any, make: Callable[[], Folded]) -> Folded:
        """A folded objective, made where it is not kept."""
        key = _key(subject, objective)
        if key is None:
            return make()
        kept = self._kept.get(key)
        if kept is None:
            kept = make()
            self._kept.keep(key, kept, self._most)
        return kept

    def __len__(self) -> int:
        return len(self._kept)


def _key(subject: str, objective: Any) -> tuple[str, tuple[str, ...]] | None:
    texts = (objective,) if isinstance(objective, str) else objective
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return None
    return subject, tuple(texts)
