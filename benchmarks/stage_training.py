"""A training step of the readout: forward, mean squared error, backward, AdamW.

Gradients go to the weights and bias, to the selectors (space, layer, scale) and to the tokens,
which a trunk or a bottleneck in front would need; the parameters move from step to step, as they do
in training.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainfast import forms
from brainfast.bench import readout_case
from brainfast.bench.check import Bars, Errors, check
from brainfast.bench.compare import Builder, Judge
from brainfast.bench.readout import memory_problem
from brainfast.folded import FoldedFactorTopy
from brainfast.forms import OURS, Form
from brainfast.ops import FactorReadoutWorkspace, factor_readout, reference
from cases import Case
from ceilings import Work, training_work

Readout = Callable[..., torch.Tensor]
PARAMETERS = ("space", "layer", "scale", "weight", "bias")
TOKENS = ("local", "global_")
GRADIENT_BARS: Bars = {"fp32": ("rms", 1e-5), "bf16": ("rms", 1e-2)}
LEARNING_RATE = 1e-4
_SPOT_VERTICES = 256  # whose gradients Listing 1 itself computes


class Step:
    """One step on parameters of its own; new tokens start from the head's parameters again.

    Answers the response and the gradients by their names.
    """

    def __init__(self, head: FoldedFactorTopy, readout: Readout, *, autocast: bool = False) -> None:
        self._head, self._readout, self._autocast = head, readout, autocast
        self._local: torch.Tensor | None = None

    def __call__(
        self,
        local: torch.Tensor,  # [B,L,D,H,W]
        global_: torch.Tensor,  # [B,L,D]
        target: torch.Tensor,  # [B,V]
    ) -> dict[str, torch.Tensor]:
        if self._local is not local:
            self._start(local, global_)
        self._optimizer.zero_grad()
        for tensor in self._tokens:
            tensor.grad = None
        bf16 = torch.autocast("cpu", torch.bfloat16) if self._autocast else nullcontext()
        with bf16:
            response = self._readout(*self._tokens, *self._parameters)
        torch.nn.functional.mse_loss(response.float(), target).backward()
        self._optimizer.step()
        tensors = zip((*TOKENS, *PARAMETERS), (*self._tokens, *self._parameters), strict=True)
        return {"response": response.detach()} | {name: t.grad for name, t in tensors}

    def _start(self, local: torch.Tensor, global_: torch.Tensor) -> None:
        self._local = local
        self._tokens = [tensor.clone().requires_grad_() for tensor in (local, global_)]
        self._parameters = parameters(self._head, torch.float32)
        self._optimizer = torch.optim.AdamW(self._parameters, LEARNING_RATE, fused=True)


@dataclass(frozen=True)
class TrainingStage:
    """Every way to take the step; calls take local, global and target."""

    case: Case
    head: FoldedFactorTopy
    bars = GRADIENT_BARS

    @classmethod
    def open(cls, case: Case, folder: Path, threads: int) -> TrainingStage:
        """Make up a head to start from."""
        return cls(case, readout_case(None, vertices=case.V, layers=case.L, dim=case.D).head)

    def builders(self) -> list[Builder]:
        """Ours with a workspace and as an operator, the cell form under autograd, Listing 1."""
        cells = reference.factor_readout_cells
        listing1 = [self._form(forms.LISTING1, "PyTorch", "fp32", reference.factor_readout)]
        return [
            ("workspace", self._workspaces),
            ("operator", lambda: [self._form("operator", OURS, "fp32", factor_readout)]),
            ("cell form", lambda: [self._cells("fp32", cells), self._cells("bf16", cells)]),
            ("torch.compile", lambda: [self._compiled(cells)]),
            ("Listing 1", lambda: listing1 if self.case.listing1 else []),
        ]

    def problem(self, form: Form, batch: int) -> str | None:
        """Listing 1 may take half of the memory that is free."""
        if form.name != forms.LISTING1:
            return None
        return memory_problem(forms.listing1_bytes(self.head, batch))

    def inputs(self, batch: int) -> tuple[Any, ...]:
        """Standard normal tokens and responses."""
        case, rng = self.case, np.random.default_rng(batch)
        tokens = (batch, case.L, case.D)
        shapes = ((*tokens, *self.head.grid), tokens, (batch, case.V))
        return tuple(torch.from_numpy(rng.standard_normal(s, np.float32)) for s in shapes)

    def judge(self, inputs: tuple[Any, ...]) -> Judge:
        """The response and every gradient against float64 autograd, each in units of its own root
        mean square; what counts is the worst."""
        expected = {
            name: tensor.numpy() for name, tensor in float64_gradients(self.head, inputs).items()
        }
        spreads = {name: float(np.sqrt(np.square(a).mean())) for name, a in expected.items()}

        def judge(form: Form, found: dict[str, torch.Tensor]) -> Errors:
            errors = []
            for name, want in expected.items():
                got = found[name].float().numpy()
                what = name if name == "response" else f"gradient of {name}"
                errors.append(check(form, got, want, spreads[name], bars=self.bars, what=what))
            return Errors(max(e.rms for e in errors), max(e.max for e in errors))

        return judge

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.training_work`."""
        return training_work(self.head, batch)

    def _workspaces(self) -> list[Form]:
        return [
            self._form("workspace", OURS, precision, FactorReadoutWorkspace(precision=precision))
            for precision in ("fp32", "bf16")
        ]

    def _cells(self, precision: str, readout: Readout) -> Form:
        step = Step(self.head, readout, autocast=precision == "bf16")
        return Form(forms.CELL_FORM, "PyTorch", precision, {"": step})

    def _compiled(self, readout: Readout) -> Form:
        """The cell form as one graph, tried on a few vertices; where it breaks, the reason."""
        compiled = torch.compile(readout, fullgraph=True)
        few = self.head.take(range(min(self.case.V, 8)))
        *tokens, target = self.inputs(1)
        try:
            Step(few, compiled)(*tokens, target[:, : few.V])
        except Exception as error:  # dynamo and inductor raise whatever they stumble over
            reason = f"does not compile as one graph ({type(error).__name__})"
            return Form(forms.CELL_FORM, forms.COMPILED, "fp32", {}, problem=reason)
        return self._form(forms.CELL_FORM, forms.COMPILED, "fp32", compiled)

    def _form(self, name: str, library: str, precision: str, readout: Readout) -> Form:
        return Form(name, library, precision, {"": Step(self.head, readout)})


def parameters(head: FoldedFactorTopy, dtype: torch.dtype) -> list[torch.Tensor]:
    """Copies of space, layer, scale, weight and bias that ask for gradients."""
    arrays = (getattr(head, name) for name in PARAMETERS)
    return [torch.tensor(array, dtype=dtype, requires_grad=True) for array in arrays]


def float64_gradients(
    head: FoldedFactorTopy, inputs: tuple[torch.Tensor, ...]
) -> dict[str, torch.Tensor]:
    """Response and gradients of the first step by float64 autograd through the cell form, which
    must agree with Listing 1's on vertices from all of the head."""
    spot = np.linspace(0, head.V - 1, min(head.V, _SPOT_VERTICES)).astype(np.int64)
    few = (*inputs[:2], inputs[2][:, spot])
    cells = _gradients(head.take(spot), few, reference.factor_readout_cells)
    listing1 = _gradients(head.take(spot), few, reference.factor_readout)
    for name, want in listing1.items():
        torch.testing.assert_close(cells[name], want, rtol=1e-9, atol=1e-12, msg=name)
    return _gradients(head, inputs, reference.factor_readout_cells)


def _gradients(
    head: FoldedFactorTopy, inputs: tuple[torch.Tensor, ...], readout: Readout
) -> dict[str, torch.Tensor]:
    *tokens, target = (tensor.double() for tensor in inputs)
    leaves = [*(tensor.requires_grad_() for tensor in tokens), *parameters(head, torch.float64)]
    response = readout(*leaves)
    torch.nn.functional.mse_loss(response, target).backward()
    named = zip((*TOKENS, *PARAMETERS), leaves, strict=True)
    return {"response": response.detach()} | {name: leaf.grad for name, leaf in named}
