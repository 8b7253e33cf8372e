"""FactorTopy's readout on CUDA tensors: the compiled kernels over torch's memory and stream."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from .. import _C
from . import cuda_kernels, reference
from .cuda_kernels import Precision

NAMES = ("local", "global_", "space", "layer", "scale", "weight", "bias")
# B, L, D, H, W, V of what is checked: one image; two groups of images that share a tile's weights;
# the same with several chunks of tokens, blocks of layers and slices, and a full tile of vertices.
CHECKED = ((1, 3, 20, 2, 3, 40), (9, 3, 20, 2, 3, 40), (9, 17, 140, 2, 2, 300))


@functools.cache
def usable(device: torch.device) -> bool:
    """Whether this build's kernels run on a CUDA device and answer as torch's operations do.

    The first no is a warning that says why. The first call computes small readouts and their
    gradients both ways, in every precision, and waits for them: make it before a graph is captured.
    """
    return cuda_kernels.check_usable("factor_readout", "CudaFactorReadout", device, _difference)


@torch.no_grad()
def _difference(device: torch.device) -> str:
    """What is wrong with the kernels' answers to small problems, or nothing."""
    return next(filter(None, (_difference_of(device, *sizes) for sizes in CHECKED)), "")


def _difference_of(
    device: torch.device,
    images: int,
    layers: int,
    channels: int,
    height: int,
    width: int,
    vertices: int,
) -> str:
    shapes = (
        *((images, layers, channels, height, width), (images, layers, channels)),
        *((vertices, 2), (vertices, layers), (vertices,), (vertices, channels), (vertices,)),
        (images, vertices),
    )
    *inputs, grad_output = cuda_kernels.small_problem(device, *shapes)
    inputs[2] *= 0.5  # many points between the grid's pixels, some outside
    local, global_, space, layer, scale, weight, bias = inputs
    plan = CudaFactorReadoutPlan(
        *(space, layer, scale, weight, bias, height, width), precision="bf16x3"
    )
    narrow = [
        tensor.bfloat16() if name in ("local", "global_", "weight") else tensor
        for name, tensor in zip(NAMES, inputs, strict=True)
    ]
    return (
        _compare("fp32", inputs, grad_output)
        or _compare("bf16", narrow, grad_output)
        or cuda_kernels.compare(
            ["answers in bf16x3"],
            [plan.run(local, global_)],
            [reference.factor_readout_cells(*inputs)],
        )
    )


def _compare(
    precision: Precision, inputs: Sequence[torch.Tensor], grad_output: torch.Tensor
) -> str:
    """The operator and its gradients with torch's in float32, which `inputs` lose nothing in."""
    wide = [tensor.float() for tensor in inputs]
    local, global_, space, layer, scale, weight, bias = inputs
    return cuda_kernels.compare(
        [f"answers in {precision}"], [forward(*inputs)], [reference.factor_readout_cells(*wide)]
    ) or cuda_kernels.compare(
        [f"gradients of {name} in {precision}" for name in NAMES],
        backward(
            *(grad_output, local, global_, space, layer, scale, weight, bias), needs=[True] * 7
        ),
        reference.factor_readout_cells_backward(grad_output, *wide[:-1]),
        cuda_kernels.GRADIENT_TOLERANCE[precision],
    )


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
