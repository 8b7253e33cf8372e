"""The client of a drawing loop: its calls never wait."""

from __future__ import annotations

import gc
import io
import logging
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

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


def closed_picture() -> Image.Image:
    """One whose file was closed before it was decoded."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    picture = Image.open(file)
    picture.close()
    return picture


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


class ByArray:
    """Pixels that are made when numpy asks for them, as a tensor's are."""

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self._note()
        return PIXELS


class ByInterface:
    """Pixels that are made when their interface is looked at, as a picture's of PIL are."""

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    @property
    def __array_interface__(self) -> Any:
        self._note()
        return PIXELS.__array_interface__


class ByPath:
    """A file that tells when its path is asked for."""

    def __init__(self, note: Callable[[], None], path: Path) -> None:
        self._note, self._path = note, path

    def __fspath__(self) -> str:
        self._note()
        return str(self._path)


@pytest.mark.parametrize("call", ["predict", "score"])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", ["array", "interface", "path", "pil"])
def test_images_are_read_and_decoded_on_a_thread_of_their_own(
    kind: str,
    many: bool,
    call: str,
    thread: ServerThread,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[str] = []

    def note() -> None:
        threads.append(threading.current_thread().name)

    path = tmp_path / "picture.png"
    Image.fromarray(PIXELS).save(path)
    with Image.open(path) as picture, Client(thread.address) as client:
        load = type(picture).load
        monkeypatch.setattr(type(picture), "load", lambda self: note() or load(self))
        image = {
            "array": ByArray(note),
            "interface": ByInterface(note),
            "path": ByPath(note, path),
            "pil": picture,
        }[kind]
        given = [image, image] if many else image
        asked = client.predict(given) if call == "predict" else client.score(given, "FFA")
        found = asked.result()
    file = np.frombuffer(path.read_bytes(), np.uint8)
    one = [file.sum(), file.size] if kind == "path" else SUM[0]
    expected = {"predict": one, "score": [3]}[call]
    rows = found[""] if call == "predict" else found
    assert rows.tolist() == [expected] * (1 + many)
    assert kind == "pil" or len(threads) == len(rows)  # each once
    assert threads
    assert not set(threads) & {threading.current_thread().name, "brainfast-client"}


@pytest.mark.parametrize(
    "betas", [np.ones(3), [1.0, 1.0, 1.0], array("d", [1, 1, 1]), torch.ones(3)], ids=type
)
def test_betas_and_names_may_change_after_the_call(betas: Any, thread: ServerThread) -> None:
    held, names = threading.Event(), ["a"]

    async def hold() -> None:
        held.wait(LONG)

    with Client(thread.address) as client:
        session = client.session("run", "FFA").result()
        session.ask_next().result()
        client.submit(hold())  # until then, what is asked is only noted
        told = session.tell(0, betas)
        selected = client.select("FFA", 1, exclude=names)
        betas[0], names[0] = 0, "c"
        held.set()
        told.result()
        assert selected.result()[0][0].name == "b"
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


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda client, _: client.predict(np.zeros(3)), "image: expected"),
        (
            lambda client, _: client.predict([closed_picture()]),
            "image: expected.* got PngImageFile: ",
        ),
        (lambda client, _: client.predict(PIXELS, subjects="a"), "subjects: expected a list"),
        (lambda client, _: client.score(PIXELS, np.ones(3)), "score: expected .* got ndarray"),
        (lambda client, _: client.select(np.ones(3)), "select: expected .* got ndarray"),
        (lambda client, _: client.select("FFA", exclude=5), "exclude: expected a list"),
        (lambda client, _: client.session("b", np.ones(3)), "session: expected .*ndarray"),
        (lambda client, _: client.about(timeout_s=0), "timeout_s: expected"),
        (lambda _, session: session.tell(0, ["x"]), "betas: expected numbers"),
        (lambda _, session: session.tell("a", [1.0]), "trial: expected a choice, or its number"),
        (lambda _, session: session.skip(None), "trial: expected a choice, or its number"),
        (lambda _, session: session.ask_next(objective=5), "objective: expected a text"),
    ],
)
def test_mistakes_are_told_with_the_result(ask: Any, line: str, thread: ServerThread) -> None:
    with Client(thread.address) as client:
        session = client.session("run", "FFA").result()
        with pytest.raises(BrainfastError, match=f"^{line}"):
            ask(client, session).result()
    assert thread.service.calls == {"open": 1}


def test_an_address_that_is_none_is_told_at_once() -> None:
    with pytest.raises(BrainfastError, match="address"):
        Client("nonsense")


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
