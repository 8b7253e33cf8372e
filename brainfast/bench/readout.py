"""The readout, from aligned tokens to the response, in every form."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import forms
from ..errors import BrainfastError
from ..folded import AlignedTokens, FoldedFactorTopy
from ..forms import Form
from ..machine import available_memory
from ..ops import reference
from ..timing import BusyElsewhere, using_threads
from .check import BARS, response_judge
from .compare import Builder, Judge, check_positive, compare
from .made_up import made_up_head
from .table import BenchTable, machine

_TWIN_BYTES = 1 << 27  # of the largest array that the twin makes
_SPOT_VERTICES = 256  # that Listing 1 itself computes
_SPOT_ERROR = 1e-11


@dataclass(frozen=True)
class ReadoutCase:
    """A folded head and tokens to read out with it. Rows of a head with several samples a vertex
    are timed as vertices of their own."""

    name: str
    head: FoldedFactorTopy
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", replace(self.head, samples=1, precision="fp32"))

    def tokens(self, batch: int) -> AlignedTokens:
        """Standard normal tokens, local [B,L,D,H,W] and global [B,L,D]."""
        layers, dim = self.head.offset_local.shape
        rng = np.random.default_rng((self.seed, batch))
        local = rng.standard_normal((batch, layers, dim, *self.head.readout_grid), np.float32)
        return AlignedTokens(local, rng.standard_normal((batch, layers, dim), np.float32))


def readout_case(
    model: Path | None = None,
    *,
    vertices: int = 37984,
    layers: int = 12,
    dim: int = 128,
    seed: int = 0,
) -> ReadoutCase:
    """The folded head of a model folder; without one, a made-up head of the sizes given."""
    if model is not None:
        from ..card import Card
        from ..heads import read_head

        return ReadoutCase(str(model), read_head(model, Card.read(model)), seed)
    check_positive(vertices=vertices, layers=layers, dim=dim)
    return ReadoutCase("made-up selectors", made_up_head(vertices, layers, dim, seed=seed), seed)


@dataclass(frozen=True)
class ReadoutStage:
    """A readout case as a stage of `compare`; calls take local [B,L,D,H,W] and global [B,L,D]."""

    case: ReadoutCase
    folder: Path
    threads: int
    largest_batch: int
    include_listing1: bool = True
    bars = BARS

    def builders(self) -> list[Builder]:
        """Ours, the cell form in stock libraries, and Listing 1."""
        head, folder, threads = self.case.head, self.folder, self.threads
        built: list[Builder] = [
            ("packing", lambda: forms.brainfast_forms(head)),
            ("cell form", lambda: forms.torch_cell_forms(head)),
            ("cell form to ONNX", lambda: [forms.onnx_cell_form(head, folder, threads)]),
        ]
        if self.include_listing1:
            largest = self.largest_batch
            built += [
                ("Listing 1", lambda: [forms.torch_listing1_form(head)]),
                (
                    "Listing 1 to ONNX",
                    lambda: [forms.onnx_listing1_form(head, folder, threads, largest)],
                ),
            ]
        return built

    def problem(self, form: Form, batch: int) -> str | None:
        """Listing 1 may take half of the memory that is free."""
        if form.name != forms.LISTING1:
            return None
        return memory_problem(forms.listing1_bytes(self.case.head, batch))

    def inputs(self, batch: int) -> tuple[Any, ...]:
        """Local and global tokens."""
        tokens = self.case.tokens(batch)
        return tokens.local, tokens.global_

    def judge(self, inputs: tuple[Any, ...]) -> Judge:
        """Against `twin`."""
        expected = twin(self.case.head, AlignedTokens(*inputs))
        return response_judge(expected, self.case.head.bias)


def memory_problem(needed: int) -> str | None:
    """Why something that needs so many bytes is not run: they are more than half of the free."""
    available = available_memory()
    if needed <= available // 2:
        return None
    return f"needs about {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are free"


def bench_readout(
    case: ReadoutCase,
    *,
    batches: Sequence[int] = (1, 8),
    rounds: int = 15,
    include_listing1: bool = True,
    threads: int | None = None,
    progress: bool = True,
) -> BenchTable:
    """Time every form of the readout on the same tokens with the same number of threads.

    Each form is checked against `twin` before it is timed, see `compare`. threads: PyTorch's own
    choice where not given.
    """
    threads = torch.get_num_threads() if threads is None else threads
    check_positive(rounds=rounds, batch=min(batches), threads=threads)
    elsewhere = BusyElsewhere()
    with (
        using_threads(threads),
        tempfile.TemporaryDirectory(prefix="brainfast-bench-") as folder,
    ):
        stage = ReadoutStage(case, Path(folder), threads, max(batches), include_listing1)
        rows = compare(stage, batches, rounds, progress=progress)
    about = machine(threads) | {"busy_elsewhere": elsewhere.cores()}
    return BenchTable({"name": case.name, **sizes(case.head)}, about, tuple(rows))


def sizes(head: FoldedFactorTopy) -> dict[str, int]:
    """V, L, D, H and W of a head."""
    numbers = (*head.layer.shape, head.weight.shape[1], *head.readout_grid)
    return dict(zip("VLDHW", numbers, strict=True))


def twin(head: FoldedFactorTopy, tokens: AlignedTokens) -> NDArray[np.float64]:  # [B,V]
    """The readout in float64, as one matrix product a grid cell: seconds where Listing 1 takes
    minutes. It must agree with Listing 1 on vertices from all of the head."""
    local, global_ = (
        torch.from_numpy(np.asarray(part, dtype=np.float64))
        for part in (tokens.local, tokens.global_)
    )
    arrays = [
        torch.from_numpy(array).double()
        for array in (head.space, head.layer, head.scale, head.weight, head.bias)
    ]
    rows = len(head.bias)
    step = max(1, _TWIN_BYTES // (8 * 5 * global_[..., 0].numel()))
    with torch.inference_mode():
        parts = [
            reference.factor_readout_cells(
                local, global_, *(a[start : start + step] for a in arrays)
            )
            for start in range(0, rows, step)
        ]
        found = torch.cat(parts, dim=1)
        spot = torch.linspace(0, rows - 1, min(rows, _SPOT_VERTICES)).long()
        listing1 = reference.factor_readout(local, global_, *(a[spot] for a in arrays))
    difference = float((found[:, spot] - listing1).abs().max())
    if not difference <= _SPOT_ERROR * max(1.0, float(listing1.abs().max())):
        raise BrainfastError(
            "the float64 reference",
            expected="the cell form to agree with Listing 1",
            got=f"a difference of {difference:.1e}",
            remedy="please report this with the output of doctor",
        )
    expected: NDArray[np.float64] = found.numpy()
    return expected
