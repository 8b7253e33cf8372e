"""What the live page looks at, in small: a service that only tells, on a pool of toy responses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from brainfast.errors import BrainfastError
from brainfast.pool import Pool
from brainfast.serve.events import ChoiceEvent, Events, PredictEvent, SessionEvent, StateEvent
from brainfast.serve.flat_raster import NO_TRIANGLE
from brainfast.serve.limits import Limits
from brainfast.serve.requests import About, SessionState
from serve_world import engine

WALL_S = 1.7e9


def write_images(folder: Path, count: int = 6) -> list[str]:
    """Plain images whose colour tells them apart; their names."""
    names = [f"set/image-{number:02d}.png" for number in range(count)]
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((24, 32, 3), 40 * number, dtype=np.uint8)
        pixels[: 4 * number, :, 0] = 255
        Image.fromarray(pixels).save(path)
    return names


def make_pool(folder: Path, images: Path, **options: Any) -> Pool:
    """A pool of all images, with an engine on a toy trunk."""
    return Pool.build(engine(), images, path=folder, dtype="fp32", **options)


def unpack(about: Any, body: bytes) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of every hemisphere, read as the page reads them."""
    found: dict[str, dict[str, np.ndarray]] = {}
    at = 0
    for side in about["sides"]:
        H, W, T = side["height"], side["width"], side["triangles"]
        shapes: dict[str, Any] = {"corners": ("<i4", (T, 3)), "triangle": ("<u2", (H, W))}
        shapes |= {"weights": ("u1", (2, H, W)), "grey": ("u1", (H, W)), "opacity": ("u1", (H, W))}
        arrays = found[side["side"]] = {}
        for name, (dtype, shape) in shapes.items():
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(body, dtype, count, at).reshape(shape)
            at += arrays[name].nbytes
    assert at == len(body)
    return found


def painted(
    arrays: dict[str, np.ndarray], values: np.ndarray, colours: np.ndarray, limit: float
) -> np.ndarray:
    """The picture [H,W,3] that these values give, written anew."""
    inside = arrays["triangle"] != NO_TRIANGLE
    columns = arrays["corners"][arrays["triangle"][inside].astype(int)]
    corner = np.where(columns >= 0, values[columns], np.nan)
    two = arrays["weights"][:, inside].T.astype(float)
    weights = np.column_stack([two, np.maximum(0, 255 - two.sum(axis=1))])
    weights[np.isnan(corner)] = 0
    total = weights.sum(axis=1)
    mixed = (weights * np.nan_to_num(corner)).sum(axis=1) / np.where(total > 127.5, total, np.nan)
    picture = np.repeat(arrays["grey"][..., None], 3, axis=2)
    known = np.isfinite(mixed)
    rows, columns = (place[known] for place in np.nonzero(inside))
    step = np.floor((mixed[known] + limit) / (2 * limit) * 256).clip(0, 255).astype(int)
    picture[rows, columns] = colours[step]
    return picture


class TellingService:
    """The part of a service that the page listens to."""

    def __init__(self, pool: Pool | None = None, name: str = "toy") -> None:
        self.pool, self.name = pool, name
        self.limits, self.state = Limits(), "ready"
        self.events = Events()
        self.open: dict[str, float] = {}

    def about(self) -> About:
        return About("1.0", self.name, "0" * 64, [], {"": 30}, {"": []}, None, self.limits)

    def sessions(self) -> list[str]:
        return list(self.open)

    async def session(self, name: str) -> SessionState:
        if name not in self.open:
            raise BrainfastError("session", expected="an open one", got=name)
        counts = {"trials": 0, "told": 0, "skipped": 0, "late": 0, "outstanding": [], "allowed": 6}
        about = {"objectives": ["FFA - PPA"], "strategy": "greedy", "problem": None}
        return SessionState(
            name=name,
            deadline_ms=self.open[name],
            log=f"{name}.jsonl",
            dropped_bytes=0,
            **counts,
            **about,
        )

    def open_session(self, name: str, deadline_ms: float = 20.0) -> None:
        self.open[name] = deadline_ms
        self.events.publish(SessionEvent(name, "opened", WALL_S))

    def close_session(self, name: str) -> None:
        del self.open[name]
        self.events.publish(SessionEvent(name, "closed", WALL_S))

    def choose(self, session: str, trial: int, image: str, **other: Any) -> None:
        given = {"objective": "FFA - PPA", "score": 1.25, "uncertainty": 0.5, "ties": 1}
        given |= {"source": "fresh", "late": False, "latency_ms": 3.0, "wall_s": time.time()}
        self.events.publish(ChoiceEvent(session, trial, image, **(given | other)))

    def predict(self, latency_ms: float) -> None:
        self.events.publish(PredictEvent(1, latency_ms, WALL_S))

    def become(self, state: Any) -> None:
        self.state = state
        self.events.publish(StateEvent(state, WALL_S))
