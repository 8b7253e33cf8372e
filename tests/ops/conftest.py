from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch

from brainfast import _C

Case = Callable[..., list[torch.Tensor]]


FORCED = os.environ.get("BRAINFAST_ISA")


@pytest.fixture(params=[isa for isa in _C.supported_isas() if FORCED in (None, isa)])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set that this machine runs, in turn; the forced one alone if there is."""
    monkeypatch.setenv("BRAINFAST_ISA", request.param)
    return request.param


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = _C.num_threads()
    yield _C.set_num_threads
    _C.set_num_threads(before)


@pytest.fixture
def make_case() -> Case:
    """Arguments of the readout in float64, exact in float32: sampling points also lie outside."""

    def make(
        sizes: tuple[int, int, int, int, int, int],  # B V L D H W
        *,
        dtype: torch.dtype = torch.float64,
        spread: float = 1.4,
        grad: bool = False,
    ) -> list[torch.Tensor]:
        images, vertices, layers, channels, height, width = sizes
        generator = torch.Generator().manual_seed(sum(sizes))

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        case = [
            normal(images, layers, channels, height, width),
            normal(images, layers, channels),
            spread * (2 * torch.rand(vertices, 2, generator=generator, dtype=torch.float64) - 1),
            torch.softmax(normal(vertices, layers), dim=1),
            torch.sigmoid(normal(vertices)),
            normal(vertices, channels),
            0.1 * normal(vertices),
        ]
        return [tensor.float().to(dtype).requires_grad_(grad) for tensor in case]

    return make
