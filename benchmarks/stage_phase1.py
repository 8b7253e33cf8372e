"""A training step of BlobGPT's head on the tokens of a frozen trunk.

Projection, BatchNorm of the batch, layer mean, shared map and those of the subjects that occur,
frozen embedding, mean squared error over all vertices, backward, AdamW. Only the projection differs
between the forms: everything else is the model's own torch code.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainfast import forms
from brainfast.bench.check import Bars, Errors, check
from brainfast.bench.compare import Builder, Judge
from brainfast.forms import OURS, Call, Form
from brainfast.models.blobgpt import BlobGPT
from brainfast.ops import factor_projection, reference
from cases import Case
from ceilings import Work, phase1_work
from made_up_blobgpt import made_up_blobgpt, raw_tokens, sequences
from stock_blobgpt import ORDERS, project

Project = Callable[..., torch.Tensor]
LEARNING_RATE = 1e-4
# bf16: projections, activities and the gradients of both are rounded.
PHASE1_BARS: Bars = {"fp32": ("rms", 1e-5), "bf16": ("rms", 2e-2)}


class HeadStep:
    """One step; new tokens start from the first parameters again. Answers the response and the
    gradients by their names."""

    def __init__(self, model: BlobGPT, project: Project, *, autocast: bool = False) -> None:
        self._model, self._project, self._autocast = model, project, autocast
        self._target: torch.Tensor | None = None

    def __call__(
        self,
        *inputs: torch.Tensor,  # [B,T,C] of every layer, subjects [B], target [B,V]
    ) -> dict[str, torch.Tensor]:
        *tokens, subjects, target = inputs
        if self._target is not target:
            self._start(target)
        model = self._own
        self._optimizer.zero_grad()
        bf16 = torch.autocast("cpu", torch.bfloat16) if self._autocast else nullcontext()
        with bf16:
            pairs = zip(tokens, model.filters, model.maps, strict=True)
            parts = torch.stack([self._project(*each) for each in pairs])
            latent = model.latent(parts.to(target.dtype))
            response = model.respond(latent, subjects).to(target.dtype)
        torch.nn.functional.mse_loss(response, target).backward()
        self._optimizer.step()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"response": response.detach()} | grads

    def _start(self, target: torch.Tensor) -> None:
        self._target, self._own = target, copy_of(self._model)
        self._optimizer = torch.optim.AdamW(self._own.parameters(), LEARNING_RATE, fused=True)


@dataclass(frozen=True)
class Phase1Stage:
    """Every way to take the step."""

    case: Case
    model: BlobGPT
    bars = PHASE1_BARS

    @classmethod
    def open(cls, case: Case, folder: Path, threads: int) -> Phase1Stage:
        """Make up a model to start from."""
        return cls(case, made_up_blobgpt(case))

    def builders(self) -> list[Builder]:
        """Ours, then torch's autograd in both orders, in float32 and under autocast."""
        return [
            ("operator", lambda: [self._ours()]),
            ("torch", lambda: [self._torch("fp32"), self._torch("bf16")]),
            ("torch.compile", lambda: [self._compiled()] if self.case.compiled else []),
        ]

    def problem(self, form: Form, batch: int) -> str | None:
        """What is compiled is compiled for some batch sizes."""
        left_out = form.library == forms.COMPILED and batch not in self.case.compiled
        return "not compiled for this batch" if left_out else None

    def inputs(self, batch: int) -> tuple[Any, ...]:
        """Standard normal tokens and responses, and subjects in turn."""
        case = self.case
        tokens = map(torch.from_numpy, sequences(raw_tokens(case, batch)))
        target = np.random.default_rng((batch, 1)).standard_normal((batch, case.V), np.float32)
        return *tokens, torch.arange(batch) % case.S, torch.from_numpy(target)

    def judge(self, inputs: tuple[Any, ...]) -> Judge:
        """The response and every gradient against float64 autograd, each in units of its own root
        mean square; what counts is the worst."""
        *tokens, subjects, target = inputs
        step = HeadStep(deepcopy(self.model).double(), reference.factor_projection)
        double = (*(token.double() for token in tokens), subjects, target.double())
        expected = {name: tensor.numpy() for name, tensor in step(*double).items()}
        spreads = {name: float(np.sqrt(np.square(a).mean())) for name, a in expected.items()}

        def judge(form: Form, found: dict[str, torch.Tensor]) -> Errors:
            errors = []
            for name, want in expected.items():
                what = name if name == "response" else f"gradient of {name}"
                got = found[name].float().numpy()
                errors.append(check(form, got, want, spreads[name], bars=self.bars, what=what))
            return Errors(max(e.rms for e in errors), max(e.max for e in errors))

        return judge

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.phase1_work`."""
        return phase1_work(self.case, batch)

    def _ours(self) -> Form:
        return Form("operator", OURS, "fp32", {"": HeadStep(self.model, factor_projection)})

    def _torch(self, precision: str) -> Form:
        steps = {
            order: HeadStep(self.model, partial(project, order=order), autocast=precision == "bf16")
            for order in ORDERS
        }
        return Form("autograd", forms.TORCH, precision, steps)

    def _compiled(self) -> Form:
        def build() -> dict[str, Call]:
            variants = {}
            for order in ORDERS:
                compiled = torch.compile(partial(project, order=order), fullgraph=True)
                step = HeadStep(self.model, compiled)
                for batch in self.case.compiled:
                    step(*self.inputs(batch))
                variants[order] = step
            return variants

        return forms.stock_form("autograd", forms.COMPILED, "fp32", build)


def copy_of(model: BlobGPT) -> BlobGPT:
    """The same parameters again, for training, over the same embedding."""
    some = model.weight[:1], model.bias[:1]
    copy = BlobGPT(model.channels, model.layers, model.config, *some).to(model.weight.dtype)
    copy.load_state_dict(model.state_dict())
    copy.weight, copy.bias = model.weight, model.bias
    return copy.train()
