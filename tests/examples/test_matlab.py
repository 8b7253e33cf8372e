"""The MATLAB functions, run in GNU Octave against a server; MATLAB itself is not run.

Each test runs as Octave sends requests, through curl, and as MATLAB does, through functions that
behave as its webread, webwrite and weboptions are documented to.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from brainfast.loop import read_log
from brainfast.loop.log import decode_betas
from example_octave import NEEDS_OCTAVE, Octave, V, octave_way
from example_world import Server
from toy_engine import ToyEngine

pytest.importorskip("fastapi", reason="brainfast[serve]")
pytest.importorskip("zmq", reason="brainfast[serve]")
pytestmark = NEEDS_OCTAVE


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
        brainfast_close(bf);
        brainfast_close(bf);
        try, brainfast_next(bf, 0), catch e, end
        assert(strcmp(e.identifier, 'brainfast:not_found'));
        printf('%s %s %.17g done\\n', first.image, second.image, first.score);
    """
    first, second, score, _ = octave.run(script).split()
    assert name not in server.sessions()
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
    "no server to close at": ("bf.url = 'http://127.0.0.1:9'; brainfast_close(bf);", "unreachable"),
    "no server": ("bf.url = 'http://127.0.0.1:9'; brainfast_next(bf, 0);", "unreachable"),
    "no file": ("brainfast_predict(bf, 'none.png');", "invalid"),
}


def test_refusals_have_identifiers(octave: Octave, server: Server, request: Any) -> None:
    lines = [opening(server, f"errors-{octave_way(request)}"), "bf.patience_s = 0; keep = bf;"]
    for code, _ in CASES.values():
        lines.append(f"bf = keep; try, {code} disp('none'), catch e, disp(e.identifier), end")
    lines.append("brainfast_close(keep); disp('done')")
    found = octave.run("\n".join(lines)).split()
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
