"""What a session is of, as its log tells it, and whether a pool is that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BrainfastError
from .candidates import Candidates
from .measured import Space


class Origin(NamedTuple):
    """Hashes of the features, the pool and the whole model, and whose vertices are measured.

    features: of what made them, which for some heads leaves the readout out; model, space: "" or
    empty where they are not known, as of a pool without its engine
    """

    features: str
    pool: str
    model: str
    space: Space


def origin_of(pool: Candidates) -> Origin:
    """Of candidates; features of one's own are those of the model that is named for them."""
    features = getattr(pool, "features_hash", pool.model_hash)
    return Origin(features, pool.hash, pool.model_hash, getattr(pool, "space", Space()))


def as_fields(origin: Origin) -> dict[str, Any]:
    """How the first line of a log holds it."""
    return {
        "space_hash": origin.space.hash,
        "subject": origin.space.subject,
        "pool_hash": origin.pool,
        "features_hash": origin.features,
        "model_hash": origin.model,
    }


def from_fields(header: Mapping[str, Any]) -> Origin:
    """Back from `as_fields`; KeyError where a hash is missing.

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
