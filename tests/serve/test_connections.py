"""Connections that do not say what they want, and more of them than may be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from starlette.types import Receive, Scope, Send

from brainfast.serve.gate import Gate
from brainfast.serve.listening import HttpAddress, HttpServer
from serve_world import on_loop

WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEAD_S = 0.2

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Served:
    """A server on a port of its own."""

    def __init__(self, port: int, stack: AsyncExitStack) -> None:
        self._port, self._stack = port, stack

    async def connect(self, data: bytes = b"") -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._stack.callback(writer.close)
        writer.write(data)
        return reader, writer


@asynccontextmanager
async def served(app: object = None, **options: float) -> AsyncIterator[Served]:
    listener = HttpAddress("127.0.0.1", 0).bind()
    server = HttpServer(app or Gate(), listener, **options)
    server.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        yield Served(listener.getsockname()[1], stack)


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, body


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\nHo", WHOLE + b"GET /he"])
@on_loop
async def test_a_head_that_does_not_come_is_not_waited_for(begun: bytes) -> None:
    async with served(head_s=HEAD_S) as server:
        reader, _ = await server.connect(begun)
        if begun.startswith(WHOLE):
            assert (await answer(reader))[0] == 200
        assert await reader.read() == b""  # closed, without an answer


@on_loop
async def test_a_head_that_comes_byte_by_byte_has_no_longer() -> None:
    async with served(head_s=HEAD_S) as server:
        reader, writer = await server.connect()
        ending = asyncio.create_task(reader.read())
        for byte in WHOLE[:-1] * 100:
            if ending.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(HEAD_S / 20)
        assert ending.done()
        assert ending.result() == b""


@on_loop
async def test_a_connection_that_has_asked_may_idle_and_ask_again() -> None:
    async with served(head_s=HEAD_S) as server:
        reader, writer = await server.connect()
        for _ in range(3):
            writer.write(WHOLE[:10])
            await asyncio.sleep(HEAD_S / 4)
            writer.write(WHOLE[10:])
            assert (await answer(reader))[0] == 200
            await asyncio.sleep(2 * HEAD_S)


@on_loop
async def test_an_answer_may_take_longer_than_a_head() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(2 * HEAD_S)
        await Gate()(scope, receive, send)

    async with served(slow, head_s=HEAD_S) as server:
        reader, _ = await server.connect(WHOLE)
        assert (await answer(reader))[0] == 200


@on_loop
async def test_what_comes_over_too_many_connections_is_refused_as_documented() -> None:
    async with served(head_s=60.0, connections=2) as server:
        held = [await server.connect(WHOLE[:10]) for _ in range(2)]
        reader, _ = await server.connect(WHOLE)
        status, headers, body = await answer(reader)
        assert (status, json.loads(body)["code"], headers["retry-after"]) == (429, "busy", "1")
        assert "connections: expected at most 2" in json.loads(body)["error"]
        assert await reader.read() == b""  # it takes no room
        held[0][1].close()
        await held[0][1].wait_closed()
        while True:  # until the server has seen it
            reader, _ = await server.connect(WHOLE)
            if (await answer(reader))[0] == 200:
                return
