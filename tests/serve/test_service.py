"""The service as its servers see it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_world import ServedEngine, asked, betas, file, on_loop, picture, service


@on_loop
async def test_predict_and_session(tmp_path: Path) -> None:
    engine = ServedEngine()
    served = service(engine, logs=tmp_path)
    await served.start()
    found = await served.predict([picture(1), file(2)])
    np.testing.assert_array_equal(found[""], engine.predict([picture(1), picture(2)]).values)
    state = await served.open_session("run-1", asked())
    assert state.trials == 0
    choice = await served.next("run-1", 0)
    await served.tell("run-1", 0, betas(0))
    assert await served.next("run-1", 0) == choice
    print(await served.session("run-1"), served.about(), served.metrics.text().decode())
    await served.drain()
    print(served.events.latest)
