"""A service on a toy engine and a small pool, whose parts stop where a test wants them to."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from brainfast.loop import ArrayCandidates
from brainfast.response import Response
from brainfast.serve.limits import Limits
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


class Gate:
    """Holds a thread up: `entered` when one is here, which goes on when `open` is called."""

    def __init__(self) -> None:
        self.entered, self._opened = threading.Event(), threading.Event()

    def open(self) -> None:
        self._opened.set()

    def wait(self) -> None:
        self.entered.set()
        assert self._opened.wait(PATIENCE_S), "nobody opened the gate"


class ServedEngine(ToyEngine):
    """Answers as an engine does, image by image; `gate` stops its next batch, `poison` fails it.

    batches: how many images of each; poison: images of this brightness raise an error
    """

    def __init__(self, kind: str = "blobgpt") -> None:
        super().__init__(kind, V)
        self.card.model_hash = "a" * 64
        self.gate: Gate | None = None
        self.poison: int | None = None
        self.seen: list[int] = []
        self.warmed: tuple[int, ...] = ()

    def tokens(self, images: Any, *, batch_size: int = 32) -> Tokens:
        self._begin(images)
        parts = [super(ServedEngine, self).tokens([image]) for image in images]
        return Tokens(
            tuple(np.concatenate([p.local[n] for p in parts]) for n in range(2)),
            tuple(np.concatenate([p.global_[n] for p in parts]) for n in range(2)),
            parts[0].layers,
        )

    def predict(self, images: Any, *, batch_size: int = 32) -> Response:
        return Response(self.head.run(self.tokens(images)), self.space)

    def warm_up(self, batch_sizes: Any = (1,), sizes: Any = None) -> None:
        self.warmed = tuple(batch_sizes)

    def _begin(self, images: Any) -> None:
        self.seen.append(len(images))
        gate, self.gate = self.gate, None
        if gate is not None:
            gate.wait()
        if any(image.flat[0] == self.poison for image in images):
            raise ArithmeticError("a poisoned image")


class TestClock:
    """Seconds that pass when a test says so."""

    __test__ = False

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def picture(seed: int, size: tuple[int, int] = (9, 8)) -> np.ndarray:
    """uint8 [H,W,3]; never as bright as 255 in its first corner."""
    image = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    image.flat[0] = seed % 200
    return image


def file(seed: int, format: str = "PNG") -> bytes:
    """The same, as a file."""
    buffer = BytesIO()
    Image.fromarray(picture(seed)).save(buffer, format)
    return buffer.getvalue()


def pool(engine: ToyEngine, n: int = 12) -> ArrayCandidates:
    """Latents of n random candidates, image-00 and so on, of the toy engine's model."""
    latents = np.random.default_rng(3).standard_normal((n, 7)).astype(np.float32)
    return ArrayCandidates(latents, [f"image-{i:02d}" for i in range(n)], "a" * 64)


def service(
    engine: Any = None, *, logs: Path | None = None, candidates: Any = None, **limits: Any
) -> Service:
    """A service that is not started; of `clock` and `limits` what is given."""
    engine = engine or ServedEngine()
    clock = limits.pop("clock", None)
    own = {} if clock is None else {"clock": clock}
    held = pool(engine) if candidates is None else candidates
    return Service(engine, name="toy", pool=held, logs=logs, limits=Limits(**limits), **own)


def asked(**fields: Any) -> OpenSession:
    """A session for FFA less PPA, whose deadline a busy machine meets."""
    return OpenSession(**({"objective": "FFA - PPA", "deadline_ms": 60_000.0} | fields))


def betas(seed: int) -> np.ndarray:
    """What might have been measured [V]."""
    return np.random.default_rng(seed).standard_normal(V).astype(np.float32)
