"""Where the HTTP server listens, and uvicorn as a part of another program's loop."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from ..errors import BrainfastError
from .connections import Bounded, PatientProtocol

KEEP_ALIVE_S = 900  # between two trials; a client that asks again must not meet a closed connection
CONNECTIONS = 500
HEAD_S = 10.0  # for a request's head to come
END_S = 5  # for the last answers to leave, when all of them are there
BACKLOG = 128
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class HttpAddress:
    """A host and a port; port 0 takes a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> HttpAddress:
        """Read HOST:PORT, such as 127.0.0.1:8080, localhost:0 or [::1]:8080."""
        host, _, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        whole = port.isascii() and port.isdecimal() and int(port) < 1 << 16
        if not host or not whole or ((":" in host) != bracketed) or "/" in host:
            raise BrainfastError("--http", expected="HOST:PORT or off", got=repr(text))
        return cls(host, int(port))

    @property
    def local(self) -> bool:
        """Whether programs of this machine alone can reach it; of other names nothing is known."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def hosts(self, token: str | None) -> frozenset[str] | None:
        """What a Host header may name: nobody but who knows the token gets in elsewhere."""
        return None if token else LOOPBACK | {self.host.lower()}

    def bind(self) -> socket.socket:
        """A socket that listens here; an address that cannot be had is a BrainfastError."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            listener = socket.create_server((self.host, self.port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise BrainfastError(
                f"--http {self}",
                expected="an address of this machine that is free",
                got=(error.strerror or str(error)).partition(" (")[0],
                remedy="choose another one, or end the program that has it",
            ) from error
        # Connections inherit it. asyncio sets it only where the socket names its protocol, and an
        # answer whose body leaves after its head would wait 40 ms for the head's acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class HttpServer:
    """uvicorn on a socket that listens already, begun and ended by its owner.

    head_s: in which the head of a request must have come; connections: at once
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        head_s: float = HEAD_S,
        connections: int = CONNECTIONS,
    ) -> None:
        self._listener = listener
        bounded = Bounded(app, connections)
        host, port = listener.getsockname()[:2]
        self.url = f"http://{HttpAddress(host, port)}"
        config = uvicorn.Config(
            bounded,
            http=cast(Any, partial(PatientProtocol, head_s=head_s)),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=END_S,
        )
        self._server = _Uvicorn(config)
        bounded.connections = self._server.server_state.connections
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin to answer; the task ends with the server."""
        work = self._server.serve(sockets=[self._listener])
        self._task = asyncio.create_task(work, name="brainfast-http")
        return self._task

    async def stop(self) -> None:
        """Send what was answered, close every connection and the socket; again it does nothing."""
        self._server.should_exit = True
        if self._task is not None:
            with suppress(asyncio.CancelledError):
                await self._task
        self._listener.close()


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:  # they are the owner's
        yield
