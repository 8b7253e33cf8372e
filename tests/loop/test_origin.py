"""A log knows the whole model, the features and the subject that its session was run with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brainfast import Pool, Session
from brainfast.errors import BrainfastError
from brainfast.loop import read_log, replay
from loop_world import edited


@pytest.fixture
def pool(make_engine: Any, candidates: Path, tmp_path: Path) -> Pool:
    return Pool.build(make_engine("blobgpt"), candidates, path=tmp_path / "p")


@pytest.fixture
def log(pool: Pool, tmp_path: Path) -> Path:
    with Session(pool, "FFA - PPA", log=tmp_path / "s.jsonl", deadline_ms=60_000) as running:
        running.next()
    return tmp_path / "s.jsonl"


def other_readout(engine: Any) -> None:
    """The latent is the same, and so are the pool's features."""
    engine.head = replace(engine.head, weight=-engine.head.weight)
    engine.card.model_hash = "other"


def other_subject(engine: Any) -> None:
    engine.space = replace(engine.space, subject="subj02")


def older(events: list[dict[str, Any]]) -> None:
    """As it was written before the model had a hash of its own."""
    events[0]["model_hash"] = events[0].pop("features_hash")


def use(log: Path, pool: Pool | None) -> None:
    assert replay(log, pool).difference is None
    Session.resume(log, pool).close()


@pytest.mark.parametrize("given", ["engine", "pool"])
def test_the_hash_of_the_model_is_the_models(
    pool: Pool, make_engine: Any, tmp_path: Path, given: str
) -> None:
    """Whether the engine comes with the pool or beside it."""
    log, engine = tmp_path / "s.jsonl", make_engine("blobgpt")
    pool, beside = (pool, None) if given == "pool" else (Pool.open(pool.path), engine)
    Session(pool, "FFA - PPA", engine=beside, log=log, deadline_ms=60_000).close()
    header = read_log(log).header
    assert header["model_hash"] == engine.card.model_hash
    assert len(header["features_hash"]) == 64
    assert header["space_hash"] == engine.space.hash()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_readout, r"a log of this model \(other\), got one of toy blobgpt"),
        (other_subject, r"a log of this subject \(subj02 .*got one of subj01 "),
    ],
)
@pytest.mark.parametrize("act", [replay, Session.resume])
def test_another_readout_or_subject_on_the_same_pool_is_refused(
    pool: Pool,
    log: Path,
    make_engine: Any,
    act: Callable[..., Any],
    change: Callable[[Any], None],
    message: str,
) -> None:
    other, before = make_engine("blobgpt"), log.read_bytes()
    change(other)
    with pytest.raises(BrainfastError, match=message) as caught:
        act(log, Pool.open(pool.path, other))
    assert "\n" not in str(caught.value)
    assert log.read_bytes() == before


@pytest.mark.parametrize("engine", [False, True])
@pytest.mark.parametrize("change", [older, len])
def test_the_pool_itself_is_taken_with_its_engine_and_without(
    pool: Pool, log: Path, make_engine: Any, tmp_path: Path, engine: bool, change: Any
) -> None:
    given = Pool.open(pool.path, make_engine("blobgpt") if engine else None)
    use(edited(log, tmp_path / "o.jsonl", change), given)


def test_an_older_log_knows_its_features_and_its_subject(
    pool: Pool, log: Path, make_engine: Any, candidates: Path, tmp_path: Path
) -> None:
    old, other = edited(log, tmp_path / "o.jsonl", older), make_engine("blobgpt")
    other_subject(other)
    with pytest.raises(BrainfastError, match="of this subject"):
        replay(old, Pool.open(pool.path, other))
    another = Pool.build(make_engine("factortopy"), candidates, path=tmp_path / "q")
    with pytest.raises(BrainfastError, match="of features of this model"):
        replay(old, Pool.open(another.path))
