"""A whole exported file under a runtime: images in, responses or scores out. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..card import Card
from ..errors import BrainfastError
from ..images import iter_bytes, iter_pixels
from ..response import Response
from ..runtimes import open_session, run_session, session_device
from .about import ExportAbout, from_metadata


class ExportedModel:
    """outputs = model.run(images): an exported file under some runtime, with card and vertices."""

    def __init__(self, path: Path, card: Card, about: ExportAbout) -> None:
        self.path, self.card, self.about = path, card, about
        self.outputs = tuple(output.name for output in about.outputs)

    @property
    def device(self) -> str:
        """Where it runs, cpu or cuda."""
        raise NotImplementedError

    def _compute(self, inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        """The outputs, in order, of one batch that was checked."""
        raise NotImplementedError

    def run(
        self,
        inputs: NDArray[Any],  # uint8 [B,H0,W0,3], or float32 [B,3,H,W]
    ) -> dict[str, NDArray[np.float32]]:  # [B,V] or [B,O] by output
        """One batch as the file takes it; another type or size is a BrainfastError."""
        shape, kind = self._takes()
        if inputs.ndim != 4 or inputs.shape[1:] != shape or str(inputs.dtype) != kind:
            raise BrainfastError(
                self.about.input,
                expected=f"{kind} [B,{','.join(map(str, shape))}], as {self.path.name} takes",
                got=f"{inputs.dtype} {list(inputs.shape)}",
                remedy="resize the images, or export with --source or --input pixels",
            )
        if len(inputs) == 0:
            raise BrainfastError(self.about.input, expected="at least one image", got="none")
        found = self._compute(np.ascontiguousarray(inputs))
        return dict(zip(self.outputs, found, strict=True))

    def predict(
        self, images: Any, *, batch_size: int = 32
    ) -> dict[str, Response | NDArray[np.float32]]:
        """A Response, or scores [B,O], by output; images as the engine takes them, one or many.

        A file that takes images takes those of its own size only.
        """
        rows = [self.run(batch) for batch in self._batches(images, batch_size)]
        joined = {name: np.concatenate([row[name] for row in rows]) for name in self.outputs}
        return {
            output.name: joined[output.name]
            if output.vertices is None
            else Response(joined[output.name], output.vertices.space())
            for output in self.about.outputs
        }

    def blank(self, batch: int = 1) -> NDArray[Any]:
        """An input of black images, to warm up with."""
        shape, kind = self._takes()
        return np.zeros((batch, *shape), dtype=kind)

    def _takes(self) -> tuple[tuple[int, ...], str]:
        """Shape of one input and its type."""
        kind = "float32" if self.about.source is None else "uint8"
        return input_shape(self.about, self.card.trunk.size), kind

    def _batches(self, images: Any, batch_size: int) -> Iterator[NDArray[Any]]:
        if self.about.source is None:
            yield from iter_pixels(images, self.card.trunk.preprocessing, batch_size)
            return
        first = 0
        for batch in iter_bytes(images, batch_size):
            yield _of_one_size(batch, self.about.source, first)
            first += len(batch)

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"{kind}({self.path.name}, {', '.join(self.outputs)}, on {self.device})"


class OnnxModel(ExportedModel):
    """outputs = model.run(images): what `export_onnx` wrote, with its card and vertices.

    device: "cpu", "cuda" (onnxruntime-gpu), or "auto". threads: inside one call; every core that
    the process may use without. card, or its model_hash: of the model that the file must come from,
    where given. A foreign, damaged or mismatched file is a BrainfastError.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        model_hash: str | None = None,
        card: Card | None = None,
    ) -> None:
        path = Path(path)
        self._session = open_session(path, threads, device)
        found = self._session.get_modelmeta().custom_metadata_map
        held, about = from_metadata(str(path), found)
        super().__init__(path, held, about)
        for wanted in (model_hash, None if card is None else card.model_hash):
            if wanted is not None and wanted != held.model_hash:
                raise BrainfastError(
                    str(path),
                    expected=f"an export of model {wanted[:12]}",
                    got=f"one of {held.model_hash[:12]}",
                    remedy="export this model again",
                )

    @property
    def device(self) -> str:
        """Where it runs, cpu or cuda."""
        return session_device(self._session)

    def _compute(self, inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        return run_session(self._session, {self.about.input: inputs}, self.outputs)


def input_shape(about: ExportAbout, size: tuple[int, int]) -> tuple[int, int, int]:
    """Of one input: [H0,W0,3] of images, [3,H,W] of pixels, whose size is the trunk's."""
    return (3, *size) if about.source is None else (*about.source, 3)


def _of_one_size(
    images: Sequence[NDArray[np.uint8]],  # each [H0,W0,3]
    source: tuple[int, int],
    first: int,
) -> NDArray[np.uint8]:  # [B,H0,W0,3]
    """One array of images that have the size `source`; another size is a BrainfastError.

    first: the number of the first one among all that were given.
    """
    for number, image in enumerate(images, first):
        if image.shape[:2] != source:
            raise BrainfastError(
                f"images[{number}]",
                expected=f"{source[0]} x {source[1]} pixels, which the file was exported for",
                got=f"{image.shape[0]} x {image.shape[1]}",
                remedy="resize it, or export with --source or --input pixels",
            )
    return np.stack(images)
