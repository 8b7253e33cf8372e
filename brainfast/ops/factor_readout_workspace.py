"""FactorTopy's readout for training on a CPU: the backward reuses what the forward packed."""

from __future__ import annotations

import weakref
from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable

from .. import _C
from ..errors import BrainfastError
from .factor_readout import LETTERS, check_arguments, check_finite

_Sizes = tuple[int, int, int, int, int, bool]  # V, L, D, H, W, align_corners


class FactorReadoutWorkspace:
    """y = mean_D(weight sum_l layer_l ((1-scale) interp_l + scale global_l)) + bias, step by step.

    The function of `factor_readout`, for float32 tensors on the CPU, with memory that is kept from
    call to call: the order of the vertices, the packed weights and the packed tokens of a call
    serve its backward too. A call has one backward, and only the last call has it; without
    gradients a call just answers. The answer depends on a call's own arguments, so that a resumed
    run gives the bits of an uninterrupted one. The same bits for any number of threads. One call at
    a time: other threads wait. A copy, or one from a pickle, starts empty.

    precision: of the operands. "fp32" is strict float32. "bf16" rounds tokens, weights and the
    gradient of y, alone or times a vertex's coefficients, to bfloat16; sums, parameters and
    gradients stay float32. isa: a path of the kernels instead of the fastest one.
    Errors: wrong arguments, a backward that is not of the last call, or a second one is a
    BrainfastError.
    Source: Yang et al., Brain Decodes Deep Nets, Listing 1.
    """

    def __init__(self, precision: Literal["fp32", "bf16"] = "fp32", isa: str = "") -> None:
        if precision not in ("fp32", "bf16"):
            raise BrainfastError("precision", expected="fp32 or bf16", got=repr(precision))
        self.precision, self.isa = precision, isa
        self._sizes: _Sizes = (0, 1, 1, 1, 1, False)
        self._kernels = self._make_kernels(self._sizes)
        self._last: weakref.ref[_Call] | None = None

    def __call__(
        self,
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
        tensors = (local, global_, space, layer, scale, weight, bias)
        _check(dict(zip(LETTERS, tensors, strict=True)))
        _, layers, channels, height, width = local.shape
        sizes = (len(weight), layers, channels, height, width, align_corners)
        if sizes != self._sizes:
            self._kernels = self._make_kernels(sizes)
            self._sizes = sizes
        response: torch.Tensor = _Step.apply(self, *tensors)
        return response

    @property
    def waiting(self) -> bool:
        """Whether the last call may still have its backward."""
        call = self._last() if self._last else None
        return call is not None and not call.done

    def __reduce__(self) -> tuple[Any, ...]:
        return FactorReadoutWorkspace, (self.precision, self.isa)

    def _make_kernels(self, sizes: _Sizes) -> _C.FactorReadoutWorkspace:
        try:
            return _C.FactorReadoutWorkspace(*sizes, self.isa, self.precision)
        except ValueError as error:
            names = ", ".join(_C.supported_isas("bf16"))
            raise BrainfastError(
                "isa", expected=f"a path that this machine runs ({names})", got=repr(self.isa)
            ) from error


class _Call:
    """One call of a workspace, alive as long as its graph is."""

    def __init__(self) -> None:
        self.done = False


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, workspace: FactorReadoutWorkspace, *tensors: torch.Tensor) -> Any:
        response = tensors[0].new_empty(len(tensors[0]), len(tensors[-1]))
        local, global_, space, layer, scale, weight, bias = (
            tensor.contiguous().numpy(force=True) for tensor in tensors
        )
        workspace._kernels.forward(
            local, global_, space, layer, scale, weight, bias, out=response.numpy()
        )
        ctx.workspace, ctx.call = workspace, _Call()
        ctx.shapes = [tensor.shape for tensor in tensors]
        workspace._last = weakref.ref(ctx.call)
        return response

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        workspace = ctx.workspace
        _check_last(workspace, ctx.call)
        ctx.call.done = True
        # Fresh memory each step: torch keeps a gradient without a copy where nobody else holds it,
        # and the allocator hands out the pages of the one that was let go: no page faults.
        grads = [
            grad_output.new_empty(shape) if need else None
            for shape, need in zip(ctx.shapes, ctx.needs_input_grad[1:], strict=True)
        ]
        workspace._kernels.backward(
            grad_output.contiguous().numpy(),
            [None if grad is None else grad.numpy() for grad in grads],
        )
        return None, *grads


def _check(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise BrainfastError(
                name,
                expected="float32 on the CPU",
                got=f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}",
                remedy="use brainfast.ops.factor_readout for other dtypes and devices",
            )
    check_arguments(tensors)
    check_finite(tensors["space"])


def _check_last(workspace: FactorReadoutWorkspace, call: _Call) -> None:
    if workspace.waiting and workspace._last is not None and workspace._last() is call:
        return
    raise BrainfastError(
        "backward",
        expected="one backward a call, of the workspace's last call",
        got="a second one" if call.done else "one of an earlier call",
        remedy="take another workspace for each graph that is kept",
    )
