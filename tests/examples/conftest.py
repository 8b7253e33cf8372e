"""A pool of grey pictures, servers of it, and runs of the PsychoPy example."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brainfast.pool import Pool
from example_octave import Octave, octave_in
from example_screen import Run, Waits
from example_world import EXAMPLES, FALLBACK, PICTURES, Server
from toy_engine import ToyEngine


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, each of one level of grey, that is its name."""
    folder = tmp_path_factory.mktemp("pictures")
    for level in range(PICTURES):
        pixels = np.full((9, 8, 3), level, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{level:02d}.png")
    return folder


@pytest.fixture
def broken(pictures: Path, tmp_path: Path) -> Path:
    """The same folder; every second file is cut off."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for picture in pictures.iterdir():
        whole = picture.read_bytes()
        (folder / picture.name).write_bytes(whole if int(picture.stem) % 2 else whole[:40])
    return folder


@pytest.fixture(scope="session")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fallback") / "fallback.png"
    Image.fromarray(np.full((9, 8, 3), FALLBACK, dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def toy_pool(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "pool"
    Pool.build(ToyEngine("blobgpt"), pictures, path=path)
    return path


@pytest.fixture(scope="session")
def server(toy_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that stays; every test has a session of its own."""
    served = Server(toy_pool, tmp_path_factory.mktemp("server"))
    served.start()
    yield served
    served.kill()


@pytest.fixture
def mortal(toy_pool: Path, tmp_path: Path) -> Iterator[Server]:
    """One of a test alone, started and to be killed."""
    folder = tmp_path / "server"
    folder.mkdir()
    served = Server(toy_pool, folder)
    served.start()
    yield served
    served.kill()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import psychopy_session

    return psychopy_session


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    counter = Waits()
    monkeypatch.setattr(threading.Condition, "wait", counter.counted(threading.Condition.wait))
    monkeypatch.setattr(threading.Thread, "join", counter.counted(threading.Thread.join))
    monkeypatch.setattr(time, "sleep", counter.counted(time.sleep))
    return counter


@pytest.fixture
def make_run(
    example: Any,
    waits: Waits,
    pictures: Path,
    fallback: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Run]:
    monkeypatch.chdir(tmp_path)
    token = tmp_path / "token.txt"
    token.write_text(f"{Server.token}\n")
    options: dict[str, Any] = {
        "token_file": token,
        "objective": "FFA - PPA",
        "pictures": pictures,
        "fallback": fallback,
        "trials": 8,
        "delay": 0.3,
        "resume": False,
        "lsl": False,
    }
    return lambda server, session, **more: Run(
        example, server, waits, session=session, **(options | more)
    )


@pytest.fixture(params=["curl", "webwrite"])
def octave(request: pytest.FixtureRequest, tmp_path: Path) -> Octave:
    return octave_in(tmp_path, request.param)
