"""FactorTopy's readout as a torch operator: schema, fake, gradients, over the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import _C
from ..errors import BrainfastError
from . import cuda_kernels, factor_readout_cuda, reference
from .arguments import (
    check_tensors,
    compute_dtype,
    empty_gradients,
    gradients_as,
    in_compute_dtype,
    numpy_arrays,
)

LETTERS = {
    "local": "BLDHW",
    "global_": "BLD",
    "space": "V2",
    "layer": "VL",
    "scale": "V",
    "weight": "VD",
    "bias": "V",
}


def factor_readout(
    local: torch.Tensor,  # [B,L,D,H,W]
    global_: torch.Tensor,  # [B,L,D]
    space: torch.Tensor,  # [V,2]
    layer: torch.Tensor,  # [V,L]
    scale: torch.Tensor,  # [V]
    weight: torch.Tensor,  # [V,D]
    bias: torch.Tensor,  # [V]
    *,
    align_corners: bool = False,
) -> torch.Tensor:  # [B,V]
    """y = mean_D(weight sum_l layer_l ((1-scale) interp_l + scale global_l)) + bias.

    interp_l is `local` sampled bilinearly, zeros outside, at `space` (x then y, in -1..1). B and V
    may be 0. float32, bfloat16 and float16 are computed and answered in float32, each gradient in
    its argument's dtype; float64 goes with float64 only. The compiled kernels run on the CPU and,
    but for float64, on CUDA; elsewhere `reference.factor_readout_cells` does. The same bits on
    every run and for any number of threads.

    On CUDA nothing waits for the device, so that a graph can capture a call once another has gone
    before it: a vertex whose sampling point is not finite answers NaN there.
    Errors: a wrong rank, size, dtype or device, or else a sampling point that is not finite, is a
    BrainfastError. Source: Yang et al., Brain Decodes Deep Nets, Listing 1.
    """
    tensors = (local, global_, space, layer, scale, weight, bias)
    check_arguments(dict(zip(LETTERS, tensors, strict=True)))
    response: torch.Tensor = _readout(*tensors, align_corners=align_corners)
    return response


@torch.library.custom_op("brainfast::factor_readout", mutates_args=())
def _readout(
    local: torch.Tensor,
    global_: torch.Tensor,
    space: torch.Tensor,
    layer: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    align_corners: bool = False,
) -> torch.Tensor:
    if _on_cuda_kernels(local):
        return factor_readout_cuda.forward(
            *(local, global_, space, layer, scale, weight, bias), align_corners=align_corners
        )
    check_finite(space)
    tensors = in_compute_dtype(local, global_, space, layer, scale, weight, bias)
    if local.device.type != "cpu":
        return reference.factor_readout_cells(*tensors, align_corners=align_corners)
    arrays = numpy_arrays(*tensors)
    return torch.from_numpy(_C.factor_readout_forward(*arrays, align_corners=align_corners))


@torch.library.custom_op("brainfast::factor_readout_backward", mutates_args=())
def _readout_backward(
    grad_output: torch.Tensor,
    local: torch.Tensor,
    global_: torch.Tensor,
    space: torch.Tensor,
    layer: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    needs: Sequence[bool],
    *,
    align_corners: bool = False,
) -> list[torch.Tensor]:
    """Gradients in the order of the readout's arguments; an empty tensor where none is needed."""
    inputs = (local, global_, space, layer, scale, weight, bias)
    tensors = in_compute_dtype(*inputs[:-1])
    grad_output = grad_output.to(tensors[0].dtype)
    found: Sequence[Any]
    if _on_cuda_kernels(local):
        found = factor_readout_cuda.backward(
            grad_output, *inputs, needs, align_corners=align_corners
        )
    elif local.device.type != "cpu":
        found = reference.factor_readout_cells_backward(
            grad_output, *tensors, align_corners=align_corners
        )
    else:
        arrays = numpy_arrays(grad_output, *tensors)
        results = _C.factor_readout_backward(
            *arrays, needs=tuple(needs), align_corners=align_corners
        )
        found = [None if array is None else torch.from_numpy(array) for array in results]
    return gradients_as(found, inputs, needs)


@_readout.register_fake
def _(local: torch.Tensor, *others: torch.Tensor, align_corners: bool = False) -> torch.Tensor:
    return local.new_empty((local.shape[0], others[-1].shape[0]), dtype=compute_dtype(local))


@_readout_backward.register_fake
def _(grad_output: torch.Tensor, *others: Any, align_corners: bool = False) -> list[torch.Tensor]:
    *inputs, needs = others
    return empty_gradients(inputs, needs)


def _save(
    ctx: Any,
    inputs: tuple[torch.Tensor, ...],
    keyword_only_inputs: dict[str, Any],
    output: torch.Tensor,
) -> None:
    ctx.save_for_backward(*inputs)
    ctx.align_corners = keyword_only_inputs["align_corners"]


def _differentiate(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    needs = list(ctx.needs_input_grad)
    grads = _readout_backward(
        grad_output, *ctx.saved_tensors, needs, align_corners=ctx.align_corners
    )
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


_readout.register_autograd(_differentiate, setup_context=_save)


def _on_cuda_kernels(local: torch.Tensor) -> bool:
    return cuda_kernels.may_take(local) and factor_readout_cuda.usable(local.device)


def check_arguments(tensors: dict[str, torch.Tensor]) -> None:
    """Refuse ranks, sizes, dtypes and devices that do not fit together; names as in LETTERS."""
    check_tensors(tensors, LETTERS, at_least_one="LDHW")


def check_finite(space: torch.Tensor) -> None:  # [V,2]
    """Refuse sampling points that are NaN or infinite."""
    bad = ~torch.isfinite(space).all(dim=1)
    if bad.any():
        raise BrainfastError(
            "space",
            expected="finite sampling points",
            got=f"NaN or infinity at vertex {int(bad.nonzero()[0])}",
            remedy="check the coordinates and the learning rate",
        )
