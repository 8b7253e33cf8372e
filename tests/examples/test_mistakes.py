"""The examples as programs: help needs nothing else, a mistake is one line and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from example_world import EXAMPLES, STAND_INS

pytest.importorskip("fastapi", reason="brainfast[serve]")
pytest.importorskip("zmq", reason="brainfast[serve]")

WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(("psychopy", "pylsl")))
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(command: list[str], name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = [str(STAND_INS), str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *command, str(EXAMPLES / f"{name}.py"), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def check_refused(done: subprocess.CompletedProcess[str], name: str, said: str) -> None:
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"{name}: ")
    assert said in done.stderr


@pytest.mark.parametrize("name", ["psychopy_session", "lsl_markers"])
def test_help_needs_no_library_of_others(name: str) -> None:
    done = run(["-c", WITHOUT], name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: {name}.py" in done.stdout


RUN = ("--session", "run", "--pictures", ".", "--fallback", "no-such-file")


def test_psychopy_is_missing() -> None:
    done = run(["-c", WITHOUT], "psychopy_session", *RUN)
    check_refused(done, "psychopy_session", "pip install psychopy")


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("psychopy_session", RUN, "no-such-file"),
        ("lsl_markers", ("no-such-file",), "no-such-file"),
        ("live_page", ("--demo", "no-such-file"), "no-such-file"),
    ],
)
def test_a_file_that_is_not_there(name: str, arguments: tuple[str, ...], said: str) -> None:
    check_refused(run([], name, *arguments), name, said)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run([], "own_data", "--work", str(tmp_path / "file" / "work"))
    check_refused(done, "own_data", "work: expected a place that can be written")
