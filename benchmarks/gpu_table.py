"""What `gpu.sh` found, as the README's table and as a page of docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import TITLES
from measured import BASE

NOTHING = "GPU figures are not measured yet: `sh benchmarks/gpu.sh` measures them."
BATCHES = (1, 8, 32, 256)

EXPLAINED = """\
Times are of one call, in milliseconds, by CUDA events around a CUDA graph of calls, each with
constants and inputs of its own, together more than twice the L2 cache: every call reads from the
GPU's memory. **best**, **median** and **p99** are of interleaved rounds; **warm**: the best over
one set of inputs again and again; **launched**: the best when Python launches every call.
**ratio**: over our first form of the same precision. **error**: against float64, in standard
deviations of the response less its bias (training: of the worst gradient, in units of its root mean
square); a form beyond its **bar** is not timed. **tflop per s** and **tbyte per s** divide the
least work of a call by its best time. Image latencies are the caller's, from numpy to numpy, with
random trunk weights; `sets`: how many pairs of constants and inputs were rotated."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Gpu:
    """One run of `gpu.sh`."""

    values: Mapping[str, Any]

    @classmethod
    def read_all(cls, folder: Path) -> list[Gpu]:
        """Every gpu-*.json of a folder, by name."""
        paths = sorted(folder.glob("gpu-*.json"))
        return [cls(json.loads(path.read_text(encoding="utf-8"))) for path in paths]

    @property
    def about(self) -> str:
        """GPU, driver and versions in one line."""
        machine = self.values["machine"]
        versions = machine["versions"]
        return (
            f"{machine['gpu']} (driver {machine['driver']}), torch {versions['torch']},"
            f" nvcc {versions['nvcc']}"
        )

    def rows(self, stage: str, **sizes: int) -> list[Row]:
        """Of the cases of a stage that have these sizes."""
        return [
            row
            for table in self.values["tables"]
            if table["case"]["stage"] == stage
            and all(table["case"].get(name, size) == size for name, size in sizes.items())
            for row in table["rows"]
        ]


def readme_block(runs: Sequence[Gpu]) -> str:
    """The README's tables; one line where nobody has measured."""
    if not runs:
        return NOTHING + "\n"
    return "\n".join(line for run in runs for line in _readme_lines(run)) + "\n"


def _readme_lines(run: Gpu) -> Iterator[str]:
    yield f"On one {run.about}:"
    yield ""
    yield f"| | form | {' | '.join(f'B = {batch}, ms' for batch in BATCHES)} | largest error |"
    yield "|---|---|" + "--:|" * (len(BATCHES) + 1)
    for stage in TITLES:
        if stage in ("training", "image"):
            continue
        for form, rows in _by_form(run.rows(stage, **BASE)).items():
            cells = (_number(rows[b]["best_ms"]) if b in rows else "" for b in BATCHES)
            error = max(row["max_error"] for row in rows.values())
            yield f"| {stage} | {form} | {' | '.join(cells)} | {error:.0e} |"
    yield from _training_lines(run)
    yield from _latency_lines(run)
    yield ""
    yield "All rows: [docs/benchmarks.md](docs/benchmarks.md#on-a-gpu)."
    yield ""


def _training_lines(run: Gpu) -> Iterator[str]:
    rows = [row for row in run.rows("training", **BASE) if row.get("steps_per_s")]
    if not rows:
        return
    yield ""
    yield "| training step, B = 8 | steps run | seconds | steps/s | ms a step |"
    yield "|---|--:|--:|--:|--:|"
    for row in rows:
        numbers = (row["seconds"], row["steps_per_s"], row["ms_per_step"])
        yield (
            f"| {_label(row)}, {row['how']} | {row['steps']:,} |"
            f" {' | '.join(map(_number, numbers))} |"
        )


def _latency_lines(run: Gpu) -> Iterator[str]:
    rows = [row for row in run.rows("image") if row.get("median_ms")]
    if not rows:
        return
    yield ""
    yield "| one uint8 image → response | asked | calls | median ms | p99 ms |"
    yield "|---|---|--:|--:|--:|"
    for row in rows:
        yield (
            f"| {_label(row)} | {row['pace']} | {row['calls']} | {_number(row['median_ms'])} |"
            f" {_number(row['p99_ms'])} |"
        )


def document(runs: Sequence[Gpu]) -> str:
    """The last section of docs/benchmarks.md."""
    parts = ["## On a GPU"]
    if not runs:
        return "\n\n".join([*parts, NOTHING])
    parts.append(EXPLAINED)
    for run in runs:
        parts += [f"### {run.about}", *_sections(run)]
    return "\n\n".join(parts)


def _sections(run: Gpu) -> Iterator[str]:
    stages = run.values["stages"]
    done = (f"{name} {'passed' if stage['ok'] else 'failed'}" for name, stage in stages.items())
    yield f"Stages: {', '.join(done)}; {run.values['seconds']} s in all."
    yield "\n".join(_ceilings(stages))
    for table in run.values["tables"]:
        case, rows = table["case"], table["rows"]
        sizes = (f"{letter} = {size:,}" for letter, size in case.items() if len(letter) == 1)
        trunk = f", trunk {case['trunk']}" if case["trunk"] else ""
        title = TITLES[case["stage"]]
        yield f"**{title[0].upper()}{title[1:]}**: {', '.join(sizes)}{trunk}"
        yield "\n".join(_table(rows))
    for title, kind in (("Left out", "left_out"), ("Failed", "failed")):
        for name, reason in run.values[kind].items():
            yield f"{title}: {name}: {' '.join(str(reason).split())[:300]}"


def _ceilings(stages: Mapping[str, Any]) -> Iterator[str]:
    yield "| in the process of | copy of 4 GiB, TB/s | fp32 product, TFLOP/s | bf16, TFLOP/s |"
    yield "|---|--:|--:|--:|"
    names = ("copy_tbyte_per_s", "matmul_fp32_tflop_per_s", "matmul_bf16_tflop_per_s")
    for stage, found in stages.items():
        if "ceilings" in found:
            yield f"| {stage} | {' | '.join(_number(found['ceilings'][n]) for n in names)} |"


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """All columns that a row of this kind has."""
    if not rows:
        return
    hidden = ("form", "library", "precision", "batch")
    names = [name for name in rows[0] if name not in hidden]
    yield f"| form | B | {' | '.join(name.replace('_', ' ') for name in names)} |"
    yield "|---|--:|" + "--:|" * len(names)
    for row in rows:
        cells = (_cell(row[name]) for name in names)
        yield f"| {_label(row)} | {row['batch']} | {' | '.join(cells)} |"


def _by_form(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row.get("best_ms") is not None:
            found.setdefault(_label(row), {})[row["batch"]] = row
    return found


def _label(row: Row) -> str:
    return f"{row['form']}, {row['library']} {row['precision']}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else _number(value)
    return f"{value:,}" if isinstance(value, int) else " ".join(str(value).split())


def _number(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
