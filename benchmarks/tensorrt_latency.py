"""Engine files of one model: parity of both forms of the readout, and latency against torch.

python benchmarks/tensorrt_latency.py MODEL_FOLDER RESULT.json [--calls 1000] [--pace 1.5]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from brainfast.bench.latency import Opened, bench_latency, open_model, print_latency
from brainfast.export.onnx import SOURCE
from brainfast.export.plan import AnyEncoder, open_encoder
from brainfast.export.tensorrt import export_tensorrt
from brainfast.export.tensorrt_key import find_gpu, read_engine
from brainfast.files import write_json

BATCHES = (1, 8, 32)
PACED_CALLS = 100  # the fewest that tell a p99
TRUNKS = {"TensorRT": ("fp32", "fp16", "bf16"), "torch": ("fp32", "bf16")}


Timed = dict[str, Any]


def measure(model: Path, time_it: Callable[[Callable[[], Opened]], Timed]) -> dict[str, Any]:
    """Parity and latency of every form, and of torch on the same GPU."""
    _, gpu = find_gpu()
    encoder = open_encoder(model)  # not the folder, whose card would keep what is deleted here
    found: dict[str, Any] = {"gpu": gpu, "model": model.resolve().name, "engines": [], "torch": []}
    with tempfile.TemporaryDirectory() as folder:
        for precision in TRUNKS["TensorRT"]:
            found["engines"] += engines(encoder, Path(folder), precision, time_it)
    for precision in TRUNKS["torch"]:
        options = {"runtime": "torch", "device": "cuda", "trunk_precision": precision}
        timed = time_it(partial(open_model, model, **options))
        found["torch"].append({"trunk": precision, "latency": timed})
    return found


def engines(
    encoder: AnyEncoder,
    folder: Path,
    precision: str,
    time_it: Callable[[Callable[[], Opened]], Timed],
) -> list[dict[str, Any]]:
    """A trunk precision in both forms of the readout; in one, where no node is the plugin's."""
    found = []
    for readout in ("plugin", "operators"):
        path = folder / f"{readout}-{precision}.engine"
        start = time.perf_counter()
        exported = export_tensorrt(
            encoder,
            path,
            batches=BATCHES,
            readout=readout,
            timing_cache=folder / "timing",
            trunk_precision=precision,
            source=SOURCE,
        )
        build_s = time.perf_counter() - start
        key, _ = read_engine(path)
        found.append(
            {
                "trunk": precision,
                "readout": key.readout,
                "tensorrt": key.version,
                "build_s": build_s,
                "parity": [card.model_dump(mode="json") for card in exported.parity],
                "latency": time_it(partial(open_model, path)),
            }
        )
        if key.readout != readout:
            break  # no node is the plugin's, and the other form would be this engine again
    return found


def latency(open_: Callable[[], Opened], calls: int, pace_s: float) -> Timed:
    """At once at every batch size, and one image at an experiment's pace."""
    opened: list[Opened] = []

    def open_once() -> Opened:
        opened.append(open_())
        return opened[0]

    tables = {"at_once": bench_latency(open_once, batches=BATCHES, calls=calls)}
    tables["paced"] = bench_latency(lambda: opened[0], calls=PACED_CALLS, pace_s=pace_s)
    for table in tables.values():
        print_latency(table)
    return {name: table.as_json() for name, table in tables.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table a form, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--pace", type=float, default=1.5)
    chosen = parser.parse_args(arguments)
    time_it = partial(latency, calls=chosen.calls, pace_s=chosen.pace)
    write_json(chosen.result, measure(chosen.model, time_it))


if __name__ == "__main__":
    main()
