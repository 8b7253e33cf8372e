"""The projection on CUDA: by the emulated kernels on the host, and on a GPU where there is one.

What the emulator cannot show stands in tests/csrc/test_blobgpt_cuda_emulated.cpp.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from brainfast import _C
from brainfast.errors import BrainfastError
from brainfast.machine import ADD_CUDA_KERNELS
from brainfast.ops import cuda_kernels, factor_projection, factor_projection_cuda, reference_blobgpt
from brainfast.ops.factor_projection_cuda import CudaFactorProjectionPlan

NAMES = ("tokens", "filters", "maps")
SIZES = [  # B T C K
    (1, 1, 1, 1),
    (3, 2, 7, 3),
    (2, 17, 70, 130),
    (9, 20, 5, 40),
    (33, 3, 9, 17),
    (1, 257, 13, 5),
]
FULL_SIZES = [*SIZES, (1, 257, 768, 1024), (8, 257, 192, 300), (2, 50, 33, 17), (256, 5, 130, 40)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_case(device, sizes, *, dtype=torch.float32, grad=False):
    images, tokens, channels, latent = sizes
    case = [normal(images, tokens, channels), normal(latent, channels), normal(latent, tokens)]
    return [tensor.to(device, dtype).requires_grad_(grad) for tensor in case]


def wide(case):
    return [tensor.detach().cpu().double().requires_grad_() for tensor in case]


def gradients(function, case, grad_output):
    return torch.autograd.grad(function(*case), case, grad_output)


def twin(case, grad_output):
    """The latent and the gradients in float64."""
    case = wide(case)
    latent = reference_blobgpt.factor_projection(*case)
    return latent.detach(), torch.autograd.grad(latent, case, grad_output.double())


def check(found, expected, tolerance, name, scale=None):
    assert found.dtype == torch.float32
    error = (found.detach().cpu() - expected).abs().max()
    assert error <= tolerance * (scale or expected.abs().max()), name


@pytest.mark.parametrize("sizes", FULL_SIZES, ids=str)
def test_matches_the_float64_twin(device, sizes):
    if device == "cpu" and sizes not in SIZES:
        pytest.skip("too large for the emulator")
    case = make_case(device, sizes, grad=True)
    grad_output = normal(sizes[0], sizes[3], seed=1)
    latent, grads = twin(case, grad_output)
    scale = (sizes[1] * sizes[2]) ** 0.5  # of a sum of that many products of normal numbers
    check(factor_projection(*case), latent, 1e-5, "latent", scale)
    found = gradients(factor_projection, case, grad_output.to(device))
    for name, a, b in zip(NAMES, found, grads, strict=True):
        check(a, b, 1e-5, name)


@pytest.mark.parametrize("sizes", [(3, 9, 150, 20), (1, 40, 17, 5)], ids=str)
def test_bfloat16_is_accumulated_in_float32(device, sizes):
    case = make_case(device, sizes, dtype=torch.bfloat16, grad=True)
    grad_output = normal(sizes[0], sizes[3], seed=1)
    latent, grads = twin(case, grad_output)
    check(factor_projection(*case), latent, 1e-5, "latent")
    found = gradients(factor_projection, case, grad_output.to(device))
    for name, a, b in zip(NAMES, found, grads, strict=True):
        assert a.dtype == torch.bfloat16
        check(a.float(), b, 2e-2, name)


def test_half_precision_tokens_go_with_float32_factors(device):
    tokens, filters, maps = make_case(device, (2, 9, 8, 5))
    for narrow in (tokens.half(), tokens.bfloat16()):
        expected = factor_projection(narrow.float(), filters, maps)
        assert torch.equal(factor_projection(narrow, filters, maps), expected)


@pytest.mark.parametrize(("images", "latent"), [(0, 5), (3, 0), (0, 0)])
def test_no_images_and_no_latent(device, images, latent):
    case = make_case(device, (images, 4, 6, latent), grad=True)
    answer = factor_projection(*case)
    assert answer.shape == (images, latent)
    answer.sum().backward()
    for tensor in case:
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


def test_strided_inputs_are_read_where_they_lie(device):
    case = make_case(device, (2, 9, 8, 5), grad=True)
    expanded = torch.ones(1, 1, device=device).expand(2, 5)
    expected = gradients(factor_projection, case, expanded.contiguous())
    strided = [torch.stack([t.detach(), t.detach()], dim=-1)[..., 0] for t in case]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert torch.equal(factor_projection(*strided), factor_projection(*case))
    strided = [tensor.requires_grad_() for tensor in strided]
    for a, b in zip(gradients(factor_projection, strided, expanded), expected, strict=True):
        assert torch.equal(a, b)


def test_only_wanted_gradients(device):
    full = make_case(device, (2, 9, 26, 40), grad=True)
    factor_projection(*full).sum().backward()
    for index, name in enumerate(NAMES):
        case = [tensor.detach().requires_grad_(i == index) for i, tensor in enumerate(full)]
        factor_projection(*case).sum().backward()
        assert torch.equal(case[index].grad, full[index].grad), name


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_with_its_image_or_its_latent(device, value, dtype):
    case = make_case(device, (3, 5, 9, 20), dtype=dtype)
    expected = factor_projection(*case)
    for index, place in ((0, (slice(1, 2), slice(None))), (1, (slice(None), slice(7, 8)))):
        spoiled = [tensor.clone() for tensor in case]
        spoiled[index][1 if index == 0 else 7, 2] = value
        found = factor_projection(*spoiled)
        bad = torch.zeros_like(found, dtype=torch.bool)
        bad[place] = True
        assert torch.equal(~found.isfinite(), bad)
        assert torch.equal(found[~bad], expected[~bad])


def make_layers(device, images, latent, sizes):
    """filters, maps, local [B,C,H,W] and global_ [B,C] of layers given as (C, H, W)."""
    filters = [normal(latent, c, seed=i).to(device) for i, (c, _, _) in enumerate(sizes)]
    maps = [normal(latent, h * w + 1, seed=i + 9).to(device) for i, (_, h, w) in enumerate(sizes)]
    local = [normal(images, *size, seed=i + 20).to(device) for i, size in enumerate(sizes)]
    global_ = [normal(images, c, seed=i + 30).to(device) for i, (c, _, _) in enumerate(sizes)]
    return filters, maps, local, global_


def sequences(local, global_):
    """[B,T,C] a layer, the class token first."""
    return [
        torch.cat([head[:, None], part.flatten(2).transpose(1, 2)], dim=1)
        for part, head in zip(local, global_, strict=True)
    ]


def expect(filters, maps, tokens, bias=0.0):
    total = bias
    for part in zip(tokens, filters, maps, strict=True):
        total = total + reference_blobgpt.factor_projection(*(t.cpu().double() for t in part))
    return total


@pytest.mark.parametrize(
    ("precision", "low", "high"), [("fp32", 0, 1e-6), ("bf16x3", 0, 1e-5), ("bf16", 1e-4, 7e-3)]
)
@pytest.mark.parametrize("images", [1, 2, 9])
def test_plan(device, precision, low, high, images):
    filters, maps, local, global_ = make_layers(device, images, 70, [(70, 3, 2), (9, 5, 4)])
    bias = normal(70, seed=2).to(device)
    tokens = sequences(local, global_)
    expected = expect(filters, maps, tokens)
    plan = CudaFactorProjectionPlan(filters, maps, bias, precision=precision)
    found = plan.run(local, global_)
    error = (found.cpu() - bias.cpu() - expected).norm() / expected.norm()
    assert low <= error <= high
    assert torch.equal(plan.run(tokens), found)
    nchw = [part[:, 1:].transpose(1, 2)[:, :, None] for part in tokens]  # as a trunk may give them
    assert not any(part.is_contiguous() for part in nchw)
    out = torch.full_like(found, torch.nan)
    assert plan.run(nchw, [part[:, 0] for part in tokens], out) is out
    assert torch.equal(out, found)
    bias.zero_()
    filters[0].zero_()
    assert torch.equal(plan.run(tokens), found)  # the plan has its own


def test_a_plan_of_the_most_layers(device):
    filters, maps, local, global_ = make_layers(device, 1, 5, [(3, 1, 1)] * 32)
    found = CudaFactorProjectionPlan(filters, maps).run(local, global_)
    check(found, expect(filters, maps, sequences(local, global_)), 1e-5, "latent")
    with pytest.raises(ValueError, match="layers: expected 1 to 32, got 33"):
        CudaFactorProjectionPlan([*filters, filters[0]], [*maps, maps[0]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, g, o: ([x[0], x[1][:1]], g, o), r"tokens\[1\]: expected \[2, 6, 7\], got \[1,"),
        (lambda x, g, o: (x[:1], g, o), "tokens: expected a list of 2, got one of 1"),
        (lambda x, g, o: (x, None, o), r"tokens\[0\]: expected \[B,C,H,W\] with H\*W = 7"),
        (lambda x, g, o: ([t.flatten(2) for t in x], g, o), r"tokens\[0\]: expected \[B,C,H,W\],"),
        (lambda x, g, o: (x, [g[0], g[1][:, :6]], o), r"global_\[1\]: expected \[2, 7\]"),
        (lambda x, g, o: (x, g[:1], o), "global_: expected a list of 2"),
        (
            lambda x, g, o: ([t.double() for t in x], g, o),
            r"tokens\[0\]: expected float32.*float64",
        ),
        (lambda x, g, o: (x, [t.to("meta") for t in g], o), "one on meta"),
        (lambda x, g, o: (x, g, o[:, 1:]), r"out: expected \[2, 16\]"),
        (lambda x, g, o: (x, g, o.double()), "out: expected contiguous float32, got float64"),
        (
            lambda x, g, o: (x, g, o.T.contiguous().T),
            "out: expected contiguous float32, got a strided",
        ),
    ],
)
def test_a_plan_names_what_is_wrong(device, change, words):
    filters, maps, local, global_ = make_layers(device, 2, 16, [(7, 2, 3)] * 2)
    plan = CudaFactorProjectionPlan(filters, maps)
    with pytest.raises(BrainfastError, match=words):
        plan.run(*change(local, global_, torch.empty(2, 16, device=device)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f, m, b: ([], [], b), r"filters: expected a tensor \[K,C\] for each layer"),
        (lambda f, m, b: (f, m[:1], b), "maps: expected a list of 2, got one of 1"),
        (
            lambda f, m, b: (f, [m[0], m[1][:-1]], b),
            r"maps\[1\]: expected \[16, 7\], got \[15, 7\]",
        ),
        (lambda f, m, b: ([f[0][:, :0], f[1]], m, b), r"filters\[0\]: expected \[K,C\], not empty"),
        (lambda f, m, b: (f, m, b[1:]), r"bias: expected \[16\], got \[15\]"),
        (lambda f, m, b: (f, m, b.double()), "bias: expected float32, bfloat16 or float16"),
        (lambda f, m, b: ([f[0], f[1].to("meta")], m, b), r"filters\[1\]: expected a tensor on"),
    ],
)
def test_factors_that_do_not_fit_are_refused(device, change, words):
    filters, maps, _, _ = make_layers(device, 2, 16, [(7, 2, 3)] * 2)
    with pytest.raises(BrainfastError, match=words):
        CudaFactorProjectionPlan(*change(filters, maps, normal(16).to(device)))


def test_a_build_without_kernels_says_so_once(monkeypatch, recwarn):
    monkeypatch.setattr(cuda_kernels, "_C", SimpleNamespace())
    place = torch.device("cuda:77")
    assert not factor_projection_cuda.usable(place)
    assert not factor_projection_cuda.usable(place)
    said = [str(w.message) for w in recwarn]
    assert len(said) == 1
    assert "factor_projection on cuda:77 runs as torch operations" in said[0]
    assert ADD_CUDA_KERNELS in said[0]


def test_kernels_that_answer_otherwise_than_torch_are_not_used(device, monkeypatch):
    place = torch.device(device)
    assert factor_projection_cuda._difference(place) == ""
    right = factor_projection_cuda.backward

    def wrong(*arguments):
        grads = right(*arguments)
        return [grads[0], grads[1] * 1.01, grads[2]]

    monkeypatch.setattr(factor_projection_cuda, "backward", wrong)
    monkeypatch.setattr(cuda_kernels, "find_problem", lambda *_: "")
    factor_projection_cuda.usable.cache_clear()
    with pytest.warns(UserWarning, match="filters in fp32 differ from torch's by 0.01"):
        assert not factor_projection_cuda.usable(place)
    factor_projection_cuda.usable.cache_clear()


def test_the_kernels_are_those_of_this_build(gpu):
    assert hasattr(_C, "CudaFactorProjection")
    assert factor_projection_cuda.usable(torch.empty(1, device=gpu).device)


def test_float64_stays_with_torch(gpu):
    case = make_case(gpu, (2, 5, 7, 6), dtype=torch.float64, grad=True)
    assert torch.equal(factor_projection(*case), reference_blobgpt.factor_projection(*case))
    assert torch.autograd.gradcheck(factor_projection, case)


def test_opcheck(gpu):
    for dtype in (torch.float32, torch.bfloat16):
        case = make_case(gpu, (2, 5, 7, 6), dtype=dtype, grad=True)
        torch.library.opcheck(torch.ops.brainfast.factor_projection.default, case)


def test_under_autocast(gpu):
    case = make_case(gpu, (2, 9, 8, 5))
    expected = factor_projection(*case)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(factor_projection(*case), expected)


def test_compiles_into_a_graph(gpu):
    case = make_case(gpu, (2, 9, 8, 5))
    compiled = torch.compile(factor_projection, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*case), factor_projection(*case))


def test_the_same_bits_on_every_run(gpu):
    case, grad_output = make_case(gpu, (9, 257, 192, 300), grad=True), normal(9, 300).to(gpu)
    runs = [
        [factor_projection(*case), *gradients(factor_projection, case, grad_output)]
        for _ in range(20)
    ]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_never_waits_for_the_device(gpu):
    case, grad_output = make_case(gpu, (2, 9, 8, 5), grad=True), torch.ones(2, 5, device=gpu)
    expected = gradients(factor_projection, case, grad_output)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = gradients(factor_projection, case, grad_output)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_cuda_graph_replays_forward_and_backward(gpu, capture):
    case, grad_output = make_case(gpu, (3, 40, 70, 150), grad=True), normal(3, 150).to(gpu)
    step = partial(gradients, factor_projection, case, grad_output)
    graph, found = capture(step)
    with torch.no_grad():
        for tensor in case:
            tensor.mul_(-1.5)
    graph.replay()
    for a, b in zip(found, step(), strict=True):
        assert torch.equal(a, b)


def test_a_cuda_graph_replays_a_plan(gpu, capture):
    filters, maps, local, global_ = make_layers(gpu, 5, 300, [(130, 8, 8), (70, 4, 4)])
    plan = CudaFactorProjectionPlan(filters, maps, precision="bf16")
    graph, found = capture(partial(plan.run, local, global_))
    for _ in range(3):  # counters start at zero in every replay
        local[0].mul_(-1.5)
        graph.replay()
        assert torch.equal(found, plan.run(local, global_))


def test_streams_of_several_threads(check_streams, gpu):
    def run(*case):
        answer = factor_projection(*case)
        return [answer, *torch.autograd.grad(answer.sum(), case)]

    check_streams(run, [make_case(gpu, (2, 40 + i, 70, 150), grad=True) for i in range(8)])
