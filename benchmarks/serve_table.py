"""Write the table of docs/serve.md from the JSON of `serve.py`.

python benchmarks/serve_table.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from brainfast.files import write_bytes
from readme_table import ROOT, between

RESULT = ROOT / "benchmarks" / "results" / "serve.json"
PAGE = ROOT / "docs" / "serve.md"
WHAT = {"next": "next image of a session", "tell": "tell", "predict": "response to a new image"}
QUANTILES = {"p50": "p50_ms", "p99": "p99_ms", "p99.9": "p999_ms", "max": "max_ms"}
BUDGETS_MS = {"next": 10, "predict": 200}  # p99 at a scanner's pace


def block(found: Mapping[str, Any]) -> str:
    """What was measured, in Markdown."""
    parts = (_budgets(found), _load(found), _soak(found), _faults(found), _about(found))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _budgets(found: Mapping[str, Any]) -> Iterator[str]:
    for operation, budget in BUDGETS_MS.items():
        rows = [row for row in found["load"] if row["pace_s"] and not row["beside"]]
        alone = _first(rows, operation, clients=1)
        soak = _first(found["soak"]["rows"], operation)
        yield (
            f"- {WHAT[operation].capitalize()}, asked for every {found['tr_s']:g} s:"
            f" {_verdict(alone, budget)} for one client alone,"
            f" {_verdict(soak, budget)} over {found['soak']['seconds']:,} s without a break."
        )


def _first(rows: Iterable[Mapping[str, Any]], operation: str, **about: Any) -> Mapping[str, Any]:
    wanted = {"operation": operation} | about
    return next(row for row in rows if wanted.items() <= row.items())


def _verdict(row: Mapping[str, Any], budget: float) -> str:
    p99 = row["p99_ms"]
    if p99 is None:
        return f"too few answers ({row['answers']}) for a p99"
    verdict = "within" if p99 <= budget else "**beyond**"
    return f"p99 {_ms(p99)} ms ({verdict} the budget of {budget} ms)"


def _load(found: Mapping[str, Any]) -> Iterator[str]:
    times = " | ".join(f"{name} ms" for name in QUANTILES)
    yield f"| | clients | each asks | answers | {times} | late | refused |"
    yield "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|"
    for row in sorted(found["load"], key=lambda row: list(WHAT).index(row["operation"])):
        pace = "at once" if row["pace_s"] is None else f"every {row['pace_s']:g} s"
        beside = f", beside {row['beside']}" if row["beside"] else ""
        times = (_ms(row[key]) for key in QUANTILES.values())
        late = str(row["late"]) if "late" in row else ""
        what = WHAT[row["operation"]]
        refused = sum(row["refused"].values())
        cells = (what, row["clients"], pace + beside, row["answers"], *times, late, refused)
        yield f"| {' | '.join(str(cell) for cell in cells)} |"


def _soak(found: Mapping[str, Any]) -> Iterator[str]:
    soak, memory = found["soak"], found["soak"]["rss_mib"]
    yield (
        f"**{soak['seconds']:,} s without a break** (2 sessions and 2 clients with new images, one"
        f" request every {found['tr_s']:g} s each): resident memory {memory['start']:,} MiB at the"
        f" start, {memory['middle']:,} in the middle, {memory['end']:,} at the end,"
        f" {memory['growth_per_hour_in_second_half']:g} MiB an hour over the second half."
    )
    yield ""
    for row in soak["rows"]:
        times = ", ".join(f"{name} {_ms(row[key])}" for name, key in QUANTILES.items())
        refused = sum(row["refused"].values())
        yield (
            f"- {WHAT[row['operation']]}: {row['answers']:,} answers, {times} ms, {refused} refused"
        )


def _faults(found: Mapping[str, Any]) -> Iterator[str]:
    faults, audit = found["faults"], found["audit"]
    died, full = faults["client dies"], faults["queue full"]
    stalls, killed = faults["trunk stalls"], faults["server killed"]
    yield (
        f"- A client killed with a request under way: it had {died['given']} choices,"
        f" {died['choices']} are in the log, {died['outstanding']} of them still to be told by the"
        " next client."
    )
    refused = ", ".join(f"{count} {code}" for code, count in full["predict"]["refused"].items())
    yield (
        f"- {full['asked']} new images at once, of which {full['waiting']} may wait:"
        f" {full['predict']['answers']} answered, {refused} refused; `next` of a session"
        f" meanwhile p50 {_ms(full['next']['p50_ms'])} ms, max {_ms(full['next']['max_ms'])} ms."
    )
    refused = ", ".join(f"{count} {code}" for code, count in stalls["predict"]["refused"].items())
    yield (
        f"- A trunk that hangs: {refused}; `next` meanwhile max {_ms(stalls['next']['max_ms'])} ms;"
        f" answered again {stalls['answered_again_after_s']:g} s after it came back."
    )
    longest = max(row["max_ms"] for row in killed.values())
    yield (
        f"- The server killed with SIGKILL and started again: {killed['next']['answers']} choices,"
        f" the longest wait for an answer {_ms(longest)} ms."
    )
    yield (
        f"- {audit['choices_received']:,} choices were given to clients in all,"
        f" {audit['received_but_not_logged']} of them missing in the logs; of {audit['logs']} logs"
        f" {audit['logs_that_replay_otherwise']} replay otherwise."
    )


def _about(found: Mapping[str, Any]) -> Iterator[str]:
    model, machine = found["model"], found["machine"]
    versions = machine["versions"]
    busy = machine["busy_elsewhere"]
    yield (
        f"FactorTopy of {model['V']:,} vertices on {model['trunk']} in"
        f" {model['trunk_precision']} (`--runtime {model['runtime']}`), a pool of"
        f" {model['candidates']:,} candidates with all their tokens in bf16, one server and all"
        f" clients on {machine['cores']} cores of {machine['cpu']} ({machine['isa']}), torch"
        f" {versions['torch']}. Times are the clients', from the call to the answer, over a Unix"
        f" socket. At a pace, a session is told what was measured half a pace before `next`."
        + (f" Other processes kept {busy:.1f} cores busy." if busy else "")
    )


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """Read the JSON, write the page."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    write_bytes(PAGE, between(text, "serve", block(found)).encode())


if __name__ == "__main__":
    main()
