"""What `run.py` wrote, read again: for the tables and the plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brainfast.bench import BenchTable, Row

BASE = {"V": 37_984, "L": 12, "D": 128}


@dataclass(frozen=True)
class Measured:
    """The tables of a run, its machine and the ceilings measured in it."""

    machine: dict[str, Any]
    ceilings: dict[str, float]
    tables: tuple[BenchTable, ...]
    missing: Mapping[str, str] = field(default_factory=dict)  # cases without a table, and why

    @classmethod
    def read(cls, path: Path) -> Measured:
        """Read the JSON of a run."""
        values = json.loads(path.read_text(encoding="utf-8"))
        machine = values["machine"]
        tables = (BenchTable.from_json({"machine": machine, **each}) for each in values["tables"])
        missing = values.get("left_out", {}) | values.get("failed", {})
        return cls(machine, values["ceilings"], tuple(tables), missing)

    def of_stage(self, stage: str, **sizes: int) -> Iterator[tuple[dict[str, Any], Row]]:
        """(case, row) of every row of a stage whose case has these sizes."""
        for table in self.tables:
            case = dict(table.case)
            if case["stage"] == stage and all(
                case.get(name) == size for name, size in sizes.items()
            ):
                yield from ((case, row) for row in table.rows)

    def about(self) -> str:
        """The machine in one line."""
        machine, versions = self.machine, self.machine["versions"]
        named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "onnxruntime", "numpy"))
        return f"{machine['threads']} threads of {machine['cpu']} ({machine['isa']}), {named}"


def label(row: Row) -> str:
    """A form as tables and plots call it."""
    return f"{row.form}, {row.library} {row.precision}"
