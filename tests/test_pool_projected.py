"""Projected pools: what they know, what is stale, and machines that round templates otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.files import save_tensors
from brainfast.objective import Objective
from brainfast.pool import Pool
from brainfast.pool_file import BASIS_FILE
from brainfast.target_pattern import TargetPattern

kinds = pytest.mark.parametrize("kind", ["factortopy", "blobgpt"])
TESTS = Path(__file__).parent
OBJECTIVES = ["FFA - 0.3*PPA", "V1v", "all"]
SCRIPT = """
import sys
from brainfast.pool import Pool
from toy_engine import ToyEngine

class Stop(Exception):
    pass

source, folder, batches, *project = sys.argv[1:]
for kind in ("factortopy", "blobgpt"):
    engine = ToyEngine(kind, vertices=301)

    def tokens(images, right=engine.tokens, **options):
        if engine.batches == int(batches):
            raise Stop
        return right(images, **options)

    engine.tokens = tokens
    try:
        Pool.build(engine, source, path=folder + "/" + kind, project=project, batch_size=4)
        Pool.open(folder + "/" + kind, engine).top(project, 3)
        print(kind, "whole")
    except Stop:
        print(kind, "stopped")
"""


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


def run(isa: str | None, source: Path, folder: Path, batches: int) -> list[str]:
    """What a process of its own says, which builds both pools and stops after so many batches."""
    environment = {name: value for name, value in os.environ.items() if name != "BRAINFAST_ISA"}
    environment |= {} if isa is None else {"BRAINFAST_ISA": isa}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    command = [sys.executable, "-c", SCRIPT, *map(str, (source, folder, batches)), *OBJECTIVES]
    return subprocess.check_output(command, env=environment, text=True).splitlines()


def test_what_one_machine_begins_another_ends_and_both_open(
    candidates: Path, tmp_path: Path
) -> None:
    def said(word: str) -> list[str]:
        return [f"factortopy {word}", f"blobgpt {word}"]

    assert run("portable", candidates, tmp_path, 2) == said("stopped")
    assert run(None, candidates, tmp_path, 99) == said("whole")
    assert run("portable", candidates, tmp_path, 0) == said("whole")
