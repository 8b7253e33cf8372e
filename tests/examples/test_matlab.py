"""The MATLAB functions, run in GNU Octave against a server; MATLAB itself is not run.

Each test runs as Octave sends requests, through curl, and as MATLAB does, through functions that
behave as its webread, webwrite and weboptions are documented to.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from brainfast.loop import read_log
from brainfast.loop.log import decode_betas
from example_world import Server, grey, until
from toy_engine import ToyEngine

pytest.importorskip("fastapi", reason="brainfast[serve]")
pytest.importorskip("zmq", reason="brainfast[serve]")
HERE = Path(__file__).parent
FUNCTIONS = HERE.parents[1] / "examples" / "matlab"
OCTAVE = shutil.which("octave-cli") or shutil.which("octave")
pytestmark = [
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


@pytest.fixture(params=["curl", "webwrite"])
def octave(request: Any, tmp_path: Path) -> Octave:
    functions = tmp_path / "matlab"
    shutil.copytree(FUNCTIONS, functions)
    stand_ins = [HERE / "stand_ins" / "psychtoolbox"]
    if request.param == "webwrite":
        never = "function yes = in_octave()\n    yes = false;\nend\n"
        (functions / "private" / "in_octave.m").write_text(never)
        stand_ins.append(HERE / "stand_ins" / "matlab_web")
    return Octave([functions, *stand_ins], tmp_path)


def opening(server: Server, name: str, request: str = "'objective', 'FFA - PPA'") -> str:
    return f"bf = brainfast_open('{server.url}', '{name}', struct({request}), '{server.token}');"


def test_a_session_and_its_log(octave: Octave, server: Server, request: Any) -> None:
    name = f"log-{octave_way(request)}"
    script = f"""
        {opening(server, name)}
        assert(bf.state.trials == 0);
        first = brainfast_next(bf, 0);
        assert(isequal(brainfast_next(bf, 0), first));  % asked twice, chosen once
        betas = (1:{V}) / 7;
        betas(3) = NaN;
        brainfast_tell(bf, 0, betas);
        brainfast_tell(bf, 0, betas', 'subj01');
        second = brainfast_next(bf, 1);
        brainfast_skip(bf, 1);
        brainfast_skip(bf, 1);
        bf = brainfast_open(bf.url, bf.session, struct('resume', true), bf.token);
        assert(bf.state.trials == 2 && bf.state.told == 1 && bf.state.skipped == 1);
        printf('%s %s %.17g done\\n', first.image, second.image, first.score);
    """
    first, second, score, _ = octave.run(script).split()
    events = read_log(server.logs / f"{name}.jsonl").events
    kinds = [event["event"] for event in events]
    assert kinds == ["session", "choice", "tell", "choice", "skip"]
    assert [events[1]["image"], events[3]["image"]] == [first, second]
    assert float(score) == events[1]["score"]
    expected = (np.arange(1, V + 1) / 7).astype(np.float32)
    expected[2] = np.nan
    np.testing.assert_array_equal(decode_betas(events[2]["measured"]), expected)


def test_a_prediction_is_that_of_the_engine(octave: Octave, server: Server, pictures: Path) -> None:
    paths = [pictures / "00.png", pictures / "21.png"]
    script = f"""
        bf = struct('url', '{server.url}', 'token', '{server.token}', 'request_s', 30, ...
                    'patience_s', 60);
        about = brainfast_about(bf.url, bf.token);
        assert(strcmp(about.model, 'toy'));
        one = brainfast_predict(bf, '{paths[0]}');
        both = brainfast_predict(bf, {{'{paths[0]}', '{paths[1]}'}});
        assert(isequal(size(one), [1 {V}]) && isequal(size(both), [2 {V}]));
        printf('%.9g ', one, both');
        printf('done\\n');
    """
    *numbers, _ = octave.run(script).split()
    expected = ToyEngine("blobgpt").response(paths)
    found = np.array(numbers, dtype=np.float32).reshape(3, V)
    np.testing.assert_allclose(found, expected[[0, 0, 1]], rtol=1e-5, atol=1e-6)


CASES = {
    "another token": ("bf.token = 'x'; brainfast_next(bf, 0);", "unauthorised"),
    "no such session": ("bf.session = 'none'; brainfast_next(bf, 0);", "not_found"),
    "a trial of the future": ("brainfast_next(bf, 7);", "conflict"),
    "other betas": (
        f"brainfast_next(bf, 0); brainfast_tell(bf, 0, ones(1, {V}));"
        f" brainfast_tell(bf, 0, zeros(1, {V}));",
        "conflict",
    ),
    "too few betas": ("brainfast_next(bf, 0); brainfast_tell(bf, 0, [1 2 3]);", "invalid"),
    "one beta": ("brainfast_next(bf, 0); brainfast_tell(bf, 0, 1);", "invalid"),
    "no server": ("bf.url = 'http://127.0.0.1:9'; brainfast_next(bf, 0);", "unreachable"),
    "no file": ("brainfast_predict(bf, 'none.png');", "invalid"),
}


def test_refusals_have_identifiers(octave: Octave, server: Server, request: Any) -> None:
    lines = [opening(server, f"errors-{octave_way(request)}"), "bf.patience_s = 0; keep = bf;"]
    for code, _ in CASES.values():
        lines.append(f"bf = keep; try, {code} disp('none'), catch e, disp(e.identifier), end")
    found = octave.run("\n".join([*lines, "disp('done')"])).split()
    expected = [f"brainfast:{identifier}" for _, identifier in CASES.values()]
    assert dict(zip(CASES, found, strict=False)) == dict(zip(CASES, expected, strict=True))


class Script(BaseHTTPRequestHandler):
    """Answers requests with what it was told to, and keeps what came."""

    bf: ClassVar[str]
    answers: ClassVar[list[tuple[int, Any]]]
    came: ClassVar[list[tuple[str, Any, str | None]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.came.append((self.path, body, self.headers["Authorization"]))
        status, answer = self.answers.pop(0)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def script() -> Iterator[type[Script]]:
    Script.answers, Script.came = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    Script.bf = (
        f"bf = struct('url', 'http://127.0.0.1:{server.server_port}', 'session', 's', "
        "'token', 'a-token', 'request_s', 20, 'patience_s', 60);"
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Script
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_passes_is_asked_again_for_the_same_trial(octave: Octave, script: Any) -> None:
    refusal = {"code": "stalled", "error": "wait", "retry_after_s": 1.0}
    choice = {"image": "i.png", "trial": 3}
    script.answers += [(503, refusal), (429, refusal), (504, refusal), (200, choice)]
    script.answers += [(409, refusal | {"code": "conflict"})]
    octave.run(f"""
        {script.bf}
        assert(strcmp(brainfast_next(bf, 3).image, 'i.png'));
        try, brainfast_next(bf, 3), catch e, end  % is not asked again
        assert(strcmp(e.identifier, 'brainfast:conflict'));
        disp('done')
    """)
    asked = ("/v1/sessions/s/next", {"trial": 3}, "Bearer a-token")
    assert script.came == [asked] * 5


def test_subjects_and_single_numbers(octave: Octave, script: Any, pictures: Path) -> None:
    both = {"response": {"a": [[1, 2]], "b": [[3]]}}
    one = {"response": {"b": [[3, 4, None]]}}
    files = [{"response": {"b": [[number, number + 0.5]]}} for number in (1, 2)]
    script.answers += [(200, both), (200, one), *((200, file) for file in files), (200, {})]
    octave.run(f"""
        {script.bf}
        try, brainfast_predict(bf, '{pictures}/00.png'), catch e, end
        assert(strcmp(e.message, 'subject: expected one of a, b'));
        assert(isequaln(brainfast_predict(bf, '{pictures}/00.png', 'b'), [3 4 NaN]));
        names = {{'{pictures}/00.png', '{pictures}/21.png'}};
        assert(isequal(brainfast_predict(bf, names, 'b'), [1 1.5; 2 2.5]));  % a request for each
        brainfast_tell(bf, 0, 2.5);  % one vertex is a list all the same
        disp('done')
    """)
    encoded, other = (
        base64.b64encode((pictures / name).read_bytes()).decode() for name in ("00.png", "21.png")
    )
    assert [body for _, body, _ in script.came] == [
        {"images_b64": [encoded]},
        {"images_b64": [encoded], "subject": "b"},
        {"images_b64": [encoded], "subject": "b"},
        {"images_b64": [other], "subject": "b"},
        {"trial": 0, "betas": [2.5]},
    ]


@pytest.mark.parametrize("octave", ["curl"], indirect=True)
def test_an_experiment_outlives_its_server(
    octave: Octave, mortal: Server, pictures: Path, fallback: Path, tmp_path: Path
) -> None:
    record, flips, stop = (tmp_path / name for name in ("run.csv", "flips.csv", "stop"))
    betas = written_betas(tmp_path / "betas")
    experiment = octave.start(
        f"""
        run_session('{mortal.url}', 'run', '{pictures}', 'token', '{mortal.token}', ...
                    'fallback', '{fallback}', 'trials', 1000, 'soa_s', 1, 'image_s', 0.1, ...
                    'ask_s', 0.3);
        disp('done')
        """,
        BRAINFAST_TEST_FLIPS=str(flips),
        BRAINFAST_TEST_STOP=str(stop),
    )
    try:
        until(lambda: len(chosen(record)) >= 3 or experiment.poll() is not None, 120)
        mortal.kill()
        until(lambda: -1 in shown(record) or experiment.poll() is not None, 120)
        before = len(chosen(record))
        mortal.start()
        until(lambda: len(chosen(record)) >= before + 2 or experiment.poll() is not None, 120)
    finally:
        stop.touch()
        out, err = experiment.communicate(timeout=300)
    assert "done" in out, err
    assert chosen(record) == list(range(len(chosen(record))))

    events = read_log(mortal.logs / "run.jsonl").events
    images = {event["trial"]: event["image"] for event in events if event["event"] == "choice"}
    assert all(images[trial] == image for trial, image in rows(record) if trial >= 0)
    levels = [int(line.split(",")[0]) for line in flips.read_text().splitlines()]
    on_screen = [level for level in levels if level >= 0]
    assert on_screen == [grey(image) for _, image in rows(record)]
    answers = {e["trial"]: e for e in events if e["event"] in ("tell", "skip")}
    assert set(answers) == set(chosen(record))
    for trial, event in answers.items():
        assert event["event"] == ("skip" if betas[trial] is None else "tell")
        if betas[trial] is not None:
            np.testing.assert_array_equal(decode_betas(event["measured"]), betas[trial])


def test_an_experiment_that_died_goes_on(
    octave: Octave, server: Server, pictures: Path, fallback: Path, tmp_path: Path, request: Any
) -> None:
    name = f"resumed-{octave_way(request)}"
    written_betas(tmp_path / "betas")
    script = f"""
        run_session('{server.url}', '{name}', '{pictures}', 'token', '{server.token}', ...
                    'fallback', '{fallback}', 'trials', 2, 'soa_s', 2, 'image_s', 0.1, ...
                    'resume', RESUME);
        disp('done')
    """
    flips = str(tmp_path / "flips.csv")
    record = tmp_path / f"{name}.csv"
    for resume in ("false", "true"):
        experiment = octave.start(script.replace("RESUME", resume), BRAINFAST_TEST_FLIPS=flips)
        out, err = experiment.communicate(timeout=300)
        assert "done" in out, err
    assert chosen(record) == list(range(len(chosen(record))))
    assert len(rows(record)) == 4
    events = read_log(server.logs / f"{name}.jsonl").events
    told = [event["trial"] for event in events if event["event"] in ("tell", "skip")]
    assert sorted(told) == chosen(record)
    again = octave.start(script.replace("RESUME", "false"), BRAINFAST_TEST_FLIPS=flips)
    _, err = again.communicate(timeout=300)
    assert "choose another session, or say resume" in err


def test_a_broken_picture_is_skipped(
    octave: Octave, server: Server, broken: Path, fallback: Path, tmp_path: Path, request: Any
) -> None:
    name = f"broken-{octave_way(request)}"
    written_betas(tmp_path / "betas")
    experiment = octave.start(
        f"""
        run_session('{server.url}', '{name}', '{broken}', 'token', '{server.token}', ...
                    'fallback', '{fallback}', 'trials', 4, 'soa_s', 2, 'image_s', 0.1);
        disp('done')
        """,
        BRAINFAST_TEST_FLIPS=str(tmp_path / "flips.csv"),
    )
    out, err = experiment.communicate(timeout=300)
    assert "done" in out, err
    record = tmp_path / f"{name}.csv"
    events = read_log(server.logs / f"{name}.jsonl").events
    images = {event["trial"]: event["image"] for event in events if event["event"] == "choice"}
    assert len(rows(record)) == 4
    whole = [trial for trial in images if grey(images[trial]) % 2]
    assert chosen(record) == whole[: len(chosen(record))]
    skipped = {event["trial"] for event in events if event["event"] == "skip"}
    last = max(images)  # may have come too late
    assert {trial for trial in images if not grey(images[trial]) % 2} - {last} <= skipped


def octave_way(request: Any) -> str:
    return str(request.node.callspec.params["octave"])


def written_betas(folder: Path) -> dict[int, np.ndarray | None]:
    """Betas of a hundred trials in files, as a GLM writes them; every third is given up."""
    folder.mkdir()
    betas: dict[int, np.ndarray | None] = {}
    for trial in range(100):
        values = np.random.default_rng(trial).standard_normal(V).astype(np.float32)
        values[5] = np.nan
        betas[trial] = None if trial % 3 == 2 else values
        text = "" if betas[trial] is None else "\n".join(map(str, values))
        (folder / f"{trial:04d}.txt").write_text(text)
    return betas


def rows(record: Path) -> list[tuple[int, str]]:
    """Trial and image of every whole line; -1 is the fallback."""
    if not record.exists():
        return []
    lines = record.read_text().splitlines(keepends=True)
    whole = csv.reader(line for line in lines if line.endswith("\n"))
    return [(int(trial), image) for trial, image, _ in whole]


def shown(record: Path) -> list[int]:
    return [trial for trial, _ in rows(record)]


def chosen(record: Path) -> list[int]:
    return [trial for trial in shown(record) if trial >= 0]
