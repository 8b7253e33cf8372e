"""Aligned tokens to response: the forms of `brainfast bench`, and torch.compile of Listing 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from brainfast import forms
from brainfast.bench import readout_case
from brainfast.bench.compare import Builder
from brainfast.bench.readout import ReadoutStage
from brainfast.forms import Call, Form
from cases import Case
from ceilings import Work, readout_work


@dataclass(frozen=True, kw_only=True)
class SuiteReadout(ReadoutStage):
    """The readout at the sizes of a benchmark case."""

    sizes: Case

    @classmethod
    def open(cls, case: Case, folder: Path, threads: int) -> SuiteReadout:
        """Make up a head of the case's sizes."""
        made = readout_case(None, vertices=case.V, layers=case.L, dim=case.D)
        listing1, largest = bool(case.listing1), max(case.batches)
        return cls(made, folder, threads, largest, include_listing1=listing1, sizes=case)

    def builders(self) -> list[Builder]:
        """Those of `brainfast bench`, the exported node, then one compilation a batch size."""
        head, folder, threads = self.case.head, self.folder, self.threads
        built = [
            *super().builders(),
            ("exported node", lambda: [forms.onnx_node_form(head, folder, threads)]),
        ]
        if self.sizes.compiled:
            built.append(("torch.compile of Listing 1", lambda: [self._compiled()]))
        return built

    def problem(self, form: Form, batch: int) -> str | None:
        """Listing 1 takes part at some batch sizes, and where its memory allows."""
        if form.name != forms.LISTING1:
            return None
        some = self.sizes.compiled if form.library == forms.COMPILED else self.sizes.listing1
        return super().problem(form, batch) or (None if batch in some else "left out: too slow")

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.readout_work`."""
        return readout_work(self.case.head, batch, precision)

    def _compiled(self) -> Form:
        form = Form(forms.LISTING1, forms.COMPILED, "fp32", {})
        batches = [batch for batch in self.sizes.compiled if self.problem(form, batch) is None]
        examples = [self.inputs(batch) for batch in batches]

        def build() -> dict[str, Call]:
            return {"": compiled_call(forms.Listing1(self.case.head), examples)}

        return forms.stock_form(form.name, form.library, form.precision, build)


def compiled_call(module: Callable[..., torch.Tensor], examples: Iterable[tuple[Any, ...]]) -> Call:
    """A module compiled for the shapes of every example, now: neither a call's time nor its memory
    hold the compilation."""
    call = forms.torch_call(torch.compile(module, dynamic=False, fullgraph=True))
    for arrays in examples:
        call(*arrays)
    return call
