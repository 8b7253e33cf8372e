from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from brainfast import _C

PRECISIONS = ["fp32", "bf16", "bf16x3"]
PATHS = [
    (precision, isa)
    for precision in PRECISIONS
    for isa in (*_C.supported_isas(precision), *(["amx-emulated"] * (precision != "fp32")))
]
SIZES = [  # B T C K
    (1, 1, 1, 1),
    (3, 2, 7, 3),
    (2, 5, 33, 17),
    (3, 50, 7, 100),
    (1, 257, 192, 40),
    (2, 17, 130, 33),
]
paths = pytest.mark.parametrize(("precision", "isa"), PATHS)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def make_layers(sizes, layers=2):
    images, tokens, channels, latent = sizes
    filters = [normal(latent, channels, seed=layer) for layer in range(layers)]
    maps = [normal(latent, tokens, seed=10 + layer) for layer in range(layers)]
    source = [normal(images, tokens, channels, seed=20 + layer) for layer in range(layers)]
    return filters, maps, source


def expect(filters, maps, source, bias=0.0):
    total = np.zeros((len(source[0]), len(filters[0])))
    for f, m, x in zip(filters, maps, source, strict=True):
        for k in range(len(f)):
            total[:, k] += (x.astype(np.float64) @ f[k].astype(np.float64)) @ m[k]
    return total + bias


def within(found, expected, precision, count):
    """The bars, in standard deviations of a sum of `count` products of normal numbers."""
    error = (found - expected) / count**0.5
    if precision == "fp32":
        return np.abs(error).max() <= 1e-5
    # A single sum may be nearly all rounding error of one product: bars of bf16 are of many sums.
    scale = 1 if error.size >= 50 else 3
    return np.sqrt(np.square(error).mean()) <= scale * {"bf16": 5e-3, "bf16x3": 1e-5}[precision]


def channels_first(source, height):
    """[B,T,C] -> [B,C,H,W] and no class token."""
    return [
        np.ascontiguousarray(x.transpose(0, 2, 1)).reshape(len(x), x.shape[2], height, -1)
        for x in source
    ]


@paths
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_three_forms_of_tokens(precision, isa, sizes):
    filters, maps, source = make_layers(sizes)
    bias = normal(sizes[3], seed=5)
    plan = _C.FactorProjectionPlan(filters, maps, bias, isa=isa, precision=precision)
    assert (plan.isa, plan.precision) == (isa, precision)
    expected = expect(filters, maps, source, bias)
    count = 2 * sizes[1] * sizes[2]
    forms = [(source, None), (channels_first(source, 1), None)]
    class_token = [np.ascontiguousarray(x[:, 0]) for x in source]
    rest = [x[:, 1:] for x in source]
    local = [np.ascontiguousarray(x.transpose(0, 2, 1))[:, :, None] for x in rest]
    forms.append((local, class_token))
    for tokens, global_ in forms:
        assert within(plan.run(tokens, global_), expected, precision, count)


@paths
def test_adjoint_is_the_transpose(precision, isa):
    sizes = (2, 10, 33, 37)
    filters, maps, source = make_layers(sizes)
    plan = _C.FactorProjectionPlan(filters, maps, isa=isa, precision=precision)
    grad_output = normal(14, 37)
    found = plan.adjoint(grad_output)
    bar = {"fp32": 1e-5, "bf16": 1e-2, "bf16x3": 1e-4}[precision]
    for f, m, tokens in zip(filters, maps, found, strict=True):
        wide = [a.astype(np.float64) for a in (grad_output, m, f)]
        expected = np.einsum("ok,kt,kc->otc", *wide)
        assert tokens.dtype == np.float32
        assert np.abs(tokens - expected).max() <= bar * np.abs(expected).max()
    scores = sum(np.einsum("otc,btc->ob", a, x) for a, x in zip(found, source, strict=True))
    other = grad_output @ plan.run(source).T
    assert np.abs(scores - other).max() <= max(bar, 1e-4) * np.abs(other).max()


@paths
def test_the_same_bits_for_any_number_of_threads_and_any_batch(precision, isa, set_threads):
    filters, maps, source = make_layers((5, 20, 40, 150))
    plan = _C.FactorProjectionPlan(filters, maps, isa=isa, precision=precision)
    first = plan.run(source)
    grads = plan.adjoint(first)
    for threads in (1, 2, 3):
        set_threads(threads)
        assert np.array_equal(plan.run(source), first)
        assert all(map(np.array_equal, plan.adjoint(first), grads))
    for image in range(5):
        alone = plan.run([x[image : image + 1] for x in source])
        assert np.array_equal(alone[0], first[image])


def test_layers_of_different_sizes():
    filters, maps = [normal(9, 5), normal(9, 12)], [normal(9, 4), normal(9, 10)]
    local = [normal(3, 5, 1, 3), normal(3, 12, 3, 3)]
    global_ = [normal(3, 5, seed=1), normal(3, 12, seed=1)]
    plan = _C.FactorProjectionPlan(filters, maps)
    source = [
        np.concatenate([g[:, None], x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)], axis=1)
        for x, g in zip(local, global_, strict=True)
    ]
    assert (plan.tokens, plan.channels, plan.layers, plan.latent) == ([4, 10], [5, 12], 2, 9)
    found = plan.run(local, global_)
    assert np.abs(found - expect(filters, maps, source)).max() <= 1e-4


def test_answers_into_a_given_array():
    filters, maps, source = make_layers((3, 5, 7, 20))
    plan = _C.FactorProjectionPlan(filters, maps)
    out = np.empty((3, 20), np.float32)
    assert plan.run(source, out=out) is out
    assert np.array_equal(out, plan.run(source))


def test_no_images_and_no_latent():
    filters, maps, source = make_layers((0, 5, 7, 20))
    plan = _C.FactorProjectionPlan(filters, maps)
    assert plan.run(source).shape == (0, 20)
    assert [a.shape for a in plan.adjoint(normal(0, 20))] == [(0, 5, 7)] * 2
    filters, maps, source = make_layers((2, 5, 7, 0))
    plan = _C.FactorProjectionPlan(filters, maps)
    assert plan.run(source).shape == (2, 0)
    assert not np.any(plan.adjoint(normal(3, 0)))


def test_several_python_threads_at_once():
    filters, maps, source = make_layers((2, 20, 40, 100))
    plan = _C.FactorProjectionPlan(filters, maps)
    expected = plan.run(source)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: plan.run(source), range(16)):
            assert np.array_equal(found, expected)


def test_the_plan_keeps_no_reference_to_its_arguments():
    filters, maps, source = make_layers((2, 5, 7, 20))
    plan = _C.FactorProjectionPlan(filters, maps)
    before = plan.run(source)
    for array in (*filters, *maps):
        array[:] = 0
    assert np.array_equal(plan.run(source), before)


def test_size_and_work():
    filters, maps, _ = make_layers((1, 5, 7, 16), layers=3)
    plan = _C.FactorProjectionPlan(filters, maps, isa="portable")
    assert plan.flops_per_image == 3 * 2 * 5 * 7 * 16
    assert plan.nbytes == 3 * (5 + 7) * 16 * 4


def test_bad_factors():
    filters, maps, _ = make_layers((1, 5, 7, 16))
    make = _C.FactorProjectionPlan
    with pytest.raises(ValueError, match=r"maps\[1\]: expected shape \[16,5\], got \[15,5\]"):
        make(filters, [maps[0], maps[1][:-1]])
    with pytest.raises(ValueError, match="maps: expected a list of 2, got one of 1"):
        make(filters, maps[:1])
    with pytest.raises(ValueError, match=r"filters: .* empty"):
        make([], [])
    with pytest.raises(ValueError, match=r"filters\[0\]: expected float32, got float64"):
        make([f.astype(np.float64) for f in filters], maps)
    with pytest.raises(ValueError, match=r"filters\[0\]: expected at least one channel"):
        make([f[:, :0] for f in filters], maps)
    with pytest.raises(ValueError, match=r"bias: expected shape \[16\]"):
        make(filters, maps, normal(15))
    with pytest.raises(ValueError, match="precision: expected"):
        make(filters, maps, precision="int8")


def test_bad_tokens():
    filters, maps, source = make_layers((2, 5, 7, 16))
    plan = _C.FactorProjectionPlan(filters, maps)
    local, global_ = [normal(2, 7, 2, 2)] * 2, [normal(2, 7)] * 2
    plan.run(local, global_)
    with pytest.raises(ValueError, match=r"tokens\[1\]: expected shape \[2,5,7\], got \[1,5,7\]"):
        plan.run([source[0], source[1][:1]])
    with pytest.raises(ValueError, match="tokens: expected a list of 2"):
        plan.run(source[:1])
    with pytest.raises(ValueError, match=r"tokens\[0\]: .*H\*W = 5"):
        plan.run(local)
    with pytest.raises(ValueError, match=r"tokens\[0\]: expected \[B,C,H,W\], got"):
        plan.run(source, global_)
    with pytest.raises(ValueError, match=r"global_\[0\]: expected shape \[2,7\]"):
        plan.run(local, [g[:, :6] for g in global_])
    with pytest.raises(ValueError, match="contiguous"):
        plan.run([x[:, ::-1] for x in source])
    with pytest.raises(ValueError, match=r"out: expected shape \[2,16\]"):
        plan.run(source, out=np.empty((2, 15), np.float32))
    with pytest.raises(ValueError, match="grad_output"):
        plan.adjoint(normal(2, 15))


@pytest.mark.parametrize("isa", _C.supported_isas("fp32"))
def test_a_sum_of_a_million_products_is_as_good_as_one_of_a_thousand(isa):
    """Full depth: 6 layers, T=257, C=768. A sum that met its terms one by one would miss this."""
    rng = np.random.default_rng(8)
    layers, tokens, channels, latent = 6, 257, 768, 16
    filters = [rng.uniform(-1, 1, (latent, channels)).astype(np.float32) for _ in range(layers)]
    maps = [rng.uniform(-1, 1, (latent, tokens)).astype(np.float32) for _ in range(layers)]
    images = [rng.standard_normal((2, tokens, channels), np.float32) for _ in range(layers)]
    expected = sum(
        np.einsum("btk,kt->bk", x.astype(np.float64) @ f.T.astype(np.float64), m)
        for x, f, m in zip(images, filters, maps, strict=True)
    )
    found = _C.FactorProjectionPlan(filters, maps, isa=isa).run(images)
    error = (found - expected) / expected.std()
    assert np.sqrt(np.square(error).mean()) < 6e-7
