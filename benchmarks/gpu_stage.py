"""One benchmark stage on the GPU, in a process of its own; `gpu.py` starts it.

python benchmarks/gpu_stage.py readout --budget 60 --out part.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import gpu_ceilings
from brainfast.files import write_json
from brainfast.forms import OURS
from cases import GPU, Case
from gpu_compare import compare, failures

_CLASSES = {
    "readout": ("gpu_readout", "GpuReadout"),
    "tokens": ("gpu_tokens", "GpuTokens"),
    "projection": ("gpu_blobgpt", "GpuProjection"),
    "embed": ("gpu_blobgpt", "GpuEmbed"),
    "blobgpt": ("gpu_blobgpt", "GpuBlobGPT"),
    "topk": ("gpu_topk", "GpuTopk"),
}
COMPILED = "compiled"  # of all stages that have compiled forms
_OWN_WAY = {"training": "gpu_training", "image": "gpu_image"}  # modules with a `measure`

Part = dict[str, Any]


def measure(
    stage: str,
    cases: Sequence[Case],
    device: torch.device,
    *,
    budget_s: float,
    write: Callable[[Part], object] = lambda part: None,
) -> Part:
    """Tables of the cases of a stage, the ceilings of the device, and what failed.

    write: is given all that there is so far after every batch size.
    """
    until = time.monotonic() + budget_s
    part: Part = {"tables": [], "failed": {}, "ceilings": gpu_ceilings.measure(device)}
    compiled = stage == COMPILED
    own = [case for case in cases if (case.compiled if compiled else case.stage == stage)]
    for case in own:
        table: Part = {"case": case.as_json(), "rows": []}
        part["tables"].append(table)
        try:
            for rows, wrong in _rows(case, device, until, compiled):
                table["rows"] += [asdict(row) for row in rows]
                if wrong:
                    part["failed"][case.name] = "; ".join(
                        [*part["failed"].get(case.name, "").split("; "), *wrong]
                    ).strip("; ")
                write(part)
        except Exception as error:  # what was measured before is kept
            part["failed"][case.name] = f"{type(error).__name__}: {error}"
        write(part)
    return part


def _rows(case: Case, device: torch.device, until: float, compiled: bool) -> Any:
    """(rows, failures), batch size by batch size.

    What torch compiles is measured apart, since a compilation cannot be held to a time; ours takes
    turns with it, and has its rows already.
    """
    if case.stage in _OWN_WAY:
        yield from import_module(_OWN_WAY[case.stage]).measure(case, device, until)
        return
    module, name = _CLASSES[case.stage]
    stage = getattr(import_module(module), name).open(case, device)
    forms = [form for form in stage.forms() if form.alone == compiled or form.library == OURS]
    batches = case.compiled if compiled else case.batches
    share = (until - time.monotonic()) / len(batches)
    for number, batch in enumerate(batches):
        # What a batch size leaves of its share, the next ones have.
        end = until - share * (len(batches) - 1 - number)
        rows = compare(stage, forms, batch, device, until=end)
        yield [row for row in rows if not compiled or row.library != OURS], failures(rows)
        torch.compiler.reset()


def main() -> None:
    """Parse the command line, measure, write; the exit code tells whether something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=[*_CLASSES, *_OWN_WAY, COMPILED])
    parser.add_argument("--budget", type=float, default=60.0, help="seconds")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU")
    device = torch.device("cuda", torch.cuda.current_device())
    found = measure(
        given.stage,
        GPU,
        device,
        budget_s=given.budget,
        write=lambda part: write_json(given.out, part),
    )
    print(json.dumps(found["ceilings"]))
    for name, reason in found["failed"].items():
        print(f"{name}: {reason}", file=sys.stderr)
    raise SystemExit(1 if found["failed"] else 0)


if __name__ == "__main__":
    main()
