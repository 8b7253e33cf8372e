"""Latency of a server under load, its memory over time, and what survives its worst days.

python benchmarks/serve.py [--quick] [--runtime torch] [--soak SECONDS] [--only faults,load,soak]
    [--out FILE]
python benchmarks/serve_table.py
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brainfast.bench.table import machine
from brainfast.files import write_json
from brainfast.machine import usable_cores
from brainfast.timing import BusyElsewhere
from serve_faults import FAULTS, audit, check
from serve_faults import OPTIONS as FAULTS_OPTIONS
from serve_load import Answers, load, open_sessions
from served_model import QUICK, WHOLE, Size, make_model, make_pool
from server_process import Server

RESULT = Path(__file__).resolve().parent / "results" / "serve.json"
TR_S = 0.75  # of a fast multiband scan
PARTS = ("faults", "load", "soak")
SOAK_EVERY_S = 1.0
SOAK_SESSIONS = 2  # and as many clients that predict


class Case(NamedTuple):
    """So many clients that `choose` or `predict`, at once or every pace_s, for some seconds."""

    act: str
    clients: int
    pace_s: float | None
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What is served, the cases of the load, and the seconds of the rest. tr_s: between requests
    of whoever keeps a scanner's pace."""

    size: Size
    runtime: str
    cases: Sequence[Case]
    beside_s: float
    tr_s: float
    soak_s: float

    @property
    def clients(self) -> int:
        """The most at once."""
        return max(case.clients for case in self.cases)


# As long as it takes on two cores until p99.9 can be told of choices at once and of new images of
# one client, and p99 of all else.
WHOLE_CASES = (
    *(Case("choose", clients, None, 20.0) for clients in (1, 2, 4, 8, 16)),
    Case("choose", 1, TR_S, 78.0),
    *(Case("choose", clients, TR_S, 42.0) for clients in (2, 4, 8, 16)),
    Case("predict", 1, None, 150.0),
    *(Case("predict", clients, None, 20.0) for clients in (2, 4, 8, 16)),
    Case("predict", 1, TR_S, 78.0),
    *(Case("predict", clients, TR_S, 42.0) for clients in (2, 4)),
    *(Case("predict", clients, TR_S, 20.0) for clients in (8, 16)),  # more than two cores can do
)
QUICK_CASES = tuple(
    Case(act, clients, pace_s, 0.5)
    for act in ("choose", "predict")
    for pace_s in (None, 0.1)
    for clients in (1, 3)
)


def measure_load(server: Server, plan: Plan, received: list[Any]) -> list[dict[str, Any]]:
    """Choices and new images, at once and at the pace of a scanner, alone and beside each other."""
    rows = []
    for case in plan.cases:
        answers = asyncio.run(load(server.address, *case, plan.size.V))
        received += answers.received
        rows += _rows(answers, {"clients": case.clients, "pace_s": case.pace_s, "beside": ""})
    answers, other = asyncio.run(_beside(server, plan))
    received += answers.received
    rows += _rows(answers, {"clients": 1, "pace_s": plan.tr_s, "beside": "1 that predicts at once"})
    rows += _rows(other, {"clients": 1, "pace_s": None, "beside": "1 that chooses"})
    return rows


async def _beside(server: Server, plan: Plan) -> tuple[Answers, Answers]:
    V, seconds = plan.size.V, plan.beside_s
    return await asyncio.gather(
        load(server.address, "choose", 1, plan.tr_s, seconds, V),
        load(server.address, "predict", 1, None, seconds, V),
    )


def _rows(answers: Answers, about: dict[str, Any]) -> list[dict[str, Any]]:
    operations = [name for name in ("next", "tell", "predict") if answers.asked(name)]
    late = {"late": answers.late}
    return [
        about | {"operation": name} | answers.row(name) | (late if name == "next" else {})
        for name in operations
    ]


def measure_faults(server: Server, plan: Plan, received: list[Any]) -> dict[str, dict[str, Any]]:
    """Every fault, one after another, on one server."""
    found: dict[str, dict[str, Any]] = {}
    for name, act in FAULTS.items():
        answers = Answers()
        found[name] = asyncio.run(act(server, answers, plan.size.V))
        received += answers.received
    return found


def measure_soak(server: Server, plan: Plan, received: list[Any]) -> dict[str, Any]:
    """Two sessions and two that predict, at the pace of a scanner; memory every second."""
    return asyncio.run(_soak(server, plan, received))


async def _soak(server: Server, plan: Plan, received: list[Any]) -> dict[str, Any]:
    V = plan.size.V
    samples: list[tuple[float, int]] = []
    start = time.monotonic()

    async def watch() -> None:
        while True:
            samples.append((time.monotonic() - start, server.rss()))
            await asyncio.sleep(SOAK_EVERY_S)

    watching = asyncio.ensure_future(watch())
    choosing, predicting = await asyncio.gather(
        # A run is a session: these begin with it, while those before hold thousands of trials.
        load(server.address, "choose", SOAK_SESSIONS, plan.tr_s, plan.soak_s, V, plan.clients),
        load(server.address, "predict", SOAK_SESSIONS, plan.tr_s, plan.soak_s, V),
    )
    watching.cancel()
    received += choosing.received
    seconds, rss = (np.array(column, dtype=np.float64) for column in zip(*samples, strict=True))
    half = seconds > seconds[-1] / 2  # the first half fills caches and buffers
    slope = np.polyfit(seconds[half], rss[half], 1)[0] if half.sum() > 2 else 0.0
    about = {"clients": SOAK_SESSIONS, "pace_s": plan.tr_s, "beside": "soak"}
    return {
        "seconds": round(float(seconds[-1])),
        "rows": _rows(choosing, about) + _rows(predicting, about),
        "rss_mib": {
            "start": round(rss[0] / 2**20),
            "middle": round(float(rss[half][0]) / 2**20),
            "end": round(rss[-1] / 2**20),
            "most": round(float(rss.max()) / 2**20),
            "growth_per_hour_in_second_half": round(3600 * float(slope) / 2**20, 1),
        },
    }


def measure(plan: Plan, parts: Collection[str], work: Path) -> dict[str, Any]:
    """The faults first, since one that does not come about ends it; at the end the audit of every
    log."""
    model = make_model(work, plan.size)
    pool = make_pool(model, work / "pool", plan.size)
    elsewhere, received = BusyElsewhere(), []
    model_row = plan.size._asdict() | {"runtime": plan.runtime, "trunk_precision": "bf16"}
    found: dict[str, Any] = {"model": model_row, "tr_s": plan.tr_s}
    logs = work / "logs"
    logs.mkdir()
    options = ("--runtime", plan.runtime, "--trunk-precision", "bf16")
    options += ("--sessions", str(plan.clients + 8))
    drained = found["exit_codes_of_drain"] = []
    if "faults" in parts:
        with Server(model, pool, logs, *options, *FAULTS_OPTIONS, stalls=True) as server:
            found["faults"] = measure_faults(server, plan, received)
            drained.append(server.drain())
    if "load" in parts or "soak" in parts:
        with Server(model, pool, logs, *options) as server:
            opening = time.monotonic()
            count = plan.clients + SOAK_SESSIONS
            asyncio.run(open_sessions(server.address, count))
            found["opened_s"] = round((time.monotonic() - opening) / count, 2)
            if "load" in parts:
                found["load"] = measure_load(server, plan, received)
            if "soak" in parts:
                found["soak"] = measure_soak(server, plan, received)
            drained.append(server.drain())
    found["audit"] = audit(logs, received)
    found["machine"] = machine(usable_cores()) | {"busy_elsewhere": elsewhere.cores()}
    return found


def _parts(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if not set(names) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(PARTS)}, got {text}")
    return tuple(names)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the JSON, and print; then a RuntimeError if a log is not what it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds")
    parser.add_argument("--runtime", choices=("compile", "torch"), default="compile")
    parser.add_argument("--soak", type=float, default=600.0)
    parser.add_argument("--only", type=_parts, default=PARTS, metavar=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args(arguments)
    plan = Plan(WHOLE, chosen.runtime, WHOLE_CASES, 78.0, TR_S, chosen.soak)
    if chosen.quick:
        plan = Plan(QUICK, "torch", QUICK_CASES, 0.5, 0.1, min(chosen.soak, 2.0))
    with tempfile.TemporaryDirectory() as work:
        found = measure(plan, chosen.only, Path(work))
    write_json(chosen.out, found)
    for row in found.get("load", []) + found.get("soak", {}).get("rows", []):
        print(row)
    for name in ("faults", "audit"):
        print(name, found.get(name))
    print("memory", found.get("soak", {}).get("rss_mib"))
    check(found["audit"])


if __name__ == "__main__":
    main()
