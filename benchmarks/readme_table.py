"""Write the README's tables, docs/benchmarks.md and two plots from the JSON of `run.py` and those
of `gpu.sh`, where there are any.

python benchmarks/readme_table.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import gpu_table
import plots
from brainfast.bench import Row
from brainfast.files import write_bytes
from brainfast.forms import LISTING1, OURS, TORCH
from cases import TITLES
from measured import BASE, Measured, label

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "cpu.json"
MARKERS = "<!-- {}: start -->\n", "<!-- {}: end -->\n"
BATCHES = (1, 8)  # of the README
HEADS = (("FactorTopy, V = 37,984", "tokens", BASE), ("BlobGPT, V = 39,548", "blobgpt", {"S": 1}))

FORMULAS = """\
**ms**: best, median and 99th percentile of the rounds; every round runs every form once, in an
order that moves on by one. **x ours**: the form's best over the best of our form of the same
precision, and the median over the rounds of the same ratio; for our own forms, over the first of
them. **error**: against float64, in standard deviations of the response less its bias (training:
of the worst gradient, in units of its root mean square); a form beyond its **bar** is not timed.
**peak**: growth of resident memory during the first call; **weights**: constants that a call reads.
Of forms in several variants (block sizes, orders of BlobGPT's two products) the fastest is the row,
and its **note** says which.

**GFLOP/s** and **GB/s** divide the least that a call must do by its best time, whatever the form
does beyond that: `2 D L (corners inside the image + 1)` operations a vertex and image, and `V (w
D + 4 (L + 4)) + 4 B L D (H W + 1) + 4 B V` bytes, `w` = 2 in bf16, else 4: packed parameters,
tokens, responses. Raw tokens add `2 L C D (H W + 1)` operations an image, themselves and the
bottlenecks. A training step counts three forward products, the fp32 parameters ten times (two
reads, gradient, AdamW's seven) and tokens, responses and their gradients. BlobGPT's projection is
`2 L K T (C + 1)` operations an image; its response the cheaper of folded, `2 S V K` operations and
as many weights, and unfolded, `2 S V R` and `V R`, with maps of `(S + 1) R K`; a step of its head
three projections, three times the maps and twice the frozen embedding. **of ceiling**: the
least time on the roofline of the ceilings below (fp32: multiply-adds in registers; bf16: the
faster of those and torch's bf16 product, a third of it for bf16x3; L3 up to 24 MiB, else DRAM)
over the best time. A ceiling that neighbours disturbed can be passed.
"""


def readme_block(measured: Measured) -> str:
    """How fast, how exact, how much memory, at the usual sizes: our forms, Listing 1, and the
    fastest other form of each precision."""
    heads = [f"{batch} image{'s' * (batch > 1)}, ms" for batch in BATCHES]
    lines = [
        f"| | form | {' | '.join(heads)} | largest error | peak MiB |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for stage in TITLES:
        by_form: dict[str, dict[int, Row]] = {}
        for _, row in measured.of_stage(stage, **BASE):
            if row.batch in BATCHES and row.best_ms is not None:
                by_form.setdefault(label(row), {})[row.batch] = row
        for form, rows in by_form.items():
            last = rows[max(rows)]
            if not _is_shown(last, [other[max(other)] for other in by_form.values()]):
                continue
            cells = (_number(rows[b].best_ms) if b in rows else "" for b in BATCHES)
            lines.append(
                f"| {stage} | {form} | {' | '.join(cells)} | {last.max_error:.0e} |"
                f" {_mebibytes(last.peak_memory_bytes)} |"
            )
    lines += _best_of_stock(measured)
    busy = measured.machine["busy_elsewhere"] or 0.0
    lines += [
        "",
        f"V = {BASE['V']:,}, L = {BASE['L']}, D = {BASE['D']}, 8 x 8 grid; {measured.about()}. Best"
        " of interleaved rounds in one process; errors and memory at the larger batch. Errors are"
        " against float64, in standard deviations of the response (training: of the worst"
        " gradient). All sizes, ratios, ceilings: [docs/benchmarks.md](docs/benchmarks.md)."
        + (
            f" Other processes kept {busy:.1f} cores busy: not the last word." if busy > 0.2 else ""
        ),
    ]
    return "\n".join(lines) + "\n"


def _is_shown(row: Row, rows: Sequence[Row]) -> bool:
    if row.library == OURS or (row.form.endswith(LISTING1) and row.library == TORCH):
        return True
    stock = [other for other in rows if other.library != OURS and other.precision == row.precision]
    return row is min(stock, key=lambda other: (-other.batch, other.best_ms or 0.0))


def _best_of_stock(measured: Measured) -> Iterator[str]:
    """Whole heads against the fastest stock form of the same precision."""
    lines = []
    for model, stage, sizes in HEADS:
        for precision in ("fp32", "bf16"):
            cells = [_duel(measured, stage, sizes, precision, batch) for batch in BATCHES]
            if any(cells):
                lines.append(f"| {model} {precision} | {' | '.join(cells)} |")
    if lines:
        heads = (f"{batch} image{'s' * (batch > 1)}" for batch in BATCHES)
        yield ""
        yield f"| tokens → response, ms: ours / best stock form | {' | '.join(heads)} |"
        yield "|---|" + "---|" * len(BATCHES)
        yield from lines


def _duel(measured: Measured, stage: str, sizes: dict[str, int], precision: str, batch: int) -> str:
    rows = [
        row
        for _, row in measured.of_stage(stage, **sizes)
        if (row.precision, row.batch) == (precision, batch) and row.best_ms is not None
    ]
    ours = [row for row in rows if row.library == OURS]
    stock = [row for row in rows if row.library != OURS]
    if not ours or not stock:
        return ""
    best = min(stock, key=lambda row: row.best_ms or 0.0)
    return f"{_number(ours[0].best_ms)} / {_number(best.best_ms)} ({best.form}, {best.library})"


def document(measured: Measured) -> str:
    """docs/benchmarks.md: every row, the ceilings, and what the columns mean."""
    busy = measured.machine["busy_elsewhere"]
    parts = [
        "# Benchmarks",
        "`python benchmarks/run.py && python benchmarks/readme_table.py` writes this page.",
        f"On {measured.about()}; {measured.machine['seconds']} s in all."
        + (f" Other processes kept {busy:.1f} cores busy meanwhile." if busy else ""),
        "![Latency of the readout over the number of images](pictures/latency.png)",
        "![Time of the readout over the number of vertices](pictures/cost_over_v.png)",
        FORMULAS.rstrip(),
        "\n".join(_ceilings(measured)),
        *_sections(measured),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(measured: Measured) -> Iterator[str]:
    for stage, title in TITLES.items():
        tables = [table for table in measured.tables if table.case["stage"] == stage]
        if tables:
            yield f"## {title[0].upper()}{title[1:]}"
        for table in tables:
            case = table.case
            trunk = f", trunk {case['trunk']}" if case["trunk"] else ""
            sizes = (f"{letter} = {size:,}" for letter, size in case.items() if len(letter) == 1)
            yield ", ".join(sizes) + trunk
            heads = (
                "form | B | best ms | median | p99 | x ours | per round | rms error | max error"
                " | bar | peak MiB | weights MiB | GFLOP/s | GB/s | of ceiling | note"
            )
            rule = "|---|" + "--:|" * 14 + "---|"
            yield "\n".join([f"| {heads} |", rule, *(_row(row) for row in table.rows)])
    if measured.missing:
        yield "## Not measured"
        yield "\n".join(f"- {name}: {reason}" for name, reason in measured.missing.items())


def _row(row: Row) -> str:
    cells = [
        label(row),
        str(row.batch),
        *(_number(value) for value in (row.best_ms, row.median_ms, row.p99_ms)),
        *(_number(value) for value in (row.ratio, row.round_ratio)),
        *("" if value is None else f"{value:.1e}" for value in (row.rms_error, row.max_error)),
        row.bar,
        _mebibytes(row.peak_memory_bytes),
        _mebibytes(row.weight_bytes),
        *(_number(value) for value in (row.gflop_per_s, row.gbyte_per_s)),
        "" if row.of_ceiling is None else f"{100 * row.of_ceiling:.0f} %",
        row.note,
    ]
    return f"| {' | '.join(cells)} |"


def _ceilings(measured: Measured) -> Iterator[str]:
    yield "| ceiling | measured |"
    yield "|---|--:|"
    names = {
        "fma_gflop_per_s": ("fp32 multiply-adds in registers", "GFLOP/s"),
        "matmul_fp32_gflop_per_s": ("torch, fp32 product 2048 x 2048", "GFLOP/s"),
        "matmul_bf16_gflop_per_s": ("torch, bf16 product 2048 x 2048", "GFLOP/s"),
        "l3_gbyte_per_s": ("reading 12 MiB (torch's sum, dot or matrix-vector)", "GB/s"),
        "dram_gbyte_per_s": ("reading 512 MiB (the same)", "GB/s"),
    }
    for key, (name, unit) in names.items():
        yield f"| {name} | {measured.ceilings[key]:,.0f} {unit} |"


def _number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:,.0f}"


def between(text: str, name: str, block: str) -> str:
    """The text with `block` between the markers of this name."""
    start, end = (marker.format(name) for marker in MARKERS)
    before, rest = text.split(start)
    _, after = rest.split(end)
    return before + start + block + end + after


def main() -> None:
    """Write all of it."""
    measured = Measured.read(RESULT)
    gpus = gpu_table.Gpu.read_all(RESULT.parent)
    readme = ROOT / "README.md"
    text = between(readme.read_text(encoding="utf-8"), "measured", readme_block(measured))
    text = between(text, "gpu", gpu_table.readme_block(gpus))
    write_bytes(readme, text.encode())
    page = f"{document(measured)}\n{gpu_table.document(gpus)}\n"
    write_bytes(ROOT / "docs" / "benchmarks.md", page.encode())
    plots.latency(measured, ROOT / "docs" / "pictures" / "latency.png")
    plots.cost_over_v(measured, ROOT / "docs" / "pictures" / "cost_over_v.png")


if __name__ == "__main__":
    main()
