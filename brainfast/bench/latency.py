"""How long one answer takes: the first one, many at once, and one every so many seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..card import Card
from ..data.photographs import load_photograph
from ..device_path import place
from ..engine import Engine
from ..errors import BrainfastError
from ..export.opening import beside, is_exported, open_exported
from ..group_engine import GroupEngine
from ..machine import usable_cores
from ..runtimes import OnnxRuntime
from ..timing import BusyElsewhere
from .compare import check_positive
from .table import machine

PHOTOGRAPH = "chelsea"
SOURCE = (425, 425)
# Fewer calls than these do not tell the quantile apart from the slowest.
QUANTILES = {"p50_ms": (0.5, 1), "p99_ms": (0.99, 100), "p999_ms": (0.999, 1000)}

Answer = Callable[[NDArray[np.uint8]], object]  # images [B,H0,W0,3]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of `calls` calls on `batch` images; pace_s: seconds from the start of one to the
    start of the next, None where each follows the last at once. A quantile that so few calls do not
    tell is None."""

    batch: int
    pace_s: float | None
    calls: int
    p50_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float


@dataclass(frozen=True)
class LatencyTable:
    """What was timed and where; open_s: from the file to a model that can be asked; first_ms: its
    first answer, before anything is warm."""

    model: str
    source: tuple[int, int]
    open_s: float
    first_ms: float
    rows: tuple[Latency, ...]
    machine: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True)
class Opened:
    """A model that answers images [B,H0,W0,3] of one size.

    threads: of the processor inside one call; device: cpu, or the name of the GPU that it runs on.
    """

    name: str
    source: tuple[int, int]
    answer: Answer
    threads: int
    device: str


def bench_latency(
    open_: Callable[[], Opened],
    *,
    batches: Sequence[int] = (1,),
    calls: int = 100,
    pace_s: float | None = None,
    progress: bool = True,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> LatencyTable:
    """Time the answers to a photograph, from its bytes to the response in host memory.

    open_: opens the model, which is timed too. With a pace every batch size is also timed as an
    experiment asks: a call, then nothing until the next is due, so that caches and clocks are cold.
    """
    check_positive(calls=calls, batch=min(batches))
    if pace_s is not None and not pace_s > 0:
        raise BrainfastError("pace", expected="above 0 s", got=f"{pace_s} s")
    start = clock()
    opened = open_()
    open_s = clock() - start
    elsewhere = BusyElsewhere()
    first = _run(opened, batches[0], 1, None, clock, sleep)[0]
    rows = []
    paces = (None,) if pace_s is None else (None, pace_s)
    with tqdm(total=len(batches) * len(paces) * calls, unit="call", disable=not progress) as bar:
        for batch in batches:
            for pace in paces:
                seconds = _run(opened, batch, calls, pace, clock, sleep, bar.update)
                rows.append(_latency(batch, pace, seconds))
    about = machine(opened.threads) | {
        "device": opened.device,
        "busy_elsewhere": elsewhere.cores(),
    }
    return LatencyTable(opened.name, opened.source, open_s, 1e3 * first, tuple(rows), about)


def open_model(
    model: Path,
    *,
    runtime: str = "auto",
    device: str = "auto",
    trunk_precision: str | None = None,
    subjects: Sequence[str] | None = None,
) -> Opened:
    """A model folder in an engine, or an exported file; "tensorrt" takes the file MODEL.engine,
    which must come from that folder's model.

    trunk_precision: fp32 in an engine unless one is named; a file has its own, and where another
    is named it is a BrainfastError.
    """
    card = None
    if runtime == "tensorrt" and not is_exported(model):
        card = Card.read(model)
        model = beside(model, ".engine")
    if is_exported(model):
        return _open_file(model, runtime, device, trunk_precision, subjects, card)
    options: dict[str, Any] = {
        "runtime": runtime,
        "device": device,
        "trunk_precision": trunk_precision or "fp32",
    }
    engine: Engine | GroupEngine
    if Card.read(model).subjects:
        engine = GroupEngine.load(model, subjects=subjects, **options)
    elif subjects is not None:
        raise BrainfastError(
            "--subject", expected="a model of several subjects", got="a model of one"
        )
    else:
        engine = Engine.load(model, **options)
    of_onnx = isinstance(engine.runtime, OnnxRuntime)
    threads = usable_cores() if of_onnx else torch.get_num_threads()
    return Opened(repr(engine), SOURCE, engine.predict, threads, _device(place(engine.runtime)))


def print_latency(table: LatencyTable) -> None:
    """Print a table, one line a batch size and pace."""
    about = table.machine
    height, width = table.source
    typer.echo(f"{table.model}, images of {height} x {width}")
    where = "" if about["device"] == "cpu" else f"{about['device']}; "
    typer.echo(f"{where}{about['cpu']}, {about['threads']} threads")
    typer.echo(f"opened in {table.open_s:.2f} s; first answer after {table.first_ms:.1f} ms")
    heads = ("B", "calls", "", "p50 ms", "p99 ms", "p99.9 ms", "max ms")
    typer.echo("  ".join(f"{head:>12}" for head in heads))
    for row in table.rows:
        pace = "at once" if row.pace_s is None else f"every {row.pace_s:g} s"
        times = (row.p50_ms, row.p99_ms, row.p999_ms, row.max_ms)
        cells = [str(row.batch), str(row.calls), pace]
        cells += ["-" if value is None else f"{value:.2f}" for value in times]
        typer.echo("  ".join(f"{cell:>12}" for cell in cells))
    if any(row.p999_ms is None for row in table.rows):
        typer.echo("p99 is told from 100 calls on, p99.9 from 1000")


def _run(
    opened: Opened,
    batch: int,
    calls: int,
    pace_s: float | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    after: Callable[[], object] = lambda: None,
) -> NDArray[np.float64]:  # [calls], seconds
    images = _images(opened.source, batch)
    if calls > 1 and pace_s is None:
        opened.answer(images)  # a batch size's own buffers are made by its first call
    seconds = np.empty(calls)
    due = clock()
    for number in range(calls):
        if pace_s is not None:
            sleep(max(0.0, due - clock()))
            due += pace_s
        start = clock()
        opened.answer(images)
        seconds[number] = clock() - start
        after()
    return seconds


def _latency(batch: int, pace_s: float | None, seconds: NDArray[np.float64]) -> Latency:
    quantiles = {
        name: 1e3 * float(np.quantile(seconds, share, method="higher"))
        if len(seconds) >= fewest
        else None
        for name, (share, fewest) in QUANTILES.items()
    }
    return Latency(batch, pace_s, len(seconds), **quantiles, max_ms=1e3 * float(seconds.max()))


def _open_file(
    path: Path,
    runtime: str,
    device: str,
    trunk_precision: str | None,
    subjects: Sequence[str] | None,
    card: Card | None,
) -> Opened:
    kinds = {".onnx": "onnx", ".engine": "tensorrt"}
    if runtime not in ("auto", kinds[path.suffix]) or subjects is not None:
        raise BrainfastError(
            str(path),
            expected=f"runtime {kinds[path.suffix]} and the subjects that are in the file",
            got=f"runtime {runtime}" + (f" and {', '.join(subjects)}" if subjects else ""),
            remedy="give the model folder for another runtime",
        )
    model = open_exported(path, device=device, card=card)
    if trunk_precision not in (None, model.about.trunk_precision):
        raise BrainfastError(
            str(path),
            expected=f"a trunk in {trunk_precision}",
            got=model.about.trunk_precision,
            remedy="export the model in that precision, or leave --trunk-precision out",
        )
    source, answer = model.about.source, model.run
    if source is None:
        source, answer = SOURCE, model.predict
    return Opened(repr(model), source, answer, usable_cores(), _device(model.device))


def _device(name: str) -> str:
    """cpu, or the name of the GPU called cuda or cuda:1, where torch sees it."""
    if not name.startswith("cuda") or not torch.cuda.is_available():
        return name
    return f"{name} ({torch.cuda.get_device_name(name)})"


def _images(source: tuple[int, int], batch: int) -> NDArray[np.uint8]:  # [batch,H0,W0,3]
    photograph = Image.fromarray(load_photograph(PHOTOGRAPH)).resize(source[::-1])
    return np.repeat(np.asarray(photograph)[None], batch, axis=0)
