"""The map from the latent to the cortex on CUDA tensors: the compiled kernels over torch's memory
and stream."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from .. import _C
from ..errors import BrainfastError
from . import cuda_kernels, reference_blobgpt
from .cuda_kernels import Precision

CHECKED = (3, 20)  # images: few, and more than that, each a kernel of its own


@functools.cache
def usable(device: torch.device) -> bool:
    """Whether this build's kernels run on a CUDA device and answer as torch's operations do.

    The first no is a warning that says why. The first call computes small embeddings both ways, in
    every precision, and waits for them: make it before a graph is captured.
    """
    return cuda_kernels.check_usable("vertex_embed", "CudaVertexEmbed", device, _difference)


@torch.no_grad()
def _difference(device: torch.device) -> str:
    """What is wrong with the kernels' answers to small problems, or nothing.

    Rows are whole 16 bytes, so that weights are read in place and packed, in several slices.
    """
    for images in CHECKED:
        inputs = cuda_kernels.small_problem(device, (images, 136), (140, 136), (140,))
        narrow = [tensor.bfloat16() for tensor in inputs]
        problem = (
            _compare("fp32", inputs)
            or _compare("bf16", narrow)
            or _compare_plan("fp32", inputs)
            or _compare_plan("bf16x3", inputs)
            or _compare_plan("bf16", narrow)
        )
        if problem:
            return problem
    return ""


def _compare(precision: Precision, inputs: Sequence[torch.Tensor]) -> str:
    """The operator with torch's in float32, which `inputs` lose nothing in."""
    wide = [tensor.float() for tensor in inputs]
    expected = [reference_blobgpt.vertex_embed(*wide)]
    return cuda_kernels.compare([f"answers in {precision}"], [forward(*inputs)], expected)


def _compare_plan(precision: Precision, inputs: Sequence[torch.Tensor]) -> str:
    """The same of a plan's answers."""
    wide = [tensor.float() for tensor in inputs]
    latent, weight, bias = inputs
    found = CudaVertexEmbedPlan(weight, bias, precision=precision).run(latent)
    names = [f"answers of a plan in {precision}"]
    return cuda_kernels.compare(names, [found], [reference_blobgpt.vertex_embed(*wide)])


def forward(
    latent: torch.Tensor,  # [B,K]
    weight: torch.Tensor,  # [V,K]
    bias: torch.Tensor,  # [V]
) -> torch.Tensor:  # [B,V], float32
    """The embedding of `vertex_embed`, of checked CUDA tensors that are not float64.

    Strict float32; where latent and weight are bfloat16, their products run on tensor cores, which
    loses nothing. One launch, where the weights' rows are whole 16 bytes; other weights are packed
    first. Nothing is waited for, so a CUDA graph can hold it.
    """
    images, vertices = len(latent), len(weight)
    if not images or not vertices:
        return latent.new_zeros(images, vertices, dtype=torch.float32)
    precision = cuda_kernels.shared_precision(latent, weight)
    dtype = cuda_kernels.shared_dtype(latent, weight)
    weight = weight.to(dtype).contiguous()
    kernels = _C.CudaVertexEmbed(vertices, weight.shape[1], precision)
    name = cuda_kernels.name_of(dtype)
    if not kernels.reads_in_place(weight.data_ptr(), dtype=name):
        return CudaVertexEmbedPlan(weight, bias, precision=precision).run(latent)
    latent, bias = latent.to(dtype).contiguous(), bias.float().contiguous()
    out = cuda_kernels.make_output(None, (images, vertices), latent.device)
    kernels.forward_in_place(
        *(weight.data_ptr(), bias.data_ptr(), images, latent.data_ptr()),
        dtype=name,
        out=out.data_ptr(),
        **cuda_kernels.queue(latent.device),
    )
    return out


class CudaVertexEmbedPlan:
    """The embedding with its weights packed once on a CUDA device.

    response = latent weight^T + bias. A run is one launch on torch's current stream, which a CUDA
    graph can capture; a plan made on one stream may be run on another once the first has come past
    its making. `precision` is that of weight and latent; bias and sums are float32. A response has
    the same bits in any subset of vertices and any batch. Errors: BrainfastError, before a launch.
    """

    def __init__(
        self,
        weight: torch.Tensor,  # [V,K]
        bias: torch.Tensor,  # [V]
        *,
        precision: Precision = "fp32",
    ) -> None:
        if weight.ndim != 2 or not weight.shape[1]:
            raise BrainfastError(
                "weight", expected="[V,K] with at least one K", got=f"shape {list(weight.shape)}"
            )
        self.vertices, self.latent = weight.shape
        self._device = weight.device
        for name, tensor in (("weight", weight), ("bias", bias)):
            cuda_kernels.check_number(name, tensor)
        cuda_kernels.check_place("bias", bias, (self.vertices,), self._device)
        if not self.vertices:
            return
        self.kernels = _C.CudaVertexEmbed(self.vertices, self.latent, precision)
        self.packed = cuda_kernels.allocate(self.kernels.weight_bytes, self._device, 1)
        dtype = cuda_kernels.shared_dtype(weight)
        weight, bias = weight.to(dtype).contiguous(), bias.float().contiguous()
        self._made = cuda_kernels.queue(self._device)
        self.kernels.pack(
            cuda_kernels.block(self.packed),
            *(weight.data_ptr(), bias.data_ptr()),
            dtype=cuda_kernels.name_of(dtype),
            **self._made,
        )

    def run(
        self,
        latent: torch.Tensor,  # [B,K]
        out: torch.Tensor | None = None,  # [B,V], float32
    ) -> torch.Tensor:  # [B,V], float32
        """The response, written into `out` where given."""
        cuda_kernels.check_number("latent", latent)
        images = len(latent) if latent.ndim else 0
        cuda_kernels.check_place("latent", latent, (images, self.latent), self._device)
        out = cuda_kernels.make_output(out, (images, self.vertices), self._device)
        if not images or not self.vertices:
            return out
        dtype = cuda_kernels.shared_dtype(latent)
        latent = latent.to(dtype).contiguous()
        queue = cuda_kernels.queue(self._device)
        cuda_kernels.hold(self.packed, self._made, queue)
        self.kernels.forward(
            *(cuda_kernels.block(self.packed), images, latent.data_ptr()),
            dtype=cuda_kernels.name_of(dtype),
            out=out.data_ptr(),
            **queue,
        )
        return out
