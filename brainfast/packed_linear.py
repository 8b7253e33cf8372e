"""Linear layers of a trunk whose bf16 weights are laid out for the CPU once, not in every call.

The layout is oneDNN's, through the operators of torch that its own compiler uses for frozen
weights. They hold no Python lock, so other threads of the process go on meanwhile.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .trunks import Trunk

ROUNDING = 2.0**-7  # of values near 1 to bf16, twice over


class PackedLinear(torch.nn.Module):
    """y = x W^T + b on bf16 operands with sums in fp32, rounded to bf16: x [...,K], y [...,N].

    gelu: the activation behind it, "none" or "tanh" as torch's GELU calls its approximations, which
    is then taken of the sums, before they are rounded; None for none. rows: of x, as a rule.
    """

    def __init__(self, linear: torch.nn.Linear, rows: int, gelu: str | None = None) -> None:
        super().__init__()
        self.N, self._gelu = linear.out_features, gelu
        weight = linear.weight.detach().bfloat16().contiguous()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self._bias = None if linear.bias is None else linear.bias.detach().bfloat16()

    def forward(
        self,
        x: torch.Tensor,  # [...,K]
    ) -> torch.Tensor:  # [...,N] bf16
        """One product."""
        rows = x.bfloat16().reshape(-1, x.shape[-1])
        after, how = ("none", "") if self._gelu is None else ("gelu", self._gelu)
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, self._bias, after, [], how
        )
        return y.view(*x.shape[:-1], self.N)


@cache
def can_pack() -> bool:
    """Whether this torch has the operators, and this processor products of bf16 in them."""
    mkldnn: Any = torch.backends.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _right()


def packed(
    trunk: Trunk,  # its matrices in bf16, on the CPU
    *,
    copied: bool,
) -> Trunk:
    """The trunk with the linear layers that a pass calls packed, where the machine can.

    Layers whose weights a model takes out of them, and multiplies itself, are left as they are. A
    GELU behind the first layer of timm's `Mlp` joins it. copied: whether the trunk may be changed.
    """
    from timm.layers.mlp import Mlp

    if not can_pack():
        return trunk
    trunk = trunk if copied else copy.deepcopy(trunk)
    rows = _rows_of_called(trunk)
    for parent in list(trunk.modules()):
        fused = _gelu_of(parent) if type(parent) is Mlp else None
        children: list[tuple[str, Any]] = list(parent.named_children())
        for name, child in children:
            if child not in rows:
                continue
            first = fused is not None and name == "fc1"
            setattr(parent, name, PackedLinear(child, rows[child], fused if first else None))
            if first:
                parent.act = torch.nn.Identity()
    return trunk


def _rows_of_called(trunk: Trunk) -> dict[Any, int]:
    """The plain linear layers that a pass calls, and the rows that one image gives them.

    The pass is on the meta device: nothing is computed.
    """
    rows: dict[Any, int] = {}

    def note(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows[layer] = inputs[0].numel() // inputs[0].shape[-1]

    plain = [layer for layer in trunk.modules() if type(layer) is torch.nn.Linear]
    tensors = {**dict(trunk.named_parameters()), **dict(trunk.named_buffers())}
    empty = {
        name: torch.empty_like(
            tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else None
        )
        for name, tensor in tensors.items()
    }
    pixels = torch.empty(1, 3, *trunk.config.size, device="meta")
    hooks = [layer.register_forward_pre_hook(note) for layer in plain]
    try:
        with torch.no_grad():
            torch.func.functional_call(trunk, empty, (pixels,))
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def _gelu_of(mlp: Any) -> str | None:
    """How a block's GELU is computed; None where something else is behind the first layer."""
    return mlp.act.approximate if type(mlp.act) is torch.nn.GELU else None


def _right() -> bool:
    """Whether packed layers answer as plain ones do: the operators are not torch's public API."""
    weight = torch.linspace(-1.0, 1.0, 40 * 48).mul(97).cos().view(40, 48).bfloat16()
    x = torch.linspace(-2.0, 2.0, 7 * 48).mul(89).sin().view(7, 48).bfloat16()
    layer = torch.nn.Linear(48, 40, device="meta").to_empty(device="cpu")  # draws no numbers
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(weight[:, 0])
        want = torch.nn.functional.linear(x.float(), layer.weight, layer.bias)
        for gelu, expected in ((None, want), ("none", torch.nn.functional.gelu(want))):
            try:
                got = PackedLinear(layer, len(x), gelu)(x).float()
            except (RuntimeError, TypeError):
                return False
            if not torch.allclose(got, expected, rtol=ROUNDING, atol=ROUNDING):
                return False
    return True
