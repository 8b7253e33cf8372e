"""Engine files of TensorRT on a GPU: images in, responses out, and trunks for the engine.

No machine with a GPU has run this module yet; `benchmarks/tensorrt.sh` is the script that does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..card import Card
from ..errors import BrainfastError
from ..response import Response
from ..runtimes import Pixels, check_trunk_precision
from ..tokens import Tokens
from ..trunk_export import FORMAT, output_names
from .about import from_metadata
from .model import ExportedModel
from .tensorrt_key import EngineKey, check_machine, find_gpu, key_path, open_package, read_engine

if TYPE_CHECKING:
    import torch


class TensorRTModel(ExportedModel):
    """outputs = model.run(images): what `export_tensorrt` wrote, with its card and vertices.

    Each batch size of `buckets` (those of the key) is captured as a CUDA graph when it is first
    used; a batch runs in the smallest that holds it. card: of the model that the file must come
    from, where given. A file of another model, GPU, TensorRT or brainfast is a BrainfastError.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "cuda",
        buckets: Sequence[int] | None = None,
        card: Card | None = None,
    ) -> None:
        path = Path(path)
        key, plan = read_engine(path)
        held, about = from_metadata(str(path), key.metadata)
        if card is not None:
            check_model(path, held, card)
        super().__init__(path, held, about)
        self._session = EngineSession(path, key, plan, device, buckets)

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self._session.device)

    def predict(
        self, images: Any, *, batch_size: int = 32
    ) -> dict[str, Response | NDArray[np.float32]]:
        """A Response, or scores [B,O], by output, in batches that the profile allows."""
        return super().predict(images, batch_size=min(batch_size, self._session.key.batches[2]))

    def warm_up(self, batch_sizes: Sequence[int] = (1,)) -> None:
        """Capture what these batches run in, so that the first real one is as fast as the next."""
        self._session.warm_up(batch_sizes)

    def _compute(self, inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        return self._session.run(inputs)


class TensorRTRuntime:
    """A trunk's engine file (of `build_engine` on a model's trunk.onnx): pixels to raw tokens.

    layers, weights_hash and precision, where given, must be those of the file. A batch above the
    profile's largest runs in parts.
    """

    name = "tensorrt"

    def __init__(
        self,
        path: str | Path,
        layers: Sequence[int] | None = None,
        *,
        weights_hash: str | None = None,
        precision: str | None = None,
        device: str = "cuda",
        buckets: Sequence[int] | None = None,
    ) -> None:
        path = Path(path)
        key, plan = read_engine(path)
        self.layers, digest, self.precision = _read_trunk(path, key)
        _check_trunk(path, "layers", self.layers, None if layers is None else tuple(layers))
        _check_trunk(path, "trunk weights", digest, weights_hash)
        _check_trunk(path, "trunk precision", self.precision, precision)
        self._session = EngineSession(path, key, plan, device, buckets)
        self.device = self._session.device

    def __call__(self, pixels: Pixels) -> Tokens:
        """Run one batch."""
        most, total = self._session.key.batches[2], max(len(pixels), 1)
        parts = [self._session.run(pixels[start : start + most]) for start in range(0, total, most)]
        joined = zip(*parts, strict=True)
        answers = parts[0] if len(parts) == 1 else [np.concatenate(part) for part in joined]
        count = len(self.layers)
        return Tokens(tuple(answers[:count]), tuple(answers[count:]), self.layers)

    def warm_up(self, batch_sizes: Sequence[int] = (1,)) -> None:
        """Capture what these batches run in, so that the first real one is as fast as the next."""
        self._session.warm_up(batch_sizes)


class EngineSession:
    """answers = session.run(inputs): an open engine, with buffers and graphs for its buckets."""

    def __init__(
        self,
        path: Path,
        key: EngineKey,
        plan: bytes,
        device: str = "cuda",
        buckets: Sequence[int] | None = None,
    ) -> None:
        self.path, self.key = path, key
        self.buckets = _check_buckets(key, buckets)
        trt = open_package(key.package)
        self.device, gpu = find_gpu(device)
        check_machine(path, key, trt.__version__, gpu)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        with self._on_device():
            self._engine = _deserialize(trt, self._runtime, path, plan)
        self._lock = threading.Lock()
        self._open: dict[int, _Bucket] = {}

    def run(self, inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        """One batch; a larger one than the profile's, or of another shape, is a BrainfastError."""
        check_batch(self.path, self.key, inputs)
        size = next(size for size in self.buckets if size >= len(inputs))
        with self._lock, self._on_device():
            if size not in self._open:
                self._open[size] = _Bucket(self._engine, self.key, self.device, size)
            return self._open[size].run(inputs)

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Run one blank batch of every size."""
        for size in batch_sizes:
            self.run(np.zeros((size, *self.key.input.shape[1:]), dtype=self.key.input.dtype))

    def _on_device(self) -> AbstractContextManager[Any]:
        import torch

        guard: AbstractContextManager[Any] = torch.cuda.device(self.device)
        return guard


class _Bucket:
    """One batch size: pinned buffers, those of the GPU, and a graph from the one to the other."""

    def __init__(self, engine: Any, key: EngineKey, device: torch.device, size: int) -> None:
        import torch

        cuda: Any = torch.cuda

        def buffers(name: str, dtype: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
            kind = getattr(torch, dtype)
            own = torch.empty((size, *shape), dtype=kind, device=device)
            if not self._context.set_tensor_address(name, own.data_ptr()):
                raise _failed(key, f"a buffer for {name} {list(own.shape)}", "a refusal")
            return torch.zeros(own.shape, dtype=kind, pin_memory=True), own

        self._key = key
        self._context = engine.create_execution_context()
        if self._context is None:
            raise _failed(key, f"room on {device} for a batch of {size}", "no execution context")
        shape = (size, *key.input.shape[1:])
        if not self._context.set_input_shape(key.input.name, shape):
            raise _failed(key, f"a profile with {key.input.name} {list(shape)}", "a refusal")
        self._stream = cuda.Stream(device)
        self._graph = cuda.CUDAGraph()
        self._input = buffers(key.input.name, key.input.dtype, key.input.shape[1:])
        self._outputs = [buffers(o.name, o.dtype, o.shape[1:]) for o in key.outputs]
        with cuda.stream(self._stream):
            self._step()  # TensorRT prepares a new shape outside the graph
        self._stream.synchronize()
        # Other threads may use the GPU meanwhile: the recording minds this thread alone.
        with cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            self._step()

    def run(self, inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Answers to at most as many images as there is room for."""
        import torch

        count = len(inputs)
        self._input[0].numpy()[:count] = inputs
        with torch.cuda.stream(self._stream):
            self._graph.replay()
        self._stream.synchronize()
        return [host.numpy()[:count].copy() for host, _ in self._outputs]

    def _step(self) -> None:
        host, own = self._input
        own.copy_(host, non_blocking=True)
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise _failed(self._key, "an engine that runs", "a refusal")
        for host, own in self._outputs:
            host.copy_(own, non_blocking=True)


def check_model(path: Path, held: Card, card: Card) -> None:
    """Refuse an engine of another model than the card's, and name what differs."""
    facts = {
        "trunk weights": (held.trunk.weights_hash[:12], card.trunk.weights_hash[:12]),
        "preprocessing": (held.trunk.preprocessing, card.trunk.preprocessing),
        "vertices": (held.space.hash[:12], card.space.hash[:12]),
        "model": (held.model_hash[:12], card.model_hash[:12]),
    }
    for name, (found, wanted) in facts.items():
        if found != wanted:
            raise BrainfastError(
                str(path),
                expected=f"{name} {wanted}",
                got=str(found),
                remedy="export this model again",
            )


def check_batch(path: Path, key: EngineKey, inputs: NDArray[Any]) -> None:
    """Inputs of another type or shape, or more than the profile allows, are a BrainfastError."""
    shape = key.input.shape[1:]
    if (
        inputs.ndim != len(shape) + 1
        or inputs.shape[1:] != shape
        or inputs.dtype != key.input.dtype
    ):
        raise BrainfastError(
            key.input.name,
            expected=f"{key.input.dtype} [B,{','.join(map(str, shape))}], as {path.name} takes",
            got=f"{inputs.dtype} {list(inputs.shape)}",
            remedy="resize the images, or export with --source or --input pixels",
        )
    most = key.batches[2]
    if not 1 <= len(inputs) <= most:
        raise BrainfastError(
            key.input.name,
            expected=f"a batch of 1 to {most}, the profile of {path.name}",
            got=str(len(inputs)),
            remedy="give fewer at a time, or export with a larger batch",
        )


def _check_buckets(key: EngineKey, buckets: Sequence[int] | None) -> tuple[int, ...]:
    """Batch sizes in ascending order; the last is the profile's largest."""
    least, _, most = key.batches
    found = sorted({*(key.batches if buckets is None else buckets), most})
    if found[0] < least or found[-1] > most:
        raise BrainfastError(
            "buckets", expected=f"batches of {least} to {most}", got=", ".join(map(str, found))
        )
    return tuple(found)


def _deserialize(trt: ModuleType, runtime: Any, path: Path, plan: bytes) -> Any:
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BrainfastError(
            str(path),
            expected=f"an engine that {trt.__name__} {trt.__version__} opens",
            got="one that it refuses",
            remedy="export the model again on this machine",
        )
    return engine


def _failed(key: EngineKey, expected: str, got: str) -> BrainfastError:
    remedy = "free memory on the GPU, open it with smaller buckets, or export the model again"
    return BrainfastError(key.package, expected=expected, got=got, remedy=remedy)


def _read_trunk(path: Path, key: EngineKey) -> tuple[tuple[int, ...], str, str]:
    """Layers, hash of the weights and precision that the key of a trunk's engine names.

    A trunk that does not name its precision is what `export_trunk` writes: fp32.
    """
    found = key.metadata
    if found.get("format") != FORMAT:
        raise BrainfastError(
            str(path),
            expected="the engine of a trunk",
            got="another engine",
            remedy="use TensorRTModel",
        )
    try:
        layers = tuple(int(layer) for layer in json.loads(found["layers"]))
        digest = found["weights_hash"]
    except (KeyError, TypeError, ValueError) as error:
        raise BrainfastError(
            str(key_path(path)),
            expected="layers and weights_hash of a trunk",
            got=f"{type(error).__name__}: {error}",
            remedy="build the engine again",
        ) from error
    outputs = [output.name for output in key.outputs]
    if outputs != output_names(layers):
        raise BrainfastError(
            str(key_path(path)),
            expected=f"outputs {', '.join(output_names(layers))}",
            got=", ".join(outputs),
            remedy="build the engine again",
        )
    return layers, digest, check_trunk_precision(found.get("precision", "fp32"))


def _check_trunk(path: Path, name: str, held: object, wanted: object | None) -> None:
    """Refuse a trunk of another kind than is wanted; None wants nothing."""
    if wanted is not None and held != wanted:
        raise BrainfastError(
            str(path),
            expected=f"{name} {_brief(wanted)}",
            got=_brief(held),
            remedy="build it from this model's trunk.onnx",
        )


def _brief(value: object) -> str:
    """Layers as a list, the start of a hash."""
    return str(list(value)) if isinstance(value, tuple) else str(value)[:12]
