"""Linear layers of a trunk whose bf16 weights are laid out for the CPU once, not in every call.

The layout is oneDNN's, through the operators of torch that its own compiler uses for frozen
weights. They hold no Python lock, so other threads of the process go on meanwhile.
"""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .trunks import Trunk

ROUNDING = 2.0**-7  # of values near 1 to bf16, twice over


class PackedLinear(torch.nn.Module):
    """y = x W^T + b on bf16 operands with sums in fp32, rounded to bf16: x [...,K], y [...,N].

    gelu: the activation behind it, "none" or "tanh" as torch's GELU calls its approximations, which
    is then taken of the sums, before they are rounded; None for none. rows: of x, as a rule. It
    never changes, so a copy of a model that has it has the very same; its weight can only be
    multiplied.
    """

    def __init__(self, linear: torch.nn.Linear, rows: int, gelu: str | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._gelu = gelu
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
        return y.view(*x.shape[:-1], self.out_features)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        return self


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
    own: bool,
) -> Trunk:
    """The trunk with the linear layers that a pass calls packed, where the machine can.

    Left as they are: layers whose weights a model takes out of them and multiplies itself, those
    that stand in several places, and those with hooks. A GELU behind the first layer of timm's
    `Mlp` joins it. own: whether the trunk may be changed; a copy is else.
    """
    from timm.layers.mlp import Mlp

    if not can_pack():
        return trunk
    trunk = trunk if own else copy.deepcopy(trunk)
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
    """The layers to pack, and the rows that a blank image gives them."""
    rows: dict[Any, int] = {}

    def note(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        rows[layer] = inputs[0].numel() // layer.in_features

    places = Counter(child for parent in trunk.modules() for child in parent.children())
    plain = [layer for layer, times in places.items() if times == 1 and _is(torch.nn.Linear, layer)]
    hooks = [layer.register_forward_pre_hook(note) for layer in plain]
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            trunk(torch.zeros(1, 3, *trunk.config.size))
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def _is(kind: type[torch.nn.Module], layer: Any) -> bool:
    """Whether it is one of that very class, and nobody listens to it."""
    return type(layer) is kind and not (layer._forward_hooks or layer._forward_pre_hooks)


def _gelu_of(mlp: Any) -> str | None:
    """How a block's GELU is computed; None where something else is behind the first layer."""
    return mlp.act.approximate if _is(torch.nn.GELU, mlp.act) else None


def _right() -> bool:
    """Whether packed layers answer as plain ones do: the operators are not torch's public API."""
    weight = torch.linspace(-97.0, 97.0, 40 * 48, dtype=torch.float64).cos().view(40, 48).bfloat16()
    x = torch.linspace(-89.0, 89.0, 7 * 48, dtype=torch.float64).sin().view(7, 48).bfloat16()
    layer = torch.nn.Linear(48, 40, device="meta", dtype=torch.float32)
    layer = layer.to_empty(device="cpu")  # which draws no random numbers
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        layer.weight.copy_(weight)
        layer.bias.copy_(weight[:, 0])
        want = x.double() @ weight.double().T + weight[:, 0].double()
        for gelu, expected in ((None, want), ("none", torch.nn.functional.gelu(want))):
            try:
                got = PackedLinear(layer, len(x), gelu)(x).double()
            except (RuntimeError, TypeError):
                return False
            if not torch.allclose(got, expected, rtol=ROUNDING, atol=ROUNDING):
                return False
    return True
