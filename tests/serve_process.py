"""A server process on the toy engine: `python serve_process.py FOLDER ADDRESS ZMQ [OPTION ...]`.

Its trunk waits, where FOLDER/hold is, until FOLDER/go is there; with "slow" so does its loading.
With "impatient" it gives hardly any time to what was begun when it ends.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import typer

import serve_world as world
from brainfast.boundary import run as boundary
from brainfast.pool import Pool
from brainfast.serve.limits import Limits
from brainfast.serve.listening import HttpAddress
from brainfast.serve.run import Plan, run
from brainfast.tokens import Tokens


def wait_for(folder: Path) -> None:
    (folder / "entered").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)


def _images(folder: Path) -> Path:
    folder.mkdir()
    for seed in range(6):
        (folder / f"image-{seed}.png").write_bytes(world.file(seed))
    return folder


class Held(world.ToyTrunk):
    """A trunk that waits where the test says so."""

    def __call__(self, pixels: Any) -> Tokens:
        folder = Path(sys.argv[1])
        if (folder / "hold").exists():
            wait_for(folder)
        return super().__call__(pixels)


def main() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, and who it starts inherits
    folder, http, zmq = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

    def load() -> Any:
        if "slow" in sys.argv:
            wait_for(folder)
        engine = world.engine()
        pool = Pool.build(engine, _images(folder / "images"), path=folder / "pool")
        engine.runtime.__class__ = Held
        return engine, pool

    plan = Plan(
        load=load,
        name="toy",
        http=HttpAddress.parse(http),
        zmq=None if zmq == "off" else zmq,
        tell=typer.echo,
        logs=folder / "logs",
        limits=Limits(drain_s=0.1 if "impatient" in sys.argv else 60.0),
        as_json=True,
    )
    boundary(lambda *_, **__: run(plan))


if __name__ == "__main__":
    main()
