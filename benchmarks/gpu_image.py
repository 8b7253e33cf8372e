"""One uint8 image to the response on a GPU: latencies, one after the other and once a second.

The trunk has random weights; resize, trunk and head are one CUDA graph of `DeviceRunner`, and the
time is the caller's, from numpy to numpy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from brainfast.bench.check import Bars, response_judge
from brainfast.bench.made_up import made_up_head
from brainfast.forms import OURS, Form
from brainfast.images import preprocess
from brainfast.tokens import Tokens
from cases import Case
from gpu_blobgpt import GpuBlobGPT, MadeUp
from gpu_tokens import GpuTokens

BARS: Bars = {"fp32": ("max", 1e-4), "bf16": ("rms", 2e-2)}
TIGHT = 500  # calls, one after the other
PACED = 8  # calls, one a second
PACED_EVERY_S = 1.0
PACED_PRECISION = "bf16"
WARM_EVERY_MS = 5.0


@dataclass(frozen=True)
class LatencyRow:
    """Latencies of one image in one way of asking; p99 of few calls is the slowest."""

    form: str
    library: str
    precision: str
    batch: int
    pace: str
    calls: int = 0
    best_ms: float | None = None
    median_ms: float | None = None
    p99_ms: float | None = None
    rms_error: float | None = None
    max_error: float | None = None
    bar: str = ""
    note: str = ""


class TimmTrunk(nn.Module):
    """Every chosen block's residual stream of a timm transformer with random weights."""

    def __init__(self, name: str, layers: tuple[int, ...], size: tuple[int, int]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
        self.layers = layers
        self.model.prune_intermediate_layers(list(layers), prune_norm=True, prune_head=True)
        self.eval().requires_grad_(False)

    def forward(self, pixels: torch.Tensor) -> Tokens:  # [B,3,H,W]
        answers = self.model.forward_intermediates(
            pixels,
            indices=list(self.layers),
            norm=False,
            output_fmt="NCHW",
            intermediates_only=True,
            return_prefix_tokens=True,
        )
        local = tuple(patches for patches, _ in answers)
        return Tokens(local, tuple(prefix[:, 0] for _, prefix in answers), self.layers)


@dataclass(frozen=True)
class Chain:
    """A trunk and a head behind it; BlobGPT where the case has its sizes."""

    case: Case
    device: torch.device

    @cached_property
    def trunk(self) -> TimmTrunk:
        """Of the case's layers, on a grid of `raw` tokens a side; frozen, on the host."""
        side = self.case.raw * (14 if "patch14" in self.case.trunk else 16)
        layers = tuple(range(self.case.L) if self.case.L == 12 else range(0, 2 * self.case.L, 2))
        return TimmTrunk(self.case.trunk, layers, (side, side))

    @cached_property
    def preprocessing(self) -> Any:
        """What `brainfast.preprocessing.Preprocessing` holds, of timm's own settings."""
        config = resolve_model_data_config(self.trunk.model)
        names = ("size", "resize", "interpolation", "antialias", "mean", "std", "layout")
        size = tuple(self.trunk.model.patch_embed.img_size)
        values = (size, "squash", "bicubic", True, config["mean"], config["std"], "NCHW")
        return SimpleNamespace(**dict(zip(names, values, strict=True)))

    @cached_property
    def stage(self) -> GpuTokens | GpuBlobGPT:
        """The head's stage, for its constants and its float64."""
        if self.is_blobgpt:
            return GpuBlobGPT(self.case, MadeUp(self.case, self.device))
        grid = (self.case.side, self.case.side)
        head = made_up_head(self.case.V, self.case.L, self.case.D, channels=self.case.C, grid=grid)
        return GpuTokens(self.case, replace(head, layers=self.trunk.layers), self.device)

    @property
    def is_blobgpt(self) -> bool:
        """Whether the trunk is that of BlobGPT's report."""
        return "eva02" in self.case.trunk

    def runner(self, precision: str) -> Any:
        """Trunk and head in one precision."""
        from brainfast.device_engine import DeviceRunner

        head = self.stage.device_head(precision, self.trunk.layers)
        return DeviceRunner(self.trunk, head, self.preprocessing, self.device, precision)

    def image(self) -> np.ndarray:
        """A smooth random photograph, uint8 [H,W,3]."""
        side = self.case.image_px
        coarse = torch.from_numpy(np.random.default_rng(0).random((1, 3, 9, 9), np.float32))
        smooth = nn.functional.interpolate(coarse, (side, side), mode="bilinear")
        return (255 * smooth[0]).byte().permute(1, 2, 0).contiguous().numpy()

    @torch.no_grad()
    def expected(self, image: np.ndarray) -> np.ndarray:  # [1,V]
        """Trunk and head in float64 on the pixels of the host's resize."""
        pixels = torch.from_numpy(preprocess([image], self.preprocessing)).to(self.device)
        double = TimmTrunk(self.case.trunk, self.trunk.layers, self.preprocessing.size)
        double.load_state_dict(self.trunk.state_dict())
        tokens = double.to(self.device).double()(pixels.double())
        return self.stage.float64((*tokens.local, *tokens.global_)).cpu().numpy()


def measure(
    case: Case, device: torch.device, until: float
) -> Iterator[tuple[list[LatencyRow], list[str]]]:
    """(rows, failures), precision by precision."""
    chain = Chain(case, device)
    image = chain.image()
    judge = response_judge(chain.expected(image), chain.stage.bias, BARS)
    name = f"{case.trunk} + {'BlobGPT' if chain.is_blobgpt else 'FactorTopy'}"
    for precision in ("bf16", "fp32"):
        kind, bound = BARS[precision]
        row = LatencyRow(name, OURS, precision, 1, "tight", bar=f"{kind} {bound:.0e}")
        if time.monotonic() > until:
            yield [replace(row, note="left out: no time left")], []
            continue
        try:
            runner = chain.runner(precision)
            runner.warm_up((1,), [image.shape[:2]])
            runner.predict([image])  # of a size that comes again, the device makes the pixels
            errors = judge(Form(name, OURS, precision, {}), runner.predict([image]))
            row = replace(row, rms_error=errors.rms, max_error=errors.max)
            yield list(_latencies(row, runner, image, until)), []
            del runner
        except Exception as error:  # the other precision is not lost
            note = f"failed: {type(error).__name__}: {error}"
            yield [replace(row, note=note)], [f"{name} {precision}: {note}"]


def _latencies(
    row: LatencyRow, runner: Any, image: np.ndarray, until: float
) -> Iterator[LatencyRow]:
    yield _timed(row, runner, image, "tight", TIGHT, 0.0, until)
    if row.precision != PACED_PRECISION:
        return
    yield _timed(row, runner, image, "one a second", PACED, PACED_EVERY_S, until)
    runner.keep_warm(WARM_EVERY_MS)
    yield _timed(row, runner, image, "one a second, kept warm", PACED, PACED_EVERY_S, until)
    runner.keep_warm(None)


def _timed(
    row: LatencyRow,
    runner: Any,
    image: np.ndarray,
    pace: str,
    calls: int,
    every_s: float,
    until: float,
) -> LatencyRow:
    """So many calls, or as many as there is time for."""
    if not every_s:
        for _ in range(20):
            runner.predict([image])
    milliseconds = []
    while len(milliseconds) < calls and (not milliseconds or time.monotonic() < until):
        time.sleep(every_s)
        start = time.perf_counter()
        runner.predict([image])
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return replace(
        row,
        pace=pace,
        calls=len(milliseconds),
        best_ms=min(milliseconds),
        median_ms=float(np.median(milliseconds)),
        p99_ms=float(np.quantile(milliseconds, 0.99, method="higher")),
    )
