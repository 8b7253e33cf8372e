"""What a session is of: the first line of its log, and whether a pool is that of the log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BrainfastError
from .candidates import Candidates
from .design import Design
from .design_file import design_hash
from .log import FORMAT, FORMAT_VERSION
from .measured import Space
from .options import Options
from .versions import versions


class Origin(NamedTuple):
    """Hashes of the features, the pool and the whole model, and whose vertices are measured.

    features: of what made them, which for some heads leaves the readout out; model, space: "" or
    empty where they are not known, as of a pool without its engine; preprocessing: which `features`
    counts as well, named for whoever reads the log
    """

    features: str
    pool: str
    model: str
    space: Space
    preprocessing: str = ""


def origin_of(pool: Candidates, space: Space | None = None) -> Origin:
    """Of candidates, whose own features are those of the model that is named for them.

    space: of the objective; without, that of the pool's engine
    """
    features = getattr(pool, "features_hash", pool.model_hash)
    whose = getattr(pool, "space", Space()) if space is None else space
    preprocessing = getattr(pool, "preprocessing_hash", "")
    return Origin(features, pool.hash, pool.model_hash, whose, preprocessing)


def first_line(
    design: Design, options: Options, deadline_ms: float, origin: Origin
) -> dict[str, Any]:
    """The first line of a log."""
    return {
        "event": "session",
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "objectives": design.names,
        "space_hash": origin.space.hash,
        "subject": origin.space.subject,
        "deadline_ms": deadline_ms,
        "options": asdict(options),
        "candidates": len(design),
        "V": design.V,
        "pool_hash": origin.pool,
        "features_hash": origin.features,
        "model_hash": origin.model,
        "preprocessing_hash": origin.preprocessing,
        "design_hash": design_hash(design),
        "versions": versions(),
    }


def logged_origin(header: Mapping[str, Any]) -> Origin:
    """Of the first line of a log; KeyError where a hash is missing.

    Older logs hold no hash of the model, and call that of the features so.
    """
    features, model = str(header["model_hash"]), ""
    if "features_hash" in header:
        features, model = str(header["features_hash"]), features
    space = Space(header.get("space_hash", ""), header.get("subject"))
    return Origin(features, str(header["pool_hash"]), model, space)


def check_origin(path: Path, logged: Origin, given: Origin) -> None:
    """Refuse a pool, or an engine of it, that the session of a log was not run with."""
    for name, was, now in _differences(logged, given):
        raise BrainfastError(
            str(path),
            expected=f"a log of {name} ({now})",
            got=f"one of {was}",
            remedy="give the pool that the session was run with, and its engine or none",
        )


def _differences(logged: Origin, given: Origin) -> Iterator[tuple[str, str, str]]:
    """What is not the same, logged and given; what one of them does not know is no difference."""
    if logged.model and given.model and logged.model != given.model:
        yield "this model", logged.model[:12], given.model[:12]
    if not logged.space.fits(given.space):
        yield "this subject", str(logged.space), str(given.space)
    if logged.features != given.features:
        yield "features of this model", logged.features[:12], given.features[:12]
    if logged.pool != given.pool:
        yield "this pool", logged.pool[:12], given.pool[:12]
