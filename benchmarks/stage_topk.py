"""Objectives times a pool of candidates, and the best ten of each: the pool, read once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brainfast import _C, forms
from brainfast.bench.check import BARS, Errors, check
from brainfast.bench.compare import Builder, Judge
from brainfast.folded import Array
from brainfast.forms import OURS, Form
from cases import Case
from ceilings import Work, topk_work

CHOICES = 10
_BLOCK = 1000  # candidates of a block of the reference

Chosen = tuple[NDArray[np.float32], NDArray[np.int64]]  # scores [O,k], indices [O,k]


@dataclass(frozen=True)
class TopkStage:
    """Every way to choose from a bfloat16 pool; calls take the templates [O,F], O the batch.

    bf16x3 is the bfloat16 pool with float32 templates, bf16 the one with bfloat16 templates, and
    fp32 has the same numbers as a float32 pool.
    """

    case: Case
    pool: torch.Tensor  # [N,F], bfloat16
    # torch answers in bfloat16, of which a score of four standard deviations has eight bits.
    bars = BARS | {"bf16": ("rms", 1e-2)}

    @classmethod
    def open(cls, case: Case, folder: Path, threads: int) -> TopkStage:
        """Make up a standard normal pool."""
        generator = torch.Generator().manual_seed(0)
        pool = torch.empty(case.N, case.F, dtype=torch.bfloat16)
        for rows in pool.split(_BLOCK):
            rows.copy_(torch.randn(rows.shape, generator=generator))
        return cls(case, pool)

    @cached_property
    def wide(self) -> Array:
        """The same numbers in float32."""
        return self.pool.float().numpy()

    def builders(self) -> list[Builder]:
        """Ours, torch's product and topk, numpy's product and partition."""
        return [
            ("ours", self._ours),
            ("torch", self._torch),
            ("numpy", lambda: [Form("product, partition", "NumPy", "fp32", {"": self._numpy})]),
        ]

    def problem(self, form: Form, batch: int) -> str | None:
        """None of them needs much memory besides the pools."""
        return None

    def inputs(self, batch: int) -> tuple[Any, ...]:
        """Standard normal templates."""
        shape = batch, self.case.F
        return (np.random.default_rng(batch).standard_normal(shape, np.float32),)

    def judge(self, inputs: tuple[Any, ...]) -> Judge:
        """Scores, and the true scores of what was chosen, against the best in float64."""
        templates = inputs[0].astype(np.float64)
        blocks = [templates @ rows.double().numpy().T for rows in self.pool.split(_BLOCK)]
        scores = np.concatenate(blocks, axis=1)
        best = -np.sort(-scores, axis=1)[:, :CHOICES]
        spread = float(scores.std())

        def judge(form: Form, found: Chosen) -> Errors:
            chosen = np.take_along_axis(scores, found[1], axis=1)
            check(form, chosen, best, spread, bars=self.bars, what="choice")
            return check(form, found[0], best, spread, bars=self.bars, what="score")

        return judge

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.topk_work`."""
        return topk_work(self.case, batch, precision)

    def _ours(self) -> list[Form]:
        narrow = self.pool.view(torch.int16).numpy().view(np.uint16)

        def of_bfloats(templates: Array) -> Chosen:
            bits = torch.from_numpy(templates).bfloat16().view(torch.int16).numpy()
            return _C.score_topk(narrow, bits.view(np.uint16), CHOICES)

        calls = {
            "fp32": lambda templates: _C.score_topk(self.wide, templates, CHOICES),
            "bf16x3": lambda templates: _C.score_topk(narrow, templates, CHOICES),
            "bf16": of_bfloats,
        }
        return [Form("compiled top-k", OURS, name, {"": call}) for name, call in calls.items()]

    def _torch(self) -> list[Form]:
        wide = torch.from_numpy(self.wide)

        def call_of(pool: torch.Tensor) -> forms.Call:
            @torch.inference_mode()
            def call(templates: Array) -> Chosen:
                scores = torch.from_numpy(templates).to(pool.dtype) @ pool.T
                best = scores.topk(CHOICES, dim=1)
                return best.values.float().numpy(), best.indices.numpy()

            return call

        return [
            Form("product, topk", forms.TORCH, precision, {"": call_of(pool)})
            for precision, pool in (("fp32", wide), ("bf16", self.pool))
        ]

    def _numpy(self, templates: Array) -> Chosen:
        scores = templates @ self.wide.T
        some = np.argpartition(-scores, CHOICES - 1, axis=1)[:, :CHOICES]
        found = np.take_along_axis(scores, some, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(some, order, axis=1)
