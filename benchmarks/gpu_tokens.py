"""Raw trunk tokens to the response on a GPU: down-sampling and bottlenecks before the readout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from brainfast import forms
from brainfast.bench.check import BARS, Bars, response_judge
from brainfast.bench.made_up import made_up_head
from brainfast.folded import PRECISIONS, FoldedFactorTopy
from brainfast.forms import OURS, CellReadout
from brainfast.ops import reference
from brainfast.tokens import Tokens
from cases import Case
from ceilings import Work, tokens_work
from gpu_compare import GpuForm, Judge, Run
from gpu_readout import DTYPES, NAMES, WHOLE_PART
from stage_tokens import AlignedReadout

# Stock bf16 rounds twice: the aligned tokens, then the readout.
TOKENS_BARS: Bars = {**BARS, "bf16": ("rms", 1e-2)}


@dataclass(frozen=True)
class GpuTokens:
    """Calls take the tokens of every layer, local [B,C,H,W] first, then global [B,C]."""

    case: Case
    head: FoldedFactorTopy
    device: torch.device
    bars = TOKENS_BARS

    @classmethod
    def open(cls, case: Case, device: torch.device) -> GpuTokens:
        """Make up a head with bottlenecks."""
        grid = (case.side, case.side)
        return cls(case, made_up_head(case.V, case.L, case.D, channels=case.C, grid=grid), device)

    def forms(self) -> list[GpuForm]:
        """Ours, then interpolate + einsum + cell form in torch."""
        ours = [self._ours(precision) for precision in PRECISIONS]
        return ours + [self._cells(precision) for precision in DTYPES]

    def inputs(self, batch: int, number: int) -> tuple[torch.Tensor, ...]:
        """Standard normal tokens of some set."""
        generator = torch.Generator(self.device).manual_seed(number)
        case = self.case
        shapes = [(batch, case.C, case.raw, case.raw)] * case.L + [(batch, case.C)] * case.L
        return tuple(torch.randn(s, generator=generator, device=self.device) for s in shapes)

    def judge(self, inputs: tuple[torch.Tensor, ...]) -> Judge:
        """Alignment and readout in float64."""
        judge = response_judge(self.float64(inputs).cpu().numpy(), self.bias, self.bars)
        return lambda form, found: judge(form, found.float().cpu().numpy())

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.tokens_work`."""
        return tokens_work(self.case, self.head, batch, precision)

    @property
    def bias(self) -> np.ndarray:  # [V]
        """Of the response."""
        return self.head.bias

    def device_head(self, precision: str, layers: tuple[int, ...]) -> Any:
        """The folded head on the device, of tokens of these layers."""
        from brainfast.device_heads import DeviceFactorTopy

        head = replace(self.head.with_precision(precision), layers=layers)
        return DeviceFactorTopy(head, self.device)

    def float64(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:  # [B,V]
        """Alignment and readout of local [B,C,H,W] of every layer, then global [B,C]."""
        layers, head = self.case.L, self.head

        def there(array: object) -> torch.Tensor:
            return torch.as_tensor(array, device=self.device).double()

        with torch.inference_mode():
            tokens = [part.double() for part in tokens]
            local, global_ = reference.align_tokens(
                *(tokens[:layers], tokens[layers:]),
                [there(matrix) for matrix in head.bottleneck_local],
                [there(matrix) for matrix in head.bottleneck_global],
                *(there(head.offset_local), there(head.offset_global), head.grid),
            )
            constants = (there(getattr(head, name)) for name in NAMES)
            return reference.factor_readout_cells(local, global_, *constants)

    def _ours(self, precision: str) -> GpuForm:
        def build() -> Run:
            head = self.device_head(precision, self.head.layers)
            layers, numbers = self.case.L, self.head.layers
            return lambda *tokens: head(Tokens(tokens[:layers], tokens[layers:], numbers))

        return self._form("compiled head", OURS, precision, {"": build})

    def _cells(self, precision: str) -> GpuForm:
        dtype = DTYPES[precision]

        def build(block: int) -> Run:
            readout = CellReadout(self.head, block, dtype, part_bytes=WHOLE_PART)
            return AlignedReadout(self.head, readout, dtype).to(self.device)

        builds: dict[str, Callable[[], Run]] = {
            f"blocks of {block}": cache(partial(build, block)) for block in (64, 128)
        }
        return self._form(f"align + {forms.CELL_FORM}", forms.TORCH, precision, builds)

    def _form(
        self, name: str, library: str, precision: str, builds: dict[str, Callable[[], Run]]
    ) -> GpuForm:
        width, case = 2 if precision == "bf16" else 4, self.case
        size = case.V * (width * case.D + 4 * (case.L + 4)) + 2 * width * case.L * case.C * case.D

        def needs(batch: int) -> int:
            return 4 * 3 * 5 * case.L * batch * case.V

        return GpuForm(name, library, precision, builds, weight_bytes=size, needs=needs)
