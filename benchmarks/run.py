"""Measure every case and write one JSON.

python benchmarks/run.py [--quick] [--resume] [--only readout,training]
python benchmarks/readme_table.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import ceilings
from brainfast.bench import BenchTable, Row, print_table
from brainfast.bench.compare import compare
from brainfast.bench.table import machine
from brainfast.files import write_json
from brainfast.machine import available_memory
from brainfast.timing import BusyElsewhere, using_threads
from cases import QUICK, WHOLE, Case, chosen
from stages import open_stage

RESULT = Path(__file__).resolve().parent / "results" / "cpu.json"
BUDGET_S = {True: 2.0, False: 4.0}  # of a slow form, by --quick

Result = dict[str, Any]


class Measurement(NamedTuple):
    """A case, its rows without rates, and the least work of each."""

    case: Case
    rows: list[Row]
    work: list[ceilings.Work | None]


def measure(
    cases: Sequence[Case],
    *,
    rounds: int,
    threads: int,
    budget_s: float,
    progress: bool = True,
    before: Mapping[str, Any] | None = None,
    after_case: Callable[[Result], object] = lambda result: None,
) -> Result:
    """Machine, ceilings (the best of those taken around every case), a table a case, and why cases
    have none: `left_out` for want of memory, `failed` with an error.

    before: an earlier result, whose tables are taken over. after_case: given the result so far, so
    that a run that is stopped keeps what it has measured.
    """
    started, elsewhere = time.monotonic(), BusyElsewhere()
    kept = _kept(before, threads, cases)
    spent = before["machine"]["seconds"] if before and kept else 0
    result: Result = {"tables": kept, "left_out": {}, "failed": {}}
    with using_threads(threads):
        best = _best(ceilings.measure(), before["ceilings"] if before and kept else {})
        found: list[Measurement] = []
        for case in cases:
            if any(table["case"] == case.as_json() for table in kept):
                continue
            problem = memory_problem(case)
            if problem:
                result["left_out"][case.name] = problem
            else:
                try:
                    found.append(_measure(case, rounds, threads, budget_s, progress))
                except Exception as error:  # one case may not cost the others
                    result["failed"][case.name] = f"{type(error).__name__}: {error}"
                    print(case.name, result["failed"][case.name], sep=": ", flush=True)
            best = _best(best, ceilings.measure())
            about = machine(threads) | {
                "busy_elsewhere": elsewhere.cores(),
                "seconds": spent + round(time.monotonic() - started),
            }
            tables = [_table(each, about, best) for each in found]
            if progress and found and found[-1].case is case:
                print_table(tables[-1])
            plain = [{"case": t.case, "rows": t.as_json()["rows"]} for t in tables]
            result |= {"machine": about, "ceilings": best, "tables": _sorted(kept + plain, cases)}
            after_case(result)
    if "machine" not in result:  # everything was there before
        result |= {"machine": before["machine"] if before else machine(threads), "ceilings": best}
    return result


def memory_problem(case: Case) -> str | None:
    """Why a case is left out: it needs more memory than is free."""
    free = available_memory()
    if case.memory <= free:
        return None
    return f"needs about {case.memory / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


def _kept(
    before: Mapping[str, Any] | None, threads: int, cases: Sequence[Case]
) -> list[dict[str, Any]]:
    """The tables of an earlier result of the same cases, machine and versions."""
    if before is None:
        return []
    now, then = machine(threads), before["machine"]
    if any(then[name] != value for name, value in now.items()):
        raise SystemExit("--resume: the result is another machine's, or of other versions")
    wanted = [case.as_json() for case in cases]
    return [table for table in before["tables"] if table["case"] in wanted]


def _best(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: max(value, other.get(name, 0.0)) for name, value in one.items()}


def _sorted(tables: list[dict[str, Any]], cases: Sequence[Case]) -> list[dict[str, Any]]:
    order = [case.as_json() for case in cases]
    return sorted(tables, key=lambda table: order.index(table["case"]))


def _table(found: Measurement, about: dict[str, Any], best: dict[str, float]) -> BenchTable:
    pairs = zip(found.rows, found.work, strict=True)
    achieved = tuple(_achieved(row, work, best) for row, work in pairs)
    return BenchTable(found.case.as_json(), about, achieved)


def _measure(case: Case, rounds: int, threads: int, budget_s: float, progress: bool) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="brainfast-bench-") as folder:
        stage = open_stage(case, Path(folder), threads)
        rows = compare(stage, case.batches, rounds, budget_s=budget_s, progress=progress)
        work = [stage.work(row.precision, row.batch) for row in rows]
    torch.compiler.reset()
    return Measurement(case, rows, work)


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
    """Parse the command line, measure, write; the exit code tells whether a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="some sizes, about two minutes")
    parser.add_argument("--resume", action="store_true", help="keep the cases that are there")
    parser.add_argument("--only", default="", help="stages, e.g. readout,training (all)")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    only = [name for name in given.only.split(",") if name]
    cases = chosen(QUICK if given.quick else WHOLE, only)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    before = None
    if given.resume and given.out.exists():
        before = json.loads(given.out.read_text(encoding="utf-8"))

    def write(result: Result) -> None:
        write_json(given.out, {"quick": given.quick, **result})

    found = measure(
        cases,
        rounds=given.rounds,
        threads=given.threads,
        budget_s=BUDGET_S[given.quick],
        before=before,
        after_case=write,
    )
    print(f"{given.out} ({found['machine'].get('seconds', 0)} s)")
    if found["failed"]:
        raise SystemExit("failed: " + "; ".join(f"{n}: {e}" for n, e in found["failed"].items()))


if __name__ == "__main__":
    main()
