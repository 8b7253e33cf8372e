"""The engine: trunk runtime and folded head, from images to responses. Works without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .card import Card
from .errors import BrainfastError
from .files import load_tensors
from .folded import FoldedFactorTopy, Precision, Template
from .golden import Golden
from .images import as_sequence, iter_pixels
from .response import Response
from .runtimes import OnnxRuntime, TorchRuntime, TrunkRuntime
from .tokens import Tokens
from .vertex_space import Selection, VertexSpace

FOLDED_FILE = "folded.safetensors"
VERTICES_FILE = "vertices.safetensors"
TRUNK_FILE = "trunk.safetensors"
ONNX_FILE = "trunk.onnx"


class Engine:
    """image -> trunk runtime -> tokens -> folded head -> Response.

    Built by `Encoder.compile` or `Engine.load`; `space` names the vertices that it answers for.
    """

    def __init__(
        self, runtime: TrunkRuntime, head: FoldedFactorTopy, space: VertexSpace, card: Card
    ) -> None:
        if head.V != space.V:
            raise BrainfastError(
                "head", expected=f"{space.V} vertices, as the vertex space", got=str(head.V)
            )
        self.runtime, self.head, self.space, self.card = runtime, head, space, card

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        runtime: Literal["auto", "torch", "onnx"] = "auto",
        device: str = "auto",
        precision: Precision = "fp32",
        trunk_precision: Literal["fp32", "bf16"] = "fp32",
        vertices: Selection = None,
        threads: int | None = None,
    ) -> Engine:
        """Load a model folder and check it against its golden responses.

        runtime="onnx" needs `trunk.onnx` in the folder and no torch; "auto" takes it where it lies
        in the folder and the trunk is asked for in fp32 on the CPU, else torch. vertices: region
        names, indices or a mask. A GPU is used with runtime="torch" only.
        """
        folder = Path(folder)
        card = Card.read(folder)
        space = read_space(folder, card)
        head = read_head(folder, card).with_precision(precision)
        trunk = open_runtime(folder, card, runtime, device, trunk_precision, threads)
        Golden.load(folder).check(trunk, head, card.trunk.preprocessing)
        return cls(trunk, head, space, card).take(vertices)

    def take(self, vertices: Selection) -> Engine:
        """The same engine for some vertices: region names, indices or a mask; None keeps all."""
        if vertices is None:
            return self
        index = self.space.select(vertices)
        return Engine(self.runtime, self.head.take(index), self.space.take(index), self.card)

    def predict(self, images: Any, *, batch_size: int = 32) -> Response:
        """Responses [B,V] in z units to paths, PIL images or uint8 arrays, one or many."""
        rows = [self.head.run(tokens) for tokens in self._tokens(images, batch_size)]
        return Response(np.concatenate(rows), self.space)

    def tokens(self, images: Any, *, batch_size: int = 32) -> Tokens:
        """Raw trunk tokens of some images, numpy float32."""
        parts = list(self._tokens(images, batch_size))
        return Tokens(
            tuple(np.concatenate([p.local[i] for p in parts]) for i in range(parts[0].L)),
            tuple(np.concatenate([p.global_[i] for p in parts]) for i in range(parts[0].L)),
            parts[0].layers,
        )

    def contributions(
        self, images: Any, by: Literal["layer", "scale"] = "layer", *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Exact split of every response: [B,L,V] by layer, [B,2,V] by scale (local, global).

        The parts of a vertex sum to its response less its bias.
        """
        parts = [self.head.contributions(t, by) for t in self._tokens(images, batch_size)]
        return np.concatenate(parts)

    def template(self, weights: NDArray[np.float32]) -> Template:
        """Fold objectives [O,V] on the response onto the tokens, see `Template`."""
        return self.head.template(weights)

    def warm_up(self) -> None:
        """Run one blank image, so that the first real one is as fast as the next."""
        height, width = self.card.trunk.preprocessing.size
        self.predict(np.zeros((1, height, width, 3), dtype=np.uint8))

    def _tokens(self, images: Any, batch_size: int) -> Iterator[Tokens]:
        sequence: Sequence[Any] = as_sequence(images)
        for pixels in iter_pixels(sequence, self.card.trunk.preprocessing, batch_size):
            yield self.runtime(pixels)

    def __repr__(self) -> str:
        return (
            f"Engine({self.card.trunk.name}, {self.space.V} vertices, head {self.head.precision},"
            f" trunk {self.runtime.name} {self.runtime.precision})"
        )


def read_space(folder: Path, card: Card) -> VertexSpace:
    """The vertex space of a model folder, checked against its card."""
    path = folder / VERTICES_FILE
    arrays = load_tensors(path)
    arrays.pop("coordinates", None)
    about = {
        "name": card.space.name,
        "subject": card.space.subject,
        "rois": card.space.rois,
        "hash": card.space.hash,
        "rois_hash": card.space.rois_hash,
    }
    return VertexSpace.from_arrays(arrays, about)


def read_head(folder: Path, card: Card) -> FoldedFactorTopy:
    """The folded head of a model folder, checked against its card."""
    path = folder / FOLDED_FILE
    head = FoldedFactorTopy.from_arrays(
        load_tensors(path),
        name=str(path),
        layers=card.trunk.layers,
        grid=card.head.grid,
        samples=card.head.samples,
        pool_space=card.head.pool_space,
    )
    if card.space.vertices != head.V or head.channels != card.trunk.channels:
        raise BrainfastError(
            str(path),
            expected=f"{card.space.vertices} vertices and channels {card.trunk.channels}",
            got=f"{head.V} and {head.channels}",
            remedy="the file belongs to another model; copy the whole folder again",
        )
    return head


def open_runtime(
    folder: Path,
    card: Card,
    runtime: str,
    device: str,
    precision: Literal["fp32", "bf16"],
    threads: int | None,
) -> TrunkRuntime:
    """The trunk runtime that was asked for; what is missing for it is a BrainfastError."""
    if runtime not in ("auto", "torch", "onnx"):
        raise BrainfastError("runtime", expected="auto, torch or onnx", got=repr(runtime))
    onnx = folder / ONNX_FILE
    fits = precision == "fp32" and device in ("auto", "cpu")
    if runtime == "onnx" or (runtime == "auto" and fits and onnx.is_file()):
        if not fits:
            raise BrainfastError(
                "runtime onnx",
                expected="trunk_precision fp32 on the CPU",
                got=f"{precision} on {device}",
                remedy="use runtime='torch'",
            )
        if not onnx.is_file():
            raise BrainfastError(
                str(onnx),
                expected="an exported trunk",
                got="nothing there",
                remedy="save with Encoder.save(folder, onnx=True)",
            )
        return OnnxRuntime(
            onnx, card.trunk.layers, threads=threads, weights_hash=card.trunk.weights_hash
        )
    try:
        from .trunks import Trunk
    except ImportError as error:
        raise BrainfastError(
            "runtime torch",
            expected="torch and timm",
            got=str(error),
            remedy="install them, or save the encoder with onnx=True",
        ) from error
    weights = folder / TRUNK_FILE
    trunk = Trunk.from_config(card.trunk, weights=weights if weights.is_file() else None)
    return TorchRuntime(trunk, precision=precision, device=device)
