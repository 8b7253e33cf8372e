"""The readout on a GPU: ours in its precisions, the cell form, Listing 1 as it is and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch

from brainfast import forms
from brainfast.bench.check import BARS, response_judge
from brainfast.bench.made_up import made_up_head
from brainfast.errors import BrainfastError
from brainfast.folded import PRECISIONS, AlignedTokens, FoldedFactorTopy
from brainfast.forms import OURS, CellReadout, Listing1
from brainfast.ops import factor_readout, factor_readout_cuda, reference
from cases import Case
from ceilings import Work, readout_work
from gpu_compare import GpuForm, Judge, Run

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = ("space", "layer", "scale", "weight", "bias")
_SPOT_VERTICES = 256  # that Listing 1 itself computes
_SPOT_ERROR = 1e-11
WHOLE_PART = 1 << 62  # bytes of a part: all blocks at once, as a GPU likes them


@dataclass(frozen=True)
class GpuReadout:
    """Calls take local [B,L,D,H,W] and global [B,L,D] on the device."""

    case: Case
    head: FoldedFactorTopy
    device: torch.device
    bars = BARS

    @classmethod
    def open(cls, case: Case, device: torch.device) -> GpuReadout:
        """Make up a head of the case's sizes."""
        head = made_up_head(case.V, case.L, case.D, grid=(case.side, case.side))
        return cls(case, head, device)

    def forms(self) -> list[GpuForm]:
        """Ours first."""
        found = [self._ours(precision) for precision in PRECISIONS]
        found.append(self._form("operator", OURS, "fp32", {"": self._operator}))
        found += [self._cells(precision) for precision in DTYPES]
        return found + list(self._listing1())

    def inputs(self, batch: int, number: int) -> tuple[torch.Tensor, ...]:
        """Standard normal tokens of some set."""
        generator = torch.Generator(self.device).manual_seed(number)
        shape = (batch, self.case.L, self.case.D)
        return tuple(
            torch.randn(size, generator=generator, device=self.device)
            for size in ((*shape, *self.head.grid), shape)
        )

    def judge(self, inputs: tuple[torch.Tensor, ...]) -> Judge:
        """Against float64 on the device, in standard deviations of the response."""
        expected = self._float64(*(tensor.double() for tensor in inputs)).cpu().numpy()
        judge = response_judge(expected, self.head.bias, self.bars)
        return lambda form, found: judge(form, found.float().cpu().numpy())

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.readout_work`."""
        return readout_work(self.head, batch, precision)

    def _ours(self, precision: str) -> GpuForm:
        problem = ""
        if self.device.type == "cuda" and not factor_readout_cuda.usable(self.device):
            problem = "failed: this build's kernels are not usable here"
        builds = {"": lambda: self._plan(precision)}
        return self._form("compiled head", OURS, precision, builds, problem)

    def _plan(self, precision: str) -> Run:
        if self.device.type != "cuda":
            head = self.head.with_precision(precision)
            return lambda *tokens: torch.from_numpy(
                head.readout(AlignedTokens(*(t.numpy() for t in tokens)))
            )
        plan = factor_readout_cuda.CudaFactorReadoutPlan(
            *self._constants(), *self.head.readout_grid, precision=precision
        )
        return plan.run

    def _operator(self) -> Run:
        constants = self._constants()
        return lambda local, global_: factor_readout(local, global_, *constants)

    def _cells(self, precision: str) -> GpuForm:
        def build(block: int) -> Run:
            module = CellReadout(self.head, block, DTYPES[precision], part_bytes=WHOLE_PART)
            return module.to(self.device)

        builds: dict[str, Callable[[], Run]] = {
            f"blocks of {block}": cache(partial(build, block)) for block in (64, 128)
        }
        needs = self._product_bytes
        return self._form(forms.CELL_FORM, forms.TORCH, precision, builds, needs=needs)

    def _listing1(self) -> Iterator[GpuForm]:
        def build() -> Run:
            return Listing1(self.head).to(self.device)

        def compiled() -> Run:
            return torch.compile(build(), dynamic=False, fullgraph=True)

        def needs(batch: int) -> int:
            return forms.listing1_bytes(self.head, batch)

        listing1 = {"needs": needs, "batches": self.case.listing1}
        yield self._form(forms.LISTING1, forms.TORCH, "fp32", {"": build}, **listing1)
        if self.case.compiled:
            more = {"needs": needs, "alone": True, "batches": self.case.compiled}
            yield self._form(forms.LISTING1, forms.COMPILED, "fp32", {"": compiled}, **more)

    def _form(
        self,
        name: str,
        library: str,
        precision: str,
        builds: dict[str, Callable[[], Run]],
        problem: str = "",
        **more: object,
    ) -> GpuForm:
        width = 2 if precision == "bf16" else 4
        rows, dim = self.head.weight.shape
        size = rows * (width * dim + 4 * (self.case.L + 4))
        return GpuForm(name, library, precision, builds, weight_bytes=size, problem=problem, **more)

    def _constants(self) -> list[torch.Tensor]:
        arrays = (getattr(self.head, name) for name in NAMES)
        return [torch.tensor(array, device=self.device) for array in arrays]

    def _product_bytes(self, batch: int) -> int:
        return 4 * 3 * 5 * self.case.L * batch * self.case.V

    def _float64(self, local: torch.Tensor, global_: torch.Tensor) -> torch.Tensor:
        """The cell form in float64, which must agree with Listing 1 on vertices of all the head."""
        arrays = [tensor.double() for tensor in self._constants()]
        with torch.inference_mode():
            found = reference.factor_readout_cells(local, global_, *arrays)
            spot = np.linspace(0, self.case.V - 1, min(self.case.V, _SPOT_VERTICES))
            spot = torch.from_numpy(spot.astype(np.int64)).to(self.device)
            few = local[:2], global_[:2]
            listing1 = reference.factor_readout(*few, *(array[spot] for array in arrays))
        difference = float((found[:2, spot] - listing1).abs().max())
        if not difference <= _SPOT_ERROR * max(1.0, float(listing1.abs().max())):
            raise BrainfastError(
                "the float64 reference",
                expected="the cell form to agree with Listing 1",
                got=f"a difference of {difference:.1e}",
            )
        return found
