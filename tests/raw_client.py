"""A client of the ZeroMQ server that sends and receives frames as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from brainfast.serve import wire
from brainfast.serve.zmq_server import ZmqServer
from fake_service import FakeService


class Raw:
    """A client that sends and receives frames as it is told."""

    def __init__(self, address: str, **options: int) -> None:
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.DEALER)
        for name, value in options.items():
            self.socket.set(getattr(zmq, name), value)
        self.socket.connect(address)

    async def send(self, request: wire.Request, *arrays: Any) -> None:
        await self.socket.send_multipart(wire.to_message(request, arrays))

    async def receive(self) -> tuple[Any, list[Any]]:
        return wire.read_reply(await self.socket.recv_multipart())

    async def ask(self, request: wire.Request, *arrays: Any) -> Any:
        """The reply, of the same number."""
        await self.send(request, *arrays)
        reply, _ = await self.receive()
        assert reply.id == request.id
        assert reply.ok == (not isinstance(reply, wire.Refused))
        return reply

    def close(self) -> None:
        self.context.destroy(linger=0)


@asynccontextmanager
async def serving(
    where: Path | str, service: Any = None, token: str | None = None
) -> AsyncIterator[tuple[ZmqServer, Any]]:
    address = where if isinstance(where, str) else f"ipc://{where / 'socket'}"
    service = service or FakeService()
    async with ZmqServer(service, address, token=token) as server:
        try:
            yield server, service
        finally:
            service.gate.set()


@asynccontextmanager
async def client(server: ZmqServer, **options: int) -> AsyncIterator[Raw]:
    raw = Raw(server.address, **options)
    try:
        yield raw
    finally:
        raw.close()
