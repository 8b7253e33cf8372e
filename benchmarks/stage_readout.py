"""Aligned tokens to response: the forms of `brainfast bench`, and torch.compile of Listing 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from brainfast import forms
from brainfast.bench import readout_case
from brainfast.bench.compare import Builder
from brainfast.bench.readout import ReadoutStage
from brainfast.forms import Form
from cases import Case
from ceilings import Work, readout_work

COMPILED = "torch.compile"  # as a library


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
        """Those of `brainfast bench`, then one compilation a batch size."""
        if not self.sizes.compile_listing1:
            return super().builders()
        return [*super().builders(), ("torch.compile of Listing 1", lambda: [self._compiled()])]

    def problem(self, form: Form, batch: int) -> str | None:
        """Listing 1 takes part at some batch sizes, and where its memory allows."""
        if form.name != forms.LISTING1:
            return None
        some = self.sizes.compile_listing1 if form.library == COMPILED else self.sizes.listing1
        return super().problem(form, batch) or (None if batch in some else "left out: too slow")

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.readout_work`."""
        return readout_work(self.case.head, batch, precision)

    def _compiled(self) -> Form:
        head = self.case.head
        form = Form(forms.LISTING1, COMPILED, "fp32", {})
        compiled = torch.compile(forms.Listing1(head), dynamic=False, fullgraph=True)
        call = forms.torch_call(compiled)
        for batch in self.sizes.compile_listing1:
            if self.problem(form, batch) is None:
                call(*self.inputs(batch))  # compiles, so that neither time nor memory hold that
        return Form(form.name, form.library, form.precision, {"": call})
