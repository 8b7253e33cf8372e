"""Trunk runtimes: pixels to raw tokens in numpy, by torch or ONNX Runtime. Torch-free at import."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from .errors import BrainfastError
from .files import atomic_path, file_size
from .tokens import Tokens

if TYPE_CHECKING:
    import torch

    from .trunks import Trunk

OPSET = 20
EXTERNAL_BYTES = 1_800_000_000  # protobuf holds 2 GiB at most, graph and weights together
FORMAT = "brainfast-trunk"

Pixels = npt.NDArray[np.float32]  # [B,3,H,W]
Precision = Literal["fp32", "bf16"]


class TrunkRuntime(Protocol):
    """tokens = runtime(pixels): float32 [B,3,H,W] to raw-grid tokens of float32 numpy arrays."""

    name: str
    precision: str

    def __call__(self, pixels: Pixels) -> Tokens:
        """Run one batch."""
        ...


class TorchRuntime:
    """The trunk under torch, on the CPU or a GPU.

    fp32 is strict: no TF32. bf16 has the numbers of torch's autocast: matrix products take bf16
    operands, norms and the residual stream stay fp32; the matrices are converted once, not in
    each call. The trunk that is given is never changed: a copy is made where it must be.
    """

    name = "torch"

    def __init__(self, trunk: Trunk, precision: Precision = "fp32", device: str = "auto") -> None:
        import torch

        from .trunks import strict_fp32

        self.precision: str = _check_precision(precision, ("fp32", "bf16"))
        self.device = torch_device(device)
        if trunk.device != self.device or precision == "bf16":
            trunk = copy.deepcopy(trunk).to(self.device)
        if precision == "bf16":
            _matrices_to_bf16(trunk)
        self._trunk = trunk.eval()
        self._torch: Any = torch
        self._strict = strict_fp32
        self._size = trunk.config.size

    def __call__(self, pixels: Pixels) -> Tokens:
        """Run one batch."""
        pixels = _check_pixels(pixels, self._size)
        with self._torch.inference_mode(), self._mode():
            tokens: Tokens = self._trunk(self._torch.from_numpy(pixels).to(self.device))
            return tokens.map(lambda array: array.float().cpu().numpy())

    def _mode(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return self._strict()
        autocast: AbstractContextManager[Any] = self._torch.autocast(
            self.device.type, dtype=self._torch.bfloat16
        )
        return autocast


class OnnxRuntime:
    """A trunk that `export_trunk` wrote, under ONNX Runtime on the CPU in fp32, without torch.

    `layers` and `weights_hash`, where given, must be those of the file. `threads` is the number
    inside one call; None takes every core that the process may use.
    """

    name = "onnx"

    def __init__(
        self,
        path: str | Path,
        layers: Sequence[int] | None = None,
        precision: Literal["fp32"] = "fp32",
        threads: int | None = None,
        *,
        weights_hash: str | None = None,
    ) -> None:
        self.precision: str = _check_precision(precision, ("fp32",))
        if threads is not None and threads < 1:
            raise BrainfastError("threads", expected="at least 1", got=str(threads))
        file_size(path)
        self._session = _open_session(Path(path), threads or _usable_cores())
        self.layers, self._size = _check_metadata(
            Path(path), self._session.get_modelmeta().custom_metadata_map, layers, weights_hash
        )
        self._outputs = _output_names(self.layers)

    def __call__(self, pixels: Pixels) -> Tokens:
        """Run one batch."""
        pixels = _check_pixels(pixels, self._size)
        answers = self._session.run(self._outputs, {"pixels": pixels})
        count = len(self.layers)
        return Tokens(tuple(answers[:count]), tuple(answers[count:]), self.layers)


def export_trunk(trunk: Trunk, path: str | Path) -> None:
    """Write the trunk as ONNX, opset 20: pixels [B,3,H,W] to local.{l} and global.{l}, any B.

    Weights above 1.8 GB go to a file beside it that bears their hash, and the ONNX file appears
    last, so that a reader finds both or neither. The metadata hold the hash, layers and size.
    Errors: BrainfastError where torch cannot export the model or the disk refuses.
    """
    path = Path(path)
    with (
        atomic_path(path) as final,
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder,
    ):
        written = _export(trunk, Path(folder), path.name)
        for extra in sorted(set(Path(folder).iterdir()) - {written}):
            with atomic_path(path.parent / extra.name) as place:
                shutil.move(extra, place)
        os.replace(written, final)


def _export(trunk: Trunk, folder: Path, name: str) -> Path:
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = copy.deepcopy(trunk).cpu().eval()

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            tokens = self.trunk(pixels)
            return (*tokens.local, *tokens.global_)

    config = trunk.config
    try:
        with _quiet("onnxscript"):
            program = torch.onnx.export(
                Flat().eval(),
                (torch.zeros(2, 3, *config.size),),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=_output_names(config.layers),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever the model raises
        raise BrainfastError(
            f"trunk {config.name}",
            expected="a model that torch exports to ONNX",
            got=str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__,
            remedy="use runtime='torch'",
        ) from error
    assert program is not None
    program.model.metadata_props.update(
        format=FORMAT,
        name=config.name,
        weights_hash=config.weights_hash,
        layers=json.dumps(config.layers),
        size=json.dumps(config.size),
    )
    written = folder / f"{name}.{config.weights_hash[:12]}"
    total = sum(value.numel() * value.element_size() for value in trunk.state_dict().values())
    program.save(str(written), external_data=total > EXTERNAL_BYTES)
    return written


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hold back a logger's warnings: the exporter has one for every operator it does not fold."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _matrices_to_bf16(trunk: Trunk) -> None:
    """Convert what autocast would convert in every call; norms and embeddings stay fp32."""
    import torch

    for module in trunk.modules():
        if type(module) in (torch.nn.Linear, torch.nn.Conv2d):
            module.to(torch.bfloat16)


def torch_device(device: str) -> torch.device:
    """The device called auto (a GPU where there is one), cpu, cuda or cuda:1."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise BrainfastError("device", expected="auto, cpu or cuda", got=repr(device)) from error
    if place.type == "cuda":
        count = torch.cuda.device_count()
        if (place.index or 0) >= count:
            raise BrainfastError(
                "device", expected=device, got=f"{count} CUDA devices", remedy="use device='cpu'"
            )
        place = torch.device(
            "cuda", torch.cuda.current_device() if place.index is None else place.index
        )
    return place


def _open_session(path: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BrainfastError(
            "onnxruntime", expected="the package", got=str(error), remedy="pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle workers that spin would take the cores from the head, which runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions have no public base class
        raise BrainfastError(
            str(path),
            expected="a whole ONNX file and its data",
            got=" ".join(str(error).split())[:200],
            remedy="export it again",
        ) from error


def _check_metadata(
    path: Path, found: dict[str, str], layers: Sequence[int] | None, weights_hash: str | None
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Layers and size (H, W) that the file names, after comparing them with what is wanted."""
    try:
        held = tuple(int(layer) for layer in json.loads(found["layers"]))
        height, width = (int(side) for side in json.loads(found["size"]))
        digest = found["weights_hash"]
    except (KeyError, TypeError, ValueError) as error:
        raise BrainfastError(
            str(path), expected="a trunk exported by brainfast", got="another ONNX model"
        ) from error
    if layers is not None and held != tuple(layers):
        raise BrainfastError(
            str(path),
            expected=f"layers {list(layers)}",
            got=str(list(held)),
            remedy="export the trunk of this model again",
        )
    if weights_hash is not None and digest != weights_hash:
        raise BrainfastError(
            str(path),
            expected=f"trunk weights {weights_hash[:12]}",
            got=f"{digest[:12]} of {found.get('name')}",
            remedy="export the trunk of this model again",
        )
    return held, (height, width)


def _check_pixels(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    fits = pixels.ndim == 4 and pixels.shape[1:] == (3, *size) and len(pixels) > 0
    if not fits or pixels.dtype != np.float32:
        raise BrainfastError(
            "pixels",
            expected=f"float32 [B,3,{size[0]},{size[1]}]",
            got=f"{pixels.dtype} {list(pixels.shape)}",
            remedy="use brainfast.images.preprocess",
        )
    return np.require(pixels, requirements=["C", "W"])


def _check_precision(precision: str, known: tuple[str, ...]) -> str:
    if precision not in known:
        raise BrainfastError("trunk precision", expected=" or ".join(known), got=repr(precision))
    return precision


def _output_names(layers: Sequence[int]) -> list[str]:
    return [f"{kind}.{layer}" for kind in ("local", "global") for layer in layers]


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
