"""Choosing candidates on CUDA: by emulated kernels on the host, and on a GPU if there is one."""

from __future__ import annotations

import sys

import pytest
import torch

from brainfast.ops import cuda_kernels, reference, score_topk, score_topk_cuda

OP = sys.modules["brainfast.ops.score_topk"]
SIZES = [(1, 1, 1, 1), (150, 40, 35, 9), (70, 64, 2, 70)]  # N F O k
FULL_SIZES = [*SIZES, (5000, 1024, 24, 10), (3000, 99, 3, 1024), (2000, 8, 1, 1500)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]


@pytest.fixture(params=["emulated", "cuda"])
def choose(request, monkeypatch):
    """`score_topk` where the kernels run: on the host, or on a GPU. Answers come to the host."""
    if request.param == "cuda":
        device = request.getfixturevalue("gpu")
        return lambda pool, templates, k, exclude=None, scale=None: [
            tensor.cpu()
            for tensor in score_topk(
                *(pool.to(device), templates.to(device), k),
                None if exclude is None else exclude.to(device),
                scale=None if scale is None else scale.to(device),
            )
        ]
    monkeypatch.setattr(score_topk_cuda, "_C", request.getfixturevalue("emulated"))
    monkeypatch.setattr(cuda_kernels, "queue", lambda _: {"device": 0, "stream": 0})

    def call(pool, templates, k, exclude=None, scale=None):
        if pool.dtype == torch.float16:
            pool = pool.float()
        return score_topk_cuda.choose(pool, templates.float(), k, exclude, scale)

    return call


def make_case(sizes, dtype):
    candidates, features, objectives, _ = sizes
    generator = torch.Generator().manual_seed(1)
    pool, templates = (
        torch.randint(-2, 3, (rows, features), generator=generator)
        for rows in (candidates, objectives)
    )
    scale = 2.0 ** torch.arange(candidates).remainder(3) if dtype == torch.int8 else None
    return pool.to(dtype), templates.float(), scale


def skip_large(choose, sizes):
    if choose.__name__ == "call" and sizes not in SIZES:
        pytest.skip("too large for the emulator")


@pytest.mark.parametrize("sizes", FULL_SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_the_twin_exactly(choose, sizes, dtype):
    skip_large(choose, sizes)
    pool, templates, scale = make_case(sizes, dtype)
    mask = torch.arange(len(pool)) % 5 == 2
    for exclude in (None, mask):
        expected = reference.score_topk(pool, templates.double(), sizes[3], exclude, scale)
        scores, indices = choose(pool, templates, sizes[3], exclude, scale)
        assert torch.equal(scores, expected[0].float())
        assert torch.equal(indices, expected[1])


def test_scores_are_strict_float32(choose):
    generator = torch.Generator().manual_seed(3)
    pool, templates = (torch.randn(rows, 900, generator=generator) for rows in (60, 3))
    scores, indices = choose(pool, templates, 60)
    exact = (templates.double() @ pool.double().T).gather(1, indices)
    assert (scores - exact).abs().max() <= 3e-6 * exact.abs().max()


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_the_kernels_are_checked_before_they_are_used(choose, monkeypatch, kind):
    if choose.__name__ != "call":
        pytest.skip("on the emulator")
    place = torch.device("cpu")
    assert score_topk_cuda._difference(place) == ""
    right = score_topk_cuda.choose

    def wrong(*arguments):
        scores, indices = right(*arguments)
        return scores, indices.flip(1) if arguments[0].dtype == getattr(torch, kind) else indices

    monkeypatch.setattr(score_topk_cuda, "choose", wrong)
    monkeypatch.setattr(cuda_kernels, "find_problem", lambda *_: "")
    score_topk_cuda.usable.cache_clear()
    with pytest.warns(UserWarning, match=f"its indices of a pool in {kind} differ from torch's"):
        assert not score_topk_cuda.usable(place)
    score_topk_cuda.usable.cache_clear()


def test_a_graph_holds_a_call(gpu):
    pool, templates, _ = (None if t is None else t.to(gpu) for t in make_case(SIZES[1], DTYPES[1]))
    score_topk(pool, templates, 9)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = score_topk(pool, templates, 9)
    templates.neg_()
    graph.replay()
    for ours, theirs in zip(found, score_topk(pool, templates, 9), strict=True):
        assert torch.equal(ours, theirs)


def test_a_mask_on_the_device_is_not_waited_for(gpu):
    pool, templates, _ = (None if t is None else t.to(gpu) for t in make_case(SIZES[1], DTYPES[0]))
    mask = torch.ones(len(pool), dtype=torch.bool, device=gpu)
    mask[5] = False
    _, indices = score_topk(pool, templates, 2, mask)
    assert (indices == torch.tensor([5, -1], device=gpu)).all()
