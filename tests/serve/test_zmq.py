"""The ZeroMQ server: many clients, of which none costs another anything."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from brainfast.errors import BrainfastError
from brainfast.serve import wire
from brainfast.serve.limits import Limits
from brainfast.serve.refusal import Refusal
from brainfast.serve.requests import OpenSession
from brainfast.serve.zmq_server import EACH
from fake_service import FakeService, in_loop
from raw_client import Raw, client, serving

PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


@pytest.mark.parametrize(
    "where", ["ipc", "tcp://127.0.0.1:0", "tcp://localhost:0", "tcp://[::1]:0"]
)
@in_loop
async def test_every_operation_is_answered(where: str, tmp_path: Path) -> None:
    place = tmp_path if where == "ipc" else where
    async with serving(place) as (server, service), client(server, IPV6=1) as raw:
        about = await raw.ask(wire.AskAbout(id=1))
        assert about.about == service.about()
        await raw.send(wire.Predict(id=2, subjects=["", "ab"]), PIXELS, PIXELS.tobytes()[:5])
        reply, arrays = await raw.receive()
        assert reply.subjects == ["", "ab"]
        np.testing.assert_array_equal(arrays[0], [[276, 24], [10, 5]])
        np.testing.assert_array_equal(arrays[1], arrays[0] + 2)
        await raw.send(wire.Score(id=3, objective=["FFA", "EBA-V1"]), PIXELS)
        assert (await raw.receive())[1][0].tolist() == [[3, 6]]
        chosen = await raw.ask(wire.Select(id=4, objective="FFA", k=2, exclude=["a"]))
        assert chosen.candidates == [[wire.Candidate(n, ord(n), 1.5, "") for n in "bc"]]
        state = await raw.ask(wire.Open(id=5, session="s", options=OpenSession(objective="FFA")))
        assert (state.state.name, state.state.trials) == ("s", 0)
        choice = (await raw.ask(wire.Next(id=6, session="s", trial=0, objective="EBA"))).choice
        assert choice.objective == "EBA"
        told = msgspec.structs.asdict(choice)
        assert told == dataclasses.asdict(await service.next("s", 0, objective="EBA"))
        assert isinstance(
            await raw.ask(wire.Tell(id=7, session="s", trial=0), np.array([1, np.nan])), wire.Done
        )
        np.testing.assert_array_equal(service.logs["s"][0][1], [1, np.nan])
        assert service.logs["s"][0][1].flags.aligned
        assert (await raw.ask(wire.AskSession(id=8, session="s"))).state.told == 1
        assert isinstance(await raw.ask(wire.Skip(id=9, session="s", trial=0)), wire.Done)
        assert isinstance(await raw.ask(wire.Close(id=10, session="s")), wire.Done)
        gone = await raw.ask(wire.Next(id=11, session="s"))
        assert (gone.code, gone.id) == ("not_found", 11)
    text = service.metrics.text().decode()
    assert 'requests_total{code="ok",operation="predict",way="zmq"} 1.0' in text
    assert 'requests_total{code="not_found",operation="next",way="zmq"} 1.0' in text


@in_loop
async def test_requests_of_one_client_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, service), client(server) as raw:
        service.gate.clear()
        await raw.send(wire.Predict(id=1), PIXELS)
        await service.begun("predict")
        assert isinstance(await raw.ask(wire.AskAbout(id=2)), wire.ToldAbout)
        service.gate.set()
        assert (await raw.receive())[0].id == 1


@in_loop
async def test_a_client_may_not_have_more_under_way_than_its_share(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as (server, service),
        client(server) as greedy,
        client(server) as other,
    ):
        service.gate.clear()
        for id in range(EACH):
            await greedy.send(wire.Predict(id=id), PIXELS)
        refused = await greedy.ask(wire.AskAbout(id=EACH))
        assert (refused.code, refused.retry_after_s) == ("busy", 0.1)
        assert f"at most {EACH} requests of this client" in refused.error
        assert isinstance(await other.ask(wire.AskAbout(id=1)), wire.ToldAbout)
        service.gate.set()
        answered = [(await greedy.receive())[0] for _ in range(EACH)]
        assert {reply.id for reply in answered} == set(range(EACH))
        assert all(isinstance(reply, wire.Predicted) for reply in answered)
        assert isinstance(await greedy.ask(wire.AskAbout(id=1)), wire.ToldAbout)


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        ({"waiting": 2, "sessions": 1, "session_waiting": 1}, "at most 3 requests at once"),
        ({"request_bytes": 1000}, "at most 4000 bytes of requests at once"),
    ],
)
@in_loop
async def test_all_clients_together_have_a_bound(
    limits: dict[str, int], line: str, tmp_path: Path
) -> None:
    service = FakeService(Limits(**limits))
    body = bytes(800 if "request_bytes" in limits else 1)
    async with serving(tmp_path, service) as (server, _):
        service.gate.clear()
        clients = [Raw(server.address) for _ in range(5)]
        try:
            for count, raw in enumerate(clients, 1):
                await raw.send(wire.Predict(id=1), body)
                if count < 4 and "waiting" in limits:
                    await service.begun("predict", count)
            done, _ = await asyncio.wait(
                [asyncio.ensure_future(raw.receive()) for raw in clients],
                return_when=asyncio.FIRST_COMPLETED,
            )
            refused = done.pop().result()[0]
            assert refused.code == "busy"
            assert line in refused.error
            service.gate.set()
        finally:
            for raw in clients:
                raw.close()


@in_loop
async def test_images_that_wait_do_not_refuse_what_is_told(tmp_path: Path) -> None:
    service = FakeService(Limits(request_bytes=1000))
    async with serving(tmp_path, service) as (server, _), client(server) as raw:
        await raw.ask(wire.Open(id=1, session="s", options=OpenSession(objective="FFA")))
        await raw.ask(wire.Next(id=2, session="s", trial=0))
        service.gate.clear()
        for id in range(3, 7):
            await raw.send(wire.Predict(id=id), bytes(850))
        await service.begun("predict", 4)
        assert (await raw.ask(wire.Predict(id=7), bytes(850))).code == "busy"
        await raw.send(wire.Tell(id=8, session="s", trial=0), np.zeros(100))
        await service.begun("tell")
        service.gate.set()
        replies = [(await raw.receive())[0] for _ in range(5)]
        assert {type(reply) for reply in replies} == {wire.Predicted, wire.Done}


@in_loop
async def test_garbage_is_refused_by_its_number_or_dropped(tmp_path: Path) -> None:
    garbage = [[b""], [b"", b""], [b"\xff" * 50], [b"GET / HTTP/1.1\r\n"], [os.urandom(9)] * 70]
    async with serving(tmp_path) as (server, service), client(server) as raw:
        for frames in garbage:
            await raw.socket.send_multipart(frames)
        refused = await raw.ask(wire.Skip(id=4, session="s", trial=0, arrays=[]), PIXELS)
        assert refused.code == "invalid"
        assert "expected no arrays" in refused.error
        assert server.dropped == {"unreadable": len(garbage)}
        counted = f'{{code="unreadable",operation="message",way="zmq"}} {len(garbage)}.0'
        assert counted in service.metrics.text().decode()
        too_many = await raw.ask(wire.Predict(id=5), *[PIXELS] * 33)
        assert too_many.code == "too_large"
        assert isinstance(await raw.ask(wire.AskAbout(id=6)), wire.ToldAbout)
        assert not service.calls


async def insist(raw: Raw) -> Any:
    """The reply on a connection that may be about to end, with what was sent on it."""
    while True:
        await raw.send(wire.AskAbout(id=3))
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                return (await raw.receive())[0]


@in_loop
async def test_a_message_that_is_too_large_ends_that_connection_alone(tmp_path: Path) -> None:
    service = FakeService(Limits(request_bytes=10_000))
    async with (
        serving(tmp_path, service) as (server, _),
        client(server) as large,
        client(server) as other,
    ):
        await large.send(wire.Predict(id=1), bytes(20_000))
        assert isinstance(await other.ask(wire.AskAbout(id=2)), wire.ToldAbout)
        assert isinstance(await insist(large), wire.ToldAbout)
        assert not service.calls


@in_loop
async def test_bytes_that_are_not_zeromq_cost_nothing() -> None:
    async with serving("tcp://127.0.0.1:0") as (server, _), client(server) as raw:
        port = int(server.address.rpartition(":")[2])
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(500), b"\xff\0\0\0\0\0\0\0\1\x7f"):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(garbage)
        assert isinstance(await raw.ask(wire.AskAbout(id=1)), wire.ToldAbout)


@pytest.mark.parametrize(("token", "got"), [(None, "none"), ("", "none"), ("sécret", "another")])
@in_loop
async def test_without_the_token_nothing_is_done(
    token: str | None, got: str, tmp_path: Path
) -> None:
    async with serving(tmp_path, token="secret") as (server, service), client(server) as raw:
        refused = await raw.ask(wire.Predict(id=1, token=token), PIXELS)
        assert refused.code == "unauthorised"
        assert refused.error.startswith(f"token: expected the server's, got {got}")
        assert not service.calls
        assert isinstance(await raw.ask(wire.Predict(id=1, token="secret"), PIXELS), wire.Predicted)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Refusal("stalled", "engine", expected="x", got="y", retry_after_s=2), "stalled", "engine"),
        (BrainfastError("objective", expected="a region", got="'nose'"), "invalid", "objective"),
        (ZeroDivisionError("a secret path"), "internal", "request: expected an answer"),
        (asyncio.CancelledError(), "draining", "server"),
        (TimeoutError(), "timed_out", "request"),
    ],
)
@in_loop
async def test_every_error_has_a_code_and_one_line(
    error: Exception, code: str, line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as (server, service), client(server) as raw:
        service.refuse = [error]
        refused = await raw.ask(wire.Predict(id=1), PIXELS)
        assert refused.code == code
        assert refused.error.startswith(line)
        assert "secret" not in refused.error
        assert refused.retry_after_s == getattr(error, "retry_after_s", None)
        assert isinstance(await raw.ask(wire.AskAbout(id=2)), wire.ToldAbout)
    assert ("ZeroDivisionError" in caplog.text) == (code == "internal")


@pytest.mark.parametrize(("asked", "limit"), [(0.01, 30.0), (1e9, 0.01), (None, 0.01)])
@in_loop
async def test_nothing_waits_longer_than_its_time(
    asked: float | None, limit: float, tmp_path: Path
) -> None:
    service = FakeService(Limits(timeout_s=limit))
    async with serving(tmp_path, service) as (server, _), client(server) as raw:
        service.gate.clear()
        refused = await raw.ask(wire.Predict(id=1, timeout_s=asked), PIXELS)
        assert refused.code == "timed_out"
        assert service.answered["predict"] == 1


@in_loop
async def test_answers_that_a_client_does_not_read_are_dropped(tmp_path: Path) -> None:
    body = bytes(1000)

    class Large(FakeService):
        async def predict(self, images: Any, **_: Any) -> Any:
            await self._pass("predict")
            return {"": np.zeros((1, 300_000), np.float32)}

    async with (
        serving(tmp_path, Large()) as (server, service),
        client(server, RCVHWM=1) as deaf,
        client(server) as other,
    ):
        count = 0
        while not server.dropped["unread"]:
            count += 1
            assert count < 200
            await deaf.send(wire.Predict(id=count), body)
            await service.ended("predict", count)
            assert isinstance(await other.ask(wire.AskAbout(id=count)), wire.ToldAbout)
        # What was kept for it comes when it reads, and it is served as before.
        assert [(await deaf.receive())[0].id for _ in range(10)] == list(range(1, 11))


@in_loop
async def test_a_client_that_left_is_not_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, service), client(server) as other:
        events = server._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        service.gate.clear()
        leaving = Raw(server.address)
        await leaving.send(wire.Predict(id=1), PIXELS)
        await service.begun("predict")
        leaving.close()
        await recv_monitor_message(events)
        server._socket.disable_monitor()
        events.close()
        service.gate.set()
        while not server.dropped:
            assert isinstance(await other.ask(wire.AskAbout(id=1)), wire.ToldAbout)
        assert server.dropped == {"gone": 1}


DYING = """
import sys, time
import numpy as np
import zmq
from brainfast.serve import wire
socket = zmq.Context().socket(zmq.DEALER)
socket.connect(sys.argv[1])
socket.send_multipart(wire.to_message(wire.Predict(id=1), [bytes(100_000)]))
sys.stdin.read()
"""


@in_loop
async def test_a_client_that_is_killed_costs_the_others_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, service), client(server) as other:
        events = server._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        service.gate.clear()
        dying = await asyncio.create_subprocess_exec(
            sys.executable, "-c", DYING, server.address, stdin=subprocess.PIPE
        )
        await service.begun("predict")
        dying.send_signal(signal.SIGKILL)
        assert await dying.wait() == -signal.SIGKILL
        await recv_monitor_message(events)
        server._socket.disable_monitor()
        events.close()
        await other.send(wire.Predict(id=7), PIXELS)
        await service.begun("predict", 2)
        service.gate.set()
        assert (await other.receive())[0].id == 7
        await service.ended("predict", 2)
        assert isinstance(await other.ask(wire.AskAbout(id=8)), wire.ToldAbout)
        assert server.dropped == {"gone": 1}
        assert not server._of_client


@in_loop
async def test_a_flood_does_not_keep_others_from_their_turn(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as (server, _),
        client(server, SNDHWM=0, RCVHWM=0) as flood,
        client(server) as other,
    ):
        message = wire.to_message(wire.Predict(id=1), [PIXELS])
        for _ in range(3000):
            await flood.socket.send_multipart(message)
        reply = await other.ask(wire.AskAbout(id=1))
        assert isinstance(reply, wire.ToldAbout)


@in_loop
async def test_stopping_answers_what_is_under_way_and_refuses_the_rest(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, service), client(server) as raw:
        service.gate.clear()
        await raw.send(wire.Predict(id=1), PIXELS)
        await service.begun("predict")
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        assert (await raw.ask(wire.AskAbout(id=2))).code == "draining"
        service.gate.set()
        reply, _ = await raw.receive()
        assert (type(reply), reply.id) == (wire.Predicted, 1)
        await stopping
        await server.stop()
    assert not (tmp_path / "socket").exists()


@in_loop
async def test_stopping_does_not_wait_for_ever(tmp_path: Path) -> None:
    service = FakeService(Limits(drain_s=0.01))
    async with serving(tmp_path, service) as (server, _), client(server) as raw:
        service.gate.clear()
        await raw.send(wire.Predict(id=1), PIXELS)
        await service.begun("predict")
        await server.stop()
        reply, _ = await raw.receive()
        assert (reply.id, reply.code) == (1, "draining")
