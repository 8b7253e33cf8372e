"""Addresses: what a server may have, and whom it lets in."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from brainfast.errors import BrainfastError
from brainfast.serve import wire
from brainfast.serve.address import Address, check_address
from brainfast.serve.zmq_server import ZmqServer
from fake_service import FakeService, in_loop
from raw_client import client, serving


@in_loop
async def test_a_socket_file_is_for_this_user_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        mode = (tmp_path / "socket").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert server.address == f"ipc://{tmp_path / 'socket'}"
    assert not (tmp_path / "socket").exists()


@in_loop
async def test_files_made_afterwards_are_as_before(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        async with serving(tmp_path):
            (tmp_path / "log").touch()
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o644


@in_loop
async def test_the_socket_of_a_later_server_is_left_to_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as (first, _):
        (tmp_path / "socket").rename(tmp_path / "away")
        async with serving(tmp_path) as (second, _), client(second) as raw:
            await first.stop()
            assert isinstance(await raw.ask(wire.AskAbout(id=1)), wire.ToldAbout)


@in_loop
async def test_a_socket_that_a_dead_server_left_is_replaced(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "socket"))
    left.close()
    async with serving(tmp_path) as (server, _), client(server) as raw:
        assert isinstance(await raw.ask(wire.AskAbout(id=1)), wire.ToldAbout)


@in_loop
async def test_a_living_server_keeps_its_address(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _), client(server) as raw:
        with pytest.raises(BrainfastError, match="got one that another server answers at"):
            await ZmqServer(FakeService(), server.address).start()
        assert isinstance(await raw.ask(wire.AskAbout(id=1)), wire.ToldAbout)
    async with serving("tcp://127.0.0.1:0") as (server, _), client(server) as raw:
        with pytest.raises(BrainfastError, match=r"that is free, got Address already in use; cho"):
            await ZmqServer(FakeService(), server.address).start()
        assert isinstance(await raw.ask(wire.AskAbout(id=1)), wire.ToldAbout)


@pytest.mark.parametrize("kind", ["file", "folder", "nowhere"])
@in_loop
async def test_other_files_are_left_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path = tmp_path / "missing" / "socket"
    with pytest.raises(BrainfastError) as caught:
        await ZmqServer(FakeService(), f"ipc://{path}").start()
    assert "\n" not in str(caught.value)
    assert kind != "file" or path.read_text() == "precious"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ipc://",
        "ipc://*",
        "ipc://@abstract",
        "ipc:///" + "a" * 200,
        "inproc://here",
        "http://127.0.0.1:80",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:",
        "tcp://127.0.0.1:http",
        "tcp://127.0.0.1:-1",
        "tcp://127.0.0.1:65536",
        "tcp://:5555",
        "tcp://127.0.0.1:5555/path",
        "tcp://127.0.0.1;10.0.0.1:5555",
    ],
)
def test_an_address_that_is_none_is_told_in_one_line(address: str) -> None:
    with pytest.raises(BrainfastError, match=r"^address: expected [^\n]*$"):
        check_address(address, "token")


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("ipc:///tmp/brainfast.sock", True),
        ("tcp://127.0.0.1:5555", True),
        ("tcp://127.9.9.9:0", True),
        ("tcp://localhost:5555", True),
        ("tcp://[::1]:5555", True),
        ("tcp://*:5555", False),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://[::]:5555", False),
        ("tcp://10.0.0.1:5555", False),
        ("tcp://eth0:5555", False),
        ("tcp://localhost.example.org:5555", False),
    ],
)
def test_beyond_this_machine_a_token_is_needed(address: str, local: bool) -> None:
    parsed = check_address(address, "token")
    assert Address.parse(parsed.url) == parsed
    if local:
        assert check_address(address) == check_address(address, "") == parsed
        return
    for none in (None, ""):
        with pytest.raises(BrainfastError, match=r"got .*; give a token, or "):
            check_address(address, none)
    with pytest.raises(BrainfastError, match="give a token"):
        ZmqServer(FakeService(), address)
