"""A pool's product: its accuracy, its bits, its memory, and what a bad feature does to it."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from brainfast import Pool
from brainfast.errors import BrainfastError
from brainfast.loop import ArrayCandidates, FoldedObjective, pool_product
from brainfast.loop.design import Design
from brainfast.loop.design_build import build_design
from brainfast.loop.folding import PoolCandidates, folded
from brainfast.loop.pool_product import block_rows, multiplied
from brainfast.target_pattern import TargetPattern

SIZES = [(1, 1), (24, 10), (37, 513), (300, 1030), (777, 33)]


def features(n: int, f: int, seed: int = 0) -> np.ndarray:
    """[n,f] of about forty directions and something in all others."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((n, 40)) @ random.standard_normal((40, f))
    return (mixed + 0.1 * random.standard_normal((n, f))).astype(np.float32)


def product(values: Any, matrix: np.ndarray, n: int) -> np.ndarray:
    found = np.full((n, matrix.shape[1]), np.nan)
    multiplied(values, matrix, block_rows(n), found)
    return found


def designed(values: np.ndarray, template: np.ndarray | None = None, **options: Any) -> Design:
    n, f = values.shape
    if template is None:
        template = np.random.default_rng(9).standard_normal(f).astype(np.float32)
    goal = FoldedObjective("a", np.ones(3, np.float32), template, 0.5)
    return build_design(ArrayCandidates(values, [f"c{row}" for row in range(n)]), [goal], **options)


@pytest.mark.parametrize(("n", "f"), SIZES)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_float64_of_any_size(n: int, f: int, offset: float) -> None:
    values = features(n, f) + np.float32(offset)
    matrix = np.random.default_rng(1).standard_normal((f, 5))
    exact = values.astype(np.longdouble) @ matrix.astype(np.longdouble)
    scale = np.abs(values.astype(np.longdouble)) @ np.abs(matrix.astype(np.longdouble))
    assert (np.abs(product(values, matrix, n) - exact) <= 1e-14 * scale).all()


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_a_common_mean_costs_no_accuracy(offset: float) -> None:
    """Numbers of a design against those of features whose mean is taken off in long doubles."""
    values = features(300, 1030) + np.float32(offset)
    z = designed(values, components=20).models[0].z
    wide = values.astype(np.longdouble)
    centred = (wide - wide.mean(axis=0)).astype(np.float64)
    left, strength, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :20] * strength[:20]
    score = z[:, 1] / np.sqrt(len(z))
    expected = expected - np.outer(score, score @ expected)
    expected /= np.sqrt(expected.var(axis=0).sum())
    sign = np.sign((expected * z[:, 2:]).sum(axis=0))
    np.testing.assert_allclose(z[:, 2:], expected * sign, atol=1e-6)


@pytest.mark.parametrize(("n", "f"), SIZES[1:])
def test_equal_candidates_have_equal_bits_wherever_they_stand(n: int, f: int) -> None:
    values = features(n, f)
    places = np.unique([0, 1, n // 3, n // 2 + 1, n - 2, n - 1])
    values[places] = values[0]
    found = product(values, np.random.default_rng(1).standard_normal((f, 63)), n)
    assert (found[places] == found[0]).all()
    design = designed(values, distances=True)
    assert design.places is not None
    for numbers in (design.models[0].z, design.places):
        assert (numbers[places] == numbers[0]).all()
        assert len(np.unique(numbers, axis=0)) == n - len(places) + 1


def test_cores_and_blas_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_product, "AT_ONCE", 1 << 15)  # several tasks
    found = []
    for cores, threads in ((1, 1), (2, 2), (3, 1)):
        monkeypatch.setattr(pool_product, "usable_cores", lambda cores=cores: cores)
        with threadpool_limits(threads):
            design = designed(features(777, 600), distances=True)
        found.append((design.models[0].z, design.models[0].centre, design.places))
    for z, centre, places in found[1:]:
        assert np.array_equal(z, found[0][0])
        assert centre == found[0][1]
        assert np.array_equal(places, found[0][2])


def test_the_number_of_blas_threads_is_put_back() -> None:
    """After an error too."""
    with threadpool_limits(2, user_api="blas"):
        before = threadpool_info()
        designed(features(24, 10))
        assert threadpool_info() == before
        with pytest.raises(OSError, match="a disk"):
            multiplied(Unreadable(), np.ones((10, 3)), 16, np.empty((24, 3)))
        assert threadpool_info() == before
        designed(features(24, 10))  # the lock is free


class Unreadable:
    """Features on a disk that fails."""

    def __getitem__(self, piece: tuple[slice, slice]) -> np.ndarray:
        assert {info["num_threads"] for info in threadpool_info() if is_openblas(info)} == {1}
        raise OSError("a disk")


def is_openblas(info: dict) -> bool:
    return info["internal_api"] == "openblas"


@dataclass
class Made:
    """Features that nobody keeps."""

    shape: tuple[int, int]

    def __getitem__(self, piece: tuple[slice, slice]) -> np.ndarray:
        sizes = [len(range(*part.indices(n))) for part, n in zip(piece, self.shape, strict=True)]
        return np.ones(sizes, np.float32)


def test_little_memory_is_needed_of_any_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a hundredth of the features in float64."""
    monkeypatch.setattr(pool_product, "usable_cores", lambda: 2)
    n, f = 160_000, 300
    matrix, found = np.ones((f, 3)), np.empty((n, 3))
    tracemalloc.start()
    multiplied(Made((n, f)), matrix, block_rows(n), found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found == f).all()
    assert peak < 8 * n * f / 100


@pytest.mark.parametrize("wrong", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf]])
@pytest.mark.parametrize("row", [0, 36, 299])
def test_what_no_number_of_a_design_reads_must_be_finite_too(
    wrong: list[float], row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its template is 0 there, there are no components, and the sample may not have the row."""
    monkeypatch.setattr("brainfast.loop.design_build.SAMPLE", 5)
    values, template = features(300, 1030), np.zeros(1030, np.float32)
    template[0] = 1.0
    values[row, 1029 - len(wrong) : 1029] = wrong
    with pytest.raises(BrainfastError, match=f"features of c{row}: expected finite numbers"):
        designed(values, template, components=0)


def test_the_largest_float32_is_finite() -> None:
    values = np.full((3, 2000), np.finfo(np.float32).max)
    assert np.isfinite(designed(values, np.full(2000, 3e38, np.float32)).models[0].z).all()


@pytest.mark.parametrize("n", [3, 7, 24])
@pytest.mark.parametrize("value", [0.1, 1e-30, 12345.67])
def test_equal_candidates_have_no_components(n: int, value: float) -> None:
    """Rounding of their mean is none."""
    z = designed(np.full((n, 500), value, np.float32)).models[0].z
    assert z.tolist() == [[1.0, 0.0]] * n


@pytest.mark.parametrize("kind", ["factortopy", "blobgpt"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("removed", [[], [2], [0, 4]])
def test_pieces_of_a_pool_are_its_features(
    make_engine: Any, candidates: Path, tmp_path: Path, kind: str, dtype: Any, removed: list[int]
) -> None:
    made = Pool.build(make_engine(kind), candidates, path=tmp_path / "p", dtype=dtype)
    made.remove([made.names[row] for row in removed])
    pool = PoolCandidates(made)
    whole = pool.features(np.arange(len(pool)))
    for rows in (slice(0, 1), slice(1, len(pool)), slice(0, len(pool))):
        for columns in (slice(0, 3), slice(2, whole.shape[1])):
            piece = pool.pieces[rows, columns]
            assert piece.dtype == np.float32
            assert np.array_equal(piece, whole[rows, columns])


@pytest.mark.parametrize("kind", ["factortopy", "blobgpt"])
def test_a_pool_and_its_features_in_memory_have_one_design(
    make_engine: Any, candidates: Path, tmp_path: Path, kind: str
) -> None:
    """Of a pattern too, which reads whole candidates."""
    engine = make_engine(kind)
    pool = PoolCandidates(Pool.build(engine, candidates, path=tmp_path / "p"))
    array = ArrayCandidates(pool.features(np.arange(len(pool))), pool.ids)
    pattern = TargetPattern(np.arange(engine.space.V, dtype=np.float64))
    for objective in ("FFA", ["FFA", pattern]):
        goals = folded(objective, pool, engine)
        whole, pieces = (build_design(one, goals, distances=True) for one in (array, pool))
        for one, other in zip(whole.models, pieces.models, strict=True):
            np.testing.assert_allclose(one.z, other.z, atol=1e-6)
            assert one.centre == pytest.approx(other.centre)
            expected = one.centre + one.spread * one.z[:, 1]
            goal = goals[whole.models.index(one)]
            np.testing.assert_allclose(goal.scores(array.values), expected, atol=1e-5)


def test_other_candidates_on_top_of_a_pool_have_the_features_they_say(
    make_engine: Any, candidates: Path, tmp_path: Path
) -> None:
    """One that passes the rest on, and one that inherits it."""

    class Backwards:
        def __init__(self, pool: PoolCandidates) -> None:
            self.pool, self.ids = pool, pool.ids[::-1]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.pool, name)

        def __len__(self) -> int:
            return len(self.pool)

        def features(self, rows: np.ndarray) -> np.ndarray:
            return self.pool.features(len(self) - 1 - rows)

    class Doubled(PoolCandidates):
        def features(self, rows: np.ndarray) -> np.ndarray:
            return 2 * super().features(rows)

    engine = make_engine("blobgpt")
    made = Pool.build(engine, candidates, path=tmp_path / "p")
    pool = PoolCandidates(made)
    goals = folded("FFA", pool, engine)
    for other in (Backwards(pool), Doubled(made)):
        array = ArrayCandidates(other.features(np.arange(len(pool))), other.ids)
        expected, found = (build_design(one, goals).models[0] for one in (array, other))
        assert found.centre == pytest.approx(expected.centre)
        np.testing.assert_allclose(found.z, expected.z, atol=1e-6)
