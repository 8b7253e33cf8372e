"""Heads as torch modules against the folded heads that they are made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainfast.bench.made_up import made_up_head
from brainfast.export.heads import BlobGPTHead, FactorTopyHead
from brainfast.folded_blobgpt import BlobProjection, FoldedBlobGPT
from brainfast.tokens import Tokens

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def tokens(channels: tuple[int, ...], grid: tuple[int, int]) -> Tokens:
    return Tokens(
        tuple(normal(2, count, *grid) for count in channels),
        tuple(normal(2, count) for count in channels),
        tuple(range(len(channels))),
    )


def answers(module: torch.nn.Module, given: Tokens) -> list[np.ndarray]:
    return [output.numpy() for output in module(given.map(torch.from_numpy))]


def check(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.std())


@pytest.mark.parametrize("pool_space", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("grid", [(4, 3), (5, 7)])
def test_factortopy(pool_space, samples, grid):
    head = made_up_head(60, 2, 8, channels=5, grid=(4, 3))
    head = replace(head, samples=samples, pool_space=pool_space)
    given = tokens((5, 5), grid)
    check(answers(FactorTopyHead(head, None), given)[0], head.run(given))
    weights = normal(3, head.V)
    expected = head.template(weights).score(head.align(given))
    check(answers(FactorTopyHead(head, weights), given)[0], expected)


@pytest.mark.parametrize("class_token", [True, False])
def test_blobgpt_of_two_subjects(class_token):
    projection = BlobProjection(
        filters=(normal(7, 5), normal(7, 6)),
        maps=tuple(normal(7, 6 + class_token) for _ in range(2)),
        latent_bias=normal(7),
        layers=(0, 1),
        grids=((2, 3), (2, 3)),
        class_token=class_token,
    )
    heads = {
        name: FoldedBlobGPT(projection, normal(count, 7), normal(count))
        for name, count in (("a", 11), ("b", 4))
    }
    given = tokens((5, 6), (2, 3))
    found = answers(BlobGPTHead(heads, None), given)
    for one, head in zip(found, heads.values(), strict=True):
        check(one, head.run(given))
    weights = {name: normal(3, head.V) for name, head in heads.items()}
    found = answers(BlobGPTHead(heads, weights), given)
    for one, (name, head) in zip(found, heads.items(), strict=True):
        check(one, head.template(weights[name]).score(head.align(given)))
