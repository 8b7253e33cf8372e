"""Engine files of one model: parity of both forms of the readout, and latency against torch.

python benchmarks/tensorrt_latency.py MODEL_FOLDER RESULT.json [--calls 1000] [--pace 1.5]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainfast.bench.table import machine
from brainfast.engine import Engine
from brainfast.export.onnx import SOURCE
from brainfast.export.tensorrt import export_tensorrt
from brainfast.export.tensorrt_key import read_engine
from brainfast.export.tensorrt_runtime import TensorRTModel
from brainfast.files import write_json
from brainfast.machine import usable_cores

BATCHES = (1, 8, 32)
PACED_CALLS = 40

Call = Callable[[], object]


def latency_ms(
    call: Call,
    calls: int,
    pace_s: float = 0.0,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, float]:
    """The first call, then median and tails of `calls` more, each `pace_s` after the last began."""
    taken = []
    for _ in range(calls + 1):
        start = clock()
        call()
        taken.append((clock() - start) * 1e3)
        sleep(max(0.0, pace_s - taken[-1] / 1e3))
    p50, p99, p999 = np.percentile(taken[1:], [50, 99, 99.9])
    return {
        "first_ms": taken[0],
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "p99.9_ms": float(p999),
        "best_ms": min(taken[1:]),
    }


def rows(name: str, run: Callable[[Any], object], calls: int, pace_s: float) -> list[Any]:
    """Tight at every batch size, and paced at one image, as an experiment shows them."""
    found = []
    for batch in BATCHES:
        images = np.random.default_rng(0).integers(0, 256, (batch, *SOURCE, 3), dtype=np.uint8)

        def call(images: Any = images) -> object:
            return run(images)

        tight = latency_ms(call, max(30, calls // batch))
        found.append({"form": name, "batch": batch, "pace_s": 0.0, **tight})
        if batch == 1:
            paced = latency_ms(call, PACED_CALLS, pace_s)
            found.append({"form": name, "batch": batch, "pace_s": pace_s, **paced})
    return found


def measure(model: Path, calls: int, pace_s: float) -> dict[str, Any]:
    """Parity and latency of every form."""
    found: dict[str, Any] = {
        "machine": machine(usable_cores()),
        "gpu": torch.cuda.get_device_name(),
        "model": str(model.resolve().name),
        "parity": [],
        "latency": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "timing"
        for readout in ("plugin", "operators"):
            path = Path(folder) / f"{readout}.engine"
            start = time.perf_counter()
            exported = export_tensorrt(
                model, path, batches=BATCHES, readout=readout, timing_cache=cache
            )
            build_s = time.perf_counter() - start
            key, _ = read_engine(path)
            found["tensorrt"] = key.version
            cards = [card.model_dump(mode="json") for card in exported.parity]
            found["parity"].append({"readout": readout, "build_s": build_s, "cards": cards})
            opened = TensorRTModel(path)
            found["latency"] += rows(f"TensorRT, {readout}", opened.run, calls, pace_s)
    for precision in ("fp32", "bf16"):
        engine = Engine.load(model, runtime="torch", device="cuda", trunk_precision=precision)
        found["latency"] += rows(f"torch {precision}", engine.predict, calls, pace_s)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line a row, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--pace", type=float, default=1.5)
    chosen = parser.parse_args(arguments)
    found = measure(chosen.model, chosen.calls, chosen.pace)
    for row in found["latency"]:
        paced = f", every {row['pace_s']} s" if row["pace_s"] else ""
        print(
            f"{row['form']}, B={row['batch']}{paced}: p50 {row['p50_ms']:.3f} ms,"
            f" p99 {row['p99_ms']:.3f}, p99.9 {row['p99.9_ms']:.3f}, first {row['first_ms']:.1f}"
        )
    write_json(chosen.result, found)


if __name__ == "__main__":
    main()
