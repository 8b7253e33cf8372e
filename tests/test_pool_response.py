"""Responses from what a pool stores, against those of the images themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast import pool_choice
from brainfast.errors import BrainfastError
from brainfast.pool import Pool


@pytest.mark.parametrize("kind", ["factortopy", "blobgpt"])
@pytest.mark.parametrize(("dtype", "bar"), [("fp32", 1e-6), ("bf16", 1e-2), ("int8", 2e-2)])
def test_it_is_that_of_the_images(
    make_engine: Any,
    candidates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    dtype: Any,
    bar: float,
) -> None:
    monkeypatch.setattr(pool_choice, "_BLOCK_BYTES", 256)  # several blocks
    engine = make_engine(kind)
    pool = Pool.build(engine, candidates, path=tmp_path / "pool", dtype=dtype)
    names = [pool.names[row] for row in (12, 0, 7, 7, 3)]
    pool.remove([names[1]])
    found = pool.response(names)
    assert found.names == tuple(names)
    assert found.space is engine.space
    expected = engine.response([candidates / name for name in names])
    assert np.abs(found.values - expected).max() <= bar * np.abs(expected).max()
    one = pool.response(names[0])
    np.testing.assert_array_equal(one.values, found.values[:1])


def test_an_engine_of_some_vertices_answers_for_them(
    make_engine: Any, candidates: Path, tmp_path: Path
) -> None:
    engine = make_engine("blobgpt")
    pool = Pool.build(engine, candidates, path=tmp_path / "pool", dtype="fp32")
    whole, few = pool.response(pool.names), np.arange(5, 19)
    engine.head, engine.space = engine.head.take(few), engine.space.take(few)
    part = Pool.open(pool.path, engine).response(pool.names)
    np.testing.assert_allclose(part.values, whole.values[:, few], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_answered(make_engine: Any, candidates: Path, tmp_path: Path) -> None:
    engine = make_engine("factortopy")
    pool = Pool.build(engine, candidates, path=tmp_path / "pool")
    with pytest.raises(BrainfastError, match=r"candidate: expected a name in the pool.*'dog'"):
        pool.response([pool.names[0], "dog"])
    with pytest.raises(BrainfastError, match="response: expected a pool opened with its engine"):
        Pool.open(pool.path).response(pool.names)
    projected = Pool.build(engine, candidates, path=tmp_path / "few", project=["FFA", "PPA"])
    with pytest.raises(BrainfastError, match="response: expected a pool of all features, got one"):
        projected.response(projected.names[:1])
