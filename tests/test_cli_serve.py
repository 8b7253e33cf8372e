"""`brainfast serve` on a small saved model: a real process, and arguments that are wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from brainfast import cli_serve
from brainfast.pool import Pool
from command_line import Place, assert_one_line, brainfast

PATIENCE_S = 120.0


class Served(NamedTuple):
    process: subprocess.Popen[str]
    about: dict[str, Any]
    http: httpx.Client
    logs: Path
    images: Path


@pytest.fixture(scope="module")
def served(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The model with a pool, ready."""
    root = tmp_path_factory.mktemp("serve")
    images = place.subject / "test_split/test_images"
    built = brainfast("pool", "build", place.model, images, "--out", root / "pool", "--quiet")
    assert built.code == 0, built.err
    options = {
        "pool": root / "pool",
        "logs": root / "logs",
        "images": images,
        "threads": 1,
        "http": "127.0.0.1:0",
        "zmq": f"ipc://{root}/zmq",
    }
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    process = subprocess.Popen(
        [sys.executable, "-m", "brainfast", "serve", str(place.model), *given, "--json"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        about = json.loads(line)
        with httpx.Client(base_url=about["http"], timeout=PATIENCE_S) as http:
            end = time.monotonic() + PATIENCE_S
            while http.get("/readyz").status_code != 200:
                assert time.monotonic() < end, "it was never ready"
                time.sleep(0.05)
            yield Served(process, about, http, root / "logs", images)
    finally:
        process.kill()
        process.communicate()


def test_it_prints_where_it_is(served: Served, place: Place) -> None:
    assert served.about["model"] == place.model.name
    assert served.about["pid"] == served.process.pid
    assert served.about["zmq"].startswith("ipc://")
    model = served.http.get(f"/v2/models/{place.model.name}").json()
    assert model["outputs"][0]["shape"] == [-1, 300]
    assert served.http.get("/").headers["content-type"].startswith("text/html")


def test_it_answers_as_predict_does(served: Served, place: Place) -> None:
    printed = json.loads(brainfast("predict", place.model, place.image, "--json").out)
    answer = served.http.post("/v1/predict?rois=1", content=place.image.read_bytes())
    for name, mean in printed[str(place.image)].items():
        assert answer.json()["rois"][name][0] == pytest.approx(mean, abs=1e-4)


def test_an_experiment_and_its_end(served: Served) -> None:
    """The last: it ends the server, with a session open."""
    place = "/v1/sessions/run-1"
    opened = served.http.put(place, json={"objective": "FFA - PPA", "deadline_ms": 60_000.0})
    assert opened.status_code == 200, opened.text
    images = set()
    for trial in range(3):
        choice = served.http.post(f"{place}/next", json={"trial": trial}).json()
        images.add(choice["image"])
        measured = {"trial": trial, "betas": [0.1 * trial] * 300}
        assert served.http.post(f"{place}/tell", json=measured).json() == {"told": trial}
    assert images <= {path.name for path in served.images.iterdir()}
    assert len(images) == 3
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(PATIENCE_S) == 0
    log = served.logs / "run-1.jsonl"
    replayed = brainfast("replay", log, "--json")
    assert replayed.code == 0, replayed.err
    found = json.loads(replayed.out)
    assert (found["choices"], found["told"], found["difference"]) == (3, 3, None)


def test_an_address_that_is_taken(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = brainfast("serve", place.model, "--http", address, "--zmq", "off")
    assert_one_line(done, f"--http {address}: expected an address of this machine that is free")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--http", "8080"], "HOST:PORT or off"),
        (["--http", "off", "--zmq", "off"], "both off"),
        (["--http", "0.0.0.0:0"], "--token-file"),
        (["--zmq", "tcp://0.0.0.0:5555"], "token"),
        (["--zmq", "inproc://x"], "ipc:///"),
        (["--token-file", "nothing-there"], "a file with a token"),
        (["--subject", "subj05"], "a model of several subjects"),
        (["--vertices", "XYZ"], "XYZ"),
        (["--vertices", ""], "expected names between commas, got ''"),
        (["--vertices", "FFA,"], "expected names between commas, got 'FFA,'"),
        (["--pool", "nothing-there"], "nothing-there"),
        (["--images", "nothing-there"], "--images: expected a folder"),
        (["--timeout-s", "0"], "timeout_s"),
        (["--drain-s", "nan"], "drain_s"),
        (["--max-images", "0"], "--max-images"),
        (["--threads", "0"], "--threads"),
        (["--runtime", "tpu"], "--runtime"),
    ],
)
def test_arguments_are_checked_before_anything_is_loaded(
    place: Place, arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_serve.Source, "load", lambda _: pytest.fail("it was loaded"))
    assert_one_line(brainfast("serve", place.model, *arguments), text)


def test_a_pool_of_which_nothing_is_left(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = place.subject / "test_split/test_images"
    built = brainfast("pool", "build", place.model, images, "--out", tmp_path / "pool", "--quiet")
    assert built.code == 0, built.err
    pool = Pool.open(tmp_path / "pool")
    pool.remove(pool.names)
    monkeypatch.setattr(cli_serve.Source, "load", lambda _: pytest.fail("it was loaded"))
    done = brainfast("serve", place.model, "--pool", tmp_path / "pool")
    assert_one_line(done, "expected candidates to choose from, got none")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    assert_one_line(brainfast("serve", tmp_path), "config.json")


@pytest.mark.parametrize("token", ["", "short", "sixteen or more, with spaces", "é" * 20])
def test_tokens_that_are_none(place: Place, tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    done = brainfast("serve", place.model, "--token-file", tmp_path / "token")
    assert_one_line(done, "at least 16 printable characters")
    assert token == "" or token not in done.err


def test_without_the_extra_it_says_what_to_install(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        cli_serve, "find_spec", lambda name: None if name == "msgspec" else find(name)
    )
    done = brainfast("serve", place.model)
    assert_one_line(done, "msgspec; pip install 'brainfast[serve]'")
