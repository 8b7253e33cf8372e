"""Projected pools: what they know, what is stale, and machines that round templates otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brainfast import _C, pool_templates
from brainfast.errors import BrainfastError
from brainfast.files import save_tensors
from brainfast.objective import Objective
from brainfast.pool import Pool
from brainfast.pool_file import BASIS_FILE
from brainfast.pool_fill import flat_template
from brainfast.target_pattern import TargetPattern

kinds = pytest.mark.parametrize("kind", ["factortopy", "blobgpt"])


@pytest.fixture
def build(candidates, make_engine, tmp_path):
    """`build(kind, **options)`: a pool of the candidates, and its engine."""

    def run(kind="blobgpt", **options):
        engine = make_engine(kind)
        return Pool.build(engine, candidates, path=tmp_path / "pool", **options), engine

    return run


@kinds
def test_it_knows_sums_of_its_objectives(build, candidates, kind):
    pool, engine = build(kind, dtype="fp32", project=["FFA", "PPA", "V1v"])
    assert pool.index.features == 3
    wanted = ["2*PPA - 0.5*FFA", "V1v"]
    response = engine.response([candidates / name for name in pool.names])
    expected = response @ Objective(wanted).weights(engine.space).T
    np.testing.assert_allclose(pool.score(wanted), expected, atol=1e-4)
    best = pool.top(wanted, 13)
    for column, choices in zip(expected.T, best.values(), strict=True):
        assert [choice.row for choice in choices] == np.argsort(-column, kind="stable").tolist()
    with pytest.raises(BrainfastError, match="a weighted sum of FFA, PPA, V1v, got 'all'"):
        pool.top("all", 1)
    with pytest.raises(BrainfastError, match="a pool of all features"):
        pool.score(TargetPattern(np.arange(30.0)))


@kinds
def test_a_projected_pool_is_stale_with_another_readout(build, kind):
    pool, engine = build(kind, project=["FFA"])
    Pool.open(pool.path, engine)
    right = engine.head
    engine.head = replace(right, weight=2 * right.weight)
    with pytest.raises(BrainfastError, match="a pool of other folded head"):
        Pool.open(pool.path, engine)
    engine.head = right.take(np.arange(20))
    with pytest.raises(BrainfastError, match="a pool of other folded head"):
        Pool.open(pool.path, engine)
    engine.head = right.with_precision("bf16")
    with pytest.raises(BrainfastError, match="a pool of other head precision"):
        Pool.open(pool.path, engine)


def test_a_pool_projected_on_other_objectives(build, candidates):
    pool, engine = build(project=["FFA", "PPA"])
    with pytest.raises(BrainfastError, match="a pool of other objectives"):
        Pool.build(engine, candidates, path=pool.path, project=["FFA", "V1v"])
    save_tensors(pool.path / BASIS_FILE, {"weights": np.ones((2, 30), np.float32)})
    with pytest.raises(BrainfastError, match=f"{BASIS_FILE}: expected a whole pool"):
        pool.top("FFA", 1)


@kinds
@pytest.mark.parametrize(("first", "second"), [("portable", None), (None, "portable")])
def test_what_one_machine_begins_another_ends_and_both_open(
    make_engine, candidates, tmp_path, monkeypatch, kind, first, second
):
    wanted = ["FFA - 0.3*PPA", "V1v", "all"]
    options = {"path": tmp_path / "pool", "project": wanted, "batch_size": 4}

    def machine(isa):
        """An engine as it is with this instruction set."""
        if isa is None:
            monkeypatch.delenv("BRAINFAST_ISA", raising=False)
        else:
            monkeypatch.setenv("BRAINFAST_ISA", isa)
        return make_engine(kind, vertices=301)

    def rows(engine):
        return flat_template(Objective(wanted).fold(engine))[0]

    def stop(*given, **options):
        raise KeyboardInterrupt

    def stop_after_two(*given, **more):
        if engine.batches == 2:
            raise KeyboardInterrupt
        return right(*given, **more)

    engine = machine(first)
    right, engine.tokens = engine.tokens, stop_after_two
    with pytest.raises(KeyboardInterrupt):
        Pool.build(engine, candidates, **options)
    before = rows(engine)
    engine = machine(second)
    if len(_C.supported_isas()) > 1:
        assert not np.array_equal(rows(engine), before), "or this test shows nothing"
    assert len(Pool.build(engine, candidates, **options)) == 13
    assert engine.batches == 2
    engine = machine(first)
    engine.tokens = stop
    again = Pool.build(engine, candidates, **options)
    assert len(Pool.open(again.path, engine).top(wanted, 13)) == 3


@pytest.mark.parametrize("project", [None, ["FFA", "PPA"]])
def test_an_expression_is_folded_once_and_the_oldest_is_forgotten(build, monkeypatch, project):
    pool, engine = build(project=project)
    right, folds = Objective.weights, []
    monkeypatch.setattr(Objective, "weights", lambda *of: (folds.append(1), right(*of))[1])
    first = pool.score("FFA - PPA")
    held = Objective([np.arange(30) < 9.0, "PPA"])
    for objective in ("FFA - PPA", ["FFA - PPA"], held if project is None else "PPA"):
        pool.score(objective)
        np.testing.assert_array_equal(pool.score(objective), pool.score(objective))
    assert len(folds) == 2
    assert not pool.templates("FFA - PPA")[0].flags.writeable
    monkeypatch.setattr(pool_templates, "_KEPT_BYTES", pool.index.features * 4)
    pool.score("FFA")
    np.testing.assert_array_equal(pool.score("FFA - PPA"), first)
    assert len(folds) == 4
    if project is None:
        engine.head = replace(engine.head, weight=2 * engine.head.weight)
        assert not np.array_equal(pool.with_engine(engine).score("FFA - PPA"), first)
