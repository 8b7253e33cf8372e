"""What a comparison found: its rows, the machine that computed them, and how they are printed."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .. import _C
from ..doctor import package_version
from ..machine import cpu_model, usable_cores

_QUIET = 0.2  # cores that other processes may use before the table warns
_LEFT = ("form", "library", "note")


@dataclass(frozen=True)
class Row:
    """One form at one batch size.

    ratio: its best time over the best of `yardstick`, which is our form of the same precision (for
    our own forms, the first); round_ratio: the median over the rounds of both in one round. Other
    processes only ever add to a time, so minima compare the forms and medians the moment. Errors
    are against float64, in standard deviations of what is compared, without the bias. What was not
    measured is None, and `note` says why.
    """

    form: str
    library: str
    precision: str
    batch: int
    rounds: int = 0
    best_ms: float | None = None
    median_ms: float | None = None
    p99_ms: float | None = None
    yardstick: str = ""
    ratio: float | None = None
    round_ratio: float | None = None
    rms_error: float | None = None
    max_error: float | None = None
    bar: str = ""
    peak_memory_bytes: int | None = None
    weight_bytes: int | None = None
    gflop_per_s: float | None = None
    gbyte_per_s: float | None = None
    of_ceiling: float | None = None
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


def machine(threads: int) -> dict[str, Any]:
    """What the times depend on: processor, threads used, instruction sets, versions."""
    packages = ("brainfast", "numpy", "torch", "onnxruntime")
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": threads,
        "isa": _C.isa(),
        "isa_of_precision": {name: _C.isa(name) for name in ("fp32", "bf16", "bf16x3")},
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: package_version(name) for name in packages},
        },
    }


def print_table(table: BenchTable) -> None:
    """Print a comparison, one line a form."""
    import typer  # which a machine that only measures does without

    letters = (name for name in table.case if len(name) == 1)
    sizes = ", ".join(f"{name}={table.case[name]}" for name in letters)
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
    typer.echo("x ours: best time over that of our form of the same precision (ours: over fp32)")
    typer.echo("errors: against float64, in standard deviations of the response")


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
