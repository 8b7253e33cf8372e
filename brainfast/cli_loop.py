"""`brainfast rehearse` and `brainfast replay`: a session against nobody, and a session again."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_options import HeadPrecision, Json, Precision, check_sole, image_paths
from .errors import BrainfastError
from .files import check_writable
from .machine import loaded_uncollected

if TYPE_CHECKING:
    from .loop import Replayed
    from .loop.rehearse import Rehearsed
    from .loop.subject import World


class StrategyName(StrEnum):
    """How the next image is chosen."""

    greedy = "greedy"
    ucb = "ucb"
    thompson = "thompson"
    explore = "explore"
    random = "random"


def rehearse(
    model: Annotated[
        Path | None, typer.Argument(help="Model folder, as `train` writes it.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="Candidates: image files, or folders of them.")
    ] = None,
    pool: Annotated[
        Path | None, typer.Option(help="Candidates: a pool that was built with MODEL.")
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="A made-up model and made-up images.")
    ] = False,
    candidates: Annotated[int, typer.Option(min=1, help="How many, of --demo.")] = 2000,
    objective: Annotated[
        str, typer.Option(help="Regions, e.g. 'FFA - PPA' or 'mean(V1v) + 0.5*EBA'.")
    ] = "FFA - PPA",
    subject: Annotated[str | None, typer.Option(help="Of a model of several.")] = None,
    ncsnr: Annotated[
        Path | None, typer.Option(help="Folder with {lh,rh}.ncsnr files: sets the noise.")
    ] = None,
    precision: Annotated[HeadPrecision, typer.Option(help="Of the head.")] = HeadPrecision.fp32,
    trunk_precision: Annotated[Precision, typer.Option(help="Of the trunk.")] = Precision.fp32,
    strategy: Annotated[StrategyName, typer.Option(help="Of choosing.")] = StrategyName.greedy,
    kappa: Annotated[float, typer.Option(min=0, help="Standard deviations that ucb adds.")] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, help="Trials of an image at most.")] = 1,
    balance: Annotated[
        bool, typer.Option("--balance", help="Serve the pool's categories equally.")
    ] = False,
    min_distance: Annotated[
        float, typer.Option(min=0, help="Between two images, in the pool's components.")
    ] = 0.0,
    deadline_ms: Annotated[float, typer.Option(help="Of every choice.")] = 20.0,
    trials: Annotated[int, typer.Option(min=1)] = 100,
    interval_s: Annotated[float, typer.Option(help="Between two onsets.")] = 4.0,
    jitter_s: Annotated[float, typer.Option(min=0, help="Of every onset.")] = 0.3,
    tr_s: Annotated[float, typer.Option(help="Between two volumes.")] = 1.6,
    dropped: Annotated[float, typer.Option(min=0, help="Share of volumes that are lost.")] = 0.02,
    model_error: Annotated[
        float, typer.Option(min=0, help="Of the model, over the spread of its predictions.")
    ] = 1.0,
    speed: Annotated[
        float, typer.Option(help="1 is the scanner's pace, inf waits for nothing but results.")
    ] = 20.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    log: Annotated[Path | None, typer.Option(help="JSONL log to write, a new file.")] = None,
    out: Annotated[Path | None, typer.Option(help="PNG, PDF or SVG to draw.")] = None,
    as_json: Json = False,
) -> None:
    """Run a session against a simulated subject: regret, lateness, and the time of every stage."""
    _check_sources(model, images, pool, demo)
    if demo:
        _check_made_up(subject, ncsnr, precision, trunk_precision)
    for path in filter(None, (log, out)):
        check_writable(path.resolve().parent)
    from .loop import Session
    from .loop.clock import check_speed
    from .loop.rehearse import Schedule, check_enough, rehearse
    from .loop.subject import SimulatedSubject

    schedule = Schedule(trials, interval_s, jitter_s, tr_s, dropped)
    schedule.check()
    check_speed(speed)
    if out is not None:
        from .flat_sheet import check_picture

        check_picture(out)
    paths = image_paths(images or []) if images else []
    if pool is None:
        check_enough(schedule, candidates if model is None else len(paths), repeats)
    if model is None:
        from .loop.made_up import made_up_world

        world = made_up_world(objective, candidates=candidates, seed=seed)
    else:
        options = {
            "subject": subject,
            "precision": precision.value,
            "trunk_precision": trunk_precision.value,
        }
        world = _world(model, paths, pool, objective, ncsnr, options)
        check_enough(schedule, len(world.pool), repeats)
    person = SimulatedSubject(world, model_error=model_error, seed=seed)
    session = Session(
        world.pool,
        world.objective,
        deadline_ms=deadline_ms,
        strategy=strategy.value,
        kappa=kappa,
        repeats=repeats,
        seed=seed,
        balance=balance,
        min_distance=min_distance,
        ceiling=world.ceiling,
        log=log,
    )
    with session, loaded_uncollected():  # a collection of it all would stop a choice
        run = rehearse(session, person, schedule, speed=speed, seed=seed, progress=not as_json)
    if out is not None:
        from .loop.rehearsal_plot import plot

        plot(run, out)
    typer.echo(json.dumps(run.summary(), indent=2) if as_json else "\n".join(_lines(run)))


def replay(
    log: Annotated[Path, typer.Argument(help="JSONL log of a session.")],
    pool: Annotated[
        Path | None, typer.Option(help="Check that the session was run with this pool.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute every choice of a log: the same to the last bit, or where it first differs."""
    from .loop import replay as replay_log
    from .pool import Pool

    found = replay_log(log, None if pool is None else Pool.open(pool))
    if as_json:
        typer.echo(json.dumps(_replay_values(found), indent=2))
    else:
        typer.echo(_replay_line(log, found))
    if found.difference is not None:
        raise BrainfastError(
            f"{log} line {found.difference.line}",
            expected=f"{found.difference.field} {found.difference.logged!r}, as logged",
            got=repr(found.difference.computed),
            remedy=_remedy(found),
        )


def _check_sources(
    model: Path | None, images: list[Path] | None, pool: Path | None, demo: bool
) -> None:
    given = {
        "MODEL": model is not None,
        "--images": bool(images),
        "--pool": pool is not None,
        "--demo": demo,
    }
    named = [name for name, there in given.items() if there]
    if named not in (["MODEL", "--images"], ["MODEL", "--pool"], ["--demo"]):
        raise BrainfastError(
            "rehearse",
            expected="MODEL and --images, MODEL and --pool, or --demo",
            got=" and ".join(named) or "none of them",
        )


def _check_made_up(
    subject: str | None, ncsnr: Path | None, precision: HeadPrecision, trunk_precision: Precision
) -> None:
    given = {
        "--subject": subject is not None,
        "--ncsnr": ncsnr is not None,
        "--precision": precision is not HeadPrecision.fp32,
        "--trunk-precision": trunk_precision is not Precision.fp32,
    }
    named = [name for name, there in given.items() if there]
    if named:
        raise BrainfastError(
            "rehearse", expected=f"{' and '.join(named)} with a MODEL", got="--demo"
        )


def _world(
    model: Path,
    paths: list[Path],
    pool: Path | None,
    objective: str,
    ncsnr: Path | None,
    options: dict[str, Any],
) -> World:
    """What is rehearsed. options: of `Engine.load`; a pool must have been built with the same."""
    from .card import Card
    from .engine import Engine
    from .loop.folding import PoolCandidates
    from .loop.subject import images_of, model_world
    from .pool import Pool

    card = Card.read(model)
    check_sole(card, options["subject"])
    engine = Engine.load(model, **options)
    ceiling: Any = None
    if ncsnr is not None:
        from .data.ceilings import read_ceiling

        ceiling, _, _ = read_ceiling(ncsnr, engine.space, ncsnr, (1, 0, 0))
    if pool is None:
        return model_world(engine, images_of(engine, paths), objective, ceiling)
    return model_world(engine, PoolCandidates(Pool.open(pool, engine)), objective, ceiling)


def _lines(run: Rehearsed) -> list[str]:
    about = run.summary()
    late = f"{100 * about['late_share']:.1f} % late" if run.paced else "lateness not paced"
    model, random = about["mean_regret_of_model_alone"], about["mean_regret_of_random"]
    others = "" if model is None else f"; model alone {model:.3f}, random {random:.3f}"
    lines = [
        f"{about['objective']}, {about['strategy']}: {about['trials']} trials,"
        f" {about['lost_trials']} lost to dropped volumes,"
        f" {late} (deadline {about['deadline_ms']:g} ms)",
        f"mean regret {about['mean_regret']:.3f} z against the best image left{others}",
    ]
    for name, times in about["stages_ms"].items():
        lines.append(f"{name:7} p50 {times['p50']:8.3f} ms   p99 {times['p99']:8.3f} ms")
    return lines


def _replay_line(log: Path, found: Replayed) -> str:
    torn = f", a torn last line of {found.torn_bytes} bytes left out" if found.torn_bytes else ""
    outcome = "reproduced to the last bit"
    if found.difference is not None:
        outcome = f"reproduced up to line {found.difference.line}"
    return (
        f"{log}: {found.choices} choices ({found.late} late), {found.told} told,"
        f" {found.skipped} skipped, resumed {found.resumed} times{torn}: {outcome}"
    )


def _replay_values(found: Replayed) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(found), "versions": dict(found.versions)}


def _remedy(found: Replayed) -> str:
    from .loop.versions import versions

    here = versions()
    other = [
        f"{name} {was} then, {here.get(name)} now"
        for name, was in found.versions.items()
        if here.get(name) != was
    ]
    return ", ".join(other) or "versions and processor are the same: the log was altered"
