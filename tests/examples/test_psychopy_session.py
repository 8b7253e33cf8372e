"""The PsychoPy example's own loop on a stand-in for the window, against a server in a process.

What is counted is how often the thread that draws waited for anything but the screen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.loop.log import decode_betas
from example_screen import CrashError, Run, StubScreen, Waits, check_shown
from example_world import EXAMPLES, FALLBACK, STAND_INS, Server, grey, until

pytest.importorskip("zmq", reason="brainfast[serve]")
pytest.importorskip("msgspec", reason="brainfast[serve]")
V = 30


def test_no_frame_waits_and_every_trial_is_told(
    make_run: Any, server: Server, example: Any
) -> None:
    run = make_run(server, "frames")
    screen = run()
    assert screen.waited == 0
    assert screen.frames > 100
    assert len(run.rows) == 8
    assert run.trials == list(range(len(run.trials)))
    assert run.trials
    check_shown(run, screen.levels)
    told = run.of("tell")
    assert sorted(told) == run.trials
    for trial, event in told.items():
        expected = np.random.default_rng(trial).standard_normal(V, np.float32)
        np.testing.assert_array_equal(decode_betas(event["measured"]), expected)
    order = [event["event"] for event in run.events]
    assert "tell" in order[: len(order) - order[::-1].index("choice")]  # it learnt on the way


def test_a_wait_would_be_counted(example: Any, server: Server, waits: Waits) -> None:
    screen = StubScreen(waits)
    with example.Client(server.zmq, token=Server.token, timeout_s=30) as client:
        screen.frame(False)
        client.about().result()
        screen.frame(False)
    assert screen.waited > 0


def test_fallbacks_while_the_server_is_dead(make_run: Any, mortal: Server) -> None:
    run, steps = make_run(mortal, "dies", trials=1000), []

    def happen(screen: StubScreen) -> None:
        shown = len(screen.levels)
        if not steps and len(run.trials) >= 2:
            steps.append(threading.Thread(target=mortal.kill))
            steps[-1].start()
        elif len(steps) == 1 and FALLBACK in screen.levels[-2:] and not steps[0].is_alive():
            steps.append(threading.Thread(target=mortal.start))
            steps[-1].start()
        elif len(steps) == 2 and not steps[1].is_alive():
            steps.append(shown)
        screen.escape = screen.escape or (
            len(steps) == 3 and FALLBACK not in screen.levels[-2:] and shown >= steps[2] + 2
        )
        assert shown < 400

    screen = run(happen)
    assert screen.waited == 0
    assert run.trials == list(range(len(run.trials)))
    check_shown(run, screen.levels)
    run(resume=True, trials=0)
    assert sorted(run.of("tell")) == run.trials
    assert "resumed" in [event["event"] for event in run.events]


def test_an_experiment_that_died_shows_the_choice_it_had(make_run: Any, server: Server) -> None:
    run = make_run(server, "crashed")

    def crash(screen: StubScreen) -> None:
        if len(run.of("choice")) >= 3:  # chosen, and not yet on the screen
            raise CrashError

    with pytest.raises(CrashError):
        run(crash)
    assert "crashed" not in server.sessions()
    levels = run.screen.levels
    assert len(run.of("choice")) == 3 > len(run.trials)
    levels = levels + run(resume=True, trials=3).levels
    assert run.trials == list(range(len(run.trials)))
    assert len(run.trials) >= 3
    check_shown(run, levels)
    assert sorted(run.of("tell")) == run.trials


def test_a_broken_picture_is_skipped(make_run: Any, server: Server, broken: Path) -> None:
    run = make_run(server, "broken", pictures=broken)
    screen = run()
    assert screen.waited == 0
    check_shown(run, screen.levels)
    skipped = {trial: event["image"] for trial, event in run.of("skip").items()}
    assert all(grey(image) % 2 == 0 for image in skipped.values())
    assert all(grey(image) % 2 for _, image in run.rows if image != "fallback")
    done = sorted([*skipped, *run.trials])
    assert done
    assert done == sorted(run.of("choice"))[: len(done)]  # the last may have come too late


class Program:
    """The example as a program, on a stand-in for PsychoPy."""

    def __init__(self, run: Run, *more: str) -> None:
        options = run.options
        names = ("token_file", "session", "objective", "pictures", "fallback", "trials", "delay")
        named = [text for name in names for text in (f"--{name}".replace("_", "-"), options[name])]
        command = [sys.executable, EXAMPLES / "psychopy_session.py", "--address", run.server.zmq]
        path = [str(STAND_INS), str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
        self.flips = Path.cwd() / "flips.txt"
        self.process = subprocess.Popen(
            [*map(str, [*command, *named]), *more],
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(path), "BRAINFAST_TEST_FLIPS": str(self.flips)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> None:
        _, errors = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, errors

    @property
    def levels(self) -> list[int]:
        return [int(line) for line in self.flips.read_text().splitlines()]


def test_a_program_that_was_killed_goes_on(make_run: Any, server: Server) -> None:
    run = make_run(server, "killed", trials=1000)
    program = Program(run)
    try:
        until(lambda: program.process.poll() is not None or len(run.trials) >= 2, 120)
    finally:
        program.process.kill()
        program.process.communicate()
    before = len(run.rows)
    run.options["trials"] = 1
    program = Program(run, "--resume")
    program.end()
    assert len(run.rows) == before + 1
    assert run.trials == list(range(len(run.trials)))
    assert sorted(run.of("tell")) == run.trials
    shown = [grey(image) for _, image in run.rows]
    # Killed between a flip and its line, it shows that picture once more.
    again = [*shown[: before + 1], *shown[before:]]
    assert program.levels in (shown, again)


def test_markers_of_a_run(make_run: Any, server: Server) -> None:
    pylsl = pytest.importorskip("pylsl", reason="pylsl with its library", exc_type=Exception)
    run = make_run(server, "marked", trials=3)
    program = Program(run, "--lsl")
    found = pylsl.resolve_byprop("source_id", "brainfast-marked", timeout=60)
    inlet = pylsl.StreamInlet(found[0]) if found else None
    markers = []
    while inlet is not None and program.process.poll() is None:
        sample, moment = inlet.pull_sample(timeout=0.2)
        if sample is not None:
            markers.append((json.loads(sample[0]), moment))
    program.end()
    if inlet is None:
        pytest.skip("LSL finds no streams on this machine: no multicast")
    inlet.close_stream()
    choices = {trial: event["image"] for trial, event in run.of("choice").items()}
    told = [(marker["trial"], marker["image"]) for marker, _ in markers]
    kinds = [marker["event"] for marker, _ in markers]
    assert kinds.count("onset") >= 2
    assert [moment for _, moment in markers] == sorted(moment for _, moment in markers)
    onsets = [about for kind, about in zip(kinds, told, strict=True) if kind == "onset"]
    assert onsets == run.rows[-len(onsets) :]
    chosen = [about for kind, about in zip(kinds, told, strict=True) if kind == "choice"]
    assert all(choices[trial] == image for trial, image in chosen)


def test_a_session_that_cannot_be_opened_leaves_nothing(make_run: Any, server: Server) -> None:
    run = make_run(server, "unknown", objective="no-such-region")
    with pytest.raises(BrainfastError, match="no-such-region"):
        run()
    assert not Path("unknown.csv").exists()


def test_a_session_that_was_shown_is_not_begun_again(make_run: Any, server: Server) -> None:
    run = make_run(server, "twice", trials=1)
    run()
    with pytest.raises(BrainfastError, match="go on with this one: --resume"):
        run()
