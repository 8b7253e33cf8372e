"""The embedding on CUDA: by the emulated kernels on the host, and on a GPU where there is one.

What the emulator cannot show stands in tests/csrc/test_blobgpt_cuda_emulated.cpp.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from brainfast import _C
from brainfast.errors import BrainfastError
from brainfast.ops import cuda_kernels, reference_blobgpt, vertex_embed, vertex_embed_cuda
from brainfast.ops.vertex_embed_cuda import CudaVertexEmbedPlan

SIZES = [(1, 1, 1), (3, 19, 7), (17, 70, 132), (33, 65, 16), (70, 20, 65)]  # B V K
FULL_SIZES = [*SIZES, (1, 37984, 1024), (8, 5000, 1000), (300, 3000, 1024)]
PRECISIONS = ["fp32", "bf16x3", "bf16"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_case(device, sizes, *, dtype=torch.float32, grad=False):
    images, vertices, latent = sizes
    case = [normal(images, latent), normal(vertices, latent, seed=1), normal(vertices, seed=2)]
    return [tensor.to(device, dtype).requires_grad_(grad) for tensor in case]


def twin(case):
    return reference_blobgpt.vertex_embed(*(t.detach().cpu().double() for t in case))


def gradients(function, case, grad_output):
    return torch.autograd.grad(function(*case), case, grad_output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", FULL_SIZES, ids=str)
def test_matches_the_float64_twin(device, sizes, dtype):
    if device == "cpu" and sizes not in SIZES:
        pytest.skip("too large for the emulator")
    case = make_case(device, sizes, dtype=dtype)
    found = vertex_embed(*case)
    assert found.dtype == torch.float32
    assert (found.cpu() - twin(case)).abs().max() <= 1e-5 * sizes[2] ** 0.5


def test_gradients_are_torchs(device):
    case, grad_output = make_case(device, (3, 19, 7), grad=True), normal(3, 19, seed=3)
    leaves = [tensor.detach().cpu().double().requires_grad_() for tensor in case]
    expected = gradients(reference_blobgpt.vertex_embed, leaves, grad_output.double())
    found = gradients(vertex_embed, case, grad_output.to(device))
    for a, b in zip(found, expected, strict=True):
        assert (a.cpu() - b).abs().max() <= 1e-5 * b.abs().max()


def test_mixed_dtypes_are_computed_in_float32(device):
    latent, weight, bias = make_case(device, (3, 19, 8))
    narrow = weight.bfloat16()
    assert torch.equal(
        vertex_embed(latent, narrow, bias), vertex_embed(latent, narrow.float(), bias)
    )
    half = latent.half()
    assert torch.equal(vertex_embed(half, weight, bias), vertex_embed(half.float(), weight, bias))


@pytest.mark.parametrize(("images", "vertices"), [(0, 5), (3, 0), (0, 0)])
def test_no_images_and_no_vertices(device, images, vertices):
    case = make_case(device, (images, vertices, 6), grad=True)
    response = vertex_embed(*case)
    assert response.shape == (images, vertices)
    response.sum().backward()
    assert all(tensor.grad.shape == tensor.shape for tensor in case)
    plan = CudaVertexEmbedPlan(*(t.detach() for t in case[1:]))
    assert plan.run(case[0].detach()).shape == (images, vertices)


def test_strided_and_unaligned_weights(device):
    latent, weight, bias = make_case(device, (3, 20, 8))
    expected = vertex_embed(latent, weight, bias)
    strided = [torch.stack([t, t], dim=-1)[..., 0] for t in (latent, weight, bias)]
    assert torch.equal(vertex_embed(*strided), expected)
    shifted = torch.empty(161, device=device)[1:].view(20, 8).copy_(weight)
    assert shifted.data_ptr() % 16
    assert torch.equal(vertex_embed(latent, shifted, bias), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_with_its_image_or_its_vertex(device, dtype):
    case = make_case(device, (3, 20, 24), dtype=dtype)
    expected = vertex_embed(*case)
    for index, row in ((0, 1), (1, 7)):
        spoiled = [tensor.clone() for tensor in case]
        spoiled[index][row, 2] = torch.nan
        bad = torch.zeros_like(expected, dtype=torch.bool)
        bad[(row, slice(None)) if index == 0 else (slice(None), row)] = True
        found = vertex_embed(*spoiled)
        assert torch.equal(found.isnan(), bad)
        assert torch.equal(found[~bad], expected[~bad])


@pytest.mark.parametrize(
    ("precision", "low", "high"), [("fp32", 0, 1e-6), ("bf16x3", 0, 1e-5), ("bf16", 1e-4, 7e-3)]
)
@pytest.mark.parametrize("sizes", [(1, 70, 150), (9, 130, 40), (20, 66, 65)], ids=str)
def test_plan(device, precision, low, high, sizes):
    latent, weight, bias = make_case(device, sizes)
    expected = twin((latent, weight, bias))
    plan = CudaVertexEmbedPlan(weight, bias, precision=precision)
    found = plan.run(latent)
    assert low <= (found.cpu() - expected).norm() / (expected - bias.cpu()).norm() <= high
    weight.zero_()
    out = torch.full_like(found, torch.nan)
    assert plan.run(latent, out) is out
    assert torch.equal(out, found)  # the plan has its own weights


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_bits_in_any_batch_and_any_subset_of_vertices(device, precision):
    latent, weight, bias = make_case(device, (67, 70, 70))
    whole = CudaVertexEmbedPlan(weight, bias, precision=precision).run(latent)
    vertices = torch.tensor([69, 3, 40], device=device)
    plan = CudaVertexEmbedPlan(weight[vertices], bias[vertices], precision=precision)
    for images in (1, 16, 17, 67):
        assert torch.equal(plan.run(latent[-images:]), whole[-images:, vertices])
    if precision == "fp32":
        assert torch.equal(vertex_embed(latent, weight, bias), whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda latent, out: (latent[:, 1:], out), r"latent: expected \[3, 9\], got \[3, 8\]"),
        (lambda latent, out: (latent[0], out), r"latent: expected \[9, 9\], got \[9\]"),
        (lambda latent, out: (latent.double(), out), "latent: expected float32, bfloat16"),
        (lambda latent, out: (latent.to("meta"), out), "latent: expected a tensor on"),
        (lambda latent, out: (latent, out[:2]), r"out: expected \[3, 20\], got \[2, 20\]"),
        (lambda latent, out: (latent, out.half()), "out: expected contiguous float32, got float16"),
    ],
)
def test_a_plan_names_what_is_wrong(device, change, words):
    latent, weight, bias = make_case(device, (3, 20, 9))
    plan = CudaVertexEmbedPlan(weight, bias)
    with pytest.raises(BrainfastError, match=words):
        plan.run(*change(latent, torch.empty(3, 20, device=device)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weight, bias: (weight[:, :0], bias), r"weight: expected \[V,K\] with at least one"),
        (lambda weight, bias: (weight, bias[1:]), r"bias: expected \[20\], got \[19\]"),
        (lambda weight, bias: (weight.int(), bias), "weight: expected float32.*got int32"),
        (lambda weight, bias: (weight, bias.to("meta")), "bias: expected a tensor on"),
    ],
)
def test_weights_that_do_not_fit_are_refused(device, change, words):
    with pytest.raises(BrainfastError, match=words):
        CudaVertexEmbedPlan(*change(*make_case(device, (3, 20, 9))[1:]))


def test_a_build_without_kernels_says_so_once(monkeypatch, recwarn):
    monkeypatch.setattr(cuda_kernels, "_C", SimpleNamespace())
    place = torch.device("cuda:77")
    assert not vertex_embed_cuda.usable(place)
    assert not vertex_embed_cuda.usable(place)
    assert ["vertex_embed on cuda:77 runs as torch" in str(w.message) for w in recwarn] == [True]


def test_kernels_that_answer_otherwise_than_torch_are_not_used(device, monkeypatch):
    place = torch.device(device)
    assert vertex_embed_cuda._difference(place) == ""
    right = vertex_embed_cuda.forward
    monkeypatch.setattr(vertex_embed_cuda, "forward", lambda *case: right(*case) * 1.01)
    monkeypatch.setattr(cuda_kernels, "find_problem", lambda *_: "")
    vertex_embed_cuda.usable.cache_clear()
    with pytest.warns(UserWarning, match="its answers in fp32 differ from torch's by 0.01"):
        assert not vertex_embed_cuda.usable(place)
    vertex_embed_cuda.usable.cache_clear()


def test_the_kernels_are_those_of_this_build(gpu):
    assert hasattr(_C, "CudaVertexEmbed")
    assert vertex_embed_cuda.usable(torch.empty(1, device=gpu).device)


def test_float64_stays_with_torch(gpu):
    case = make_case(gpu, (3, 20, 9), dtype=torch.float64, grad=True)
    assert torch.equal(vertex_embed(*case), reference_blobgpt.vertex_embed(*case))
    assert torch.autograd.gradcheck(vertex_embed, case)


def test_opcheck(gpu):
    for dtype in (torch.float32, torch.bfloat16):
        case = make_case(gpu, (2, 5, 8), dtype=dtype, grad=True)
        torch.library.opcheck(torch.ops.brainfast.vertex_embed.default, case)


def test_under_autocast(gpu):
    case = make_case(gpu, (3, 20, 8))
    expected = vertex_embed(*case)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(vertex_embed(*case), expected)


def test_compiles_into_a_graph(gpu):
    case = make_case(gpu, (3, 20, 8))
    compiled = torch.compile(vertex_embed, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*case), vertex_embed(*case))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cuda_graph_replays_a_plan_without_waiting(gpu, precision, capture):
    latent, weight, bias = make_case(gpu, (5, 500, 130))
    plan = CudaVertexEmbedPlan(weight, bias, precision=precision)
    step = partial(plan.run, latent)
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph, found = capture(step)
    latent.mul_(-1.5)
    graph.replay()
    assert torch.equal(found, step())


def test_streams_of_several_threads(check_streams, gpu):
    def run(*case):
        answer = vertex_embed(*case)
        return [answer, *torch.autograd.grad(answer.sum(), case)]

    check_streams(run, [make_case(gpu, (2, 400 + i, 64), grad=True) for i in range(8)])
