"""FactorTopy's readout on CUDA tensors: the compiled kernels over torch's memory and stream."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Literal, TypedDict

import torch

from .. import _C
from ..errors import BrainfastError
from . import reference

NAMES = ("local", "global_", "space", "layer", "scale", "weight", "bias")
TOLERANCE = 1e-4  # of the largest value: fp32 sums in another order
Precision = Literal["fp32", "bf16x3", "bf16"]
BUILD = "BRAINFAST_CUDA=1 pip install --force-reinstall --no-deps ."


class _Queue(TypedDict):
    device: int
    stream: int


@functools.cache
def usable(device: torch.device) -> bool:
    """Whether this build's kernels run on a CUDA device and answer as torch's operations do.

    The first no is a warning that says why. The first call computes a small readout and its
    gradients both ways and waits for them: make it before a graph is captured.
    """
    problem = _problem(device.index or 0) or _difference(device)
    if problem:
        warnings.warn(
            f"factor_readout on {device} runs as torch operations: {problem}", stacklevel=2
        )
    return not problem


def _problem(index: int) -> str:
    if not hasattr(_C, "CudaFactorReadout"):
        return f"this build has no CUDA kernels; in the source folder: {BUILD}"
    found = _C.cuda_info()
    if found["problem"]:
        return str(found["problem"])
    problem = str(found["devices"][index]["problem"])
    return problem and f"{problem}; the build has code for {found['architectures']}"


@torch.no_grad()
def _difference(device: torch.device) -> str:
    """What is wrong with the kernels' answers to a small problem, or nothing."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 3, 20, 4, 5), (3, 3, 20), (70, 2), (70, 3), (70,), (70, 20), (70,), (3, 70))
    *inputs, grad_output = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    expected = [reference.factor_readout_cells(*inputs)]
    expected += reference.factor_readout_cells_backward(grad_output, *inputs[:-1])
    local, global_, space, layer, scale, weight, bias = inputs
    found: list[torch.Tensor | None] = [forward(*inputs)]
    found += backward(
        grad_output, local, global_, space, layer, scale, weight, bias, needs=[True] * 7
    )
    names = ("answers", *(f"gradients of {name}" for name in NAMES))
    for name, ours, theirs in zip(names, found, expected, strict=True):
        assert ours is not None
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        if not error <= TOLERANCE:
            return f"its {name} differ from torch's by {error:.1g} of the largest; please report it"
    return ""


def forward(
    local: torch.Tensor,  # [B,L,D,H,W]
    global_: torch.Tensor,  # [B,L,D]
    space: torch.Tensor,  # [V,2]
    layer: torch.Tensor,  # [V,L]
    scale: torch.Tensor,  # [V]
    weight: torch.Tensor,  # [V,D]
    bias: torch.Tensor,  # [V]
    *,
    align_corners: bool = False,
) -> torch.Tensor:  # [B,V], float32
    """The readout of `factor_readout`, of checked CUDA tensors that are not float64.

    Strict float32; where tokens and weights are all bfloat16, their products run on tensor cores,
    which loses nothing. Nothing is waited for, so a CUDA graph can hold it.
    """
    if not len(local) or not len(weight):
        return local.new_zeros(len(local), len(weight), dtype=torch.float32)
    plan = CudaFactorReadoutPlan(
        *(space, layer, scale, weight, bias, local.shape[3], local.shape[4]),
        align_corners=align_corners,
        precision=_precision(local, global_, weight),
    )
    return plan.run(local, global_)


def backward(
    grad_output: torch.Tensor,  # [B,V]
    local: torch.Tensor,  # [B,L,D,H,W]
    global_: torch.Tensor,  # [B,L,D]
    space: torch.Tensor,  # [V,2]
    layer: torch.Tensor,  # [V,L]
    scale: torch.Tensor,  # [V]
    weight: torch.Tensor,  # [V,D]
    bias: torch.Tensor,  # [V]
    needs: Sequence[bool],
    *,
    align_corners: bool = False,
) -> list[torch.Tensor | None]:
    """Gradients of `forward` in the order of its arguments, float32, None where not needed.

    The same bits on every run. Where tokens and weights are all bfloat16, the products of
    grad_output with a vertex's coefficients are rounded to bfloat16 too.
    """
    tensors = (local, global_, space, layer, scale, weight, bias)
    make = torch.empty if len(local) and len(weight) else torch.zeros
    grads = [
        make(tensor.shape, dtype=torch.float32, device=tensor.device) if need else None
        for tensor, need in zip(tensors, needs, strict=True)
    ]
    if not len(local) or not len(weight):
        return grads
    plan = CudaFactorReadoutPlan(
        *(space, layer, scale, weight, bias, local.shape[3], local.shape[4]),
        align_corners=align_corners,
        precision=_precision(local, global_, weight),
    )
    images = len(local)
    scratch = _allocate(plan.kernels.gradient_bytes(images), local.device, images)
    kind = _kind(local, global_)
    local, global_ = local.to(kind).contiguous(), global_.to(kind).contiguous()
    grad_output = grad_output.float().contiguous()
    plan.kernels.backward(
        _block(plan.packed),
        _block(scratch),
        *(images, grad_output.data_ptr(), local.data_ptr(), global_.data_ptr()),
        dtype=_name(kind),
        out=[0 if grad is None else grad.data_ptr() for grad in grads],
        **_queue(local.device),
    )
    return grads


class CudaFactorReadoutPlan:
    """The readout with its parameters sorted and packed once on a CUDA device.

    A run is two launches on torch's current stream, which a CUDA graph can capture; a plan made on
    one stream may be run on another once the first has come past its making. `precision` is that
    of tokens and weights; sums are float32. The parameters are CUDA tensors of one device.
    """

    def __init__(
        self,
        space: torch.Tensor,  # [V,2]
        layer: torch.Tensor,  # [V,L]
        scale: torch.Tensor,  # [V]
        weight: torch.Tensor,  # [V,D]
        bias: torch.Tensor,  # [V]
        height: int,
        width: int,
        *,
        align_corners: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        self._sizes = (layer.shape[1], weight.shape[1], height, width)  # L, D, H, W
        self._vertices, self._device = len(weight), weight.device
        self.kernels = _C.CudaFactorReadout(
            self._vertices, *self._sizes, align_corners=align_corners, precision=precision
        )
        self.packed = _allocate(self.kernels.parameter_bytes, weight.device, 1)
        small = [tensor.float().contiguous() for tensor in (space, layer, scale, bias)]
        kind = _kind(weight)
        weight = weight.to(kind).contiguous()
        self.kernels.pack(
            _block(self.packed),
            *(tensor.data_ptr() for tensor in (*small[:3], weight, small[3])),
            dtype=_name(kind),
            **_queue(weight.device),
        )

    def run(
        self,
        local: torch.Tensor,  # [B,L,D,H,W]
        global_: torch.Tensor,  # [B,L,D]
        out: torch.Tensor | None = None,  # [B,V], float32
    ) -> torch.Tensor:  # [B,V], float32
        """The response, written into `out` where given. Errors: BrainfastError, before a launch."""
        images = len(local)
        self._check("local", local, (images, *self._sizes))
        self._check("global_", global_, (images, *self._sizes[:2]))
        if out is None:
            out = torch.empty(images, self._vertices, device=local.device)
        self._check("out", out, (images, self._vertices))
        if out.dtype != torch.float32 or not out.is_contiguous():
            raise BrainfastError("out", expected="contiguous float32", got=str(out.dtype))
        if not images:
            return out
        scratch = _allocate(self.kernels.token_bytes(images), local.device, images)
        kind = _kind(local, global_)
        local, global_ = local.to(kind).contiguous(), global_.to(kind).contiguous()
        self.kernels.forward(
            _block(self.packed),
            _block(scratch),
            *(images, local.data_ptr(), global_.data_ptr()),
            dtype=_name(kind),
            out=out.data_ptr(),
            **_queue(local.device),
        )
        return out

    def _check(self, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape:
            raise BrainfastError(name, expected=str(list(shape)), got=str(list(tensor.shape)))
        if tensor.device != self._device:
            raise BrainfastError(
                name, expected=f"a tensor on {self._device}", got=f"one on {tensor.device}"
            )


def _precision(*tensors: torch.Tensor) -> Precision:
    return "bf16" if all(tensor.dtype == torch.bfloat16 for tensor in tensors) else "fp32"


def _kind(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype as which the kernels read these tensors."""
    return torch.bfloat16 if _precision(*tensors) == "bf16" else torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _queue(device: torch.device) -> _Queue:
    stream = torch.cuda.current_stream(device)
    return {"device": stream.device.index, "stream": stream.cuda_stream}


def _block(memory: torch.Tensor) -> tuple[int, int]:
    return memory.data_ptr(), memory.numel()


def _allocate(size: int, device: torch.device, images: int) -> torch.Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        free, _ = torch.cuda.mem_get_info(device)
        fits = images * free // size
        raise BrainfastError(
            "memory",
            expected=f"{size:,} bytes on {device}",
            got=f"{free:,} free",
            remedy=f"use batches of at most {fits}" if fits else "free memory on the GPU",
        ) from error
