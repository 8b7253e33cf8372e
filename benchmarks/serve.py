"""Latency of a server under load, its memory over time, and what survives its worst days.

python benchmarks/serve.py [--quick] [--soak SECONDS] [--only load,soak,faults] [--out FILE]
python benchmarks/serve_table.py
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import serve_faults
from brainfast.bench.table import machine
from brainfast.files import write_json
from brainfast.machine import usable_cores
from brainfast.timing import BusyElsewhere
from serve_load import Answers, load, open_sessions
from served_model import QUICK, WHOLE, Size, make_model, make_pool
from server_process import Server

RESULT = Path(__file__).resolve().parent / "results" / "serve.json"
CLIENTS = (1, 2, 4, 8, 16)
TR_S = 1.5
PARTS = ("load", "soak", "faults")
SOAK_EVERY_S = 1.0


@dataclass(frozen=True)
class Plan:
    """What is served, and how long each part takes, in seconds."""

    size: Size
    runtime: str
    clients: Sequence[int]
    tight_s: float
    paced_s: float
    tr_s: float
    soak_s: float


def measure_load(server: Server, plan: Plan, received: list[Any]) -> list[dict[str, Any]]:
    """Choices and new images, at once and at the pace of a scanner, alone and beside each other."""
    rows = []
    cases = [
        (act, clients, pace)
        for act in ("choose", "predict")
        for pace in (None, plan.tr_s)
        for clients in plan.clients
    ]
    for act, clients, pace in cases:
        seconds = plan.tight_s if pace is None else plan.paced_s
        answers = asyncio.run(load(server.address, act, clients, pace, seconds, plan.size.V))
        received += answers.received
        rows += _rows(answers, {"clients": clients, "pace_s": pace, "beside": ""})
    answers, other = asyncio.run(_beside(server, plan))
    received += answers.received
    rows += _rows(answers, {"clients": 1, "pace_s": plan.tr_s, "beside": "1 that predicts at once"})
    rows += _rows(other, {"clients": 1, "pace_s": None, "beside": "1 that chooses"})
    return rows


async def _beside(server: Server, plan: Plan) -> tuple[Answers, Answers]:
    V, seconds = plan.size.V, plan.paced_s
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


def measure_faults(
    server: Server, plan: Plan, stall: Path, received: list[Any]
) -> dict[str, dict[str, Any]]:
    """Every fault, one after another, on one server."""
    V = plan.size.V
    found: dict[str, dict[str, Any]] = {}
    faults = {
        "client dies": lambda answers: serve_faults.client_that_dies(server, answers),
        "queue full": lambda answers: serve_faults.full_queue(server, answers, V),
        "trunk stalls": lambda answers: serve_faults.stalled_trunk(server, answers, V, stall),
        "server killed": lambda answers: serve_faults.killed_server(server, answers, V),
    }
    for name, act in faults.items():
        answers = Answers()
        found[name] = asyncio.run(act(answers))
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
        load(server.address, "choose", 2, plan.tr_s, plan.soak_s, V),
        load(server.address, "predict", 2, plan.tr_s, plan.soak_s, V),
    )
    watching.cancel()
    received += choosing.received
    seconds, rss = (np.array(column, dtype=np.float64) for column in zip(*samples, strict=True))
    half = seconds > seconds[-1] / 2  # the first half fills caches and buffers
    slope = np.polyfit(seconds[half], rss[half], 1)[0] if half.sum() > 2 else 0.0
    about = {"clients": 2, "pace_s": plan.tr_s, "beside": "soak"}
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


def measure(plan: Plan, parts: Sequence[str], work: Path) -> dict[str, Any]:
    """All of it, in the order of `parts`; the audit of every log at the end."""
    model = make_model(work, plan.size)
    pool = make_pool(model, work / "pool", plan.size)
    elsewhere, received = BusyElsewhere(), []
    model_row = plan.size._asdict() | {"runtime": plan.runtime, "trunk_precision": "bf16"}
    found: dict[str, Any] = {"model": model_row, "tr_s": plan.tr_s}
    logs, stall = work / "logs", work / "stall"
    logs.mkdir()
    options = ("--runtime", plan.runtime, "--trunk-precision", "bf16")
    options += ("--sessions", str(max(plan.clients) + 8))
    with Server(model, pool, logs, *options, stall=stall) as server:
        opening = time.monotonic()
        asyncio.run(open_sessions(server.address, max(plan.clients)))
        found["opened_s"] = round((time.monotonic() - opening) / max(plan.clients), 2)
        if "load" in parts:
            found["load"] = measure_load(server, plan, received)
        if "soak" in parts:
            found["soak"] = measure_soak(server, plan, received)
        if "faults" in parts:
            found["faults"] = measure_faults(server, plan, stall, received)
        found["exit_code_of_drain"] = server.drain()
    found["audit"] = serve_faults.audit(logs, received)
    found["machine"] = machine(usable_cores()) | {"busy_elsewhere": elsewhere.cores()}
    return found


def _parts(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if not set(names) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(PARTS)}, got {text}")
    return tuple(names)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds")
    parser.add_argument("--soak", type=float, default=600.0)
    parser.add_argument("--only", type=_parts, default=PARTS, metavar=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args(arguments)
    plan = Plan(WHOLE, "compile", CLIENTS, 5.0, 15.0, TR_S, chosen.soak)
    if chosen.quick:
        plan = Plan(QUICK, "torch", (1, 3), 0.5, 1.0, 0.1, min(chosen.soak, 3.0))
    with tempfile.TemporaryDirectory() as work:
        found = measure(plan, chosen.only, Path(work))
    write_json(chosen.out, found)
    for row in found.get("load", []) + found.get("soak", {}).get("rows", []):
        print(row)
    for name in ("faults", "audit"):
        print(name, found.get(name))
    print("memory", found.get("soak", {}).get("rss_mib"))


if __name__ == "__main__":
    main()
