"""BlobGPT's latent to the response of one subject: one matrix, read once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from brainfast import _C, forms
from brainfast.bench.check import BARS, response_judge
from brainfast.bench.compare import Builder, Judge
from brainfast.folded import PRECISIONS, Array
from brainfast.forms import OURS, Call, Form
from cases import Case
from ceilings import Work, embed_work
from stock_blobgpt import DTYPES, bytes_of, constant


class Embed(nn.Module):
    """`vertex_embed` in stock torch."""

    def __init__(self, weight: Array, bias: Array, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = (constant(torch.from_numpy(a), dtype) for a in (weight, bias))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:  # [B,K] -> [B,V]
        return nn.functional.linear(latent.to(self.weight.dtype), self.weight, self.bias).float()


@dataclass(frozen=True)
class EmbedStage:
    """Every way to multiply by a subject's folded matrix; calls take the latent [B,K]."""

    case: Case
    weight: Array  # [V,K]
    bias: Array  # [V]
    folder: Path
    threads: int
    bars = BARS

    @classmethod
    def open(cls, case: Case, folder: Path, threads: int) -> EmbedStage:
        """Make up a matrix that keeps the variance of its input."""
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((case.V, case.K), np.float32)
        weight /= np.float32(case.K**0.5)
        return cls(case, weight, rng.standard_normal(case.V, np.float32), folder, threads)

    def builders(self) -> list[Builder]:
        """Ours, torch's linear, and the same in ONNX Runtime."""
        return [
            ("packing", lambda: [self._ours(precision) for precision in PRECISIONS]),
            ("torch", lambda: [self._torch(*each) for each in DTYPES.items()]),
            ("ONNX Runtime", lambda: [self._onnx()]),
        ]

    def problem(self, form: Form, batch: int) -> str | None:
        """None of them needs much memory."""
        return None

    def inputs(self, batch: int) -> tuple[Any, ...]:
        """A standard normal latent."""
        shape = batch, self.case.K
        return (np.random.default_rng(batch).standard_normal(shape, np.float32),)

    def judge(self, inputs: tuple[Any, ...]) -> Judge:
        """The product in float64."""
        expected = inputs[0].astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        return response_judge(expected, self.bias, self.bars)

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.embed_work`."""
        return embed_work(self.case, batch, precision)

    def _ours(self, precision: str) -> Form:
        plan = _C.VertexEmbedPlan(self.weight, self.bias, precision=precision)
        return Form("compiled embed", OURS, precision, {"": plan.run}, weight_bytes=plan.nbytes)

    def _torch(self, precision: str, dtype: torch.dtype) -> Form:
        module = Embed(self.weight, self.bias, dtype)
        call = forms.torch_call(module)
        return Form("linear", forms.TORCH, precision, {"": call}, weight_bytes=bytes_of(module))

    def _onnx(self) -> Form:
        module = Embed(self.weight, self.bias, torch.float32)
        examples = [torch.from_numpy(array) for array in self.inputs(2)]
        path = self.folder / "embed.onnx"

        def build() -> dict[str, Call]:
            return {"": forms.onnx_call(module, examples, path, self.threads)}

        size = bytes_of(module)
        return forms.stock_form("linear", forms.ONNX_RUNTIME, "fp32", build, weight_bytes=size)
