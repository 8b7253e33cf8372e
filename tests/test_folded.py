"""Folded heads: the three verbs, exact splits, precision, and files that lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainfast.errors import BrainfastError
from brainfast.files import load_tensors, save_tensors
from brainfast.folded import AlignedTokens, FoldedFactorTopy
from brainfast.tokens import Tokens

LAYERS, CHANNELS, GRID, DIM = (0, 2, 5), (4, 6, 5), (5, 4), 9


def make_head(vertices: int = 37, samples: int = 1, seed: int = 0) -> FoldedFactorTopy:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    rows = vertices * samples
    layer = np.exp(normal(rows, 3))
    return FoldedFactorTopy(
        space=np.clip(normal(rows, 2), -1.2, 1.2),
        layer=(layer / layer.sum(1, keepdims=True)).astype(np.float32),
        scale=rng.uniform(size=rows).astype(np.float32),
        weight=normal(rows, DIM),
        bias=normal(rows),
        bottleneck_local=tuple(normal(DIM, c) for c in CHANNELS),
        bottleneck_global=tuple(normal(DIM, c) for c in CHANNELS),
        offset_local=normal(3, DIM),
        offset_global=normal(3, DIM),
        layers=LAYERS,
        grid=GRID,
        samples=samples,
    )


def make_tokens(images: int = 4, seed: int = 1, grid: tuple[int, int] = GRID) -> Tokens:
    rng = np.random.default_rng(seed)
    return Tokens(
        tuple(rng.normal(size=(images, c, *grid)).astype(np.float32) for c in CHANNELS),
        tuple(rng.normal(size=(images, c)).astype(np.float32) for c in CHANNELS),
        LAYERS,
    )


@pytest.mark.parametrize("samples", [1, 3])
def test_a_template_scores_what_the_full_response_would(samples: int) -> None:
    head, tokens = make_head(samples=samples), make_tokens()
    weights = np.random.default_rng(2).normal(size=(5, head.V)).astype(np.float32)
    expected = head.run(tokens) @ weights.T
    found = head.template(weights).score(head.align(tokens))
    assert found.shape == (4, 5)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("samples", [1, 2])
def test_taking_vertices_is_an_exact_slice(samples: int) -> None:
    head, tokens = make_head(samples=samples), make_tokens()
    chosen = [0, 3, 4, 30]
    assert np.array_equal(head.take(chosen).run(tokens), head.run(tokens)[:, chosen])
    assert head.take([]).run(tokens).shape == (4, 0)


@pytest.mark.parametrize("by", ["layer", "scale"])
def test_contributions_sum_to_the_response_less_its_bias(by: str) -> None:
    head, tokens = make_head(), make_tokens()
    parts = head.contributions(tokens, by)
    assert parts.shape == (4, 3 if by == "layer" else 2, 37)
    assert np.allclose(parts.sum(axis=1) + head.bias, head.run(tokens), atol=1e-5)


def test_a_layer_contributes_nothing_where_it_is_not_chosen() -> None:
    head = make_head()
    layer = head.layer.copy()
    layer[:20, 1] = 0
    parts = replace(head, layer=layer).contributions(make_tokens(), "layer")
    assert np.abs(parts[:, 1, :20]).max() == 0
    assert np.abs(parts[:, 1, 20:]).min() > 0


def test_other_grids_are_resampled_as_torch_does() -> None:
    head, tokens = make_head(), make_tokens(grid=(7, 9))
    resampled = replace(
        tokens,
        local=tuple(
            torch.nn.functional.interpolate(
                torch.from_numpy(part), size=GRID, mode="bilinear", align_corners=False
            ).numpy()
            for part in tokens.local
        ),
    )
    assert np.allclose(head.run(tokens), head.run(resampled), atol=1e-5)


@pytest.mark.parametrize(("precision", "least", "bar"), [("bf16", 1e-4, 5e-3), ("bf16x3", 0, 1e-5)])
def test_a_precision_is_near_and_says_so(precision: str, least: float, bar: float) -> None:
    head, tokens = make_head(vertices=200), make_tokens()
    exact = head.run(tokens)
    rounded = head.with_precision(precision)
    error = (rounded.run(tokens) - exact) / (exact - head.bias).std()
    assert rounded.precision == precision
    assert least < np.sqrt(np.square(error).mean()) < bar
    assert rounded.with_precision("fp32").run(tokens).tolist() == exact.tolist()


def test_bf16_is_the_exact_readout_of_rounded_operands() -> None:
    def rounded(array: np.ndarray) -> np.ndarray:
        return torch.from_numpy(array).bfloat16().float().numpy()

    head = make_head()
    aligned = head.align(make_tokens())
    by_hand = replace(head, weight=rounded(head.weight)).readout(
        AlignedTokens(rounded(aligned.local), rounded(aligned.global_))
    )
    found = head.with_precision("bf16").readout(aligned)
    assert np.abs(found - by_hand).max() <= 1e-5 * (by_hand - head.bias).std()


def test_arrays_survive_a_file(tmp_path) -> None:
    head = make_head(samples=2)
    save_tensors(tmp_path / "folded.safetensors", head.arrays())
    again = FoldedFactorTopy.from_arrays(
        load_tensors(tmp_path / "folded.safetensors"),
        name="folded.safetensors",
        layers=LAYERS,
        grid=GRID,
        samples=2,
    )
    assert np.array_equal(again.run(make_tokens()), head.run(make_tokens()))


def spoil(arrays: dict[str, np.ndarray], what: str) -> dict[str, np.ndarray]:
    if what == "missing":
        del arrays["bottleneck.global.2"]
    elif what == "extra":
        arrays["payload"] = np.zeros(3, np.float32)
    elif what == "nan":
        arrays["weight"] = arrays["weight"] * np.float32("nan")
    elif what == "dtype":
        arrays["bias"] = arrays["bias"].astype(np.float64)
    elif what == "shape":
        arrays["layer"] = arrays["layer"][:, :2].copy()
    elif what == "scalar":
        arrays["bias"] = arrays["bias"][0]
    elif what == "rank":
        arrays["weight"] = arrays["weight"].reshape(-1)
    return arrays


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "bottleneck.global.2"),
        ("extra", "payload"),
        ("nan", "NaN"),
        ("dtype", "float64"),
        ("shape", "layer"),
        ("rank", "weight"),
        ("scalar", "bias"),
    ],
)
def test_spoilt_arrays_are_refused_by_name(what: str, said: str) -> None:
    arrays = spoil(make_head().arrays(), what)
    with pytest.raises(BrainfastError) as error:
        FoldedFactorTopy.from_arrays(arrays, name="f.safetensors", layers=LAYERS, grid=GRID)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_calls_are_refused() -> None:
    head, tokens = make_head(), make_tokens()
    with pytest.raises(BrainfastError, match="weights"):
        head.template(np.zeros((2, 36), np.float32))
    with pytest.raises(BrainfastError, match="vertices"):
        head.take([37])
    with pytest.raises(BrainfastError, match="precision"):
        head.with_precision("fp16")  # type: ignore[arg-type]
    with pytest.raises(BrainfastError, match="by"):
        head.contributions(tokens, "space")  # type: ignore[arg-type]
    with pytest.raises(BrainfastError, match="trunk"):
        head.run(Tokens(tokens.local[:2], tokens.global_[:2], LAYERS[:2]))
    broken = tuple(part.copy() for part in tokens.local)
    broken[1][2, 0, 0, 0] = np.inf
    with pytest.raises(BrainfastError, match="finite"):
        head.run(replace(tokens, local=broken))
