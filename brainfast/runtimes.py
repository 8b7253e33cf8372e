"""Trunk runtimes: pixels to raw tokens in numpy, by torch, its compiler or ONNX Runtime.

Torch-free at import.
"""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from .errors import BrainfastError
from .files import file_size
from .machine import usable_cores
from .tokens import Tokens
from .trunk_export import flat_module, output_names

if TYPE_CHECKING:
    import torch

    from .trunks import Trunk

Pixels = npt.NDArray[np.float32]  # [B,3,H,W]
Precision = Literal["fp32", "bf16"]

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
GPU_REMEDY = (
    "in a fresh environment with brainfast: pip uninstall -y onnxruntime"
    " && pip install 'onnxruntime-gpu[cuda,cudnn]'"
)

_COMPILING = threading.Lock()  # torch's compiler has settings of the whole process


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
    each call. On a processor with products of bf16 they are also laid out for them once, and the
    GELU of an MLP is taken of the products' sums in fp32, before these are rounded: see
    `packed_linear`. The trunk that is given is never changed: a copy is made where it must be.
    """

    name = "torch"

    def __init__(self, trunk: Trunk, precision: Precision = "fp32", device: str = "auto") -> None:
        import torch

        from .strict_fp32 import strict_fp32

        self.precision: str = check_trunk_precision(precision)
        self.device = torch_device(device)
        self.trunk = place_trunk(trunk, self.device, self.precision)
        if self.precision == "bf16" and self.device.type == "cpu":
            from .packed_linear import packed

            self.trunk = packed(self.trunk, own=self.trunk is not trunk)
        self._torch: Any = torch
        self._strict = strict_fp32
        self._size = trunk.config.size

    def __call__(self, pixels: Pixels) -> Tokens:
        """Run one batch."""
        pixels = _check_pixels(pixels, self._size)
        with self._torch.inference_mode(), self._mode():
            tokens: Tokens = self.trunk(self._torch.from_numpy(pixels).to(self.device))
            return tokens.map(lambda array: array.float().cpu().numpy())

    @property
    def on_gpu(self) -> bool:
        """Whether an engine keeps tokens and head on the trunk's device, see `device_engine`."""
        return self.device.type == "cuda"

    def _mode(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return self._strict()
        autocast: AbstractContextManager[Any] = self._torch.autocast(
            self.device.type, dtype=self._torch.bfloat16
        )
        return autocast


class CompiledRuntime:
    """The trunk through torch.compile with frozen weights, on the CPU; opening it compiles.

    That takes about half a minute for a ViT-B and needs a C++ compiler, in every process anew. One
    graph of one image is compiled and never another: a batch goes through it image by image, so
    an image's tokens are the same bits in every batch, and nothing is padded or compiled later.
    Set torch's number of threads before it is opened. fp32 is strict. bf16 is
    TorchRuntime's, matrix products on bf16 operands and norms and residual stream in fp32, except
    that fused chains of element-wise steps round to bf16 once, at their end. The trunk that is
    given is never changed, and threads may call one runtime at once.
    """

    name = "compile"

    def __init__(self, trunk: Trunk, precision: Precision = "fp32", device: str = "auto") -> None:
        import torch

        from .strict_fp32 import strict_fp32

        self.precision: str = check_trunk_precision(precision)
        if device not in ("auto", "cpu"):
            raise BrainfastError(
                "runtime compile", expected="the CPU", got=device, remedy="use runtime='torch'"
            )
        self._layers, self._size = trunk.config.layers, trunk.config.size
        self._torch: Any = torch
        self._strict = strict_fp32
        trunk = copy.deepcopy(trunk).cpu()
        self._run = self._compile(place_trunk(trunk, torch.device("cpu"), self.precision))

    def __call__(self, pixels: Pixels) -> Tokens:
        """Run one batch, image by image."""
        pixels = _check_pixels(pixels, self._size)
        with self._torch.no_grad(), self._strict():
            rows = [
                self._run(self._torch.from_numpy(pixels[i : i + 1])) for i in range(len(pixels))
            ]
        arrays = [
            np.concatenate([array.numpy() for array in parts]) for parts in zip(*rows, strict=True)
        ]
        count = len(self._layers)
        return Tokens(tuple(arrays[:count]), tuple(arrays[count:]), self._layers)

    def _compile(self, trunk: Trunk) -> Any:
        """Export, freeze and compile, all for one image.

        The exported graph has code of its own, so that runtimes do not share torch's limit of
        compilations, beyond which it would quietly run uncompiled. Guards are dropped because all
        that could change is pixels' shape, which is checked: with them a change of, say, torch's
        number of threads would compile again in the middle of a call.
        """
        import torch
        from torch._inductor import config

        module = flat_module(trunk, autocast=self.precision == "bf16")
        pixels = torch.zeros(1, 3, *self._size)
        with _COMPILING, torch.no_grad():
            try:
                graph = torch.export.export(module, (pixels,)).module()
                # `options` would freeze nothing: Dynamo looks at the setting itself.
                with config.patch(freezing=True), self._strict():
                    run = torch.compile(
                        graph,
                        fullgraph=True,
                        dynamic=False,
                        options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe},
                    )
                    run(pixels)
            except Exception as error:  # whatever the model, torch and the compiler raise
                raise BrainfastError(
                    f"runtime compile of {trunk.config.name}",
                    expected="a C++ compiler (CXX or g++), and a trunk that torch compiles",
                    got=" ".join(str(error).split())[:160] or type(error).__name__,
                    remedy="use runtime='torch'",
                ) from error
        return run


class OnnxRuntime:
    """A trunk that `export_trunk` wrote, under ONNX Runtime in fp32, without torch.

    `layers` and `weights_hash`, where given, must be those of the file. `threads` is the number
    inside one call; None takes every core that the process may use. device: "cpu", or "cuda" with
    onnxruntime-gpu. The tokens lie in ONNX Runtime's own memory: nothing is copied on the CPU.
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
        device: str = "cpu",
    ) -> None:
        self.precision: str = check_trunk_precision(precision, ("fp32",))
        self._session = open_session(Path(path), threads, device)
        self.layers, self._size = _check_metadata(
            Path(path), self._session.get_modelmeta().custom_metadata_map, layers, weights_hash
        )
        self._outputs = output_names(self.layers)
        self.device = session_device(self._session)

    def __call__(self, pixels: Pixels) -> Tokens:
        """Run one batch."""
        pixels = _check_pixels(pixels, self._size)
        answers = run_session(self._session, {"pixels": pixels}, self._outputs)
        count = len(self.layers)
        return Tokens(tuple(answers[:count]), tuple(answers[count:]), self.layers)


def open_trunk(
    trunk: Trunk, runtime: str, precision: Precision = "fp32", device: str = "auto"
) -> TrunkRuntime:
    """The runtime "torch" or "compile" over a trunk."""
    if runtime == "compile":
        return CompiledRuntime(trunk, precision, device)
    return TorchRuntime(trunk, precision, device)


def place_trunk(trunk: Any, device: torch.device, precision: str) -> Any:
    """A trunk on a device, its matrices in a precision, in eval mode: a copy where it must be.

    bf16: see `matrices_to`.
    """
    import torch

    there = all(parameter.device == device for parameter in trunk.parameters())
    rounded = all(matrix.weight.dtype == torch.bfloat16 for matrix in _matrices(trunk))
    if not there or (precision == "bf16" and not rounded):
        trunk = copy.deepcopy(trunk).to(device)
    if precision == "bf16" and not rounded:
        matrices_to(trunk, torch.bfloat16)
    return trunk.eval()


def matrices_to(trunk: Any, dtype: torch.dtype) -> None:
    """Convert what autocast would convert in every call; norms and embeddings stay fp32."""
    for matrix in _matrices(trunk):
        matrix.to(dtype)


def _matrices(trunk: Any) -> list[Any]:
    import torch

    return [part for part in trunk.modules() if type(part) in (torch.nn.Linear, torch.nn.Conv2d)]


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


def open_session(path: Path, threads: int | None = None, device: str = "cpu") -> Any:
    """An ONNX Runtime session of a file; device "cuda" needs onnxruntime-gpu, "auto" takes it
    where it is there. A file that it cannot run is a BrainfastError."""
    if threads is not None and threads < 1:
        raise BrainfastError("threads", expected="at least 1", got=str(threads))
    file_size(path)
    try:
        import onnxruntime
    except ImportError as error:
        raise BrainfastError(
            "onnxruntime", expected="the package", got=str(error), remedy="pip install onnxruntime"
        ) from error
    provider = _provider(onnxruntime, device)
    if provider[0] == CUDA_PROVIDER and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # from the wheels of the CUDA libraries
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Idle workers that spin would take the cores from the head, which runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=[provider])
    except Exception as error:  # its exceptions have no public base class
        raise BrainfastError(
            str(path),
            expected="a whole ONNX file and its data, which this ONNX Runtime can run",
            got=" ".join(str(error).split())[:200],
            remedy="export it again, or update onnxruntime",
        ) from error
    used = session.get_providers()[0]
    if device == "cuda" and used != CUDA_PROVIDER:  # it falls back with a line in its log
        raise BrainfastError(
            "device cuda",
            expected="CUDA and cuDNN for onnxruntime-gpu",
            got=used,
            remedy=GPU_REMEDY,
        )
    return session


def session_device(session: Any) -> str:
    """Where a session runs, cpu or cuda."""
    return "cuda" if session.get_providers()[0] == CUDA_PROVIDER else "cpu"


def run_session(session: Any, inputs: dict[str, Any], outputs: Sequence[str]) -> list[Any]:
    """Outputs as arrays over ONNX Runtime's own memory, which lives as long as they do."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for name in outputs:
        binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding)
    return [value.numpy() for value in binding.get_outputs()]


def _provider(onnxruntime: Any, device: str) -> tuple[str, dict[str, str]]:
    """The execution provider of a device, with its options."""
    if device not in ("auto", "cpu", "cuda"):
        raise BrainfastError("device", expected="auto, cpu or cuda", got=repr(device))
    available = onnxruntime.get_available_providers()
    if device == "cuda" and CUDA_PROVIDER not in available:
        raise BrainfastError(
            "device cuda",
            expected="onnxruntime-gpu",
            got=f"onnxruntime {onnxruntime.__version__} with {', '.join(available)}",
            remedy=GPU_REMEDY,
        )
    if device == "cpu" or CUDA_PROVIDER not in available:
        return CPU_PROVIDER, {}
    return CUDA_PROVIDER, {"use_tf32": "0"}  # fp32 is strict


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


def check_trunk_precision(precision: str, known: tuple[str, ...] = ("fp32", "bf16")) -> str:
    """The precision; one that is not known is a BrainfastError."""
    if precision not in known:
        raise BrainfastError("trunk precision", expected=" or ".join(known), got=repr(precision))
    return precision
