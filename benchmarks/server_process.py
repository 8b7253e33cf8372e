"""A server as a process of its own, as a lab starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

START_S = 300.0
END_S = 60.0
HERE = Path(__file__).resolve().parent


class Server:
    """`brainfast serve` of a model and a pool; one that `stalls` is a program whose trunk can be
    made to wait.

    address: of ZeroMQ; http: URL; rss(): resident bytes
    """

    def __init__(self, model: Path, pool: Path, logs: Path, *options: str, stalls: bool = False):
        self.logs = logs
        self.address = f"ipc://{logs.parent / 'serve.sock'}"
        self._stall = logs.parent / "stall"
        arguments = [str(model), "--pool", str(pool), "--logs", str(logs), "--json"]
        arguments += ["--zmq", self.address, "--http", "127.0.0.1:0", *options]
        program = ["-m", "brainfast", "serve"]
        environment = dict(os.environ)
        if stalls:
            program = [str(HERE / "serve_stalling.py")]
            environment["STALL_FILE"] = str(self._stall)
        self._command = [sys.executable, *program, *arguments]
        self._environment = environment
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, text=True, env=self._environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {self.process.wait()} before it was ready")
        self.about: dict[str, Any] = json.loads(line)
        self._wait_ready()

    def _wait_ready(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(OSError), urlopen(f"{self.http}/readyz", timeout=5.0):
                return
            time.sleep(0.1)
        raise RuntimeError("the server was not ready in time")

    @property
    def http(self) -> str:
        """Its URL."""
        return str(self.about["http"])

    def metrics(self) -> str:
        """What Prometheus would read."""
        with urlopen(f"{self.http}/metrics", timeout=5.0) as answer:
            text: str = answer.read().decode()
        return text

    def rss(self) -> int:
        """Resident bytes of the process."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii")
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def processor_seconds(self) -> float:
        """Seconds of all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").split(")")[1]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Meanwhile its trunk waits."""
        self._stall.touch()
        try:
            yield
        finally:
            self._stall.unlink()

    def kill(self) -> None:
        """End it as the system would that has no memory left."""
        self.process.kill()
        self.process.wait(END_S)

    def restart(self) -> None:
        """Start it again after `kill`."""
        self._start()

    def drain(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_S)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
