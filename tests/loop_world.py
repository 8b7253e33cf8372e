"""A small pool with an objective, a clock that tests move, and betas, for tests of the loop."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from brainfast.loop import ArrayCandidates, FoldedObjective, Session, read_log
from brainfast.loop.design_file import design_path
from brainfast.loop.log import sealed

N, F, V = 24, 10, 6
WEIGHTS = np.array([0.5, 0.5, 0, 0, -0.5, -0.5], dtype=np.float32)


def features(seed: int = 0, n: int = N) -> np.ndarray:
    """[N,F] of which rows 3 and 7 are the same image."""
    values = np.random.default_rng(seed).standard_normal((n, F)).astype(np.float32)
    if n > 7:
        values[7] = values[3]
    return values


READOUT = np.random.default_rng(1).standard_normal((V, F)).astype(np.float32)


def pool(seed: int = 0, n: int = N, model_hash: str = "model") -> ArrayCandidates:
    """N candidates, image-00 and so on."""
    return ArrayCandidates(features(seed, n), [f"image-{row:02d}" for row in range(n)], model_hash)


def objective() -> FoldedObjective:
    """The first two of six vertices less the last two."""
    return FoldedObjective("first - last", WEIGHTS, WEIGHTS @ READOUT, 0.25)


def second() -> FoldedObjective:
    """The middle two vertices."""
    weights = np.array([0, 0, 0.5, 0.5, 0, 0], dtype=np.float32)
    return FoldedObjective("middle", weights, weights @ READOUT, -1.0)


def betas(choice: Any, seed: int = 0) -> np.ndarray:
    """What the model predicts for a choice, and noise."""
    row = int(choice.image.removeprefix("image-"))
    noise = np.random.default_rng([seed, choice.trial]).standard_normal(V)
    return (features(n=max(N, row + 1))[row] @ READOUT.T + noise).astype(np.float32)


def session(**options: Any) -> Session:
    """A session on the small pool, whose deadline a busy machine meets."""
    options = {"pool": pool(), "objective": objective(), "deadline_ms": 60_000.0} | options
    return Session(**options)


def play(running: Session, trials: int = 6, waiting: int = 2) -> list[Any]:
    """Some choices, told late and out of order; every fifth is skipped."""
    choices: list[Any] = []
    left: list[Any] = []
    for _ in range(trials):
        assert running.wait(30)
        left.append(running.next())
        choices.append(left[-1])
        if len(left) > waiting:
            done = left.pop(1)
            if done.trial % 5 == 3:
                running.skip(done)
            else:
                running.tell(done, betas(done))
    return choices


def at_once(work: Callable[[], Any], count: int) -> None:
    """Run it in so many threads, to their ends."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def edited(log: Path, to: Path, change: Callable[[list[dict[str, Any]]], Any]) -> Path:
    """A log whose events were changed and sealed again, as if a session had written them."""
    events = [dict(event) for event in read_log(log).events]
    change(events)
    seal, lines = "", []
    for event in events:
        line, seal = sealed(event, seal)
        lines.append(line)
    to.write_bytes(b"".join(lines))
    shutil.copy(design_path(log), design_path(to))
    return to


class TestClock:
    """Time stands still but for `step` at every look; whoever waits in vain has waited in full."""

    __test__ = False

    def __init__(self, step: float = 0.0) -> None:
        self.time, self.step = 100.0, step

    def monotonic(self) -> float:
        self.time += self.step
        return self.time

    def wall(self) -> float:
        return 1.7e9 + self.time

    def wait_for(
        self, condition: threading.Condition, ready: Callable[[], bool], seconds: float
    ) -> bool:
        if not ready():
            self.time += max(0.0, seconds)
        return ready()
