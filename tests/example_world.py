"""A server of a toy engine in a process of its own, which tests may kill, and grey pictures."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
EXAMPLES = TESTS.parent / "examples"
STAND_INS = TESTS / "examples" / "stand_ins"
START_S = 120.0
PICTURES = 40
SESSIONS = 4  # that a server keeps open, so that one which is not closed is missed
FALLBACK = 200  # white alone Octave reads as bits


def grey(image: str) -> int:
    """The level of every pixel of a picture of the pool."""
    return FALLBACK if image == "fallback" else int(image.removesuffix(".png"))


class Server:
    """`brainfast serve` on the toy engine, with a token; `start` again after `kill`."""

    token = "the-token-of-the-tests"

    def __init__(self, pool: Path, folder: Path) -> None:
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.http, self.zmq = "127.0.0.1:0", f"ipc://{folder}/s"
        self._pool, self._errors = pool, folder / "server.txt"
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.http}"

    def start(self) -> None:
        script = TESTS / "examples" / "toy_server.py"
        path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        with self._errors.open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, script, self._pool, self.logs, self.http, self.zmq, self.token],
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], START_S)[0], self.errors
        line = self._process.stdout.readline()
        assert line, self.errors
        self.http = json.loads(line)["http"].removeprefix("http://")
        until(self.ready, START_S, lambda: self.errors)

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=10) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False

    def sessions(self) -> list[str]:
        """Names of those that are open."""
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(f"{self.url}/v1/sessions", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return list(json.load(answer)["sessions"])

    def kill(self) -> None:
        """As a power cut would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    @property
    def errors(self) -> str:
        return self._errors.read_text()


def until(done: Callable[[], Any], seconds: float, tell: Callable[[], str] = str) -> None:
    """Wait for what will happen; not to hang, only."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, tell()
        time.sleep(0.02)
