"""A service on a toy engine and a small pool, whose parts stop where a test wants them to."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brainfast.engine import Engine
from brainfast.group_engine import GroupEngine
from brainfast.loop import ArrayCandidates, read_log
from brainfast.serve.limits import Limits
from brainfast.serve.refusal import Refusal
from brainfast.serve.requests import OpenSession
from brainfast.serve.service import Service
from brainfast.tokens import Tokens
from toy_engine import ToyEngine

V = 30
PATIENCE_S = 60.0  # no test gets near it, but for one that fails


def on_loop(test: Callable[..., Any]) -> Callable[..., None]:
    """An asynchronous test, on a loop of its own that cannot hang for ever."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**given), PATIENCE_S))

    return run


async def happens(event: threading.Event) -> None:
    """Wait for another thread, without holding up the loop."""
    assert await asyncio.to_thread(event.wait, PATIENCE_S), "it did not happen"


async def refusal(request: Awaitable[Any]) -> Refusal:
    """Why a request is refused."""
    with pytest.raises(Refusal) as caught:
        await request
    return caught.value


class Gate:
    """Holds a thread up: `entered` when one is here, which goes on when `open` is called."""

    def __init__(self) -> None:
        self.entered, self._opened = threading.Event(), threading.Event()

    def open(self) -> None:
        self._opened.set()

    def wait(self) -> None:
        self.entered.set()
        assert self._opened.wait(PATIENCE_S), "nobody opened the gate"


class ToyTrunk:
    """A trunk runtime that is a matrix, image by image, so that batches change no bits.

    gate: stops the next batch; poison: a batch with an image that is white all over raises it;
    seen: how many images each batch had
    """

    name, precision = "toy", "fp32"

    def __init__(self, layers: tuple[int, ...]) -> None:
        self._mix = np.random.default_rng(5).standard_normal((8 * 8 * 3, 50), np.float32) / 50
        self._layers = layers
        self.gate: Gate | None = None
        self.poison: Exception | None = None
        self.seen: list[int] = []

    def __call__(self, pixels: Any) -> Tokens:
        self.seen.append(len(pixels))
        gate, self.gate = self.gate, None
        if gate is not None:
            gate.wait()
        if self.poison is not None and (pixels == 1).all(axis=(1, 2, 3)).any():
            raise self.poison
        flat = np.stack([row.reshape(-1) @ self._mix for row in pixels]).reshape(-1, 2, 5, 5)
        return Tokens(
            tuple(np.ascontiguousarray(flat[:, n, :, :4]).reshape(-1, 5, 2, 2) for n in (0, 1)),
            tuple(np.ascontiguousarray(flat[:, n, :, 4]) for n in (0, 1)),
            self._layers,
        )

    def next_gate(self) -> Gate:
        """The gate at which the next batch stops."""
        self.gate = Gate()
        return self.gate


def engine(kind: str = "blobgpt") -> Engine:
    """A real engine on a toy trunk."""
    toy = ToyEngine(kind, V)
    toy.card.model_hash = "a" * 64
    return Engine(ToyTrunk(toy.head.layers), toy.head, toy.space, toy.card)


def group() -> GroupEngine:
    """Subjects a and b, of the same model and 30 and 20 vertices, whose data named nobody."""
    one = engine("blobgpt")
    part = np.arange(20)
    heads = {"a": one.head, "b": one.head.take(part)}
    spaces = {
        name: replace(space, subject=None)
        for name, space in (("a", one.space), ("b", one.space.take(part)))
    }
    return GroupEngine(one.runtime, heads, spaces, one.card)


class TestClock:
    """Seconds that pass when a test says so."""

    __test__ = False

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def picture(seed: int, size: tuple[int, int] = (9, 8)) -> np.ndarray:
    """uint8 [H,W,3]."""
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


WHITE = np.full((8, 8, 3), 255, np.uint8)


def file(seed: int, format: str = "PNG") -> bytes:
    """The same, as a file."""
    buffer = BytesIO()
    Image.fromarray(picture(seed)).save(buffer, format)
    return buffer.getvalue()


def pool(n: int = 12) -> ArrayCandidates:
    """Latents of n random candidates, image-00 and so on, of the toy engine's model."""
    latents = np.random.default_rng(3).standard_normal((n, 7)).astype(np.float32)
    return ArrayCandidates(latents, [f"image-{i:02d}" for i in range(n)], "a" * 64)


def service(
    on: Engine | GroupEngine | None = None,
    *,
    candidates: Any = None,
    logs: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
    **limits: Any,
) -> Service:
    """A service that is not started yet."""
    return Service(
        on or engine(), name="toy", pool=candidates, logs=logs, limits=Limits(**limits), clock=clock
    )


def asked(**fields: Any) -> OpenSession:
    """A session for FFA less PPA, whose deadline a busy machine meets."""
    return OpenSession(**({"objective": "FFA - PPA", "deadline_ms": 60_000.0} | fields))


def betas(seed: int) -> np.ndarray:
    """What might have been measured [V]."""
    return np.random.default_rng(seed).standard_normal(V).astype(np.float32)


async def started(logs: Path, **options: Any) -> Service:
    """A service with a pool, and logs."""
    served = service(logs=logs, candidates=options.pop("candidates", None) or pool(), **options)
    await served.start()
    return served


async def opened(logs: Path, **options: Any) -> Service:
    """The same, with a session called run."""
    served = await started(logs, **options)
    await served.open_session("run", asked())
    return served


def kinds(log: Path) -> list[str]:
    """What happened in a session."""
    return [event["event"] for event in read_log(log).events]
