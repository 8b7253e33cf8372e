"""Build pools of full size, then open, check, choose from, grow and verify them; write one JSON.

python benchmarks/pool.py [--quick] [--only blobgpt] [--folder /fast/disk]

100,000 candidates of BlobGPT and 10,000 of FactorTopy, in full and projected. Their tokens are made
up; heads, files and choices are the real ones. Under three minutes if it is quiet, 5 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import ceilings
from brainfast import _C
from brainfast.bench.table import machine
from brainfast.files import write_json
from brainfast.machine import status_bytes
from brainfast.pool import Pool
from brainfast.pool_file import DATA_FILE, ITEMS_FILE
from brainfast.timing import BusyElsewhere, interleave, using_threads
from made_up_pool import MadeUpEngine, Number, PoolCase

RESULT = Path(__file__).resolve().parent / "results" / "pool.json"
CHOICES = 10
OBJECTIVES = (1, 24)
ADDED = 100
BAR = 1e-5  # of a score, in standard deviations of all candidates' scores
BLOCK_BYTES = 1 << 26  # of features in float32, computed or checked at a time
L3_BYTES = 24 << 20  # as in the ceilings

WHOLE = (
    PoolCase("blobgpt", 100_000, "bf16"),
    PoolCase("blobgpt", 100_000, "int8"),
    PoolCase("blobgpt", 100_000, "bf16", P=24),
    PoolCase("blobgpt", 100_000, "bf16", P=256),
    PoolCase("factortopy", 10_000, "bf16"),
    PoolCase("factortopy", 10_000, "int8"),
    PoolCase("factortopy", 10_000, "bf16", P=24),
    PoolCase("factortopy", 10_000, "bf16", P=256),
)

Result = TypeVar("Result")


def quick(case: PoolCase) -> PoolCase:
    """The same at tiny sizes."""
    return replace(case, N=case.N // 100, V=512, L=2, D=8, side=2, K=64)


def contrasts(count: int) -> list[str]:
    """Objectives that every pool answers, the projected ones too."""
    return [f"R{n} - 0.3*R{(n + 1) % 24}" for n in range(count)]


def measure(case: PoolCase, folder: Path, rounds: int, ceiling: dict[str, float]) -> dict[str, Any]:
    """Everything about one pool; a choice that is not the best is an error."""
    engine = MadeUpEngine(case)
    path = folder / case.name
    sources = [Number(number) for number in range(case.N)]
    batch = at_once(case.features)
    options: dict[str, Any] = {"dtype": case.dtype, "project": case.objectives or None}
    seconds, memory = {}, {}

    def timed(name: str, call: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        found, memory[name] = with_peak_anonymous(call)
        seconds[name] = time.perf_counter() - start
        return found

    timed("build", lambda: Pool.build(engine, sources, path=path, batch_size=batch, **options))
    forget(path / DATA_FILE)
    pool = timed("open", lambda: Pool.open(path, engine))
    timed("choose, cold", lambda: pool.top(contrasts(24), CHOICES))
    errors = check(pool)
    rows = choose(pool, rounds, ceiling)
    timed("response of ten", lambda: pool.response(pool.names[:10])) if not case.P else None
    problems = timed("verify", pool.verify)
    timed("remove", lambda: pool.remove(pool.names[:1]))
    more = [Number(case.N + number) for number in range(ADDED)]
    grown = timed("add", lambda: pool.add(more, batch_size=batch))
    if problems or len(grown) != case.N - 1 + ADDED:
        raise SystemExit(f"{case.name}: {problems or len(grown)}")
    return {
        "case": {"name": case.name, **asdict(case), "F": pool.index.features},
        "bytes": {name: (path / name).stat().st_size for name in (DATA_FILE, ITEMS_FILE)},
        "seconds": seconds,
        "memory_bytes": memory,
        "errors": errors,
        "rows": rows,
    }


def choose(pool: Pool, rounds: int, ceiling: dict[str, float]) -> list[dict[str, Any]]:
    """Warm times of `Pool.top` and of `score_topk` within it."""
    features, scale, none = pool.rows.features, pool.rows.scale, np.zeros(len(pool), bool)
    calls: dict[str, Callable[[], object]] = {}
    for count in OBJECTIVES:
        wanted = contrasts(count)
        rows = pool.templates(wanted)[0]
        calls[f"Pool.top {count}"] = lambda wanted=wanted: pool.top(wanted, CHOICES)
        calls[f"score_topk {count}"] = lambda rows=rows: _C.score_topk(
            features, rows, CHOICES, none, scale=scale
        )
    found = []
    rate = ceiling["l3_gbyte_per_s" if features.nbytes < L3_BYTES else "dram_gbyte_per_s"]
    for name, seconds in interleave(calls, rounds, budget_s=5.0).items():
        run = seconds[np.isfinite(seconds)] * 1e3
        gbyte_per_s = features.nbytes / run.min() / 1e6
        found.append(
            {
                "form": name.rpartition(" ")[0],
                "objectives": int(name.rpartition(" ")[2]),
                "rounds": len(run),
                "best_ms": float(run.min()),
                "median_ms": float(np.median(run)),
                "p99_ms": float(np.percentile(run, 99)),
                "gbyte_per_s": gbyte_per_s,
                "of_ceiling": gbyte_per_s / rate,
            }
        )
    return found


def check(pool: Pool) -> dict[str, float]:
    """Errors of the scores of the choices, and of the choices, against float64 on the stored rows;
    in standard deviations of an objective's scores over the pool."""
    wanted = contrasts(max(OBJECTIVES))
    templates, offset = (part.astype(np.float64) for part in pool.templates(wanted))
    size = at_once(pool.index.features)
    blocks = [
        stored(pool, slice(first, first + size)) @ templates.T + offset
        for first in range(0, len(pool), size)
    ]
    scores = np.concatenate(blocks)
    best = -np.sort(-scores, axis=0)[:CHOICES].T
    spread = scores.std(axis=0)[:, None]
    choices = list(pool.top(wanted, CHOICES).values())
    told = np.array([[each.score for each in some] for some in choices])
    true = np.array([[scores[c.row, n] for c in some] for n, some in enumerate(choices)])
    errors = {
        "score": float(np.abs((told - true) / spread).max()),
        "choice": float(np.abs((true - best) / spread).max()),
    }
    if max(errors.values()) > BAR:
        raise SystemExit(f"{pool}: errors {errors} beyond {BAR}")
    return errors


def at_once(features: int) -> int:
    """How many candidates."""
    return max(1, BLOCK_BYTES // (4 * features))


def stored(pool: Pool, rows: slice) -> np.ndarray:  # [B,F]
    """What some candidates' rows mean, in float64."""
    features = pool.rows.features[rows]
    if pool.rows.scale is not None:
        return features.astype(np.float64) * pool.rows.scale[rows, None].astype(np.float64)
    bits = torch.from_numpy(features.astype(np.int32))
    return (bits << 16).view(torch.float32).double().numpy()


def forget(path: Path) -> None:
    """Drop a file that nobody maps from the system's cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def with_peak_anonymous(call: Callable[[], Result]) -> tuple[Result, int]:
    """The result of `call`, and by how many bytes memory that no file backs rose meanwhile."""
    status, done = Path("/proc/self/status"), threading.Event()
    before = peak = status_bytes(status, "RssAnon")

    def watch() -> None:
        nonlocal peak
        while not done.wait(2e-3):
            peak = max(peak, status_bytes(status, "RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = call()
    finally:
        done.set()
        watcher.join()
    return result, max(0, peak - before)


def main() -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny pools, some seconds")
    parser.add_argument("--only", default="", help="part of the cases' names")
    parser.add_argument("--rounds", type=int, default=25, help="interleaved rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="where the pools are built (the system's)")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    cases = [case for case in map(quick, WHOLE) if given.quick] or list(WHOLE)
    cases = [case for case in cases if given.only in case.name]
    if not cases:
        parser.error(f"--only: none of {', '.join(case.name for case in WHOLE)}")
    found = run(cases, given.rounds, given.threads, given.folder)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, {"quick": given.quick, **found})
    print(f"{given.out} ({found['machine']['seconds']} s)")


def run(cases: Sequence[PoolCase], rounds: int, threads: int, place: Path | None) -> dict[str, Any]:
    """Machine, ceilings, and what was measured of every case; nothing is left on the disk."""
    started, elsewhere = time.monotonic(), BusyElsewhere()
    with using_threads(threads), tempfile.TemporaryDirectory(dir=place) as folder:
        ceiling = ceilings.measure()
        pools = []
        for case in cases:
            check_space(case, Path(folder))
            pools.append(measure(case, Path(folder), rounds, ceiling))
            shutil.rmtree(Path(folder) / case.name)
            print(line(pools[-1]), flush=True)
    about = machine(threads) | {
        "busy_elsewhere": elsewhere.cores(),
        "seconds": round(time.monotonic() - started),
    }
    return {"machine": about, "ceilings": ceiling, "pools": pools}


def check_space(case: PoolCase, folder: Path) -> None:
    """A pool that grows lies on the disk twice."""
    need = 2.2 * case.N * (case.P or case.features) * {"bf16": 2, "int8": 1}[case.dtype]
    if shutil.disk_usage(folder).free < need:
        raise SystemExit(f"{case.name}: needs {need / 1e9:.1f} GB of disk in {folder}; --folder")


def line(pool: dict[str, Any]) -> str:
    """What was measured, in a line."""
    best = {f"{row['form']} {row['objectives']}": row["best_ms"] for row in pool["rows"]}
    parts = [f"{name} {1e3 * value:.0f}" for name, value in pool["seconds"].items()]
    parts += [f"{name} {value:.2f}" for name, value in best.items()]
    return f"{pool['case']['name']}: {', '.join(parts)} ms"


if __name__ == "__main__":
    main()
