"""Write the table of a benchmark's JSON into the README, between its two markers.

brainfast bench --json > benchmarks/results/readout-cpu.json
python benchmarks/readme_table.py
"""

from __future__ import annotations

import json
from pathlib import Path

from brainfast.bench import BenchTable, Row

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "readout-cpu.json"
START, END = "<!-- measured: start -->\n", "<!-- measured: end -->\n"


def _row(row: Row) -> str:
    if row.best_ms is None or row.ratio is None:
        return f"| {row.form} | {row.library} {row.precision} | {row.batch} | {row.note} | | | |"
    memory = "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**20:,.0f}"
    return (
        f"| {row.form} | {row.library} {row.precision} | {row.batch} | {row.best_ms:,.2f} |"
        f" {row.ratio:,.1f} | {row.max_error:.0e} | {memory} |"
    )


def table(measured: BenchTable) -> str:
    """The table in Markdown, with the sizes and the machine below it."""
    case, machine = measured.case, measured.machine
    lines = [
        "| form | library | images | best ms | x fp32 | largest error | peak MiB |",
        "|---|---|--:|--:|--:|--:|--:|",
        *(_row(row) for row in measured.rows),
        "",
        f"V = {case['V']:,}, L = {case['L']}, D = {case['D']}, {case['H']} x {case['W']} grid, on"
        f" {machine['threads']} threads of {machine['cpu']} ({machine['isa']}), all forms on the"
        " same tokens, interleaved in one process. Errors are against Listing 1 in float64, in"
        " standard deviations of its response.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    measured = BenchTable.from_json(json.loads(RESULT.read_text()))
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(START)
    _, after = rest.split(END)
    readme.write_text(before + START + table(measured) + END + after)


if __name__ == "__main__":
    main()
