"""Choosing with rounded products first: the same bits as without, on whatever data."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from brainfast import _C

ISA = "avx512bf16"
pytestmark = pytest.mark.skipif(
    ISA not in _C.supported_isas("bf16"), reason="the processor has no products of bfloat16"
)

KINDS = [(p, t) for p in ("float32", "bfloat16", "int8") for t in ("float32", "bfloat16")]
Array = NDArray[Any]


def as_kind(numbers: Array, kind: str) -> Array:
    """The numbers as a pool or templates hold them: bfloat16 by its bits, cut."""
    if kind == "bfloat16":
        return (np.ascontiguousarray(numbers, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if kind == "int8":
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(numbers * 40).clip(-128, 127).astype(np.int8)
    return np.ascontiguousarray(numbers, np.float32)


def check_same(
    pool: Array,  # [N,F]
    templates: Array,  # [O,F]
    k: int,
    kinds: tuple[str, str],
    exclude: Array | None = None,  # [N]
    scale: Array | None = None,  # [N]
) -> tuple[Array, Array]:
    if kinds[0] != "int8":
        scale = None
    elif scale is None:
        scale = np.ones(len(pool), np.float32)
    arguments = as_kind(pool, kinds[0]), as_kind(templates, kinds[1]), k, exclude
    plain = _C.score_topk(*arguments, scale=scale, isa=ISA, screen=False)
    screened = _C.score_topk(*arguments, scale=scale, isa=ISA)
    check_equal(screened, plain)
    plan = _C.ScoreTopkPlan(arguments[0], scale)
    for _ in range(2):  # rounds the pool, and reads what was rounded
        check_equal(plan.run(*arguments[1:], isa=ISA), plain)
    assert (plan.nbytes > 0) == (kinds[0] != "int8")
    return screened


def check_equal(found: tuple[Array, Array], expected: tuple[Array, Array]) -> None:
    assert np.array_equal(found[0].view(np.uint32), expected[0].view(np.uint32))
    assert np.array_equal(found[1], expected[1])


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize(
    ("candidates", "features", "objectives", "k"),
    [(1024, 64, 9, 1), (3001, 131, 24, 10), (1500, 1024, 33, 20), (1200, 4003, 11, 30)],
)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_normal_numbers(set_threads, kinds, candidates, features, objectives, k, threads):
    set_threads(threads)
    rng = np.random.default_rng(candidates)
    pool = rng.standard_normal((candidates, features))
    templates = rng.standard_normal((objectives, features))
    scale = rng.standard_normal(candidates).astype(np.float32)
    check_same(pool, templates, k, kinds, rng.random(candidates) < 0.2, scale)


def heavy(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.standard_normal(shape) ** 9


def whole(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.integers(-2, 3, shape).astype(float)


def tiny(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Products that vanish, and numbers that are subnormal themselves."""
    return rng.standard_normal(shape) * 10.0 ** rng.integers(-44, -18, (shape[0], 1))


def huge(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Sums that overflow."""
    return rng.standard_normal(shape) * 10.0 ** rng.integers(15, 38, (shape[0], 1))


def mixed(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    numbers = rng.standard_normal(shape) * 10.0 ** rng.integers(-38, 38, (shape[0], 1))
    rows = rng.integers(0, shape[0], 5)
    numbers[rows, rng.integers(0, shape[1], 5)] = [np.nan, np.inf, -np.inf, 0, -0.0]
    numbers[rng.integers(0, shape[0])] = 0
    return numbers


def equal(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return np.broadcast_to(rng.standard_normal(shape[1]), shape)


def rising(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Every candidate longer than those before it."""
    return np.broadcast_to(rng.standard_normal(shape[1]), shape) * np.arange(shape[0])[:, None]


WORLDS = [heavy, whole, tiny, huge, mixed, equal, rising]


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.__name__)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:overflow")
def test_any_numbers(kinds, world, data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    candidates, features = draw(st.integers(1024, 1600)), draw(st.integers(64, 300))
    objectives, k = draw(st.integers(9, 40)), draw(st.integers(1, 32))
    pool = world(rng, (candidates, features))
    templates = draw(st.sampled_from([world, heavy]))(rng, (objectives, features))
    scale = np.float32(10.0) ** rng.integers(-44, 36, candidates).astype(np.float32)
    exclude = rng.random(candidates) < draw(st.sampled_from([0.0, 0.5, 0.98]))
    check_same(pool, templates, k, kinds, exclude, scale)


@pytest.mark.parametrize("pool", ["float32", "bfloat16"])
@pytest.mark.parametrize("features", [256, 1024, 4096])
def test_the_best_look_worst_when_rounded(pool, features):
    """Templates that lie half-way between bfloat16 numbers, and candidates that are parallel to
    what rounding takes away: the worst case of the bound."""
    rng = np.random.default_rng(features)
    signs = rng.permutation(np.repeat([1.0, -1.0], features // 2))
    template = 1 + signs / 256  # rounds to 1 or to 1 - 2^-7, or up, whichever is even
    rounded = (as_kind(template, "float32").view(np.uint32) + 0x8000) & 0xFFFF0000
    lost = template - rounded.view(np.float32)
    best = np.where(lost > 0, 1.0, -1.0) * (1 + rng.integers(0, 2, (20, features)) / 128)
    decoys = rng.standard_normal((4000, features))
    decoys -= np.outer(decoys @ template / (template @ template), template)
    decoys += np.outer(rng.random(4000) * 2 * (best @ template).max() / (template @ template), lost)
    numbers = np.concatenate([decoys[:2000], best, decoys[2000:]])
    templates = np.concatenate([template[None], rng.standard_normal((9, features))])
    check_same(numbers, templates, 10, (pool, "float32"))


def test_the_first_of_equals_are_chosen(set_threads):
    set_threads(3)
    pool = np.tile(np.random.default_rng(0).standard_normal((500, 96)), (5, 1))
    templates = np.random.default_rng(1).standard_normal((24, 96))
    _, indices = check_same(pool, templates, 10, ("bfloat16", "float32"))
    assert (np.diff(indices.reshape(24, 2, 5)) == 500).all()
    assert (indices[:, ::5] < 500).all()


def test_templates_of_zeros_and_of_nothing_finite():
    rng = np.random.default_rng(2)
    pool, templates = rng.standard_normal((1100, 70)), rng.standard_normal((9, 70))
    templates[1] = 0
    _, indices = check_same(pool, templates, 4, ("bfloat16", "float32"))
    assert indices[1].tolist() == [0, 1, 2, 3]
    templates[2, 5] = np.nan
    _, indices = check_same(pool, templates, 4, ("bfloat16", "float32"))
    assert (indices[2] == -1).all()


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_plan_is_asked_in_every_way(set_threads, kind):
    """Of other templates, masks, sizes and threads than those that the pool was rounded for."""
    rng = np.random.default_rng(3)
    pool = as_kind(rng.standard_normal((1201, 2100)), kind)
    plan = _C.ScoreTopkPlan(pool)
    assert plan.nbytes == 0
    for threads, objectives, k in [(2, 24, 10), (3, 40, 1), (1, 9, 30), (2, 3, 1201), (2, 0, 5)]:
        set_threads(threads)
        templates = rng.standard_normal((objectives, 2100)).astype(np.float32)
        for exclude in (None, rng.random(1201) < 0.5):
            plain = _C.score_topk(pool, templates, k, exclude, isa=ISA, screen=False)
            check_equal(plan.run(templates, k, exclude, isa=ISA), plain)
            check_equal(plan.run(templates, k, exclude, isa=ISA, screen=False), plain)
            check_equal(
                plan.run(templates, k, exclude, isa="avx2"),
                _C.score_topk(pool, templates, k, exclude, isa="avx2"),
            )
    assert 1201 * 2100 < plan.nbytes < 1.1 * 1201 * 2100


def test_a_plan_asked_by_several_threads_at_once(set_threads):
    set_threads(2)
    rng = np.random.default_rng(4)
    pool = as_kind(rng.standard_normal((3000, 512)), "bfloat16")
    templates = rng.standard_normal((24, 512)).astype(np.float32)
    plain = _C.score_topk(pool, templates, 10, screen=False)
    plan = _C.ScoreTopkPlan(pool)
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(lambda _: plan.run(templates, 10), range(64)):
            check_equal(found, plain)


def test_few_objectives_keep_nothing():
    pool = as_kind(np.random.default_rng(5).standard_normal((2000, 128)), "bfloat16")
    plan = _C.ScoreTopkPlan(pool)
    plan.run(np.ones((8, 128), np.float32), 10)
    assert plan.nbytes == 0
