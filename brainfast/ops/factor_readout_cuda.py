"""FactorTopy's readout on CUDA tensors: the compiled kernels over torch's memory and stream."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from .. import _C
from . import cuda_kernels, reference
from .cuda_kernels import Precision

NAMES = ("local", "global_", "space", "layer", "scale", "weight", "bias")


@functools.cache
def usable(device: torch.device) -> bool:
    """Whether this build's kernels run on a CUDA device and answer as torch's operations do.

    The first no is a warning that says why. The first call computes a small readout and its
    gradients both ways and waits for them: make it before a graph is captured.
    """
    return cuda_kernels.check_usable("factor_readout", "CudaFactorReadout", device, _difference)


@torch.no_grad()
def _difference(device: torch.device) -> str:
    """What is wrong with the kernels' answers to a small problem, or nothing."""
    shapes = ((3, 3, 20, 4, 5), (3, 3, 20), (70, 2), (70, 3), (70,), (70, 20), (70,), (3, 70))
    *inputs, grad_output = cuda_kernels.small_problem(device, *shapes)
    expected = [reference.factor_readout_cells(*inputs)]
    expected += reference.factor_readout_cells_backward(grad_output, *inputs[:-1])
    local, global_, space, layer, scale, weight, bias = inputs
    found: list[torch.Tensor | None] = [forward(*inputs)]
    found += backward(
        grad_output, local, global_, space, layer, scale, weight, bias, needs=[True] * 7
    )
    names = ("answers", *(f"gradients of {name}" for name in NAMES))
    return cuda_kernels.compare(names, found, expected)


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
        precision=cuda_kernels.shared_precision(local, global_, weight),
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
        precision=cuda_kernels.shared_precision(local, global_, weight),
    )
    images = len(local)
    scratch = cuda_kernels.allocate(plan.kernels.gradient_bytes(images), local.device, images)
    kind = cuda_kernels.shared_dtype(local, global_)
    local, global_ = local.to(kind).contiguous(), global_.to(kind).contiguous()
    grad_output = grad_output.float().contiguous()
    plan.kernels.backward(
        cuda_kernels.block(plan.packed),
        cuda_kernels.block(scratch),
        *(images, grad_output.data_ptr(), local.data_ptr(), global_.data_ptr()),
        dtype=cuda_kernels.name_of(kind),
        out=[0 if grad is None else grad.data_ptr() for grad in grads],
        **cuda_kernels.queue(local.device),
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
        self.packed = cuda_kernels.allocate(self.kernels.parameter_bytes, weight.device, 1)
        small = [tensor.float().contiguous() for tensor in (space, layer, scale, bias)]
        kind = cuda_kernels.shared_dtype(weight)
        weight = weight.to(kind).contiguous()
        self._made = cuda_kernels.queue(weight.device)
        self.kernels.pack(
            cuda_kernels.block(self.packed),
            *(tensor.data_ptr() for tensor in (*small[:3], weight, small[3])),
            dtype=cuda_kernels.name_of(kind),
            **self._made,
        )

    def run(
        self,
        local: torch.Tensor,  # [B,L,D,H,W]
        global_: torch.Tensor,  # [B,L,D]
        out: torch.Tensor | None = None,  # [B,V], float32
    ) -> torch.Tensor:  # [B,V], float32
        """The response, written into `out` where given. Errors: BrainfastError, before a launch."""
        images = len(local)
        sizes, device = self._sizes, self._device
        cuda_kernels.check_place("local", local, (images, *sizes), device)
        cuda_kernels.check_place("global_", global_, (images, *sizes[:2]), device)
        out = cuda_kernels.make_output(out, (images, self._vertices), device)
        if not images:
            return out
        scratch = cuda_kernels.allocate(self.kernels.token_bytes(images), local.device, images)
        kind = cuda_kernels.shared_dtype(local, global_)
        local, global_ = local.to(kind).contiguous(), global_.to(kind).contiguous()
        queue = cuda_kernels.queue(device)
        cuda_kernels.hold(self.packed, self._made, queue)
        self.kernels.forward(
            cuda_kernels.block(self.packed),
            cuda_kernels.block(scratch),
            *(images, local.data_ptr(), global_.data_ptr()),
            dtype=cuda_kernels.name_of(kind),
            out=out.data_ptr(),
            **queue,
        )
        return out
