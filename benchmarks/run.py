"""Measure every case and write one JSON.

python benchmarks/run.py [--quick] [--only readout,training]
python benchmarks/readme_table.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import ceilings
from brainfast.bench import BenchTable, Row, print_table
from brainfast.bench.compare import compare
from brainfast.bench.table import machine
from brainfast.files import write_json
from brainfast.timing import BusyElsewhere, using_threads
from cases import QUICK, WHOLE, Case, chosen
from stages import open_stage

RESULT = Path(__file__).resolve().parent / "results" / "cpu.json"
BUDGET_S = {True: 3.0, False: 6.0}  # of a slow form, by --quick


def measure(
    cases: Sequence[Case],
    *,
    rounds: int,
    threads: int,
    budget_s: float,
    progress: bool = True,
    after_case: Callable[[dict[str, Any]], object] = lambda result: None,
) -> dict[str, Any]:
    """Machine, ceilings (the best of those taken around every case) and a table a case.

    after_case: given the result so far, so that a run that is stopped keeps what it has measured.
    """
    started, elsewhere = time.monotonic(), BusyElsewhere()
    result: dict[str, Any] = {}
    with using_threads(threads):
        best = ceilings.measure()
        measured = []
        for case in cases:
            measured.append(_measure(case, rounds, threads, budget_s, progress))
            best = {name: max(best[name], value) for name, value in ceilings.measure().items()}
            about = machine(threads) | {
                "busy_elsewhere": elsewhere.cores(),
                "seconds": round(time.monotonic() - started),
            }
            tables = [_table(*each, about, best) for each in measured]
            if progress:
                print_table(tables[-1])
            plain = [{"case": t.case, "rows": t.as_json()["rows"]} for t in tables]
            result = {"machine": about, "ceilings": best, "tables": plain}
            after_case(result)
    return result


def _table(
    case: Case,
    rows: Sequence[Row],
    work: Sequence[ceilings.Work | None],
    about: dict[str, Any],
    best: dict[str, float],
) -> BenchTable:
    achieved = tuple(_achieved(row, each, best) for row, each in zip(rows, work, strict=True))
    return BenchTable(case.as_json(), about, achieved)


def _measure(
    case: Case, rounds: int, threads: int, budget_s: float, progress: bool
) -> tuple[Case, list[Row], list[ceilings.Work | None]]:
    with tempfile.TemporaryDirectory(prefix="brainfast-bench-") as folder:
        stage = open_stage(case, Path(folder), threads)
        rows = compare(stage, case.batches, rounds, budget_s=budget_s, progress=progress)
        work = [stage.work(row.precision, row.batch) for row in rows]
    torch.compiler.reset()
    return case, rows, work


def _achieved(row: Row, work: ceilings.Work | None, best: dict[str, float]) -> Row:
    """The row with its rates: the least work of the call over the best time."""
    if work is None or row.best_ms is None:
        return row
    seconds = row.best_ms / 1e3
    return replace(
        row,
        gflop_per_s=work.flops / seconds / 1e9,
        gbyte_per_s=work.bytes / seconds / 1e9,
        of_ceiling=ceilings.share(work, seconds, row.precision, best),
    )


def main() -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="some sizes, about two minutes")
    parser.add_argument("--only", default="", help="stages, e.g. readout,training (all)")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    only = [name for name in given.only.split(",") if name]
    cases = chosen(QUICK if given.quick else WHOLE, only)
    given.out.parent.mkdir(parents=True, exist_ok=True)

    def write(result: dict[str, Any]) -> None:
        write_json(given.out, {"quick": given.quick, **result})

    found = measure(
        cases,
        rounds=given.rounds,
        threads=given.threads,
        budget_s=BUDGET_S[given.quick],
        after_case=write,
    )
    print(f"{given.out} ({found['machine']['seconds']} s)")


if __name__ == "__main__":
    main()
