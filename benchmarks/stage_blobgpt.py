"""Raw trunk tokens to the response of every subject: BlobGPT folded, and as it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from brainfast import _C, forms
from brainfast.bench.check import Bars, Errors, check
from brainfast.bench.compare import Builder, Judge
from brainfast.folded import PRECISIONS, Array, Precision
from brainfast.folded_blobgpt import BlobProjection, FoldedBlobGPT
from brainfast.forms import OURS, Call, Form
from brainfast.models.blobgpt import BlobGPT
from cases import Case
from ceilings import Work, blobgpt_work
from made_up_blobgpt import as_tokens, float64_latent, made_up_blobgpt, raw_tokens
from stage_projection import PROJECTION_BARS
from stage_readout import compiled_call
from stock_blobgpt import (
    DTYPES,
    FILTERS,
    ORDERS,
    Folded,
    FoldedProjection,
    Unfolded,
    bytes_of,
)

# Those of the projection, whose errors reach the response; stock bf16 rounds the latent too and,
# unfolded, the activity.
HEAD_BARS: Bars = PROJECTION_BARS
_LARGE_BYTES = 1 << 29  # of constants, which are not exported or compiled


@dataclass(frozen=True)
class BlobStage:
    """Calls take [B,C,H,W] of every layer, then [B,C], and answer [B,S,V]; our own answer is a
    tuple of [B,V], as an engine's for several subjects is."""

    case: Case
    model: BlobGPT
    head: BlobProjection
    weight: Array  # [S,V,K]
    bias: Array  # [S,V]
    folder: Path
    threads: int
    bars = HEAD_BARS

    @classmethod
    def open(cls, case: Case, folder: Path, threads: int) -> BlobStage:
        """Make up a model and fold every subject."""
        model = made_up_blobgpt(case)
        head = model.fold()
        weight = np.empty((case.S, case.V, case.K), np.float32)
        bias = np.empty((case.S, case.V), np.float32)
        for index, subject in enumerate(model.config.subjects):
            folded = model.fold_subject(subject, projection=head)
            weight[index], bias[index] = folded.weight, folded.bias
        return cls(case, model, head, weight, bias, folder, threads)

    def builders(self) -> list[Builder]:
        """Ours, folded; torch folded and unfolded; of one subject also compiled and exported."""
        small = self.weight.nbytes <= _LARGE_BYTES
        return [
            ("packing", lambda: [self._ours(precision) for precision in PRECISIONS]),
            ("torch, folded", lambda: [self._folded(precision) for precision in DTYPES]),
            ("torch, unfolded", lambda: [self._unfolded(precision) for precision in DTYPES]),
            ("torch.compile", lambda: self._compiled() if small and self.case.compiled else []),
            ("ONNX Runtime", lambda: [self._onnx()] if small else []),
        ]

    def problem(self, form: Form, batch: int) -> str | None:
        """What is compiled is compiled for some batch sizes."""
        left_out = form.library == forms.COMPILED and batch not in self.case.compiled
        return "not compiled for this batch" if left_out else None

    def inputs(self, batch: int) -> tuple[Any, ...]:
        """Standard normal tokens."""
        return raw_tokens(self.case, batch)

    def judge(self, inputs: tuple[Any, ...]) -> Judge:
        """The whole head in float64, unfolded, in standard deviations of the response less the mean
        of the embedding."""
        expected = float64_responses(self.model, inputs)
        mean = self.model.bias.double().numpy()
        spread = float((expected - mean).std())

        def judge(form: Form, found: Any) -> Errors:
            answer = np.stack(found, axis=1) if isinstance(found, tuple) else found
            return check(form, answer, expected, spread, bars=self.bars)

        return judge

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.blobgpt_work`."""
        return blobgpt_work(self.case, batch, precision)

    def _ours(self, precision: Precision) -> Form:
        projection = self.head.with_precision(precision)
        heads = [
            FoldedBlobGPT(projection, *constants)
            for constants in zip(self.weight, self.bias, strict=True)
        ]

        def run(*arrays: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            latent = projection.run(as_tokens(arrays))
            return tuple(head.readout(latent) for head in heads)

        run(*self.inputs(1))  # packs
        plans: list[_C.FactorProjectionPlan | _C.VertexEmbedPlan] = [projection._plan]
        size = sum(plan.nbytes for plan in (*plans, *(head._plan for head in heads)))
        return Form("compiled head, folded", OURS, precision, {"": run}, weight_bytes=size)

    def _folded(self, precision: str) -> Form:
        return self._stock("head, folded", precision, self._folded_modules(precision))

    def _unfolded(self, precision: str) -> Form:
        dtype = DTYPES[precision]
        modules = {order: Unfolded(self.model, order, dtype) for order in ORDERS}
        return self._stock("head, unfolded", precision, modules)

    def _stock(self, name: str, precision: str, modules: dict[str, nn.Module]) -> Form:
        calls = {order: forms.torch_call(module) for order, module in modules.items()}
        size = bytes_of(modules[FILTERS])
        return Form(name, forms.TORCH, precision, calls, weight_bytes=size)

    def _folded_modules(self, precision: str) -> dict[str, nn.Module]:
        dtype = DTYPES[precision]
        weight, bias = (torch.from_numpy(a).to(dtype) for a in (self.weight, self.bias))
        return {
            order: Folded(FoldedProjection(self.head, order, dtype, grids=True), weight, bias)
            for order in ORDERS
        }

    def _compiled(self) -> list[Form]:
        examples = [self.inputs(batch) for batch in self.case.compiled]

        def build(precision: str) -> dict[str, Call]:
            module = self._folded_modules(precision)[FILTERS]
            return {FILTERS: compiled_call(module, examples)}

        return [
            forms.stock_form("head, folded", forms.COMPILED, p, lambda p=p: build(p))
            for p in DTYPES
        ]

    def _onnx(self) -> Form:
        examples = [torch.from_numpy(array) for array in self.inputs(2)]
        path = self.folder / "head.onnx"

        def build() -> dict[str, Call]:
            module = self._folded_modules("fp32")[FILTERS]
            return {FILTERS: forms.onnx_call(module, examples, path, self.threads)}

        return forms.stock_form("head, folded", forms.ONNX_RUNTIME, "fp32", build)


def float64_responses(
    model: BlobGPT,
    tokens: tuple[Array, ...],  # [B,C,H,W] of every layer, then [B,C]
) -> NDArray[np.float64]:  # [B,S,V]
    """Projection, BatchNorm, maps and embedding in float64."""
    latent = torch.from_numpy(float64_latent(model, tokens))
    with torch.inference_mode():
        own = torch.einsum("bk,srk->bsr", latent, model.subject_weight.double())
        activity = own + model.subject_bias.double()
        activity = activity + (latent @ model.shared.double().T)[:, None]
        response: NDArray[np.float64] = (
            activity @ model.weight.double().T + model.bias.double()
        ).numpy()
    return response
