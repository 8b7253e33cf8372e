"""The server's log, with readers that do not read."""

from __future__ import annotations

import io
import logging
import sys
import threading

import pytest

from brainfast.serve import stderr_log
from brainfast.serve.stderr_log import LINES, log_to_stderr
from serve_world import PATIENCE_S, Gate

_log = logging.getLogger("brainfast.serve")


class Stuck(io.StringIO):
    """A pipe that nobody reads until the gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def write(self, text: str) -> int:
        self.gate.wait()
        return super().write(text)


def test_every_line_is_written_before_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr():
        for number in range(100):
            _log.info("line %d", number)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == [str(number) for number in range(100)]


@pytest.mark.parametrize("lines", [1, LINES // 2, 2 * LINES])
def test_a_reader_that_stops_holds_nobody_up(lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = Stuck()
    monkeypatch.setattr(stderr_log, "END_S", 0.1)
    monkeypatch.setattr(sys, "stderr", stuck)

    def serve() -> None:
        with log_to_stderr():
            _log.info("the first")
            assert stuck.gate.entered.wait(PATIENCE_S)
            for number in range(lines):
                _log.info("line %d", number)

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    try:
        serving.join(PATIENCE_S / 2)
        assert not serving.is_alive()
    finally:
        stuck.gate.open()
