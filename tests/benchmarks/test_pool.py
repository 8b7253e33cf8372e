"""The benchmark of pools at tiny sizes: it checks what it times, and leaves nothing behind."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ceilings
import pool
import pool_table
from brainfast import _C
from brainfast.pool import Pool
from made_up_pool import PoolCase

CASES = [pool.quick(case) for case in pool.WHOLE]


@pytest.fixture(autouse=True)
def no_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """None are measured."""
    rates = {"l3_gbyte_per_s": 100.0, "dram_gbyte_per_s": 30.0}
    monkeypatch.setattr(ceilings, "measure", lambda: rates)


def test_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, place = tmp_path / "pool.json", tmp_path / "place"
    place.mkdir()
    arguments = ["--quick", "--rounds", "2", "--threads", "1", "--folder", place, "--out", out]
    monkeypatch.setattr(sys, "argv", ["pool.py", *map(str, arguments)])
    pool.main()
    result = json.loads(out.read_text())
    assert [each["case"]["name"] for each in result["pools"]] == [case.name for case in CASES]
    assert result["quick"]
    assert not list(place.iterdir())
    for each in result["pools"]:
        case = each["case"]
        item = {"bf16": 2, "int8": 1}[case["dtype"]]
        assert each["bytes"]["pool.safetensors"] >= case["N"] * case["F"] * item
        assert {row["objectives"] for row in each["rows"]} == {1, 24}
        assert max(each["errors"].values()) <= pool.BAR
    text = pool_table.block(result)
    assert text.count("\n| BlobGPT, 1,000 x 64 bf16 |") == 4 + 1
    assert "FactorTopy, projected, 100 x 256 bf16" in text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_sizes_are_those_of_the_heads(case: PoolCase, tmp_path: Path) -> None:
    whole = next(each for each in pool.WHOLE if each.head == case.head)
    assert whole.features == {"blobgpt": 1024, "factortopy": 99_840}[case.head]
    small = replace(case, N=3)
    engine = pool.MadeUpEngine(small)
    sources = [pool.Number(number) for number in range(3)]
    built = Pool.build(engine, sources, path=tmp_path / "p", project=small.objectives or None)
    assert built.index.features == (case.P or case.features)


def test_a_wrong_choice_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SecondBest:
        def __init__(self, *pool: Any) -> None:
            self.right = right(*pool)

        def run(self, templates: Any, k: int, exclude: Any) -> Any:
            scores, rows = self.right.run(templates, k + 1, exclude)
            return scores[:, 1:], np.ascontiguousarray(rows[:, 1:])

    right = _C.ScoreTopkPlan
    monkeypatch.setattr(_C, "ScoreTopkPlan", SecondBest)
    with pytest.raises(SystemExit, match="errors"):
        pool.run(CASES[:1], 1, 1, tmp_path)


def test_too_little_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="GB of disk"):
        pool.run([replace(CASES[0], N=10**12)], 1, 1, tmp_path)


def test_the_page_holds_the_committed_figures() -> None:
    text = pool_table.PAGE.read_text(encoding="utf-8")
    result = json.loads(pool_table.RESULT.read_text(encoding="utf-8"))
    assert not result["quick"]
    assert pool_table.between(text, "pools", pool_table.block(result)) == text
