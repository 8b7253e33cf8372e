"""Whole heads on the CUDA kernels, emulated on the host or on a GPU, against the folded heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainfast import device_heads
from brainfast.device_heads import CellReadout, DeviceBlobGPT, DeviceFactorTopy
from brainfast.folded import PRECISIONS, FoldedFactorTopy
from brainfast.folded_blobgpt import BlobProjection, FoldedBlobGPT
from brainfast.tokens import Tokens

LAYERS, CHANNELS, GRIDS, D, K = (0, 3, 4), (20, 16, 20), ((3, 4), (3, 4), (2, 3)), 10, 12
# Root mean square of a product, in deviations of the response.
BARS = {"fp32": 1e-6, "bf16x3": 1e-5, "bf16": 5e-3}


@pytest.fixture(autouse=True)
def kernels(device, monkeypatch):
    """Emulated kernels take the CPU's tensors for the GPU's."""
    if device == "cpu":
        monkeypatch.setattr(device_heads, "_on_kernels", lambda *_: True)


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def transformer_tokens(images):
    """As a transformer gives them: channels last in memory, behind the class token."""
    rng = np.random.default_rng(images)
    sequences = [
        torch.from_numpy(normal(rng, images, 1 + h * w, c))
        for (h, w), c in zip(GRIDS, CHANNELS, strict=True)
    ]
    local = [s[:, 1:].mT.unflatten(2, grid) for s, grid in zip(sequences, GRIDS, strict=True)]
    return Tokens(tuple(local), tuple(s[:, 0] for s in sequences), LAYERS)


def check(module, head, images, device, columns=slice(None), products=1):
    tokens = transformer_tokens(images)
    found = module(tokens.map(lambda part: part.to(device)))[:, columns].cpu().numpy()
    expected = head.with_precision("fp32").run(tokens.map(torch.Tensor.numpy))
    error = np.sqrt(np.square(found - expected).mean()) / expected.std()
    assert error <= products * BARS[head.precision]
    return error


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("options", [{}, {"samples": 3}, {"pool_space": True}], ids=str)
def test_factortopy(device, precision, options):
    rng = np.random.default_rng(0)
    rows = 30 * options.get("samples", 1)
    head = FoldedFactorTopy(
        space=1.2 * normal(rng, rows, 2),
        layer=np.abs(normal(rng, rows, 3)),
        scale=rng.uniform(size=rows).astype(np.float32),
        weight=normal(rng, rows, D),
        bias=np.zeros(rows, dtype=np.float32),
        bottleneck_local=tuple(normal(rng, D, c) for c in CHANNELS),
        bottleneck_global=tuple(normal(rng, D, c) for c in CHANNELS),
        offset_local=normal(rng, 3, D),
        offset_global=normal(rng, 3, D),
        layers=LAYERS,
        grid=(2, 3),
        precision=precision,
        **options,
    )
    module = DeviceFactorTopy(head, device)
    assert not isinstance(module.read, CellReadout)
    errors = [check(module, head, images, device) for images in (1, 3)]
    assert (min(errors) > 1e-4) == (precision == "bf16")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("class_token", [True, False])
def test_blobgpt(device, precision, class_token):
    rng = np.random.default_rng(0)
    projection = BlobProjection(
        filters=tuple(normal(rng, K, c) for c in CHANNELS),
        maps=tuple(normal(rng, K, h * w + class_token) for h, w in GRIDS),
        latent_bias=normal(rng, K),
        layers=LAYERS,
        grids=GRIDS,
        class_token=class_token,
        precision=precision,
    )
    heads = {
        name: FoldedBlobGPT(projection, normal(rng, v, K), np.zeros(v, dtype=np.float32))
        for name, v in (("a", 40), ("b", 17))
    }
    module = DeviceBlobGPT(projection, heads, device)
    for name, head in heads.items():
        columns = module.columns[name]
        errors = [check(module, head, n, device, columns, products=2) for n in (1, 3)]
        assert (min(errors) > 1e-4) == (precision == "bf16")
