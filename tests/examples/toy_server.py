"""`brainfast serve` on a toy engine, for tests to kill: POOL LOGS HTTP ZMQ [TOKEN]."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from brainfast.pool import Pool
from brainfast.serve.limits import Limits
from brainfast.serve.listening import HttpAddress
from brainfast.serve.run import Plan, run
from example_world import SESSIONS
from toy_engine import ToyEngine


class ServedEngine(ToyEngine):
    """A toy engine with what a server asks of it besides."""

    def __init__(self) -> None:
        super().__init__("blobgpt")
        self.card.model_hash = "toy"

    def predict(self, images: Any, *, batch_size: int = 32) -> Any:
        return SimpleNamespace(values=self.response(images))

    def warm_up(self, batches: Any) -> None:
        """Nothing is cold in numpy."""


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    pool, logs, http, zmq, *token = sys.argv[1:]
    engine = ServedEngine()
    plan = Plan(
        load=lambda: (engine, Pool.open(Path(pool), engine)),
        name="toy",
        http=HttpAddress.parse(http),
        zmq=None if zmq == "off" else zmq,
        tell=tell,
        token=token[0] if token else None,
        logs=Path(logs),
        limits=Limits(sessions=SESSIONS),
        as_json=True,
    )
    run(plan)


if __name__ == "__main__":
    main()
