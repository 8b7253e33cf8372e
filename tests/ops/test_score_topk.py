from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfast import _C
from brainfast.errors import BrainfastError
from brainfast.ops import reference, score_topk

# N F O k
SIZES = [(1, 1, 1, 1), (50, 33, 7, 3), (300, 128, 24, 10), (40, 2100, 13, 40), (90, 65, 3, 0)]
POOLS = [torch.float32, torch.bfloat16, torch.float16, torch.int8]
TEMPLATES = [torch.float32, torch.bfloat16]
# Kind of pool, kind of templates, and every path of their precision.
PATHS = [
    (pool, templates, isa)
    for pool in ("float32", "bfloat16", "int8")
    for templates, precision in (("float32", "bf16x3"), ("bfloat16", "bf16"))
    for isa in (
        _C.supported_isas("fp32")
        if pool == "float32"
        else (*_C.supported_isas(precision), "amx-emulated")
    )
]


def whole_numbers(shape, seed, dtype=torch.float32):
    """Small enough that scores are exact in any order of sums, and many of them equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator).to(dtype)


def make_case(sizes, pool=torch.float32, templates=torch.float32):
    candidates, features, objectives, _ = sizes
    scale = None
    if pool == torch.int8:
        scale = 2.0 ** torch.arange(candidates).remainder(3)
    return (
        whole_numbers((candidates, features), 1, pool),
        whole_numbers((objectives, features), 2, templates),
        scale,
    )


def chosen_by_sorting(pool, templates, k, exclude=(), scale=None):
    """(scores, indices) of one objective after another, sorted by Python."""
    scores, indices = [], []
    for template in templates.double():
        each = pool.double() @ template * (1 if scale is None else scale.double())
        keys = [(-float(s), n) for n, s in enumerate(each) if s.isfinite() and n not in exclude]
        best = sorted(keys)[:k] + [(float("inf"), -1)] * (k - len(keys))
        scores.append([-key[0] for key in best])
        indices.append([key[1] for key in best])
    return (
        torch.tensor(scores, dtype=torch.float32).reshape(len(templates), k),
        torch.tensor(indices, dtype=torch.int64).reshape(len(templates), k),
    )


def check_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def as_numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("templates", TEMPLATES, ids=str)
def test_exact_scores_are_chosen_as_by_sorting(sizes, pool, templates):
    pool, templates, scale = make_case(sizes, pool, templates)
    exclude = list(range(0, sizes[0] - sizes[3], 3))
    for out in ([], exclude):
        expected = chosen_by_sorting(pool, templates, sizes[3], out, scale)
        check_equal(score_topk(pool, templates, sizes[3], out, scale=scale), expected)
        mask = torch.zeros(len(pool), dtype=torch.bool)
        mask[out] = True
        check_equal(score_topk(pool, templates, sizes[3], mask, scale=scale), expected)
        twin = reference.score_topk(pool, templates.float(), sizes[3], mask, scale)
        check_equal(twin, expected)


@pytest.mark.parametrize(("pool", "templates", "isa"), PATHS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_path_with_any_number_of_threads(set_threads, pool, templates, isa, sizes):
    kinds = getattr(torch, pool), getattr(torch, templates)
    pool, templates, scale = make_case(sizes, *kinds)
    expected = chosen_by_sorting(pool, templates, sizes[3], scale=scale)
    factors = None if scale is None else scale.numpy()
    for threads in (1, 2, 3):
        set_threads(threads)
        found = _C.score_topk(as_numpy(pool), as_numpy(templates), sizes[3], scale=factors, isa=isa)
        check_equal([torch.from_numpy(array) for array in found], expected)
        plan = _C.ScoreTopkPlan(as_numpy(pool), factors)  # what it reads lives as long as it does
        found = plan.run(as_numpy(templates), sizes[3], isa=isa)
        check_equal([torch.from_numpy(array) for array in found], expected)


@pytest.mark.parametrize(("pool", "templates", "isa"), PATHS)
def test_scores_keep_their_bar_and_bits(set_threads, pool, templates, isa):
    generator = torch.Generator().manual_seed(3)
    numbers = torch.randn(200, 3000, generator=generator)
    scale = None
    if pool == "int8":
        numbers, scale = (20 * numbers).round().clamp(-127, 127), torch.rand(200) + 0.5
    numbers = numbers.to(getattr(torch, pool))
    wanted = torch.randn(7, 3000, generator=generator).to(getattr(torch, templates))
    exact = wanted.double() @ numbers.double().T
    if scale is not None:
        exact = exact * scale
    arguments = as_numpy(numbers), as_numpy(wanted), 200
    options = {"scale": None if scale is None else scale.numpy(), "isa": isa}
    set_threads(2)
    scores, indices = _C.score_topk(*arguments, **options)
    error = np.abs(scores - np.take_along_axis(exact.numpy(), indices, axis=1)).max()
    tiles = isa == "amx-emulated" and templates == "float32"
    assert 0 < error <= (1e-5 if tiles else 3e-6) * float(exact.std()) * 4
    # One candidate and one objective alone, and another number of threads.
    set_threads(1)
    again, _ = _C.score_topk(*arguments, **options)
    assert np.array_equal(scores, again)
    best = indices[4, 0]
    alone, _ = _C.score_topk(
        arguments[0][best : best + 1],
        arguments[1][4:5],
        1,
        scale=None if scale is None else options["scale"][best : best + 1],
        isa=isa,
    )
    assert alone[0, 0] == scores[4, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_finite_is_never_chosen(isa, dtype):
    pool, templates, _ = make_case((30, 40, 4, 0), dtype)
    pool[3, 7] = pool[29, 39] = torch.nan
    pool[5, 0], pool[6, 20] = torch.inf, -torch.inf
    templates[2, 5] = torch.nan
    scores, indices = score_topk(pool, templates, 30)
    check_equal((scores, indices), chosen_by_sorting(pool, templates, 30))
    assert (indices[0, 26:] == -1).all()
    assert (scores[2] == -torch.inf).all()


def test_equal_scores_go_by_index_across_tasks(set_threads):
    set_threads(3)
    pool, templates = torch.zeros(5000, 3), torch.ones(2, 3)
    scores, indices = score_topk(pool, templates, 1200, [0, 7])
    assert not scores.any()
    expected = [n for n in range(1202) if n not in (0, 7)]
    assert indices.tolist() == [expected, expected]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_sizes(data):
    draw = data.draw
    candidates, features = draw(st.integers(1, 90)), draw(st.integers(1, 140))
    objectives = draw(st.integers(0, 40))
    exclude = draw(st.sets(st.integers(0, candidates - 1)))
    k = draw(st.integers(0, candidates - len(exclude)))
    kinds = draw(st.sampled_from(POOLS)), draw(st.sampled_from(TEMPLATES))
    pool, templates, scale = make_case((candidates, features, objectives, k), *kinds)
    found = score_topk(pool, templates, k, sorted(exclude), scale=scale)
    check_equal(found, chosen_by_sorting(pool, templates, k, exclude, scale))


@pytest.mark.parametrize("sizes", [(0, 5, 3, 0), (4, 5, 0, 2), (0, 5, 0, 0)])
def test_no_candidates_and_no_objectives(sizes):
    pool, templates, _ = make_case(sizes)
    scores, indices = score_topk(pool, templates, sizes[3])
    assert scores.shape == indices.shape == (sizes[2], sizes[3])


def test_strided_inputs(isa):
    pool, templates, scale = make_case((30, 20, 4, 5), torch.int8)
    twice = [torch.stack([t, t], dim=-1)[..., 0] for t in (pool, templates, scale)]
    found = score_topk(*twice[:2], 5, scale=twice[2])
    check_equal(found, score_topk(pool, templates, 5, scale=scale))


def test_a_mapped_pool_is_read_where_it_lies(tmp_path):
    pool, templates, _ = make_case((200, 48, 4, 5), torch.bfloat16)
    path = tmp_path / "pool"
    path.write_bytes(b"12345678" + as_numpy(pool).tobytes())
    mapped = np.memmap(path, np.uint16, "r", offset=8, shape=(200, 48))
    scores, indices = _C.score_topk(mapped, templates.numpy(), 5)
    expected = chosen_by_sorting(pool, templates, 5)
    check_equal((torch.from_numpy(scores), torch.from_numpy(indices)), expected)


def test_opcheck():
    mask = torch.arange(20) % 2 == 0
    for dtype in POOLS:
        pool, templates, scale = make_case((20, 9, 3, 4), dtype)
        for exclude in (None, mask):
            arguments = (pool, templates, 4, exclude, scale)
            torch.library.opcheck(torch.ops.brainfast.score_topk.default, arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pool": torch.zeros(9)}, r"pool: expected \[N,F\].*got shape \[9\]"),
        ({"pool": torch.zeros(9, 0)}, "pool: expected .*at least one feature"),
        ({"pool": torch.zeros(9, 4).double()}, "pool: expected float32.*int8, got float64"),
        ({"templates": torch.zeros(2, 5)}, r"templates: expected shape \[2, 4\], got \[2, 5\]"),
        ({"templates": torch.zeros(2, 4).char()}, "templates: expected float32.*got int8"),
        ({"templates": torch.zeros(2, 4, device="meta")}, r"templates: .*move it with .to\('cpu'"),
        ({"k": -1}, "k: expected 0 to 9.*got -1"),
        ({"k": 10}, "k: expected 0 to 9.*got 10; ask for fewer"),
        ({"k": 8, "exclude": [1, 1, 2]}, "k: expected 0 to 7"),
        ({"k": 9, "exclude": torch.arange(9) == 3}, "k: expected 0 to 8"),
        ({"exclude": [9]}, "exclude: expected indices from 0 to 8, got 9"),
        ({"exclude": [-1]}, "exclude: expected indices from 0 to 8, got -1"),
        ({"exclude": [0.5]}, "exclude: expected a bool tensor"),
        ({"exclude": torch.zeros(8).bool()}, r"exclude: expected shape \[9\], got \[8\]"),
        ({"scale": torch.ones(9)}, "scale: expected none, got one with a pool of float32"),
        ({"pool": torch.zeros(9, 4).char()}, "scale: expected one for each.*got none"),
        (
            {"pool": torch.zeros(9, 4).char(), "scale": torch.ones(8)},
            r"scale: expected shape \[9\], got \[8\]",
        ),
    ],
)
def test_bad_input(change, words):
    arguments = {"pool": torch.zeros(9, 4), "templates": torch.zeros(2, 4), "k": 1} | change
    with pytest.raises(BrainfastError, match=words):
        score_topk(**arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pool": np.zeros((9, 4))}, "pool: expected float32, int8 or bfloat16.*got float64"),
        ({"pool": np.zeros((4, 9), np.float32).T}, "pool: expected a contiguous"),
        ({"pool": np.frombuffer(bytes(41), np.uint8)[1:].view(np.uint16).reshape(5, 4)}, "aligned"),
        ({"templates": np.zeros((2, 3), np.float32)}, r"templates: expected shape \[O,4\]"),
        ({"templates": np.zeros((2, 4), np.int8)}, "templates: expected float32 or bfloat16"),
        ({"k": 10}, "k: expected 0 to 9, got 10"),
        ({"exclude": np.zeros(9)}, "exclude: expected bool, got float64"),
        ({"exclude": np.zeros(8, bool)}, r"exclude: expected a contiguous array \[9\], got \[8\]"),
        ({"scale": np.ones(9, np.float32)}, "scale: expected none"),
        ({"isa": "mmx"}, "isa: expected one that this machine runs"),
    ],
)
def test_bad_input_of_the_core(change, words):
    zeros = np.zeros((9, 4), np.float32)
    given = {"pool": zeros, "templates": zeros[:2], "k": 1} | change
    with pytest.raises(ValueError, match=words):
        _C.score_topk(**given)
    with pytest.raises(ValueError, match=words):
        _C.ScoreTopkPlan(given.pop("pool"), given.pop("scale", None)).run(**given)
