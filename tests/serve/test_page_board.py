from __future__ import annotations

import asyncio
import contextlib
import json

import msgspec
import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.serve import board as board_module
from brainfast.serve.board import Board
from brainfast.serve.events import SkipEvent, TellEvent
from brainfast.serve.latencies import EDGES_MS, Latencies
from page_world import WALL_S, TellingService
from serve_world import on_loop


class Reader:
    """Reads a stream as a browser does: (kind, data) of every message, and the last id."""

    def __init__(self, board, last=""):
        self.stream, self.last = board.stream(last), last

    async def __call__(self, *kinds):
        """The next message of one of some kinds, and what came before it was of no other."""
        while True:
            text = (await asyncio.wait_for(anext(self.stream), 10)).decode()
            assert text.endswith("\n\n")
            lines = dict(line.split(": ", 1) for line in text.strip().split("\n"))
            self.last = lines.get("id", self.last)
            if lines.get("event") in kinds:
                return lines["event"], json.loads(lines["data"])

    async def rest(self):
        """Everything until the stream ends."""
        return [text async for text in self.stream]


@contextlib.asynccontextmanager
async def watched(service=None):
    service = service or TellingService()
    board = Board(service)
    board.start()
    yield service, board
    await board.stop()


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


@on_loop
async def test_a_new_page_gets_all_and_then_what_happens():
    async with watched() as (service, board):
        service.open_session("run-1", deadline_ms=25.0)
        service.choose("run-1", 0, "a", score=None, uncertainty=None, source="fallback", late=True)
        await settled()
        read = Reader(board)
        _, all_of_it = await read("snapshot")
        (session,) = all_of_it["sessions"]
        assert (session["name"], session["deadline_ms"], session["open"]) == ("run-1", 25.0, True)
        (trial,) = session["trials"]
        assert (trial["image"], trial["source"], trial["late"]) == ("a", "fallback", True)
        assert (trial["score"], trial["status"]) == (None, "outstanding")
        assert all_of_it["latency"]["sessions"]["run-1"]["late"] == 1
        service.choose("run-1", 1, "b", score=0.5)
        service.events.publish(TellEvent("run-1", 0, "a", 0.75, WALL_S))
        service.events.publish(SkipEvent("run-1", 1, "b", WALL_S))
        service.close_session("run-1")
        told = [(await read("choice"))[1]["trial"] for _ in range(3)]
        assert [(t["trial"], t["status"], t["measured"]) for t in told] == [
            (1, "outstanding", None),
            (0, "told", 0.75),
            (1, "skipped", None),
        ]
        _, session = await read("session")
        assert session["open"] is False


@on_loop
async def test_a_page_that_comes_back_gets_what_it_missed():
    async with watched() as (service, board):
        service.open_session("run-1")
        await settled()
        read = Reader(board)
        await read("snapshot")
        service.choose("run-1", 0, "a")
        await read("choice")
        await read.stream.aclose()
        for trial in (1, 2):
            service.choose("run-1", trial, "b")
        await settled()
        again = Reader(board, read.last)
        kinds = [await again("snapshot", "choice") for _ in range(2)]
        assert [(kind, data["trial"]["trial"]) for kind, data in kinds] == [
            ("choice", 1),
            ("choice", 2),
        ]


@pytest.mark.parametrize("last", ["0123456789ab.1", "nonsense", ".", "x.99999999999999999999", "-"])
@on_loop
async def test_a_number_that_means_nothing_here_gets_a_snapshot(last):
    async with watched() as (service, board):
        service.open_session("run-1")
        await settled()
        kind, _ = await Reader(board, last)("snapshot", "session")
        assert kind == "snapshot"


@on_loop
async def test_a_page_too_far_behind_gets_a_snapshot(monkeypatch):
    monkeypatch.setattr(board_module, "MESSAGES_KEPT", 4)
    async with watched() as (service, board):
        service.open_session("run-1")
        await settled()
        read = Reader(board)
        await read("snapshot")
        for trial in range(20):
            service.choose("run-1", trial, "a")
        await settled()
        kind, data = await read("snapshot", "choice")
        assert kind == "snapshot"
        assert len(data["sessions"][0]["trials"]) == 20


@on_loop
async def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(board_module, "TRIALS_KEPT", 5)
    monkeypatch.setattr(board_module, "SESSIONS_KEPT", 3)
    monkeypatch.setattr(board_module, "PAGES", 2)
    async with watched() as (service, board):
        for number in range(5):
            for trial in range(9):
                service.choose(f"run-{number}", trial, "a")
            await settled()
        sessions = board.snapshot()["sessions"]
        assert [session["name"] for session in sessions] == ["run-2", "run-3", "run-4"]
        assert [trial.trial for trial in sessions[0]["trials"]] == [4, 5, 6, 7, 8]
        readers = [Reader(board), Reader(board)]
        for read in readers:
            await read("snapshot")
        with pytest.raises(BrainfastError, match="close a page"):
            Reader(board)
        await readers[0].stream.aclose()
        await Reader(board)("snapshot")


@on_loop
async def test_a_server_that_ends_lets_its_pages_go():
    async with watched() as (service, board):
        read = Reader(board)
        await read("snapshot")
        service.become("draining")
        kind, data = await read("state")
        assert (kind, data["state"]) == ("state", "draining")
        service.become("closed")
        await asyncio.wait_for(read.rest(), 5)


@on_loop
async def test_a_page_that_opens_late_sees_what_was_before():
    service = TellingService()
    service.open_session("run-1")
    for trial in range(3):
        service.choose("run-1", trial, "a")
    async with watched(service) as (_, board):
        await settled()
        snapshot = board.snapshot()
        assert len(snapshot["sessions"][0]["trials"]) == 3
        assert snapshot["latency"]["sessions"]["run-1"]["count"] == 3


@on_loop
async def test_a_session_that_hangs_holds_nobody_up():
    class Hanging(TellingService):
        async def session(self, name):
            await asyncio.Event().wait()

    async with watched(Hanging()) as (service, board):
        service.open_session("run-1")
        service.choose("run-1", 0, "a")
        await settled()
        assert board.snapshot()["sessions"][0]["trials"][0].image == "a"


@on_loop
async def test_many_predictions_are_told_together(monkeypatch):
    monkeypatch.setattr(board_module, "LATENCY_S", 0.01)
    async with watched() as (service, board):
        read = Reader(board)
        await read("snapshot")
        for _ in range(200):
            service.predict(40.0)
        _, latency = await read("latency")
        assert latency["predict"]["count"] == 200


def test_latencies_are_counted_and_ranked():
    random = np.random.default_rng(0)
    seen = 10 ** random.uniform(-2, 5, 12_000)
    latencies = Latencies()
    for number, ms in enumerate(seen):
        latencies.add(ms, number % 4 == 0)
    summary = latencies.summary()
    expected, _ = np.histogram(np.clip(seen, 0.1, 9999.0), EDGES_MS)
    assert summary["counts"] == expected.tolist()
    assert (summary["count"], summary["late"]) == (12_000, 3000)
    latest = np.sort(seen[-10_000:])
    assert summary["p50"] == latest[5000]
    assert summary["p99"] in latest
    assert np.mean(latest <= summary["p99"]) == pytest.approx(0.99, abs=0.001)


@pytest.mark.parametrize(
    ("count", "p50", "p99"), [(0, None, None), (1, 0, None), (99, 49, None), (100, 50, 99)]
)
def test_a_quantile_needs_latencies_that_tell_it(count, p50, p99):
    latencies = Latencies()
    for number in range(count):
        latencies.add(float(number))
    summary = latencies.summary()
    assert (summary["count"], summary["late"], sum(summary["counts"])) == (count, 0, count)
    assert (summary["p50"], summary["p99"]) == (p50, p99)


@on_loop
async def test_latencies_are_ranked_once_for_all_pages(monkeypatch):
    monkeypatch.setattr(board_module, "LATENCY_S", 0.01)
    ranked = []
    summary = Latencies.summary
    monkeypatch.setattr(Latencies, "summary", lambda one: ranked.append(one) or summary(one))
    async with watched() as (service, board):
        readers = [Reader(board) for _ in range(3)]
        for read in readers:
            await read("snapshot")
        assert len(ranked) == 1
        service.predict(40.0)
        for read in readers:
            _, latency = await read("latency")
            assert latency["predict"]["count"] == 1
        assert len(ranked) == 2
        monkeypatch.setattr(board_module, "LATENCY_S", 3600.0)
        service.predict(40.0)
        await settled()
        await Reader(board)("snapshot")
        assert len(ranked) == 2


@on_loop
async def test_a_name_that_is_used_again_begins_anew():
    async with watched() as (service, board):
        for trial in range(4):
            service.choose("run-1", trial, "old")
        service.choose("run-1", 0, "new")
        await settled()
        assert [trial.image for trial in board.snapshot()["sessions"][0]["trials"]] == ["new"]
        service.choose("run-1", 1, "new")
        await settled()
        assert [trial.trial for trial in board.snapshot()["sessions"][0]["trials"]] == [0, 1]


@on_loop
async def test_a_ranking_that_fails_is_told_and_so_is_its_end():
    class Failing(TellingService):
        problem = None

        async def session(self, name):
            return msgspec.structs.replace(await super().session(name), problem=self.problem)

    async with watched(Failing()) as (service, board):

        async def shown(trial, source, problem):
            service.problem = problem
            service.choose("run-1", trial, "a", source=source)
            await settled()
            return board.snapshot()["sessions"][0]["problem"]

        service.open_session("run-1")
        assert await shown(0, "fallback", None) is None
        assert await shown(1, "fallback", "singular") == "singular"
        assert await shown(2, "stale", "no memory") == "no memory"
        assert await shown(3, "fresh", None) is None
