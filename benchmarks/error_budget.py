"""What rounding each part of a readout to fewer bits would cost, against float64: a table.

python benchmarks/error_budget.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from brainfast.ops import reference

B, V, L, D, H, W = 4, 1500, 12, 128, 8, 8
Rounding = Callable[[torch.Tensor], torch.Tensor]

OPERANDS = ("local", "global_", "weight")
SELECTORS = ("layer", "scale")


def as_dtype(dtype: torch.dtype) -> Rounding:
    return lambda tensor: tensor.to(dtype).double()


def as_two_bfloats(tensor: torch.Tensor) -> torch.Tensor:
    """Upper and lower half, as bf16x3 takes an operand apart."""
    upper = tensor.to(torch.bfloat16).double()
    return upper + (tensor - upper).to(torch.bfloat16).double()


BFLOAT, HALF = as_dtype(torch.bfloat16), as_dtype(torch.float16)
CASES: dict[str, dict[str, Rounding]] = {
    "tokens and weight in two bf16 halves (bf16x3)": dict.fromkeys(OPERANDS, as_two_bfloats),
    "tokens and weight in bf16 (bf16)": dict.fromkeys(OPERANDS, BFLOAT),
    "layer and scale in fp16": dict.fromkeys(SELECTORS, HALF),
    "layer and scale in bf16": dict.fromkeys(SELECTORS, BFLOAT),
    "layer, scale and space in fp16": dict.fromkeys((*SELECTORS, "space"), HALF),
    "bf16 operands, layer and scale in fp16": dict.fromkeys(OPERANDS, BFLOAT)
    | dict.fromkeys(SELECTORS, HALF),
}


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "local": normal(B, L, D, H, W),
        "global_": normal(B, L, D),
        "space": torch.tanh(normal(V, 2)),
        "layer": torch.softmax(normal(V, L), dim=1),
        "scale": torch.sigmoid(normal(V)),
        "weight": normal(V, D),
        "bias": torch.zeros(V, dtype=torch.float64),
    }


def errors(rounded: dict[str, Rounding]) -> tuple[float, float]:
    """rms and max of the difference, in standard deviations of the response."""
    exact = inputs()
    wanted = reference.factor_readout_cells(*exact.values())
    given = {name: rounded.get(name, torch.clone)(tensor) for name, tensor in exact.items()}
    difference = (reference.factor_readout_cells(*given.values()) - wanted) / wanted.std()
    return float(difference.square().mean().sqrt()), float(difference.abs().max())


def main() -> None:
    print("| rounded | rms | max |\n|---|--:|--:|")
    for name, rounded in CASES.items():
        rms, largest = errors(rounded)
        print(f"| {name} | {rms:.1e} | {largest:.1e} |")


if __name__ == "__main__":
    main()
