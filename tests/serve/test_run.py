"""A server process from its first socket to its last log line, on a toy engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import serve_process
import serve_world as world
from brainfast.errors import BrainfastError
from brainfast.serve import AsyncClient, Refusal
from brainfast.serve.http_body import Bodies
from brainfast.serve.listening import HttpAddress, HttpServer
from brainfast.serve.run import Plan, check_addresses, run
from brainfast.serve.service import Service

PATIENCE_S = world.PATIENCE_S
TESTS = Path(serve_process.__file__).parent


class Server:
    """A process that serves the toy engine."""

    def __init__(self, folder: Path, *options: str, zmq: str = "off") -> None:
        arguments = [str(folder), "127.0.0.1:0", zmq, *options]
        path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, serve_process.__file__, *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.about: dict[str, Any] = json.loads(line)
        self.http = httpx.Client(base_url=self.about["http"], timeout=PATIENCE_S)

    def wait_until(self, state: str) -> None:
        until(lambda: self.http.get("/readyz").json().get("state") == state)

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        """Exit code and stderr."""
        self.http.close()
        _, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, err


def until(happens: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def begin(*options: str, **where: str) -> Server:
        servers.append(Server(tmp_path, *options, **where))
        return servers[-1]

    yield begin
    for server in servers:
        server.process.kill()
        server.process.communicate()


def ask_and_wait(server: Server, folder: Path) -> tuple[threading.Thread, list[Any]]:
    """A prediction that the engine has begun and does not end; its answer, or error, to come."""
    (folder / "hold").touch()
    answers: list[Any] = []

    def ask() -> None:
        try:
            url = f"{server.about['http']}/v1/predict"
            answers.append(httpx.post(url, content=world.file(1), timeout=PATIENCE_S))
        except httpx.TransportError as error:
            answers.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    until((folder / "entered").exists)
    return asking, answers


def zmq_about(server: Server) -> str:
    """The model's name, or the code of the refusal, by the other wire."""

    async def ask() -> str:
        async with AsyncClient(server.about["zmq"], timeout_s=PATIENCE_S) as client:
            try:
                return (await client.about()).model
            except Refusal as refusal:
                return refusal.code

    return asyncio.run(ask())


def test_what_was_begun_is_answered_and_logged_after_sigterm(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server = start(zmq="tcp://127.0.0.1:0")
    server.wait_until("ready")
    assert zmq_about(server) == server.http.get("/v1/about").json()["model"] == "toy"
    counted = server.http.get("/metrics").text
    for way in ("http", "zmq"):  # one service for both
        assert f'requests_total{{code="ok",operation="about",way="{way}"}} 1.0' in counted
    session = {"objective": "FFA - PPA", "deadline_ms": 60_000.0}
    assert server.http.put("/v1/sessions/run", json=session).status_code == 200
    choice = server.http.post("/v1/sessions/run/next", json={"trial": 0}).json()
    asking, answers = ask_and_wait(server, tmp_path)
    server.stop()
    server.wait_until("draining")
    refused = server.http.post("/v1/predict", content=world.file(2))
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert server.http.get("/healthz").status_code == 200
    (tmp_path / "go").touch()
    asking.join()
    expected = world.engine().predict([world.picture(1)]).values
    np.testing.assert_array_equal(np.float32(answers[0].json()["response"]), expected)
    code, log = server.ended()
    assert code == 0
    assert "ready after" in log
    events = [json.loads(line) for line in (tmp_path / "logs/run.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["session", "choice"]
    assert events[1]["image"] == choice["image"]


def test_a_server_that_loads_says_so_and_ends_when_told(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server = start("slow", zmq=f"ipc://{tmp_path}/zmq")
    until((tmp_path / "entered").exists)
    assert server.http.get("/healthz").status_code == 200
    for path in ("/readyz", "/v1/about"):
        answer = server.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (503, "starting")
        assert answer.headers["retry-after"] == "1"
    assert zmq_about(server) == "starting"
    server.stop(signal.SIGINT)
    assert server.ended()[0] == 0


def test_a_second_signal_ends_at_once(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start()
    server.wait_until("ready")
    asking, answers = ask_and_wait(server, tmp_path)
    server.stop()
    server.wait_until("draining")
    server.stop()
    assert server.ended()[0] == 128 + signal.SIGTERM
    asking.join()
    assert isinstance(answers[0], httpx.TransportError)


def test_an_engine_that_hangs_does_not_hold_the_process(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server = start("impatient")
    server.wait_until("ready")
    asking, answers = ask_and_wait(server, tmp_path)
    server.stop(signal.SIGHUP)
    asking.join()
    assert (answers[0].status_code, answers[0].json()["code"]) == (503, "draining")
    code, log = server.ended()
    assert code == 0
    assert "engine did not end" in log


def test_answers_leave_before_what_writes_them_ends(monkeypatch: Any) -> None:
    ends: list[str] = []

    def ending(kind: type, name: str) -> None:
        method = getattr(kind, name)

        async def noted(one: Any) -> None:
            await method(one)
            ends.append(f"{kind.__name__}.{name}")

        monkeypatch.setattr(kind, name, noted)

    async def begun(service: Service) -> None:
        signal.raise_signal(signal.SIGTERM)

    close = Bodies.close
    monkeypatch.setattr(Bodies, "close", lambda one: ends.append("Bodies.close") or close(one))
    monkeypatch.setattr(Service, "start", begun)
    monkeypatch.setattr("brainfast.serve.run._end_threads", lambda: None)  # of the tests' process
    ending(Service, "drain")
    ending(HttpServer, "stop")
    address = HttpAddress.parse("127.0.0.1:0")
    run(Plan(lambda: (world.engine(), None), "toy", address, None, tell=lambda _: None))
    assert ends[:3] == ["Service.drain", "HttpServer.stop", "Bodies.close"]


def test_an_address_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = HttpAddress(*taken.getsockname())
        with pytest.raises(BrainfastError, match="in use; choose another one") as error:
            address.bind()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "host", "port", "local"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, True),
        ("127.9.9.9:0", "127.9.9.9", 0, True),
        ("localhost:1", "localhost", 1, True),
        ("[::1]:65535", "::1", 65535, True),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("[::]:80", "::", 80, False),
        ("lab.example:80", "lab.example", 80, False),
        ("127.0.0.1.example:80", "127.0.0.1.example", 80, False),
    ],
)
def test_addresses(text: str, host: str, port: int, local: bool) -> None:
    address = HttpAddress.parse(text)
    assert (address.host, address.port, address.local, str(address)) == (host, port, local, text)
    if local:
        check_addresses(address, None, None)
    else:
        with pytest.raises(BrainfastError, match="--token-file"):
            check_addresses(address, None, None)
    check_addresses(address, None, "a token")


@pytest.mark.parametrize(
    "text",
    ["", "8080", ":8080", "localhost", "localhost:", "a:b", "::1:80", "a:65536", "a:-1", "a:²"],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(BrainfastError, match="HOST:PORT or off"):
        HttpAddress.parse(text)


def test_a_server_of_no_address_is_refused() -> None:
    with pytest.raises(BrainfastError, match="both off"):
        check_addresses(None, None, None)
