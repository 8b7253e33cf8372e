"""The best candidates of a pool for every objective, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from brainfast import forms, ops
from brainfast.bench.check import BARS, Bars, Errors, check
from brainfast.forms import OURS
from cases import Case
from ceilings import Work, topk_work
from gpu_compare import GpuForm, Judge, Run
from stock_blobgpt import DTYPES

BEST = 10  # of every objective
# torch answers in bfloat16, which leaves a score of four standard deviations eight bits.
TOPK_BARS: Bars = {**BARS, "bf16": ("rms", 1e-2)}


@dataclass(frozen=True)
class GpuTopk:
    """Calls take templates [B,F] of B objectives and answer the best scores [B,10]; the pool [N,F]
    is a constant."""

    case: Case
    pool: torch.Tensor
    bars = TOPK_BARS

    @classmethod
    def open(cls, case: Case, device: torch.device) -> GpuTopk:
        """A standard normal pool."""
        generator = torch.Generator(device).manual_seed(0)
        return cls(case, torch.randn(case.N, case.F, generator=generator, device=device))

    def forms(self) -> list[GpuForm]:
        """Ours, and torch's product with topk."""
        builds: dict[tuple[str, str], Callable[[torch.Tensor], Run]] = {
            ("score_topk", OURS): lambda pool: lambda t: ops.score_topk(pool, t, BEST)[0],
            ("product, topk", forms.TORCH): lambda pool: (
                lambda t: (t.to(pool) @ pool.T).topk(BEST, dim=1).values.float()
            ),
        }
        return [
            GpuForm(
                *(name, library, precision),
                {"": lambda build=build, dtype=dtype: build(self.pool.to(dtype, copy=True))},
                weight_bytes=dtype.itemsize * self.pool.numel(),
            )
            for (name, library), build in builds.items()
            for precision, dtype in DTYPES.items()
        ]

    def inputs(self, batch: int, number: int) -> tuple[torch.Tensor, ...]:
        """Standard normal templates."""
        device = self.pool.device
        generator = torch.Generator(device).manual_seed(number + 1)
        return (torch.randn(batch, self.case.F, generator=generator, device=device),)

    def judge(self, inputs: tuple[torch.Tensor, ...]) -> Judge:
        """The best scores in float64, in standard deviations of all scores."""
        scores = inputs[0].double() @ self.pool.double().T
        best = scores.topk(BEST, dim=1).values.cpu().numpy()
        spread = float(scores.std())

        def judge(form: GpuForm, found: torch.Tensor) -> Errors:
            return check(form, found.cpu().numpy(), best, spread, bars=self.bars, what="scores")

        return judge

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.topk_work`."""
        return topk_work(self.case, batch, precision)
