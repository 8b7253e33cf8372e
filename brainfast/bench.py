"""Time the readout in one process, every form on the same tokens, its error beside its time."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from . import _C, forms
from .doctor import cpu_model, package_version
from .errors import BrainfastError
from .folded import AlignedTokens, FoldedFactorTopy
from .forms import Form
from .ops import reference
from .timing import (
    BusyElsewhere,
    available_memory,
    fastest,
    interleave,
    using_threads,
    with_peak_growth,
)

# By precision of the operands: (what is bounded, bound), in standard deviations of the twin's
# response less its bias.
BARS: Mapping[str, tuple[str, float]] = {
    "fp32": ("max", 1e-5),
    "bf16x3": ("rms", 1e-5),
    "bf16": ("rms", 5e-3),
}

_TWIN_BYTES = 1 << 25
_QUIET = 0.2  # cores that other processes may use before the table warns
_LEFT = ("form", "library", "note")


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


@dataclass(frozen=True)
class Row:
    """One form at one batch size.

    ratio: its best time over the best of the compiled fp32 head: other processes only ever add to
    a time, so minima compare the forms and medians the moment. Errors are against Listing 1 in
    float64, in standard deviations of its response less the bias. What was not measured is None,
    and `note` says why.
    """

    form: str
    library: str
    precision: str
    batch: int
    rounds: int = 0
    best_ms: float | None = None
    median_ms: float | None = None
    p99_ms: float | None = None
    ratio: float | None = None
    rms_error: float | None = None
    max_error: float | None = None
    peak_memory_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True)
class BenchTable:
    """The rows of a comparison, what was computed, and the machine that computed it."""

    case: Mapping[str, Any]
    machine: Mapping[str, Any]
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        rows = [asdict(row) for row in self.rows]
        return {"case": dict(self.case), "machine": dict(self.machine), "rows": rows}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BenchTable:
        """The inverse of `as_json`."""
        rows = tuple(Row(**row) for row in values["rows"])
        return cls(values["case"], values["machine"], rows)


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
        from .card import Card
        from .engine import read_head

        return ReadoutCase(str(model), read_head(model, Card.read(model)), seed)
    _check_positive(vertices=vertices, layers=layers, dim=dim)
    return ReadoutCase("made-up selectors", _made_up_head(vertices, layers, dim, seed), seed)


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

    Each form is checked against Listing 1 in float64 before it is timed; one that misses the bar
    of its precision (`BARS`) is a BrainfastError. Then every round runs each form once, in an order
    that moves on by one from round to round. threads: PyTorch's own choice where not given.
    """
    threads = torch.get_num_threads() if threads is None else threads
    _check_positive(rounds=rounds, batch=min(batches), threads=threads)
    rows: list[Row] = []
    elsewhere = BusyElsewhere()
    with (
        using_threads(threads),
        tempfile.TemporaryDirectory(prefix="brainfast-bench-") as folder,
        tqdm(desc="bench", unit="step", disable=not progress) as bar,
    ):
        bar.total = 5 + len(batches) * (rounds + 2)
        built = _build_forms(case, Path(folder), threads, batches, include_listing1, bar)
        for batch in batches:
            rows += _bench_batch(case, batch, rounds, built, bar)
    about = machine(threads) | {"busy_elsewhere": elsewhere.cores()}
    head = case.head
    sizes = (*head.layer.shape, head.weight.shape[1], *head.readout_grid)
    return BenchTable(
        {"name": case.name, **dict(zip("VLDHW", sizes, strict=True))}, about, tuple(rows)
    )


def print_table(table: BenchTable) -> None:
    """Print a comparison, one line a form."""
    sizes = ", ".join(f"{name}={table.case[name]}" for name in "VLDHW")
    about = table.machine
    typer.echo(f"{table.case['name']}: {sizes}")
    typer.echo(f"{about['cpu']}, {about['threads']} threads, {about['isa']}")
    if (about["busy_elsewhere"] or 0.0) > _QUIET:
        typer.echo(f"other processes kept {about['busy_elsewhere']:.1f} cores busy: trust best ms")
    lines = [_cells(row) for row in table.rows]
    widths = {name: max(len(name), *(len(line[name]) for line in lines)) for name in lines[0]}
    for line in ({name: name for name in widths}, *lines):
        padded = (
            line[name].ljust(width) if name in _LEFT else line[name].rjust(width)
            for name, width in widths.items()
        )
        typer.echo("  ".join(padded).rstrip())
    typer.echo("errors: against Listing 1 in float64, in standard deviations of its response")


def twin(case: ReadoutCase, tokens: AlignedTokens) -> NDArray[np.float64]:  # [B,V]
    """Listing 1 in float64, some vertices at a time."""
    head = case.head
    local, global_ = (torch.from_numpy(part).double() for part in (tokens.local, tokens.global_))
    arrays = [
        torch.from_numpy(array).double()
        for array in (head.space, head.layer, head.scale, head.weight, head.bias)
    ]
    step = max(1, _TWIN_BYTES // (8 * tokens.global_.size))
    with torch.inference_mode():
        parts = [
            reference.factor_readout(local, global_, *(a[start : start + step] for a in arrays))
            for start in range(0, head.V, step)
        ]
    expected: NDArray[np.float64] = torch.cat(parts, dim=1).numpy()
    return expected


def check(
    form: Form,
    found: NDArray[np.float32],  # [B,V]
    expected: NDArray[np.float64],  # [B,V]
    bias: NDArray[np.float32],  # [V]
) -> tuple[float, float]:
    """(rms error, max error) of a form in standard deviations of the response less its bias.

    Beyond the bar of its precision, or in another shape, it is a BrainfastError.
    """
    if found.shape != expected.shape:
        raise BrainfastError(
            form.title, expected=f"a response {expected.shape}", got=str(found.shape)
        )
    error = (found - expected) / max((expected - bias).std(), np.finfo(np.float32).tiny)
    found_error = {
        "rms": float(np.sqrt(np.square(error).mean())),
        "max": float(np.abs(error).max()),
    }
    kind, bar = BARS[form.precision]
    if not found_error[kind] <= bar:
        raise BrainfastError(
            form.title,
            expected=f"{kind} error to Listing 1 in float64 of at most {bar:.0e}",
            got=f"{found_error[kind]:.1e}",
            remedy="a wrong form is not timed; please report this with the output of doctor",
        )
    return found_error["rms"], found_error["max"]


def machine(threads: int) -> dict[str, Any]:
    """What the times depend on: processor, threads used, instruction set, versions."""
    packages = ("brainfast", "numpy", "torch", "onnxruntime")
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "isa": _C.isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: package_version(name) for name in packages},
        },
    }


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise BrainfastError(name, expected="1 or more", got=str(value))


def _build_forms(
    case: ReadoutCase,
    folder: Path,
    threads: int,
    batches: Sequence[int],
    include_listing1: bool,
    bar: Any,
) -> list[Form]:
    head = case.head
    fits = [batch for batch in batches if _listing1_problem(head, batch) is None]
    stages: list[tuple[str, Callable[[], list[Form]]]] = [
        ("packing", lambda: forms.brainfast_forms(head)),
        ("cell form", lambda: [forms.torch_cell_form(head)]),
        ("cell form to ONNX", lambda: [forms.onnx_cell_form(head, folder, threads)]),
    ]
    if include_listing1:
        stages.append(("Listing 1", lambda: [forms.torch_listing1_form(head)]))
        largest = max(fits, default=1)
        stages.append(
            (
                "Listing 1 to ONNX",
                lambda: [forms.onnx_listing1_form(head, folder, threads, largest)],
            )
        )
    built: list[Form] = []
    for name, build in stages:
        bar.set_postfix_str(name)
        built += build()
        bar.update()
    return built


def _bench_batch(
    case: ReadoutCase, batch: int, rounds: int, built: Sequence[Form], bar: Any
) -> list[Row]:
    bar.set_postfix_str(f"B={batch}: reference")
    tokens = case.tokens(batch)
    expected = twin(case, tokens)
    bar.update()
    rows, calls = [], {}
    for form in built:
        row = Row(form.name, form.library, form.precision, batch)
        problem = _listing1_problem(case.head, batch) if form.name == forms.LISTING1 else None
        if problem:
            rows.append(replace(row, note=problem))
            continue
        bar.set_postfix_str(f"B={batch}: checking {form.title}")
        checked, calls[form.title] = _check_variants(form, row, tokens, expected, case.head.bias)
        rows.append(checked)
    bar.update()
    bar.set_postfix_str(f"B={batch}: timing")
    seconds = interleave(calls, rounds, after_round=bar.update)
    return [_timed(row, form, seconds, built[0]) for row, form in zip(rows, built, strict=True)]


def _check_variants(
    form: Form,
    row: Row,
    tokens: AlignedTokens,
    expected: NDArray[np.float64],
    bias: NDArray[np.float32],
) -> tuple[Row, Callable[[], object]]:
    """The row of the fastest variant with its errors and memory, and its call."""
    best: tuple[float, Row, Callable[[], object]] | None = None
    for name, variant in form.variants.items():
        call = partial(variant, tokens.local, tokens.global_)
        found, memory = with_peak_growth(call)
        rms, largest = check(form, found, expected, bias)
        seconds = fastest(call) if len(form.variants) > 1 else 0.0
        if best is None or seconds < best[0]:
            filled = replace(
                row, rms_error=rms, max_error=largest, peak_memory_bytes=memory, note=name
            )
            best = seconds, filled, call
    assert best is not None
    return best[1], best[2]


def _timed(
    row: Row, form: Form, seconds: Mapping[str, NDArray[np.float64]], yardstick: Form
) -> Row:
    if form.title not in seconds:
        return row
    taken = seconds[form.title]
    took_part = taken[~np.isnan(taken)]
    return replace(
        row,
        rounds=len(took_part),
        best_ms=1e3 * float(took_part.min()),
        median_ms=1e3 * float(np.median(took_part)),
        p99_ms=1e3 * float(np.quantile(took_part, 0.99, method="higher")),
        ratio=float(took_part.min() / np.nanmin(seconds[yardstick.title])),
    )


def _listing1_problem(head: FoldedFactorTopy, batch: int) -> str | None:
    needed, available = forms.listing1_bytes(head, batch), available_memory()
    if needed <= available // 2:
        return None
    return f"needs about {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are free"


def _cells(row: Row) -> dict[str, str]:
    def text(value: float | None, style: str) -> str:
        return "-" if value is None else format(value, style)

    memory = None if row.peak_memory_bytes is None else row.peak_memory_bytes / 2**20
    return {
        "B": str(row.batch),
        "form": row.form,
        "library": f"{row.library} {row.precision}",
        "best ms": text(row.best_ms, ".3f"),
        "median ms": text(row.median_ms, ".3f"),
        "p99 ms": text(row.p99_ms, ".3f"),
        "x ours": text(row.ratio, ".1f"),
        "rms error": text(row.rms_error, ".1e"),
        "max error": text(row.max_error, ".1e"),
        "peak MiB": text(memory, ".1f"),
        "note": row.note,
    }


def _made_up_head(vertices: int, layers: int, dim: int, seed: int) -> FoldedFactorTopy:
    """Selectors as smooth as a trained model's: two hemispheres, each seeing the other side of the
    image, most vertices near its centre, layers and scale rising from the back to the front."""
    rng = np.random.default_rng(seed)
    along, across = rng.random(vertices), rng.random(vertices)
    side = np.where(np.arange(vertices) < vertices // 2, 1.0, -1.0)
    eccentricity = 0.05 * ((1.0 / 0.05 + 1.0) ** across - 1.0)
    angle = np.pi / 2 * np.sin(2 * np.pi * 2.5 * along)  # mirrored from each area to the next
    space = np.stack([side * np.cos(angle), np.sin(angle)], axis=1) * eccentricity[:, None]
    depth = np.arange(layers) / max(layers - 1, 1)
    layer = np.exp(-np.square(depth - along[:, None]) / 0.05)
    arrays = {
        "space": space,
        "layer": layer / layer.sum(axis=1, keepdims=True),
        "scale": 1 / (1 + np.exp(-6 * (along - 0.5))),
        "weight": rng.standard_normal((vertices, dim)),
        "bias": 0.1 * rng.standard_normal(vertices),
    }
    nothing = np.zeros((dim, 1), dtype=np.float32)
    return FoldedFactorTopy(
        **{name: array.astype(np.float32) for name, array in arrays.items()},
        bottleneck_local=(nothing,) * layers,
        bottleneck_global=(nothing,) * layers,
        offset_local=np.zeros((layers, dim), dtype=np.float32),
        offset_global=np.zeros((layers, dim), dtype=np.float32),
        layers=tuple(range(layers)),
    )
