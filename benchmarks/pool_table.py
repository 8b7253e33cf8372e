"""Write the tables of docs/pools.md from results/pool.json.

python benchmarks/pool_table.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from brainfast.files import write_bytes
from readme_table import between

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "pool.json"
PAGE = ROOT / "docs" / "pools.md"
STEPS = ("build", "open", "choose, cold", "verify", "remove", "add")


def block(result: dict[str, Any]) -> str:
    """The machine, the choices, and the rest of a pool's life."""
    about, ceiling = result["machine"], result["ceilings"]
    lines = [
        f"On {about['threads']} threads of {about['cpu']} ({about['isa']}), {about['seconds']} s in"
        f" all; other processes kept {about['busy_elsewhere']} cores busy meanwhile. Memory reads"
        f" at {ceiling['dram_gbyte_per_s']:.0f} GB/s, and 12 MiB of it at"
        f" {ceiling['l3_gbyte_per_s']:.0f}.",
        "",
        *table(
            "pool|MB|objectives|form|best ms|median|p99|GB/s|of ceiling|error",
            (row for pool in result["pools"] for row in choices(pool)),
            words=1,
        ),
        "",
        *table(
            f"pool|{'|'.join(f'{step} s' for step in STEPS)}|most memory MB",
            map(life, result["pools"]),
            words=1,
        ),
    ]
    return "\n".join(lines) + "\n"


def choices(pool: dict[str, Any]) -> Iterator[list[str]]:
    """The cells of one pool in the first table."""
    for row in pool["rows"]:
        times = (row[f"{name}_ms"] for name in ("best", "median", "p99"))
        yield [
            name_of(pool),
            f"{pool['bytes']['pool.safetensors'] / 1e6:,.1f}",
            str(row["objectives"]),
            f"`{row['form']}`",
            *(f"{each:.3g}" for each in times),
            f"{row['gbyte_per_s']:.3g}",
            f"{row['of_ceiling']:.0%}".replace("%", " %"),
            f"{pool['errors']['score']:.1e}",
        ]


def life(pool: dict[str, Any]) -> list[str]:
    """The cells of one pool in the second table."""
    seconds = (pool["seconds"][step] for step in STEPS)
    most = max(pool["memory_bytes"].values()) / 1e6
    return [name_of(pool), *(f"{each:.3g}" for each in seconds), f"{most:,.0f}"]


def name_of(pool: dict[str, Any]) -> str:
    """Such as `BlobGPT, 100,000 x 1,024 bf16`."""
    case = pool["case"]
    head = {"blobgpt": "BlobGPT", "factortopy": "FactorTopy"}[case["head"]]
    projected = ", projected" if case["P"] else ""
    return f"{head}{projected}, {case['N']:,} x {case['F']:,} {case['dtype']}"


def table(head: str, rows: Iterable[list[str]], words: int) -> Iterator[str]:
    """A Markdown table, whose first columns are words and whose others are numbers."""
    names = head.split("|")
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * words}{'--:|' * (len(names) - words)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def main() -> None:
    """Write both."""
    text = PAGE.read_text(encoding="utf-8")
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    write_bytes(PAGE, between(text, "pools", block(result)).encode())


if __name__ == "__main__":
    main()
