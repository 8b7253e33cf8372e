"""`brainfast pool` and `brainfast select`: candidates computed once, and the best of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_options import Device, HeadPrecision, Json, ModelFolder, Precision, Quiet, RuntimeName
from .errors import BrainfastError

if TYPE_CHECKING:
    from .engine import Engine
    from .pool import Pool

app = typer.Typer(help="Candidate images, computed once for an engine.", no_args_is_help=True)


class PoolDtype(StrEnum):
    """How features are stored."""

    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


PoolFolder = Annotated[Path, typer.Argument(help="Pool folder, as `pool build` writes it.")]
Source = Annotated[
    list[str],
    typer.Argument(help="Image files, folders, .tar shards, or file.hdf5:dataset."),
]
Subject = Annotated[str | None, typer.Option(help="Of a model of several.")]
Categories = Annotated[Path | None, typer.Option(help="CSV name,category (the sub-folders).")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time.")]
Skip = Annotated[
    bool, typer.Option("--skip-unreadable", help="Count broken images as removed; else an error.")
]
Trunk = Annotated[Precision, typer.Option("--trunk-precision", help="Of the trunk.")]
Head = Annotated[HeadPrecision, typer.Option("--precision", help="Of the head.")]
Runtime = Annotated[RuntimeName, typer.Option(help="Of the trunk.")]
Where = Annotated[Device, typer.Option(help="Of the trunk.")]


@app.command()
def build(
    model: ModelFolder,
    source: Source,
    out: Annotated[Path, typer.Option(help="Pool folder to write, or to go on with.")],
    dtype: Annotated[PoolDtype, typer.Option(help="Of the features.")] = PoolDtype.bf16,
    project: Annotated[
        list[str] | None,
        typer.Option(help="Keep scores on this objective alone; may be given several times."),
    ] = None,
    categories: Categories = None,
    subject: Subject = None,
    batch_size: BatchSize = 32,
    skip_unreadable: Skip = False,
    precision: Head = HeadPrecision.fp32,
    trunk_precision: Trunk = Precision.fp32,
    runtime: Runtime = RuntimeName.auto,
    device: Where = Device.auto,
    quiet: Quiet = False,
) -> None:
    """Compute what the model reads of every candidate; a run that was killed goes on."""
    from .pool import Pool

    engine = _engine(model, subject, runtime, device, precision, trunk_precision)
    pool = Pool.build(
        engine,
        source,
        path=out,
        dtype=dtype.value,
        project=project or None,
        categories=categories,
        batch_size=batch_size,
        skip_unreadable=skip_unreadable,
        progress=not quiet,
    )
    typer.echo(_line(pool))


@app.command()
def info(pool: PoolFolder, as_json: Json = False) -> None:
    """Tell what a pool holds and what it was built with."""
    from .pool_build import finish_swap
    from .pool_file import describe, read_index, read_items

    pool = pool.resolve()
    finish_swap(pool)
    index = read_index(pool)
    items = read_items(pool, index.items)
    removed = len(items.removed)
    about: dict[str, Any] = {
        "candidates": index.items - removed,
        "removed": removed,
        "categories": len(set(items.categories)),
        **index.model_dump(mode="json"),
    }
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    unfinished = f", {index.done} computed so far" if index.done < index.items else ""
    typer.echo(f"{describe(index, removed)}, {removed} removed{unfinished}")
    typer.echo(f"trunk {index.key.trunk} ({index.key.precision}), head {index.key.head}")
    if index.basis:
        typer.echo(f"objectives: {', '.join(index.basis)}")


@app.command()
def verify(
    pool: PoolFolder,
    source: Annotated[
        list[str] | None, typer.Argument(help="The source, to compare its images.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read a pool through and compare it with its hashes; exit code 1 says that it is not sound."""
    from .pool import Pool

    problems = Pool.open(pool).verify(source or None, progress=not quiet)
    if as_json:
        typer.echo(json.dumps({"sound": not problems, "problems": problems}, indent=2))
    else:
        typer.echo("\n".join(problems or ["sound"]))
    if problems:
        raise typer.Exit(1)


@app.command()
def add(
    pool: PoolFolder,
    model: ModelFolder,
    source: Source,
    categories: Categories = None,
    subject: Subject = None,
    batch_size: BatchSize = 32,
    skip_unreadable: Skip = False,
    precision: Head = HeadPrecision.fp32,
    trunk_precision: Trunk = Precision.fp32,
    runtime: Runtime = RuntimeName.auto,
    device: Where = Device.auto,
    quiet: Quiet = False,
) -> None:
    """Add candidates to a pool; a run that was killed goes on."""
    from .pool import Pool

    found = Pool.open(pool)
    engine = _engine(model, subject, runtime, device, precision, trunk_precision)
    found = found.with_engine(engine).add(
        source,
        categories=categories,
        batch_size=batch_size,
        skip_unreadable=skip_unreadable,
        progress=not quiet,
    )
    typer.echo(_line(found))


@app.command()
def remove(
    pool: PoolFolder,
    names: Annotated[list[str], typer.Argument(help="Names of candidates.")],
) -> None:
    """Take candidates out of every choice."""
    from .pool import Pool

    found = Pool.open(pool)
    found.remove(names)
    typer.echo(_line(found))


def select(
    pool: PoolFolder,
    model: ModelFolder,
    objective: Annotated[
        list[str],
        typer.Option(
            help='Such as "FFA - PPA" or "mean(V1v) + 0.5*EBA"; may be given several times.'
        ),
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="How many of each.")] = 10,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A candidate that may not be chosen.")
    ] = None,
    exclude_file: Annotated[
        Path | None, typer.Option(help="A file with one such name a line.")
    ] = None,
    per_category: Annotated[
        int | None, typer.Option(min=1, help="At most so many of one category.")
    ] = None,
    min_distance: Annotated[
        float, typer.Option(min=0, help="Between any two choices, in the features' space.")
    ] = 0.0,
    subject: Subject = None,
    precision: Head = HeadPrecision.fp32,
    trunk_precision: Trunk = Precision.fp32,
    runtime: Runtime = RuntimeName.auto,
    device: Where = Device.auto,
    as_json: Json = False,
) -> None:
    """Choose the candidates of a pool that serve an objective best."""
    from .pool import Pool

    shown, candidates = [*(exclude or []), *_lines(exclude_file)], Pool.open(pool)
    engine = _engine(model, subject, runtime, device, precision, trunk_precision)
    found = candidates.with_engine(engine).top(
        objective, k, exclude=shown, per_category=per_category, min_distance=min_distance
    )
    if as_json:
        listed = {name: [asdict(each) for each in best] for name, best in found.items()}
        typer.echo(json.dumps(listed, indent=2))
        return
    for name, best in found.items():
        typer.echo(name)
        for each in best:
            typer.echo(f"  {each.score:+.4f}  {each.name}")


def _line(pool: Pool) -> str:
    removed = len(pool.items.removed)
    rest = f", {removed} removed" if removed else ""
    return f"pool: {pool.path}, {len(pool)} candidates{rest}"


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BrainfastError(str(path), expected="a text file", got=str(error)) from error


def _engine(
    model: Path,
    subject: str | None,
    runtime: RuntimeName,
    device: Device,
    precision: HeadPrecision,
    trunk_precision: Precision,
) -> Engine:
    from .engine import Engine

    return Engine.load(
        model,
        runtime=runtime.value,
        device=device.value,
        precision=precision.value,
        trunk_precision=trunk_precision.value,
        subject=subject,
    )
