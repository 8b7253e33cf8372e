"""The client with an event loop: no answer is lost, and none is mixed up."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.serve import wire
from brainfast.serve.client import AsyncClient
from brainfast.serve.connection import MOST, SLOW
from brainfast.serve.refusal import Refusal
from brainfast.serve.zmq_server import ZmqServer
from fake_service import LONG, FakeService, in_loop, killed

ROOT = Path(__file__).parents[2]
PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
SUM = [[276, 24]]  # what the fake service answers to PIXELS


@asynccontextmanager
async def serving(
    where: Path, logs: dict[str, Any] | None = None, token: str | None = None
) -> AsyncIterator[FakeService]:
    service = FakeService(logs=logs)
    async with ZmqServer(service, f"ipc://{where / 'socket'}", token=token):
        try:
            yield service
        finally:
            service.gate.set()


def asking(where: Path, **options: Any) -> AsyncClient:
    return AsyncClient(f"ipc://{where / 'socket'}", **options)


@in_loop
async def test_every_method_gets_its_answer(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"abc")
    async with serving(tmp_path) as service, asking(tmp_path) as client:
        assert (await client.about()) == service.about()
        two = await client.predict([picture, PIXELS, str(picture), b"ab"], subjects=["", "s"])
        assert list(two) == ["", "s"]
        np.testing.assert_array_equal(two[""], [[294, 3], [276, 24], [294, 3], [195, 2]])
        assert two[""].dtype == np.float32
        assert two[""].flags.writeable
        scores = await client.score(PIXELS, ["FFA", "FFA - PPA"], subject="s")
        assert scores.dtype == np.float64
        assert scores.tolist() == [[3, 9]]
        best = await client.select("FFA", 2, exclude=["b"])
        assert best == [[wire.Candidate(name, ord(name), 1.5, "") for name in "ac"]]
        session = await client.session("run", "FFA", strategy="ucb", seed=3)
        assert (session.state.trials, session.state.strategy) == (0, "ucb")
        first = await session.next()
        assert (first.trial, first.image, first.score) == (0, "image-0", 0.5)
        await session.tell(first, [1, 2, 3])
        np.testing.assert_array_equal(service.logs["run"][0][1], [1.0, 2.0, 3.0])
        second = await session.next()
        await session.skip(second.trial)
        assert service.logs["run"][1] == ["image-1", "skipped"]
        assert (await session.next(1)).trial == 1
        assert (await session.next()).trial == 2
        assert (await session.ask_state()).trials == 3
        await session.close()
        await session.close()
        with pytest.raises(Refusal, match="session: expected an open one, got 'run'") as caught:
            await session.next()
        assert caught.value.code == "not_found"


@pytest.mark.parametrize(
    ("images", "line"),
    [
        ([], "images: expected at least one"),
        (PIXELS.astype(np.float32), "image: expected a path.* got float32"),
        (PIXELS[0], r"image: expected .* got uint8 \[3\]"),
        ([PIXELS[..., :1]], r"got uint8 \[2, 4, 1\]"),
        ("nowhere.png", "nowhere.png: expected an image file, got No such file"),
        ([object()], "image: expected .* got object"),
        (5, "images: expected"),
        (PIXELS[:, :0], r"got uint8 \[2, 0, 3\]"),
    ],
)
@in_loop
async def test_images_that_are_none_are_told_before_they_are_sent(
    images: Any, line: str, tmp_path: Path
) -> None:
    async with asking(tmp_path) as client:
        with pytest.raises(BrainfastError, match=line):
            await client.predict(images)


@in_loop
async def test_an_image_is_read_within_the_time_of_its_request(tmp_path: Path) -> None:
    read = threading.Event()

    class Slow:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            read.wait(LONG)
            return PIXELS

    async with serving(tmp_path) as service, asking(tmp_path) as client:
        with pytest.raises(Refusal, match=r"within 0\.01 s") as caught:
            await client.predict(Slow(), timeout_s=0.01)
        read.set()
        assert caught.value.code == "timed_out"
        assert not service.calls


@pytest.mark.parametrize("batch", [np.stack([PIXELS, PIXELS]), [PIXELS, PIXELS]])
@in_loop
async def test_a_batch_is_several_images(batch: Any, tmp_path: Path) -> None:
    async with serving(tmp_path), asking(tmp_path) as client:
        assert (await client.predict(batch))[""].tolist() == SUM * 2


@in_loop
async def test_other_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    async with serving(tmp_path), asking(tmp_path) as client:
        session = await client.session("run", "FFA")
        await session.next()
        for betas in ("abc", [[1.0]], [], [None], [1j]):
            with pytest.raises(BrainfastError, match="betas: expected numbers"):
                await session.tell(0, betas)
        for options in ({"colour": 1}, {"strategy": "best"}, {"seed": "x"}):
            with pytest.raises(BrainfastError, match=r"session: expected the options"):
                await client.session("run", "FFA", **options)
        for seconds in (0, -1, float("nan"), float("inf")):
            with pytest.raises(BrainfastError, match="timeout_s"):
                await client.about(timeout_s=seconds)
        with pytest.raises(BrainfastError, match="address"):
            AsyncClient("http://here")


@pytest.mark.parametrize(
    ("token", "code"), [(None, "unauthorised"), ("wrong", "unauthorised"), ("secret", None)]
)
@in_loop
async def test_the_token_is_sent(token: str | None, code: str | None, tmp_path: Path) -> None:
    async with serving(tmp_path, token="secret"), asking(tmp_path, token=token) as client:
        if code is None:
            assert (await client.predict(PIXELS))[""].tolist() == SUM
            return
        with pytest.raises(Refusal, match="token: expected the server's") as caught:
            await client.predict(PIXELS)
        assert caught.value.code == code


@in_loop
async def test_the_answers_of_sixteen_clients_are_not_mixed_up(tmp_path: Path) -> None:
    async def one(number: int) -> None:
        async with asking(tmp_path) as client:
            session = await client.session(f"run-{number}", "FFA")
            images = [np.full((1, each + 1, 3), number, np.uint8) for each in range(12)]
            answers = asyncio.gather(*(client.predict(image) for image in images))
            choices = asyncio.gather(*(session.next() for _ in images))
            for each, answer in enumerate(await answers):
                assert answer[""].tolist() == [[3 * number * (each + 1), 3 * (each + 1)]]
            assert [choice.trial for choice in await choices] == list(range(len(images)))
            await session.tell(3, np.full(5, number))

    async with serving(tmp_path) as service:
        await asyncio.gather(*(one(number) for number in range(16)))
        for number in range(16):
            trials = service.logs[f"run-{number}"]
            assert len(trials) == 12
            assert trials[3][1].tolist() == [number] * 5


@in_loop
async def test_a_request_waits_for_a_server_that_is_not_there_yet(tmp_path: Path) -> None:
    async with asking(tmp_path) as client:
        early = asyncio.create_task(client.predict(PIXELS))
        await asyncio.sleep(0)
        async with serving(tmp_path):
            assert (await early)[""].tolist() == SUM


@in_loop
async def test_without_a_server_it_gives_up_in_time(tmp_path: Path) -> None:
    async with asking(tmp_path, timeout_s=0.01) as client:
        with pytest.raises(Refusal, match=r"within 0.01 s, got no connection; is") as caught:
            await client.predict(PIXELS)
        assert caught.value.code == "timed_out"
        # What was given up is not asked of a server that comes later.
        async with serving(tmp_path) as service:
            await client.about(timeout_s=LONG)
            assert not service.calls


@in_loop
async def test_a_choice_that_came_too_late_is_what_the_next_call_gets(tmp_path: Path) -> None:
    async with serving(tmp_path) as service, asking(tmp_path) as client:
        session = await client.session("run", "FFA")
        service.gate.clear()
        with pytest.raises(Refusal, match=r"within 0\.01 s, got none") as caught:
            await session.next(timeout_s=0.01)
        assert caught.value.code == "timed_out"
        await service.ended("next")
        assert len(service.logs["run"]) == 1
        service.gate.set()
        assert (await session.next()).trial == 0
        assert (await session.next()).trial == 1
        assert len(service.logs["run"]) == 2


@in_loop
async def test_an_answer_to_a_request_that_was_given_up_is_passed_over(tmp_path: Path) -> None:
    async with serving(tmp_path) as service, asking(tmp_path) as client:
        service.gate.clear()
        given_up = asyncio.create_task(client.predict(PIXELS))
        await service.begun("predict")
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        service.gate.set()
        await service.ended("predict")
        assert (await client.predict(PIXELS[:1]))[""].tolist() == [[66, 12]]


@pytest.mark.parametrize("where", ["before", "after"])
@in_loop
async def test_a_server_that_restarts_between_question_and_answer(
    where: str, tmp_path: Path
) -> None:
    """before: the first server ends before it chooses; after: with the choice in its log."""
    logs: dict[str, Any] = {}
    async with asking(tmp_path) as client:
        service = FakeService(logs=logs)
        first = ZmqServer(service, f"ipc://{tmp_path / 'socket'}")
        await first.start()
        session = await client.session("run", "FFA")
        await session.tell(await session.next(), [1.0])
        service.gate.clear()
        asked = asyncio.create_task(session.next())
        told = asyncio.create_task(session.tell(0, [1.0]))
        predicted = asyncio.create_task(client.predict(PIXELS))
        for name, count in (("next", 2), ("tell", 2), ("predict", 1)):
            await service.begun(name, count)
        await killed(first)
        if where == "before":
            logs["run"].pop()
        async with serving(tmp_path, logs) as second:
            choice = await asked
            await told
            assert (choice.trial, choice.image) == (1, "image-1")
            assert (await predicted)[""].tolist() == SUM
            assert len(logs["run"]) == 2
            assert second.calls["open"] >= 1
            assert (await session.next()).trial == 2


@pytest.mark.parametrize("code", ["busy", "stalled", "starting", "draining", "timed_out"])
@in_loop
async def test_a_session_asks_again_what_is_refused_for_the_moment(
    code: Any, tmp_path: Path
) -> None:
    refusal = Refusal(code, "server", expected="room", got="none", retry_after_s=0.01)
    async with serving(tmp_path) as service, asking(tmp_path) as client:
        session = await client.session("run", "FFA")
        service.refuse = [refusal] * 2
        assert (await session.next()).trial == 0
        service.refuse = [refusal]
        await session.tell(0, [1.0])
        assert len(service.logs["run"]) == 1
        service.refuse = [refusal]
        with pytest.raises(Refusal, match="server: expected room") as caught:
            await client.predict(PIXELS)
        assert (caught.value.code, caught.value.retry_after_s) == (code, 0.01)


@in_loop
async def test_a_session_goes_on_beside_predictions_that_wait(tmp_path: Path) -> None:
    gate = asyncio.Event()

    class Stalled(FakeService):
        async def predict(self, images: Any, **_: Any) -> Any:
            self.calls["predict"] += 1
            await gate.wait()
            return {"": np.zeros((len(images), 2), np.float32)}

    service = Stalled()
    async with ZmqServer(service, f"ipc://{tmp_path / 'socket'}"), asking(tmp_path) as client:
        session = await client.session("run", "FFA")
        stalled = [asyncio.create_task(client.predict(PIXELS)) for _ in range(MOST)]
        for trial in range(3):
            assert (await session.next(timeout_s=LONG / 4)).trial == trial
            await session.tell(trial, [1.0])
        assert service.calls["predict"] == SLOW
        with pytest.raises(Refusal, match=f"at most {MOST} requests"):
            await client.select("FFA")
        gate.set()
        assert len(await asyncio.gather(*stalled)) == MOST


@in_loop
async def test_a_choice_is_asked_for_again_with_its_first_objective(tmp_path: Path) -> None:
    async with serving(tmp_path) as service, asking(tmp_path) as client:
        session = await client.session("run", ["FFA", "PPA"])
        service.gate.clear()
        late = asyncio.create_task(session.next(objective="PPA"))
        await service.begun("next")
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        service.gate.set()
        assert (await session.next(objective="FFA")).objective == "PPA"
        service.refuse = [Refusal("invalid", "objective", expected="a region", got="'F'")]
        with pytest.raises(Refusal, match="a region"):
            await session.next(objective="F")
        second = await session.next(objective="FFA")  # what was refused for good was not chosen
        assert (second.trial, second.objective) == (1, "FFA")
        assert (await session.next(0, objective="EBA")).objective == "EBA"  # a number is as it says


@in_loop
async def test_what_waits_has_a_bound(tmp_path: Path) -> None:
    async with asking(tmp_path) as client:
        waiting = [asyncio.create_task(client.about()) for _ in range(MOST)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match=f"at most {MOST} requests"):
            await client.about()
        client.close()
        for ended in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(ended, BrainfastError)
        with pytest.raises(BrainfastError, match="got one that was closed"):
            await client.about()


@in_loop
async def test_a_stranger_at_the_address_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        async with AsyncClient(f"tcp://127.0.0.1:{port}", timeout_s=0.2) as client:
            with pytest.raises(Refusal, match="got no connection"):
                await client.about()


@pytest.mark.parametrize("address", ["tcp://*:5555", "tcp://a b:1"])
@in_loop
async def test_an_address_that_cannot_be_connected_to_is_told(address: str) -> None:
    for _ in range(2):
        with pytest.raises(BrainfastError, match=r"^[^\n]*: expected an address to c|ipc://"):
            await AsyncClient(address).about()


def test_a_client_belongs_to_the_loop_that_it_was_used_in(tmp_path: Path) -> None:
    client = asking(tmp_path, timeout_s=0.01)
    for line in ("got no connection", "client: expected the event loop that it was first used in"):
        with pytest.raises(BrainfastError, match=line):
            asyncio.run(client.about())
    client.close()


FORGOTTEN = """
import asyncio, gc, sys
from brainfast.serve.client import AsyncClient
from fake_service import ServerThread

async def ask(address):
    await AsyncClient(address).about()

for _ in range(3):
    with ServerThread(sys.argv[1]) as thread:
        asyncio.run(ask(thread.address))
    gc.collect()
"""


def test_a_client_that_nobody_closed_keeps_nobody_from_ending(tmp_path: Path) -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}\n{FORGOTTEN}"
    command = [sys.executable, "-c", code, f"ipc://{tmp_path / 'socket'}"]
    subprocess.run(command, cwd=ROOT, timeout=LONG, check=True)
