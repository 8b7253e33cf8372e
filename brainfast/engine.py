"""The engine: trunk runtime and folded head, from images to responses. Works without torch.

Where the trunk is on a GPU, so is all of `predict`: see `device_engine`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .device_path import DevicePath, place
from .errors import BrainfastError
from .files import load_tensors
from .folded import Precision
from .folded_blobgpt import GROUP
from .golden import Golden
from .heads import FoldedHead, read_head, read_heads
from .images import as_sequence, iter_bytes, iter_pixels
from .response import Response
from .runtimes import OnnxRuntime, TrunkRuntime, open_trunk
from .tokens import Tokens
from .vertex_space import Selection, VertexSpace

if TYPE_CHECKING:
    from .card import Card

VERTICES_FILE = "vertices.safetensors"
TRUNK_FILE = "trunk.safetensors"
ONNX_FILE = "trunk.onnx"
TENSORRT_FILE = "trunk.engine"
RUNTIMES = ("auto", "torch", "compile", "onnx", "tensorrt")
ONNX_DEVICES = ("auto", "cpu", "cuda")  # "auto" is the CPU


class Engine:
    """image -> trunk runtime -> tokens -> folded head -> Response.

    Built by `Encoder.compile` or `Engine.load`; `space` names the vertices that it answers for.
    """

    def __init__(
        self, runtime: TrunkRuntime, head: FoldedHead, space: VertexSpace, card: Card
    ) -> None:
        if head.V != space.V:
            raise BrainfastError(
                "head", expected=f"{space.V} vertices, as the vertex space", got=str(head.V)
            )
        self.runtime, self.head, self.space, self.card = runtime, head, space, card
        self._device = DevicePath(runtime, head, card.trunk.preprocessing)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        runtime: Literal["auto", "torch", "compile", "onnx", "tensorrt"] = "auto",
        device: str = "auto",
        precision: Precision = "fp32",
        trunk_precision: Literal["fp32", "bf16"] = "fp32",
        vertices: Selection = None,
        subject: str | None = None,
        threads: int | None = None,
    ) -> Engine:
        """Load a model folder and check it against its golden responses.

        subject: whose responses, where the model has several; "group" leaves the subject out.

        runtime="onnx" needs `trunk.onnx` in the folder and no torch, and onnxruntime-gpu where the
        device is "cuda"; device="auto" is the CPU for it. "auto" takes it where it lies in the
        folder, the trunk is asked for in fp32 and the device is "auto" or "cpu", even where there
        is a GPU; else torch, whose "auto" takes a GPU where there is one. "compile" takes half a
        minute and a C++ compiler, see `CompiledRuntime`. "tensorrt" runs `trunk.engine` of the
        folder on the GPU that it was built for, and the head on the CPU. vertices: region names,
        indices or a mask. With runtime="torch" on a GPU `predict` leaves it with the responses
        alone, and the golden ones are checked on that way.
        """
        from .card import Card  # and with it pydantic, which an engine in memory does without

        folder = Path(folder)
        card = Card.read(folder)
        space = read_space(folder, card, subject)
        head: FoldedHead = (
            read_head(folder, card)
            if subject is None
            else read_heads(folder, card, [subject])[subject]
        ).with_precision(precision)
        trunk = open_runtime(folder, card, runtime, device, trunk_precision, threads)
        engine = cls(trunk, head, space, card)
        engine.check(Golden.load(folder, subject))
        return engine.take(vertices)

    def take(self, vertices: Selection) -> Engine:
        """The same engine for some vertices: region names, indices or a mask; None keeps all."""
        if vertices is None:
            return self
        index = self.space.select(vertices)
        return Engine(self.runtime, self.head.take(index), self.space.take(index), self.card)

    def predict(self, images: Any, *, batch_size: int = 32) -> Response:
        """Responses [B,V] in z units to paths, PIL images or uint8 arrays, one or many."""
        runner = self._device.runner()
        if runner is None:
            rows = [self.head.run(tokens) for tokens in self._tokens(images, batch_size)]
        else:
            rows = [runner.predict(batch) for batch in iter_bytes(images, batch_size)]
        return Response(np.concatenate(rows), self.space)

    def check(self, golden: Golden) -> float:
        """Answer golden images on the way that `predict` takes, see `Golden.check`."""
        runner = self._device.runner()
        if runner is None:
            return golden.check(self.runtime, self.head, self.card.trunk.preprocessing)
        found = runner.predict(golden.images)[:, golden.vertices]
        return golden.compare(found, self.head, self.runtime)

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

    def template(self, weights: NDArray[np.float32]) -> Any:
        """Fold objectives [O,V] on the response onto the tokens, see `folded.Template`."""
        return self.head.template(weights)

    def warm_up(
        self,
        batch_sizes: Sequence[int] = (1,),
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Run blank images, so that the first real batch is as fast as the next.

        On a GPU every batch size is captured, for images of any size; those of `sizes` (H, W), the
        trunk's own where None, are then resized on the GPU.
        """
        self._device.warm_up(self.predict, batch_sizes, sizes)

    def keep_warm(self, every_ms: float | None = 5.0) -> None:
        """Keep a GPU's clocks up between images, see `DeviceRunner.keep_warm`; None stops it."""
        self._device.keep_warm(every_ms)

    def _tokens(self, images: Any, batch_size: int) -> Iterator[Tokens]:
        sequence: Sequence[Any] = as_sequence(images)
        for pixels in iter_pixels(sequence, self.card.trunk.preprocessing, batch_size):
            yield self.runtime(pixels)

    def __repr__(self) -> str:
        return (
            f"Engine({self.card.trunk.name}, {self.space.V} vertices, head {self.head.precision},"
            f" trunk {self.runtime.name} {self.runtime.precision}, {place(self.runtime)})"
        )


def read_space(folder: Path, card: Card, subject: str | None = None) -> VertexSpace:
    """The vertex space of a model folder, or of one of its subjects, checked against its card."""
    path = folder / VERTICES_FILE
    own = subject not in (None, GROUP)
    if own and subject not in card.subjects:
        known = ", ".join((*card.subjects, GROUP)) if card.subjects else "no subject at all"
        raise BrainfastError("subject", expected=f"one of {known}", got=repr(subject))
    prefix = f"{subject}." if own else ""
    arrays = {
        name.removeprefix(prefix): array
        for name, array in load_tensors(path, lambda name: name.startswith(prefix)).items()
        if own or "." not in name
    }
    arrays.pop("coordinates", None)
    about = card.subjects[subject] if own and subject else card.space
    return VertexSpace.from_arrays(
        arrays, about.model_dump(include={"name", "subject", "rois", "hash", "rois_hash"})
    )


def open_runtime(
    folder: Path,
    card: Card,
    runtime: str,
    device: str,
    precision: Literal["fp32", "bf16"],
    threads: int | None,
) -> TrunkRuntime:
    """The trunk runtime that was asked for; what is missing for it is a BrainfastError."""
    if runtime not in RUNTIMES:
        known = f"{', '.join(RUNTIMES[:-1])} or {RUNTIMES[-1]}"
        raise BrainfastError("runtime", expected=known, got=repr(runtime))
    if runtime == "tensorrt":
        return _open_tensorrt(folder / TENSORRT_FILE, card, device, precision)
    onnx = folder / ONNX_FILE
    fits = precision == "fp32" and device in ("auto", "cpu")
    if runtime == "onnx" or (runtime == "auto" and fits and onnx.is_file()):
        if precision != "fp32" or device not in ONNX_DEVICES:
            raise BrainfastError(
                "runtime onnx",
                expected="trunk_precision fp32, on the CPU or on cuda",
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
            onnx,
            card.trunk.layers,
            threads=threads,
            weights_hash=card.trunk.weights_hash,
            device="cuda" if device == "cuda" else "cpu",
        )
    try:
        from .trunks import Trunk
    except ImportError as error:
        raise BrainfastError(
            f"runtime {runtime}",
            expected="torch and timm",
            got=str(error),
            remedy="install them, or save the encoder with onnx=True",
        ) from error
    weights = folder / TRUNK_FILE
    trunk = Trunk.from_config(card.trunk, weights=weights if weights.is_file() else None)
    return open_trunk(trunk, runtime, precision, device)


def _open_tensorrt(path: Path, card: Card, device: str, precision: str) -> TrunkRuntime:
    """The trunk's engine file, which must be of the card's weights and in the precision."""
    if not path.is_file():
        raise BrainfastError(
            str(path),
            expected="the trunk as an engine file of TensorRT",
            got="nothing there",
            remedy="build it from trunk.onnx with brainfast.export.tensorrt_build.build_engine",
        )
    # Engine files are the exporters', a floor above: loaded for those who ask for one, by name.
    module = import_module(".export.tensorrt_runtime", __package__)
    trunk: TrunkRuntime = module.TensorRTRuntime(
        path,
        card.trunk.layers,
        weights_hash=card.trunk.weights_hash,
        precision=precision,
        device="cuda" if device == "auto" else device,
    )
    return trunk
