"""The engine of a model of several subjects: one trunk pass, one latent, an answer for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .device_path import DevicePath, place
from .engine import Engine, open_runtime, read_space
from .errors import BrainfastError
from .folded import Array, Precision
from .folded_blobgpt import FoldedBlobGPT
from .golden import Golden
from .heads import read_heads
from .images import as_sequence, iter_bytes, iter_pixels
from .response import Response
from .runtimes import TrunkRuntime
from .vertex_space import Selection, VertexSpace

if TYPE_CHECKING:
    from .card import Card


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
        self.heads = dict(heads)
        # Data that came as arrays name no subject: its name in the group is then its only one.
        self.spaces = {
            name: space if space.subject else replace(space, subject=name)
            for name, space in spaces.items()
        }
        self._device = DevicePath(runtime, self.heads, card.trunk.preprocessing)

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
        from .card import Card

        folder = Path(folder)
        card = Card.read(folder)
        chosen = tuple(card.subjects) if subjects is None else tuple(subjects)
        heads = in_precision(read_heads(folder, card, chosen), precision)
        spaces = {subject: read_space(folder, card, subject) for subject in chosen}
        trunk = open_runtime(folder, card, runtime, device, trunk_precision, threads)
        engine = cls(trunk, heads, spaces, card)
        engine.check(Golden.load_subjects(folder, chosen))
        return engine.take(vertices)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Who it answers for."""
        return tuple(self.heads)

    def of(self, subject: str) -> Engine:
        """The engine of one subject, on the same runtime and packed weights; a GPU packs them
        once more."""
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
        """Responses [B,V_s] in z units of every subject asked for, from one trunk pass an image.

        On a GPU all subjects that the engine was opened with are computed in one go.
        """
        chosen = self.subjects if subjects is None else tuple(subjects)
        self._check(chosen)
        batches = list(self._answers(images, chosen, batch_size))
        return {
            subject: Response(np.concatenate([b[subject] for b in batches]), self.spaces[subject])
            for subject in chosen
        }

    def check(self, goldens: Mapping[str, Golden]) -> dict[str, float]:
        """Answer golden images on the way that `predict` takes, see `Golden.check_subjects`."""
        runner = self._device.runner()
        if runner is None:
            preprocessing = self.card.trunk.preprocessing
            return Golden.check_subjects(goldens, self.runtime, self.heads, preprocessing)
        found = runner.predict(goldens[self.subjects[0]].images)
        return {
            subject: goldens[subject].compare(
                found[:, runner.head.columns[subject]][:, goldens[subject].vertices],
                head,
                self.runtime,
            )
            for subject, head in self.heads.items()
        }

    def warm_up(
        self,
        batch_sizes: Sequence[int] = (1,),
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Run blank images, so that the first real batch is as fast as the next: as `Engine`."""
        self._device.warm_up(self.predict, batch_sizes, sizes)

    def keep_warm(self, every_ms: float | None = 5.0) -> None:
        """Keep a GPU's clocks up between images, see `DeviceRunner.keep_warm`; None stops it."""
        self._device.keep_warm(every_ms)

    def _answers(
        self, images: Any, subjects: Sequence[str], batch_size: int
    ) -> Iterator[dict[str, Array]]:
        """Responses [b,V_s] of every subject, a batch at a time."""
        runner = self._device.runner()
        if runner is not None:
            for batch in iter_bytes(images, batch_size):
                found = runner.predict(batch, subjects)
                yield {subject: found[:, runner.head.columns[subject]] for subject in subjects}
            return
        projection = self.heads[subjects[0]].projection
        preprocessing = self.card.trunk.preprocessing
        for pixels in iter_pixels(as_sequence(images), preprocessing, batch_size):
            latent = projection.run(self.runtime(pixels))
            yield {subject: self.heads[subject].readout(latent) for subject in subjects}

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
            f" trunk {self.runtime.name} {self.runtime.precision}, {place(self.runtime)})"
        )


def in_precision(
    heads: Mapping[str, FoldedBlobGPT], precision: Precision
) -> dict[str, FoldedBlobGPT]:
    """The same heads in another precision, still on one projection, which is packed once."""
    if not heads:
        raise BrainfastError("subjects", expected="at least one", got="none")
    projection = next(iter(heads.values())).projection.with_precision(precision)
    return {subject: replace(head, projection=projection) for subject, head in heads.items()}
