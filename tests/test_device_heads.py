"""Heads as torch modules against the folded heads in numpy: every option, precision and mistake."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from brainfast import device_heads
from brainfast.device_heads import CellReadout, DeviceBlobGPT, DeviceFactorTopy
from brainfast.errors import BrainfastError
from brainfast.folded import PRECISIONS, FoldedFactorTopy
from brainfast.folded_blobgpt import BlobProjection, FoldedBlobGPT
from brainfast.ops import factor_projection, factor_readout, vertex_embed
from brainfast.tokens import Tokens

LAYERS, CHANNELS, DIM, K = (0, 2, 5), (4, 6, 5), 9, 7
GRIDS = ((2, 3), (4, 4), (1, 2))
# Of the largest response: other sums in fp32, other roundings to bf16 on the way to the operands.
TOLERANCE = {"fp32": 3e-6, "bf16x3": 2e-5, "bf16": 2e-2}


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    wanted = os.environ.get("BRAINFAST_REQUIRE_CUDA") == "1"
    if request.param == "cuda" and not torch.cuda.is_available() and not wanted:
        pytest.skip("no GPU that torch sees")
    return str(request.param)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def factortopy(vertices: int = 37, samples: int = 1, **options: Any) -> FoldedFactorTopy:
    """Sampling points also lie outside the grid."""
    rng = np.random.default_rng(0)
    rows = vertices * samples
    layer = np.exp(normal(rng, rows, 3))
    return FoldedFactorTopy(
        space=1.3 * normal(rng, rows, 2),
        layer=(layer / layer.sum(1, keepdims=True)).astype(np.float32),
        scale=rng.uniform(size=rows).astype(np.float32),
        weight=normal(rng, rows, DIM),
        bias=normal(rng, rows),
        bottleneck_local=tuple(normal(rng, DIM, c) for c in CHANNELS),
        bottleneck_global=tuple(normal(rng, DIM, c) for c in CHANNELS),
        offset_local=normal(rng, 3, DIM),
        offset_global=normal(rng, 3, DIM),
        layers=LAYERS,
        samples=samples,
        **({"grid": (5, 4)} | options),
    )


def blobgpt(class_token: bool = True, precision: str = "fp32") -> dict[str, FoldedBlobGPT]:
    rng = np.random.default_rng(0)
    counts = [height * width + class_token for height, width in GRIDS]
    projection = BlobProjection(
        filters=tuple(normal(rng, K, c) for c in CHANNELS),
        maps=tuple(normal(rng, K, t) for t in counts),
        latent_bias=normal(rng, K),
        layers=LAYERS,
        grids=GRIDS,
        class_token=class_token,
        precision=precision,
    )
    return {
        name: FoldedBlobGPT(projection, normal(rng, vertices, K), normal(rng, vertices))
        for name, vertices in (("a", 11), ("b", 0), ("c", 30))
    }


def make_tokens(images: int, grids: tuple[tuple[int, int], ...]) -> Tokens:
    rng = np.random.default_rng(images)
    local = tuple(normal(rng, images, c, *g) for c, g in zip(CHANNELS, grids, strict=True))
    return Tokens(local, tuple(normal(rng, images, c) for c in CHANNELS), LAYERS)


def on(device: str, tokens: Tokens) -> Tokens:
    return tokens.map(lambda array: torch.from_numpy(array).to(device))


def check(found: torch.Tensor, expected: np.ndarray, precision: str) -> None:
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    if expected.size:
        error = np.abs(found.cpu().numpy() - expected).max()
        assert error <= TOLERANCE[precision] * np.abs(expected).max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"samples": 3},
        {"pool_space": True},
        {"pool_space": True, "samples": 2, "grid": (2, 3)},
        {"grid": (1, 1)},
        {"vertices": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("grids", [((5, 4),) * 3, ((7, 9), (3, 2), (16, 16))], ids=str)
def test_factortopy_is_the_folded_head(
    device: str, precision: Any, options: dict[str, Any], grids: tuple[tuple[int, int], ...]
) -> None:
    head = factortopy(**options).with_precision(precision)
    module = DeviceFactorTopy(head, device)
    for images in (1, 4):
        tokens = make_tokens(images, grids)
        check(module(on(device, tokens)), head.run(tokens), precision)
    assert module.columns == {"": slice(0, head.V)}


@pytest.mark.parametrize("samples", [1, 3])
def test_compiled_kernels_get_the_folded_arrays(
    monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    class Plan:
        """Takes what `CudaFactorReadoutPlan` does, and runs the CPU's kernels."""

        def __init__(self, *parameters: Any, precision: str) -> None:
            *self.parameters, height, width = parameters
            self.grid, self.precision = (height, width), precision

        def run(self, local: torch.Tensor, global_: torch.Tensor) -> torch.Tensor:
            assert (tuple(local.shape[3:]), self.precision) == (self.grid, "bf16x3")
            return factor_readout(local, global_, *self.parameters)

    monkeypatch.setattr(device_heads, "_on_kernels", lambda operator, device: True)
    monkeypatch.setattr(device_heads.factor_readout_cuda, "CudaFactorReadoutPlan", Plan)
    head = factortopy(samples=samples, precision="bf16x3")
    module, tokens = DeviceFactorTopy(head, "cpu"), make_tokens(3, ((7, 9),) * 3)
    check(module(on("cpu", tokens)), head.run(tokens), "bf16x3")
    assert DeviceFactorTopy(head.take([]), "cpu")(on("cpu", tokens)).shape == (3, 0)


@pytest.mark.parametrize("class_token", [True, False])
def test_compiled_kernels_get_every_subjects_arrays(
    monkeypatch: pytest.MonkeyPatch, class_token: bool
) -> None:
    class Projection:
        """Takes what `CudaFactorProjectionPlan` does, and runs the CPU's kernels."""

        def __init__(self, filters: Any, maps: Any, bias: torch.Tensor, *, precision: str) -> None:
            self.factors, self.bias = list(zip(filters, maps, strict=True)), bias
            assert precision == "bf16x3"

        def run(self, local: Any, global_: Any) -> torch.Tensor:
            latent = self.bias.expand(len(local[0]), -1)
            for i, (filters, maps) in enumerate(self.factors):
                tokens = local[i].flatten(2).transpose(1, 2)
                if global_ is not None:
                    tokens = torch.cat([global_[i][:, None], tokens], dim=1)
                latent = latent + factor_projection(tokens, filters, maps)
            return latent

    class Embedding:
        def __init__(self, weight: torch.Tensor, bias: torch.Tensor, *, precision: str) -> None:
            self.weight, self.bias = weight, bias
            assert precision == "bf16x3"

        def run(self, latent: torch.Tensor) -> torch.Tensor:
            return vertex_embed(latent, self.weight, self.bias)

    monkeypatch.setattr(device_heads, "_on_kernels", lambda operator, device: True)
    monkeypatch.setattr(device_heads, "CudaFactorProjectionPlan", Projection)
    monkeypatch.setattr(device_heads, "CudaVertexEmbedPlan", Embedding)
    heads = blobgpt(class_token, "bf16x3")
    module = DeviceBlobGPT(next(iter(heads.values())).projection, heads, "cpu")
    tokens = make_tokens(3, GRIDS)
    found = module(on("cpu", tokens))
    for subject, head in heads.items():
        check(found[:, module.columns[subject]], head.run(tokens), "bf16x3")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_kernels_a_gpu_runs_the_cell_form(
    device: str, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    monkeypatch.setattr(device_heads, "_on_kernels", lambda operator, device: False)
    head, tokens = factortopy(precision=precision), make_tokens(3, ((7, 9),) * 3)
    module = DeviceFactorTopy(head, device)
    assert isinstance(module.read, CellReadout)
    check(module(on(device, tokens)), head.run(tokens), precision)


def test_alignment_is_the_folded_heads(device: str) -> None:
    head, tokens = factortopy(), make_tokens(3, ((7, 9), (5, 4), (1, 1)))
    local, global_ = DeviceFactorTopy(head, device).align(on(device, tokens))
    aligned = head.align(tokens)
    check(local, aligned.local, "fp32")
    check(global_, aligned.global_, "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("class_token", [True, False])
def test_blobgpt_answers_for_all_subjects_at_once(
    device: str, precision: Any, class_token: bool
) -> None:
    heads = blobgpt(class_token, precision)
    module = DeviceBlobGPT(heads["a"].projection, heads, device)
    for images in (1, 5):
        tokens = make_tokens(images, GRIDS)
        found = module(on(device, tokens))
        assert found.shape == (images, 41)
        for name, head in heads.items():
            check(found[:, module.columns[name]], head.run(tokens), precision)


def test_precisions_differ(device: str) -> None:
    tokens = on(device, make_tokens(2, ((5, 4),) * 3))
    found = [DeviceFactorTopy(factortopy().with_precision(p), device)(tokens) for p in PRECISIONS]
    assert not any(torch.equal(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_an_image_answers_the_same_beside_any_others(device: str) -> None:
    module = DeviceFactorTopy(factortopy(), device)
    tokens = on(device, make_tokens(4, ((7, 9),) * 3))
    expected = module(tokens)
    others = tokens.map(torch.clone)
    for part in (*others.local, *others.global_):
        part[1:] = torch.nan
    assert torch.equal(module(others)[0], expected[0])


def test_strided_tokens_and_those_of_a_transformer(device: str) -> None:
    module = DeviceFactorTopy(factortopy(), device)
    tokens = on(device, make_tokens(2, ((7, 9),) * 3))
    last = tokens.map(lambda a: a.movedim(1, -1).contiguous().movedim(-1, 1))
    assert not last.local[0].is_contiguous()
    torch.testing.assert_close(module(last), module(tokens), rtol=1e-5, atol=1e-5)
    halves = tokens.map(lambda array: array.bfloat16())
    assert torch.equal(module(halves), module(halves.map(lambda array: array.float())))


def test_tf32_settings_change_nothing(device: str) -> None:
    module = DeviceFactorTopy(factortopy(), device)
    tokens = on(device, make_tokens(2, ((7, 9),) * 3))
    expected = module(tokens)
    backend = torch.backends.cuda.matmul if device == "cuda" else torch.backends.mkldnn.matmul
    before, backend.fp32_precision = backend.fp32_precision, "tf32"
    try:
        found = module(tokens)
    finally:
        backend.fp32_precision = before
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: replace(t, layers=(0, 2, 6)), r"layers \(0, 2, 5\)"),
        (lambda t: replace(t, local=t.local[::-1], global_=t.global_[::-1]), "channels"),
        (lambda t: t.map(lambda array: array.to("meta")), "of layer 0: expected on .* got on meta"),
        (lambda t: replace(t, global_=(*t.global_[:2], t.global_[2].to("meta"))), "of layer 5"),
    ],
)
def test_tokens_of_another_trunk_or_device_are_refused(
    device: str, change: Any, words: str
) -> None:
    tokens, heads = change(on(device, make_tokens(2, GRIDS))), blobgpt()
    modules = (
        DeviceFactorTopy(factortopy(), device),
        DeviceBlobGPT(heads["a"].projection, heads, device),
    )
    for module in modules:
        with pytest.raises(BrainfastError, match=words):
            module(tokens)


def test_blobgpt_refuses_another_token_grid(device: str) -> None:
    heads = blobgpt()
    module = DeviceBlobGPT(heads["a"].projection, heads, device)
    with pytest.raises(BrainfastError, match="grids"):
        module(on(device, make_tokens(1, ((2, 3), (4, 5), (1, 2)))))
