"""Training steps of FactorTopy on a GPU: ours as one replayed graph, and stock autograd.

The whole step is measured: gather of the batch from tokens on the device, selectors, alignment,
readout, loss, gradients, AdamW. The loss is read every 100 steps, as in training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import smooth_l1_loss

import gpu_clock
from brainfast import forms
from brainfast.bench.check import Bars, Errors, check
from brainfast.forms import OURS, Form
from brainfast.models.factortopy import FactorTopy, Selectors
from brainfast.ops import factor_readout_cuda, reference
from brainfast.resident import ResidentExamples
from brainfast.static_step import StaticStep
from brainfast.tokens import Tokens
from cases import Case

STEPS = 2000
STOCK_S = 6.0  # that a stock form may take
STRENGTH = 0.1  # of the regulariser, which is there in the first 6,000 steps
BARS: Bars = {"fp32": ("rms", 1e-4), "bf16": ("rms", 3e-2)}
IMAGES = 2048
_READOUTS = {
    forms.CELL_FORM: reference.factor_readout_cells,
    forms.LISTING1: reference.factor_readout,
}


@dataclass(frozen=True)
class Options:
    """Those of the paper, as FactorTopy reads them."""

    dim: int
    grid: tuple[int, int]
    bottleneck: str = "shared"
    topology: bool = True
    layer_selector: bool = True
    space_selector: bool = True
    scale_selector: bool = True
    samples: int = 1
    standardize: bool = False


@dataclass(frozen=True)
class TrainingRow:
    """Steps of one form, counted and timed as they were run.

    how: replayed graph or launched one by one. Errors are those of the worst gradient of the first
    step against float64, in units of its root mean square. peak_bytes: memory beside the examples.
    """

    form: str
    library: str
    precision: str
    batch: int
    how: str = ""
    steps: int = 0
    seconds: float | None = None
    steps_per_s: float | None = None
    ms_per_step: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    rms_error: float | None = None
    max_error: float | None = None
    bar: str = ""
    peak_bytes: int | None = None
    note: str = ""


class StockFactorTopy(FactorTopy):
    """FactorTopy with another readout under autograd."""

    readout: Callable[..., torch.Tensor]

    def respond(self, tokens: Tokens, selectors: Selectors) -> torch.Tensor:  # [B,V]
        return self.readout(*self.align(tokens), *selectors, self.weight, self.bias)


@dataclass
class Run:
    """A model in training."""

    model: FactorTopy
    examples: ResidentExamples

    def loss(self, rows: torch.Tensor, strength: torch.Tensor | None) -> torch.Tensor:
        """What `brainfast.training` minimises, with the paper's recipe."""
        tokens, measured = self.examples.gather(rows)
        if self.model.weight.dtype == torch.float64:
            tokens, measured = tokens.map(torch.Tensor.double), measured.double()
        selectors = self.model.selectors()
        loss = smooth_l1_loss(self.model.respond(tokens, selectors), measured, beta=0.1)
        if strength is None:
            return loss
        entropy = torch.special.entr(selectors.layer).sum(dim=1).mean()
        return loss + strength * (entropy / -np.log(selectors.layer.shape[1]))

    def gradients(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of every parameter, by name; none is left behind."""
        strength = torch.tensor(STRENGTH, dtype=self.model.weight.dtype, device=rows.device)
        self.loss(rows, strength).backward()
        found = {name: p.grad.clone() for name, p in self.model.named_parameters()}
        self.model.zero_grad(set_to_none=True)
        return found


def measure(
    case: Case, device: torch.device, until: float
) -> Iterator[tuple[list[TrainingRow], list[str]]]:
    """(rows, failures), form by form."""
    (batch,) = case.batches
    examples = made_up_examples(case, device)
    model = made_up_model(case, device)
    rows = torch.arange(batch, device=device)
    expected = _gradients_in_float64(case, examples, rows)
    for name, precision in (
        ("static step", "fp32"),
        ("static step", "bf16"),
        (forms.CELL_FORM, "fp32"),
        (forms.LISTING1, "fp32"),
    ):
        library = forms.TORCH if name in _READOUTS else OURS
        row = TrainingRow(name, library, precision, batch, bar=f"rms {BARS[precision][1]:.0e}")
        try:
            row = _measured(row, case, model, examples, expected, until)
        except Exception as error:  # one form may not cost the others
            row = replace(row, note=f"failed: {type(error).__name__}: {error}")
        wrong = library == OURS and row.note.startswith("failed")
        yield [row], [f"{name} {precision}: {row.note}"] if wrong else []
        gpu_clock.free_bytes(device)


def made_up_examples(case: Case, device: torch.device) -> ResidentExamples:
    """Standard normal tokens in bfloat16, as a cache keeps them, and responses."""
    generator = torch.Generator(device).manual_seed(0)
    count = IMAGES if case.V > 1000 else 16

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator, device=device, dtype=dtype)

    return ResidentExamples(
        torch.stack([normal(case.C, case.side, case.side) for _ in range(case.L)]),
        torch.stack([normal(case.C) for _ in range(case.L)]),
        tuple(range(case.L)),
        normal(case.V, dtype=torch.float32),
    )


def made_up_model(case: Case, device: torch.device, kind: type[FactorTopy] = FactorTopy) -> Any:
    """The paper's model with selectors that look all over the image: an untrained model's vertices
    would all fall into one cell."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = Options(case.D, (case.side, case.side))
        coordinates = torch.randn(case.V, 3) * 40
        model = kind(coordinates, [case.C] * case.L, range(case.L), options)
        for selector in (model.select_space, model.select_layer, model.select_scale):
            torch.nn.init.normal_(selector.layers[-1].weight, std=0.3)
    return model.to(device)


def _measured(
    row: TrainingRow,
    case: Case,
    model: FactorTopy,
    examples: ResidentExamples,
    expected: dict[str, np.ndarray],
    until: float,
) -> TrainingRow:
    device, ours = examples.device, row.library == OURS
    capture = device.type == "cuda" and row.form != forms.CELL_FORM
    if ours and device.type == "cuda" and not factor_readout_cuda.usable(device):
        return replace(row, note="failed: this build's kernels are not usable here")
    needed = 40 * row.batch * case.V * case.L * case.D
    if row.form == forms.LISTING1 and needed > gpu_clock.free_bytes(device):
        return replace(row, note=f"left out: needs about {needed / 2**30:.0f} GiB")
    if time.monotonic() > until:
        return replace(row, note="left out: no time left")
    run = Run(_model_of(row, case, model), examples)
    errors = _errors(row, run.gradients(torch.arange(row.batch, device=device)), expected)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    optimizer = torch.optim.AdamW(
        run.model.parameters(), lr=1e-3, weight_decay=1e-2, fused=True, capturable=capture
    )
    step = StaticStep(
        run.loss, optimizer, batch=row.batch, device=device, capture=capture, most=100
    )
    count, seconds, losses = _steps(step, len(examples), row.batch, ours, until)
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None
    return replace(
        row,
        how="replayed graph" if capture else "launched one by one",
        steps=count,
        seconds=seconds,
        steps_per_s=count / seconds,
        ms_per_step=1e3 * seconds / count,
        first_loss=losses[0],
        last_loss=losses[-1],
        rms_error=errors.rms,
        max_error=errors.max,
        peak_bytes=peak,
    )


def _steps(
    step: StaticStep, images: int, batch: int, ours: bool, until: float
) -> tuple[int, float, list[float]]:
    """(steps, seconds, losses) of what was run: `STEPS`, or what fits the time."""
    rng = np.random.default_rng(0)
    block = step.most if ours and images > 16 else 5

    def take(count: int) -> list[float]:
        return step.run(rng.integers(0, images, (count, batch)), [STRENGTH] * count)

    losses = take(1)  # compiles, captures
    most = STEPS if block > 5 else 10 * block
    start = time.perf_counter()
    limit = min(until - time.monotonic(), STOCK_S if not ours else np.inf)
    count = 0
    while count < most and (count == 0 or time.perf_counter() - start < limit):
        losses += take(block)
        count += block
    return count, time.perf_counter() - start, losses


def _model_of(row: TrainingRow, case: Case, model: FactorTopy) -> FactorTopy:
    """A copy with the row's readout."""
    if row.form not in _READOUTS:
        copy = deepcopy(model)
        copy.set_head_precision(row.precision)
        return copy
    copy = made_up_model(case, model.weight.device, StockFactorTopy)
    copy.readout = _READOUTS[row.form]
    return copy


def _gradients_in_float64(
    case: Case, examples: ResidentExamples, rows: torch.Tensor
) -> dict[str, np.ndarray]:
    """By autograd through the cell form."""
    double = made_up_model(case, examples.device, StockFactorTopy).double()
    double.readout = reference.factor_readout_cells
    found = Run(double, examples).gradients(rows)
    return {name: grad.cpu().numpy() for name, grad in found.items()}


def _errors(
    row: TrainingRow, found: dict[str, torch.Tensor], expected: dict[str, np.ndarray]
) -> Errors:
    form = Form(row.form, row.library, row.precision, {})
    errors = [
        check(
            form,
            found[name].float().cpu().numpy(),
            want,
            float(np.sqrt(np.square(want).mean())),
            bars=BARS,
            what=f"gradient of {name}",
        )
        for name, want in expected.items()
    ]
    return Errors(max(e.rms for e in errors), max(e.max for e in errors))
