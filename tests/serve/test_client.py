"""The client of a drawing loop: its calls never wait."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import brainfast
from brainfast.errors import BrainfastError
from brainfast.loop.options import Strategy as LoopStrategy
from brainfast.serve.client import Client
from brainfast.serve.connection import MOST
from brainfast.serve.refusal import Refusal
from brainfast.serve.requests import Strategy
from fake_service import LONG, ServerThread

ROOT = Path(__file__).parents[2]
PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
SUM = [[276, 24]]  # what the fake service answers to PIXELS


@pytest.fixture
def thread(tmp_path: Path) -> Iterator[ServerThread]:
    with ServerThread(f"ipc://{tmp_path / 'socket'}") as served:
        yield served


def test_every_call_returns_before_there_is_an_answer(thread: ServerThread) -> None:
    with Client(thread.address) as client:
        session = client.session("run", "FFA").result()
        assert (session.name, session.state.trials) == ("run", 0)
        thread.gate(False)
        asked = client.ask_next(session)
        later = session.ask_next()
        predicted = client.predict(PIXELS, subjects=["a"])
        scored = client.score(PIXELS, "FFA")
        selected = client.select("FFA", 1)
        told = client.tell(session, 0, [1.0])
        skipped = session.skip(0)
        state = session.ask_state()
        everything = [asked, later, predicted, scored, selected, told, skipped, state]
        assert not any(pending.ready() for pending in everything)
        with pytest.raises(Refusal, match="result: expected an answer within 0 s, got none yet"):
            asked.result(0)
        thread.gate(True)
        assert (asked.result().trial, later.result().trial) == (0, 1)
        assert asked.ready()
        assert asked.result(0) is asked.result(0)
        assert predicted.result()["a"].tolist() == [[277, 25]]
        assert scored.result().tolist() == [[3]]
        assert selected.result()[0][0].name == "a"
        assert (told.result(), skipped.result()) == (None, None)
        assert state.result().name == "run"
        assert client.about().result().model == "toy"
        assert session.close().result() is None


def test_arrays_may_change_after_the_call(thread: ServerThread) -> None:
    pixels, betas = PIXELS.copy(), np.ones(3)
    with Client(thread.address) as client:
        session = client.session("run", "FFA").result()
        session.ask_next().result()
        thread.gate(False)
        predicted, told = client.predict([pixels]), session.tell(0, betas)
        pixels[:], betas[:] = 0, 0
        thread.gate(True)
        assert predicted.result()[""].tolist() == SUM
        told.result()
    np.testing.assert_array_equal(thread.service.logs["run"][0][1], [1, 1, 1])


def test_closing_waits_for_what_was_told(thread: ServerThread) -> None:
    with Client(thread.address) as client:
        session = client.session("run", "FFA").result()
        session.ask_next().result()
        session.tell(0, [2.0])
    np.testing.assert_array_equal(thread.service.logs["run"][0][1], [2.0])
    with pytest.raises(BrainfastError, match="got one that was closed"):
        session.ask_next()
    client.close()


def test_closing_does_not_wait_for_ever(thread: ServerThread) -> None:
    client = Client(thread.address)
    thread.gate(False)
    predicted = client.predict(PIXELS)
    client.close(timeout_s=0.01)
    with pytest.raises(BrainfastError, match="got one that was closed"):
        predicted.result()


def test_without_a_server_no_call_waits(tmp_path: Path) -> None:
    with Client(f"ipc://{tmp_path / 'socket'}", timeout_s=0.05) as client:
        pending = client.session("run", "FFA")
        with pytest.raises(Refusal, match="got no connection; is 'brainfast serve' running"):
            pending.result()


def test_mistakes_are_told_at_the_call(thread: ServerThread) -> None:
    with pytest.raises(BrainfastError, match="address"):
        Client("nonsense")
    with Client(thread.address) as client:
        session = client.session("run", "FFA").result()
        with pytest.raises(BrainfastError, match="image: expected"):
            client.predict(np.zeros(3))
        with pytest.raises(BrainfastError, match="betas: expected"):
            session.tell(0, ["x"])


def test_a_failure_that_nobody_looks_at_is_logged(
    thread: ServerThread, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "brainfast.serve.client")
    with Client(thread.address) as client:
        session = client.session("run", "FFA").result()
        for _ in range(2):
            session.close().result()
        seen = session.ask_next()
        with pytest.raises(Refusal):
            seen.result()
        del seen
        assert not caplog.records
        session.ask_next()
        gc.collect()
    (record,) = (each for each in caplog.records if each.name == "brainfast.serve.client")
    assert record.getMessage() == "session: expected an open one, got 'run'"


def test_calls_may_come_from_any_thread(thread: ServerThread) -> None:
    with Client(thread.address) as client:
        found: dict[int, Any] = {}

        def ask(number: int) -> None:
            pixels = np.full((1, 1, 3), number, np.uint8)
            found[number] = client.predict(pixels).result()[""].tolist()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(LONG)
    assert found == {number: [[3 * number, 3]] for number in range(8)}


def test_more_than_it_can_hold_is_refused_at_once(tmp_path: Path) -> None:
    client = Client(f"ipc://{tmp_path / 'socket'}")
    waiting = [client.about() for _ in range(MOST)]
    with pytest.raises(Refusal, match=f"at most {MOST} requests") as caught:
        client.about()
    assert caught.value.code == "busy"
    client.close(timeout_s=0.01)
    for pending in waiting:
        with pytest.raises(BrainfastError, match="got one that was closed"):
            pending.result()


def test_predictions_that_wait_do_not_refuse_a_session(thread: ServerThread) -> None:
    with Client(thread.address) as client:
        session = client.session("run", "FFA").result()
        thread.gate(False)
        waiting = [client.predict(PIXELS) for _ in range(MOST)]
        with pytest.raises(Refusal, match=f"at most {MOST} requests"):
            client.predict(PIXELS)
        chosen = session.ask_next()
        thread.gate(True)
        assert chosen.result().trial == 0
        assert all(pending.result()[""].tolist() == SUM for pending in waiting)


def test_it_comes_back_to_a_server_that_was_started_anew(tmp_path: Path) -> None:
    logs: dict[str, Any] = {}
    address = f"ipc://{tmp_path / 'socket'}"
    with Client(address) as client:
        with ServerThread(address, logs):
            session = client.session("run", "FFA").result()
            assert session.ask_next().result().trial == 0
        pending = session.ask_next()
        assert not pending.ready()
        with ServerThread(address, logs):
            assert pending.result().trial == 1
    assert len(logs["run"]) == 2


LIGHT = """
import sys
import brainfast.serve.client
from brainfast.serve import AsyncClient, Client
known = set(sys.stdlib_module_names) | {"brainfast", "msgspec", "numpy", "zmq"}
known |= {"cython_runtime", "typing_extensions"}  # what these bring
others = {name.split(".")[0] for name in sys.modules} - known - set(sys.builtin_module_names)
own = {name for name in sys.modules if name.startswith("brainfast.")}
print(sorted(name for name in others if not name.startswith("_")))
print(sorted(own & {"brainfast.engine", "brainfast.loop", "brainfast.pool", "brainfast._C"}))
client = Client("ipc:///nowhere/at/all")
print(client.about().ready(), flush=True)
"""


def test_a_client_imports_neither_torch_nor_an_engine_and_ends_with_its_program() -> None:
    paths = [str(Path(brainfast.__file__).parents[1]), *sys.path]  # -S reads no editable install
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {paths!r}\n{LIGHT}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=LONG,
        check=False,
    )
    assert done.stdout.splitlines() == ["[]", "[]", "False"], done.stderr
    assert done.returncode == 0
    assert done.stderr == ""


def test_the_wire_knows_every_strategy() -> None:
    assert get_args(Strategy) == get_args(LoopStrategy)
