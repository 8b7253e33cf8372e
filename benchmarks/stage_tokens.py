"""Raw trunk tokens to response: down-sampling and bottlenecks in front of the readout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from brainfast import forms
from brainfast.bench.check import BARS, Bars, response_judge
from brainfast.bench.compare import Builder, Judge
from brainfast.bench.made_up import made_up_head
from brainfast.bench.readout import twin
from brainfast.folded import PRECISIONS, AlignedTokens, FoldedFactorTopy
from brainfast.forms import OURS, Call, CellReadout, Form
from brainfast.ops import reference
from brainfast.tokens import Tokens
from cases import Case
from ceilings import Work, tokens_work

# Stock bf16 rounds twice: the aligned tokens, then the readout.
TOKENS_BARS: Bars = {**BARS, "bf16": ("rms", 1e-2)}
TORCH_PRECISIONS = (("fp32", torch.float32), ("bf16", torch.bfloat16))


class AlignedReadout(nn.Module):
    """interpolate, einsum and a readout: the stock form of `FoldedFactorTopy.run`.

    Tokens are those of every layer, local [B,C,H,W] first, then global [B,C]. dtype: of the
    products; down-sampling is float32, which reads the tokens as they come.
    """

    def __init__(
        self,
        head: FoldedFactorTopy,
        readout: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.grid, self.dtype, self.readout = head.grid, dtype, readout
        self.local, self.global_ = (
            nn.ParameterList(nn.Parameter(torch.from_numpy(m).to(dtype), False) for m in matrices)
            for matrices in (head.bottleneck_local, head.bottleneck_global)
        )
        self.register_buffer("offset_local", torch.from_numpy(head.offset_local).to(dtype))
        self.register_buffer("offset_global", torch.from_numpy(head.offset_global).to(dtype))

    def forward(self, *tokens: torch.Tensor) -> torch.Tensor:  # [B,V]
        layers = len(self.local)
        aligned = []
        for token, matrix, offset in zip(
            tokens[:layers], self.local, self.offset_local, strict=True
        ):
            small = nn.functional.interpolate(token, self.grid, mode="bilinear")
            small = torch.einsum("dc,bchw->bdhw", matrix, small.to(self.dtype))
            aligned.append(small + offset[:, None, None])
        summaries = [
            token.to(self.dtype) @ matrix.T
            for token, matrix in zip(tokens[layers:], self.global_, strict=True)
        ]
        global_ = torch.stack(summaries, dim=1) + self.offset_global
        return self.readout(torch.stack(aligned, dim=1), global_)


@dataclass(frozen=True)
class TokensStage:
    """`FoldedFactorTopy.run` and its stock forms; calls take the arrays of all layers."""

    case: Case
    head: FoldedFactorTopy
    folder: Path
    threads: int
    bars = TOKENS_BARS

    @classmethod
    def open(cls, case: Case, folder: Path, threads: int) -> TokensStage:
        """Make up a head with bottlenecks."""
        grid = (case.side, case.side)
        head = made_up_head(case.V, case.L, case.D, channels=case.C, grid=grid)
        return cls(case, head, folder, threads)

    def builders(self) -> list[Builder]:
        """Ours, then interpolate + einsum + cell form in torch and in ONNX Runtime."""
        return [
            ("packing", lambda: [self._ours(precision) for precision in PRECISIONS]),
            ("torch", lambda: [self._torch(*each) for each in TORCH_PRECISIONS]),
            ("ONNX Runtime", lambda: [self._onnx()]),
        ]

    def problem(self, form: Form, batch: int) -> str | None:
        """None of them needs much memory."""
        return None

    def inputs(self, batch: int) -> tuple[Any, ...]:
        """Standard normal tokens, local [B,C,raw,raw] of every layer, then global [B,C]."""
        case, rng = self.case, np.random.default_rng(batch)
        local = rng.standard_normal((case.L, batch, case.C, case.raw, case.raw), np.float32)
        return *local, *rng.standard_normal((case.L, batch, case.C), np.float32)

    def judge(self, inputs: tuple[Any, ...]) -> Judge:
        """Alignment and readout in float64."""
        expected = float64_response(self.head, inputs)
        return response_judge(expected, self.head.bias, self.bars)

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.tokens_work`."""
        return tokens_work(self.case, self.head, batch, precision)

    def _ours(self, precision: Any) -> Form:
        head, layers = self.head.with_precision(precision), self.case.L

        def call(*arrays: NDArray[np.float32]) -> NDArray[np.float32]:
            return head.run(Tokens(arrays[:layers], arrays[layers:], head.layers))

        return Form("compiled head", OURS, precision, {"": call})

    def _torch(self, precision: str, dtype: torch.dtype) -> Form:
        variants = {}
        for block in forms.layouts(self.head):
            module = AlignedReadout(self.head, CellReadout(self.head, block, dtype), dtype)
            variants[forms.layout_name(block)] = forms.torch_call(module)
        return Form("align + cell form", "PyTorch", precision, variants)

    def _onnx(self) -> Form:
        examples = [torch.from_numpy(array) for array in self.inputs(2)]

        def build() -> dict[str, Call]:
            return {
                forms.layout_name(block): forms.onnx_call(
                    AlignedReadout(self.head, CellReadout(self.head, block)),
                    examples,
                    self.folder / f"tokens-{block}.onnx",
                    self.threads,
                )
                for block in forms.layouts(self.head, exported=True)
            }

        return forms.stock_form("align + cell form", forms.ONNX_RUNTIME, "fp32", build)


def float64_response(
    head: FoldedFactorTopy,
    tokens: tuple[NDArray[Any], ...],  # local [B,C,H,W] of every layer, then global [B,C]
) -> NDArray[np.float64]:  # [B,V]
    """Alignment in float64 by the twin, and the float64 readout."""
    layers = len(head.layers)
    double = [torch.from_numpy(np.asarray(array, dtype=np.float64)) for array in tokens]
    matrices = [
        [torch.from_numpy(m).double() for m in each]
        for each in (head.bottleneck_local, head.bottleneck_global)
    ]
    offsets = [torch.from_numpy(o).double() for o in (head.offset_local, head.offset_global)]
    local, global_ = reference.align_tokens(
        double[:layers], double[layers:], *matrices, *offsets, head.grid
    )
    return twin(head, AlignedTokens(local.numpy(), global_.numpy()))
