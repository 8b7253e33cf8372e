"""The affine map from the latent to the cortex as a torch operator, over the compiled kernels."""

from __future__ import annotations

from typing import Any

import torch

from .. import _C
from . import cuda_kernels, reference, vertex_embed_cuda
from .arguments import check_tensors, compute_dtype, in_compute_dtype, numpy_arrays

_LETTERS = {"latent": "BK", "weight": "VK", "bias": "V"}


def vertex_embed(
    latent: torch.Tensor,  # [B,K]
    weight: torch.Tensor,  # [V,K]
    bias: torch.Tensor,  # [V]
) -> torch.Tensor:  # [B,V]
    """y[b,v] = weight[v] . latent[b] + bias[v].

    B and V may be 0. float32, bfloat16 and float16 are computed and answered in float32, each
    gradient in its argument's dtype; float64 goes with float64 only. The compiled kernels run on
    the CPU and, but for float64, on CUDA: they read the weights once, and a response has the same
    bits in any subset of vertices, any batch and for any number of threads; elsewhere
    `reference.vertex_embed` runs. The gradients are torch's own matrix products.

    On CUDA nothing waits for the device, so that a graph can capture a call once another has gone
    before it.
    Errors: a wrong rank, size, dtype or device is a BrainfastError.
    Source: BlobGPT, "PCA fMRI activity embedding".
    """
    tensors = (latent, weight, bias)
    check_tensors(dict(zip(_LETTERS, tensors, strict=True)), _LETTERS, at_least_one="K")
    response: torch.Tensor = _embed(*tensors)
    return response


@torch.library.custom_op("brainfast::vertex_embed", mutates_args=())
def _embed(latent: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    if _on_cuda_kernels(latent):
        return vertex_embed_cuda.forward(latent, weight, bias)
    tensors = in_compute_dtype(latent, weight, bias)
    if latent.device.type != "cpu":
        return reference.vertex_embed(*tensors)
    return torch.from_numpy(_C.vertex_embed_forward(*numpy_arrays(*tensors)))


@_embed.register_fake
def _(latent: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return latent.new_empty((latent.shape[0], weight.shape[0]), dtype=compute_dtype(latent))


def _save(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    latent, weight, bias = inputs
    ctx.save_for_backward(latent, weight)
    ctx.bias_dtype = bias.dtype


def _differentiate(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    latent, weight = ctx.saved_tensors
    wide_latent, wide_weight = in_compute_dtype(latent, weight)
    needs = ctx.needs_input_grad
    return (
        (grad_output @ wide_weight).to(latent.dtype) if needs[0] else None,
        (grad_output.T @ wide_latent).to(weight.dtype) if needs[1] else None,
        grad_output.sum(dim=0).to(ctx.bias_dtype) if needs[2] else None,
    )


_embed.register_autograd(_differentiate, setup_context=_save)


def _on_cuda_kernels(latent: torch.Tensor) -> bool:
    return cuda_kernels.may_take(latent) and vertex_embed_cuda.usable(latent.device)
