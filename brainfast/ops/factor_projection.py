"""BlobGPT's projection as a torch operator: schema, fake, gradients, over the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import _C
from . import cuda_kernels, factor_projection_cuda, reference
from .arguments import (
    check_tensors,
    compute_dtype,
    empty_gradients,
    gradients_as,
    in_compute_dtype,
    numpy_arrays,
)

_LETTERS = {"tokens": "BTC", "filters": "KC", "maps": "KT"}


def factor_projection(
    tokens: torch.Tensor,  # [B,T,C]
    filters: torch.Tensor,  # [K,C]
    maps: torch.Tensor,  # [K,T]
) -> torch.Tensor:  # [B,K]
    """p[b,k] = sum_t maps[k,t] (filters[k] . tokens[b,t]).

    B and K may be 0. float32, bfloat16 and float16 are computed and answered in float32, each
    gradient in its argument's dtype; float64 goes with float64 only. The compiled kernels run on
    the CPU and, but for float64, on CUDA, and [B,T,K] never exists; elsewhere
    `reference.factor_projection` runs. The same bits on every run and for any number of threads.

    On CUDA nothing waits for the device, so that a graph can capture a call once another has gone
    before it.
    Errors: a wrong rank, size, dtype or device is a BrainfastError.
    Source: BlobGPT, "Feature projection".
    """
    tensors = (tokens, filters, maps)
    check_tensors(dict(zip(_LETTERS, tensors, strict=True)), _LETTERS, at_least_one="TC")
    latent: torch.Tensor = _project(*tensors)
    return latent


@torch.library.custom_op("brainfast::factor_projection", mutates_args=())
def _project(tokens: torch.Tensor, filters: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    if _on_cuda_kernels(tokens):
        return factor_projection_cuda.forward(tokens, filters, maps)
    tensors = in_compute_dtype(tokens, filters, maps)
    if tokens.device.type != "cpu":
        return reference.factor_projection(*tensors)
    return torch.from_numpy(_C.factor_projection_forward(*numpy_arrays(*tensors)))


@torch.library.custom_op("brainfast::factor_projection_backward", mutates_args=())
def _project_backward(
    grad_output: torch.Tensor,
    tokens: torch.Tensor,
    filters: torch.Tensor,
    maps: torch.Tensor,
    needs: Sequence[bool],
) -> list[torch.Tensor]:
    """Gradients in the order of the projection's arguments; an empty one where none is needed."""
    inputs = (tokens, filters, maps)
    tensors = in_compute_dtype(*inputs)
    grad_output = grad_output.to(tensors[0].dtype)
    found: Sequence[Any]
    if _on_cuda_kernels(tokens):
        found = factor_projection_cuda.backward(grad_output, *inputs, needs)
    elif tokens.device.type != "cpu":
        found = reference.factor_projection_backward(grad_output, *tensors)
    else:
        arrays = numpy_arrays(grad_output, *tensors)
        results = _C.factor_projection_backward(*arrays, needs=tuple(needs))
        found = [None if array is None else torch.from_numpy(array) for array in results]
    return gradients_as(found, inputs, needs)


@_project.register_fake
def _(tokens: torch.Tensor, filters: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return tokens.new_empty((tokens.shape[0], filters.shape[0]), dtype=compute_dtype(tokens))


@_project_backward.register_fake
def _(grad_output: torch.Tensor, *others: Any) -> list[torch.Tensor]:
    *inputs, needs = others
    return empty_gradients(inputs, needs)


def _save(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    needs = list(ctx.needs_input_grad)
    grads = _project_backward(grad_output, *ctx.saved_tensors, needs)
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


_project.register_autograd(_differentiate, setup_context=_save)


def _on_cuda_kernels(tokens: torch.Tensor) -> bool:
    return cuda_kernels.may_take(tokens) and factor_projection_cuda.usable(tokens.device)
