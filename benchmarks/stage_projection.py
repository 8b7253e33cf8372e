"""Raw trunk tokens to BlobGPT's latent: filtered over channels, pooled over tokens, in six layers.

Tokens are laid out in two ways: [B,T,C], the trunk's own sequence, and [B,C,H,W] with the summary
apart, as `brainfast.tokens` passes them on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brainfast import _C, forms
from brainfast.bench.check import BARS, Bars, response_judge
from brainfast.bench.compare import Builder, Judge
from brainfast.folded import PRECISIONS
from brainfast.folded_blobgpt import BlobProjection
from brainfast.forms import OURS, Call, Form
from brainfast.models.blobgpt import BlobGPT
from cases import Case
from ceilings import Work, projection_work
from made_up_blobgpt import float64_latent, made_up_blobgpt, raw_tokens, sequences
from stage_readout import compiled_call
from stock_blobgpt import DTYPES, FILTERS, ORDERS, FoldedProjection, bytes_of

# Stock bf16 rounds tokens, what comes of the first product, and products of the second.
PROJECTION_BARS: Bars = {**BARS, "bf16": ("rms", 1e-2)}
SEQUENCE, GRID = "[B,T,C]", "[B,C,H,W]"


@dataclass(frozen=True)
class ProjectionStage:
    """Calls take [B,T,C] of every layer, then [B,C,H,W], then [B,C]: the same tokens twice."""

    case: Case
    model: BlobGPT
    head: BlobProjection
    folder: Path
    threads: int
    bars = PROJECTION_BARS

    @classmethod
    def open(cls, case: Case, folder: Path, threads: int) -> ProjectionStage:
        """Make up a model and fold its projection."""
        model = made_up_blobgpt(case)
        return cls(case, model, model.fold(), folder, threads)

    def builders(self) -> list[Builder]:
        """Ours and torch in both layouts; one compilation a batch size; ONNX Runtime."""
        layouts = (SEQUENCE, GRID)
        return [
            ("packing", lambda: [self._ours(p, each) for each in layouts for p in PRECISIONS]),
            ("torch", lambda: [self._torch(p, each) for each in layouts for p in DTYPES]),
            ("torch.compile", lambda: self._compiled() if self.case.compiled else []),
            ("ONNX Runtime", lambda: [self._onnx()]),
        ]

    def problem(self, form: Form, batch: int) -> str | None:
        """What is compiled is compiled for some batch sizes."""
        left_out = form.library == forms.COMPILED and batch not in self.case.compiled
        return "not compiled for this batch" if left_out else None

    def inputs(self, batch: int) -> tuple[Any, ...]:
        """Standard normal tokens in both layouts."""
        tokens = raw_tokens(self.case, batch)
        return *sequences(tokens), *tokens

    def judge(self, inputs: tuple[Any, ...]) -> Judge:
        """Projection, BatchNorm and mean in float64, unfolded."""
        expected = float64_latent(self.model, inputs[self.case.L :])
        return response_judge(expected, self.head.latent_bias, self.bars)

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.projection_work`."""
        return projection_work(self.case, batch, precision)

    def _ours(self, precision: str, layout: str) -> Form:
        head, layers = self.head, self.case.L
        plan = _C.FactorProjectionPlan(
            head.filters, head.maps, head.latent_bias, precision=precision
        )

        def run(*arrays: NDArray[np.float32]) -> NDArray[np.float32]:
            if layout == SEQUENCE:
                return plan.run(arrays[:layers])
            return plan.run(arrays[layers : 2 * layers], arrays[2 * layers :])

        name = f"compiled projection of {layout}"
        return Form(name, OURS, precision, {"": run}, weight_bytes=plan.nbytes)

    def _torch(self, precision: str, layout: str) -> Form:
        modules = {order: self._module(order, precision, layout) for order in ORDERS}
        some = next(iter(modules.values()))
        return Form(
            f"projection of {layout}",
            forms.TORCH,
            precision,
            {order: self._call(module, layout) for order, module in modules.items()},
            weight_bytes=bytes_of(some),
        )

    def _compiled(self) -> list[Form]:
        examples = [self.inputs(batch)[: self.case.L] for batch in self.case.compiled]

        def build(precision: str) -> dict[str, Call]:
            call = compiled_call(self._module(FILTERS, precision, SEQUENCE), examples)
            return {FILTERS: lambda *arrays: call(*arrays[: self.case.L])}

        name = f"projection of {SEQUENCE}"
        return [forms.stock_form(name, forms.COMPILED, p, lambda p=p: build(p)) for p in DTYPES]

    def _onnx(self) -> Form:
        examples = [torch.from_numpy(array) for array in self.inputs(2)[: self.case.L]]

        def build() -> dict[str, Call]:
            variants = {}
            for order in ORDERS:
                module = self._module(order, "fp32", SEQUENCE)
                path = self.folder / f"projection-{order[:4]}.onnx"
                call = forms.onnx_call(module, examples, path, self.threads)
                variants[order] = lambda *arrays, call=call: call(*arrays[: self.case.L])
            return variants

        return forms.stock_form(f"projection of {SEQUENCE}", forms.ONNX_RUNTIME, "fp32", build)

    def _module(self, order: str, precision: str, layout: str) -> FoldedProjection:
        return FoldedProjection(self.head, order, DTYPES[precision], grids=layout == GRID)

    def _call(self, module: FoldedProjection, layout: str) -> Call:
        call, layers = forms.torch_call(module), self.case.L
        some = slice(layers) if layout == SEQUENCE else slice(layers, None)
        return lambda *arrays: call(*arrays[some])
