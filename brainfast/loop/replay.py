"""Doing a logged session over: what it was, and whether every choice comes out the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BrainfastError
from .design_file import design_path, load_design
from .folding import as_candidates
from .log import LogFile, decode_betas, line_error, read_log
from .measured import Measurement, Space, as_columns, check_betas, from_columns
from .options import Options
from .origin import check_origin, logged_origin, origin_of
from .progress import Progress
from .ranking import Ranking, decide, rank
from .trial_table import Seen


@dataclass(frozen=True)
class Restored:
    """A session's progress at the end of its log, and its choices' events."""

    progress: Progress
    deadline_ms: float
    choices: tuple[dict[str, Any], ...]
    space: Space


@dataclass(frozen=True)
class Difference:
    """The first field that came out otherwise."""

    line: int
    field: str
    logged: Any
    computed: Any

    def __str__(self) -> str:
        return (
            f"line {self.line}, {self.field}: logged {self.logged!r}, recomputed {self.computed!r}"
        )


@dataclass(frozen=True)
class Replayed:
    """What a log holds, and the first difference, None where every choice was reproduced."""

    choices: int
    told: int
    skipped: int
    resumed: int
    late: int
    torn_bytes: int
    difference: Difference | None
    versions: Mapping[str, str]


def replay(log: str | Path, pool: Any = None) -> Replayed:
    """Recompute every choice of a log and compare it to the last bit.

    Numbers are recomputed from the candidates' numbers beside the log and the betas in it. What
    only the clock knew is read: whether a choice was late, and which ranking was ready. pool:
    checked against the log's hashes where it is given.

    Raises BrainfastError, with its line, for a log that is damaged or of another model or pool.
    """
    file = read_log(log)
    difference = None
    progress, _ = _opened(file, pool)
    rankings = _Rankings(progress, file)
    for number, event in _events(file):
        found = _differences(progress, rankings, event, file.path, number)
        difference = next((Difference(number, *parts) for parts in found), None)
        if difference is not None:
            break
        _apply(progress, event, file.path, number)
        progress.catch_up()
        rankings.note(number)
    kinds = [event["event"] for event in file.events]
    return Replayed(
        choices=kinds.count("choice"),
        told=kinds.count("tell"),
        skipped=kinds.count("skip"),
        resumed=kinds.count("resumed"),
        late=len({event.get("trial") for event in file.events if event.get("late")}),
        torn_bytes=file.torn,
        difference=difference,
        versions=file.header.get("versions", {}),
    )


def restore(file: LogFile, pool: Any = None) -> Restored:
    """The progress at the end of a log, as it is written there."""
    progress, deadline_ms = _opened(file, pool)
    for number, event in _events(file):
        _apply(progress, event, file.path, number)
    progress.catch_up()
    choices = [event for event in file.events if event["event"] == "choice"]
    for event in file.events:
        if event["event"] == "overrun":
            late = {name: event[name] for name in ("late", "latency_ms")}
            choices[event["trial"]] = choices[event["trial"]] | late
    return Restored(progress, deadline_ms, tuple(choices), logged_origin(file.header).space)


def _opened(file: LogFile, pool: Any) -> tuple[Progress, float]:
    header = file.header
    try:
        options = Options(**header["options"] | {"exclude": tuple(header["options"]["exclude"])})
        design_hash, deadline_ms = str(header["design_hash"]), float(header["deadline_ms"])
        origin = logged_origin(header)
    except (KeyError, TypeError, ValueError) as error:
        raise line_error(file.path, 1, expected="a session's header", got=str(error)) from error
    if pool is not None:
        check_origin(file.path, origin, origin_of(as_candidates(pool)))
    design = load_design(design_path(file.path), design_hash)
    options.check(design.ids)
    return Progress(design, options), deadline_ms


def _events(file: LogFile) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((number, event) for number, event in enumerate(file.events, start=1) if number > 1)


def _apply(progress: Progress, event: dict[str, Any], path: Path, number: int) -> None:
    """Do what a line says; one that cannot be done is an error with its number."""
    try:
        kind = event["event"]
        if kind == "choice":
            design = progress.design
            progress.choose(design.rows[event["image"]], design.objective(event["objective"]))
        elif kind in ("tell", "skip"):
            progress.outstanding(event["trial"])
            if kind == "skip":
                progress.skip(event["trial"])
            else:
                objectives = len(progress.design.models)
                progress.tell(event["trial"], from_columns(event, objectives))
        elif kind == "overrun":
            progress.outstanding(event["trial"])
            if not (event["late"] is True and isinstance(event["latency_ms"], float)):
                raise ValueError("no late and latency_ms")
        elif kind != "resumed":
            raise KeyError(kind)
    except BrainfastError as error:
        raise line_error(path, number, expected=error.expected, got=error.got) from error
    except (KeyError, TypeError, ValueError) as error:
        raise line_error(path, number, expected="an event of a session", got=str(error)) from error


def _differences(
    progress: Progress, rankings: _Rankings, event: dict[str, Any], path: Path, number: int
) -> Iterator[tuple[str, Any, Any]]:
    """Fields that come out otherwise than they are logged: name, logged, recomputed."""
    computed: dict[str, Any] = {}
    if event["event"] == "tell":
        computed = as_columns(_measured(progress, event, path, number))
    elif event["event"] == "choice":
        computed = _chosen(progress, rankings, event, path, number)
    for name, value in computed.items():
        if event.get(name) != value:
            yield name, event.get(name), value


def _chosen(
    progress: Progress, rankings: _Rankings, event: dict[str, Any], path: Path, number: int
) -> dict[str, Any]:
    """The fields of a choice; an objective that was asked for by name is taken as given."""
    design = progress.design
    try:
        asked = event["asked"]
        objective = progress.turn if asked is None else design.objective(asked)
    except (KeyError, BrainfastError) as error:
        raise line_error(
            path, number, expected="an objective of the session", got=str(error)
        ) from error
    ranking = rankings.at(event.get("version"), objective, path, number)
    decision = decide(progress, objective, ranking, event["source"])
    return {
        "image": design.ids[decision.row],
        "trial": len(progress.trials),
        "objective": design.names[objective],
        "score": decision.score,
        "value": decision.value,
        "uncertainty": decision.uncertainty,
        "ties": decision.ties,
        "posterior": decision.posterior,
    }


def _measured(
    progress: Progress, event: dict[str, Any], path: Path, number: int
) -> tuple[Measurement, ...]:
    design = progress.design
    try:
        return design.measure(check_betas(decode_betas(event["measured"]), design.V))
    except (KeyError, TypeError, ValueError) as error:
        raise line_error(
            path, number, expected=f"{design.V} betas in base64", got=str(error)
        ) from error


class _Rankings:
    """The rankings that choices name, each computed when one asks for it.

    Of the versions, only the trials of those are kept that a choice to come names.
    """

    def __init__(self, progress: Progress, file: LogFile) -> None:
        self._progress = progress
        choices = [pair for pair in _events(file) if pair[1]["event"] == "choice"]
        self._last_use = {event.get("version"): number for number, event in choices}  # the line
        share = progress.options.model_share
        self._priors = [model.prior(share) for model in progress.design.models]
        self._trials: dict[int, Seen] = {}
        self._last: dict[int, Ranking] = {}  # of each objective
        self.note(1)

    def note(self, number: int) -> None:
        """After a line: keep the trials of the present version, and let go of those not needed."""
        for version in [one for one in self._trials if self._last_use[one] <= number]:
            del self._trials[version]
        version = self._progress.version
        if version not in self._trials and self._last_use.get(version, 0) > number:
            self._trials[version] = self._progress.table.seen()

    def at(self, version: int | None, objective: int, path: Path, number: int) -> Ranking | None:
        """An objective's ranking of an earlier version or the present one."""
        if version is None:
            return None
        if version not in self._trials:
            raise line_error(
                path,
                number,
                expected=f"a version up to {self._progress.version}",
                got=f"{version}",
            )
        last = self._last.get(objective)
        if last is None or last.version != version:
            design, options = self._progress.design, self._progress.options
            prior, trials = self._priors[objective], self._trials[version]
            last = self._last[objective] = rank(design, objective, options, prior, trials, version)
        return last
