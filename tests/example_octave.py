"""GNU Octave, which runs the MATLAB functions in the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from example_world import EXAMPLES, STAND_INS

OCTAVE = shutil.which("octave-cli") or shutil.which("octave")
NEEDS_OCTAVE = [
    pytest.mark.skipif(OCTAVE is None, reason="GNU Octave is not installed"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]
V = 30


class Octave:
    """Runs scripts with the functions and stand-ins on the path."""

    def __init__(self, folders: list[Path], place: Path) -> None:
        self._folders, self._place = folders, place

    def start(self, script: str, **environment: str) -> subprocess.Popen[str]:
        file = self._place / "script.m"
        lines = [f"addpath('{folder}');" for folder in self._folders]
        file.write_text("\n".join(["warning('off', 'Octave:shadowed-function');", *lines, script]))
        return subprocess.Popen(
            [str(OCTAVE), "--norc", "--quiet", str(file)],
            cwd=self._place,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str) -> str:
        out, err = self.start(script).communicate(timeout=300)
        assert "done" in out, err
        return out


def octave_in(place: Path, way: str) -> Octave:
    """One that sends requests as Octave does, "curl", or as MATLAB does, "webwrite"."""
    functions = place / "matlab"
    shutil.copytree(EXAMPLES / "matlab", functions)
    stand_ins = [STAND_INS / "psychtoolbox"]
    if way == "webwrite":
        never = "function yes = in_octave()\n    yes = false;\nend\n"
        (functions / "private" / "in_octave.m").write_text(never)
        stand_ins.append(STAND_INS / "matlab_web")
    return Octave([functions, *stand_ins], place)


def octave_way(request: Any) -> str:
    return str(request.node.callspec.params["octave"])
