"""`brainfast bench`."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .cli_options import Device, Json, Precision, image_paths, names, numbers
from .errors import BrainfastError
from .export.opening import is_exported


class BenchRuntime(StrEnum):
    """What answers images, for their latency."""

    auto = "auto"
    torch = "torch"
    compile = "compile"
    onnx = "onnx"
    tensorrt = "tensorrt"


def bench(
    model: Annotated[
        Path | None,
        typer.Argument(help="Model folder or exported file; without one, sizes are as given."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, e.g. 1,8.")] = "1,8",
    vertices: Annotated[int, typer.Option(min=1)] = 37984,
    layers: Annotated[int, typer.Option(min=1)] = 12,
    dim: Annotated[int, typer.Option(min=1)] = 128,
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved rounds.")] = 15,
    listing1: Annotated[
        bool, typer.Option(help="Also time Listing 1 (gigabytes at full size).")
    ] = True,
    runtime: Annotated[
        BenchRuntime | None,
        typer.Option(help="Time images to responses in this runtime, and not the readout."),
    ] = None,
    pace: Annotated[
        str | None, typer.Option(help="Also ask for one answer every so long, e.g. 1.5s.")
    ] = None,
    calls: Annotated[int, typer.Option(min=1, help="Answers that are timed.")] = 100,
    device: Annotated[Device, typer.Option(help="Of --runtime.")] = Device.auto,
    trunk_precision: Annotated[
        Precision | None, typer.Option(help="Of --runtime (fp32, or that of the exported file).")
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="With --runtime, of a model of several: subj01,subj05.")
    ] = None,
    parity: Annotated[
        bool, typer.Option("--parity", help="Print errors of every precision, no times.")
    ] = False,
    images: Annotated[
        Path | None, typer.Option(help="Images for --parity (the model's golden ones).")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Algonauts folder for --parity: heldout images and R2.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time the readout against Listing 1 and ONNX Runtime, or images to responses in a runtime."""
    if parity or images is not None or data is not None:
        if model is None or not parity:
            raise BrainfastError("bench", expected="a model folder and --parity", got="one of them")
        from .parity_table import run_parity

        run_parity(model, None if images is None else image_paths([images]), data, as_json)
        return
    batches = numbers("--batch", batch) or (1,)
    if runtime is None and pace is None and (model is None or not is_exported(model)):
        _bench_readout(model, batches, (vertices, layers, dim), rounds, listing1, as_json)
        return
    if model is None:
        raise BrainfastError(
            "bench", expected="a model folder or an exported file for --runtime", got="none"
        )
    from .bench.latency import bench_latency, open_model, print_latency

    seconds = None if pace is None else _seconds(pace)
    table = bench_latency(
        lambda: open_model(
            model,
            runtime=(runtime or BenchRuntime.auto).value,
            device=device.value,
            trunk_precision=None if trunk_precision is None else trunk_precision.value,
            subjects=names(subject),
        ),
        batches=batches,
        calls=calls,
        pace_s=seconds,
        progress=not as_json,
    )
    if as_json:
        typer.echo(json.dumps(table.as_json(), indent=2))
    else:
        print_latency(table)


def _bench_readout(
    model: Path | None,
    batches: tuple[int, ...],
    sizes: tuple[int, int, int],  # V, L, D of a made-up head
    rounds: int,
    listing1: bool,
    as_json: bool,
) -> None:
    from .bench import bench_readout, print_table, readout_case

    vertices, layers, dim = sizes
    case = readout_case(model, vertices=vertices, layers=layers, dim=dim)
    rows = bench_readout(case, batches=batches, rounds=rounds, include_listing1=listing1)
    if as_json:
        typer.echo(json.dumps(rows.as_json(), indent=2))
    else:
        print_table(rows)


def _seconds(text: str) -> float:
    """A duration such as 1.5s, 1500ms or 1.5."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s)?", text.strip())
    if found is None or float(found[1]) == 0:
        raise BrainfastError("--pace", expected="a time such as 1.5s or 800ms", got=repr(text))
    return float(found[1]) / (1000 if found[2] == "ms" else 1)
