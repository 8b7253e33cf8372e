"""HTTP connections: how many there may be, and how long one may take to say what it wants."""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .http_guard import refuse
from .refusal import Refusal

RETRY_S = 1.0


class PatientProtocol(H11Protocol):
    """HTTP/1.1 on one connection, which is closed where a request's head takes too long.

    The head_s seconds begin with the connection, and later with a head's first byte: a connection
    that idles between two requests is uvicorn's to close.
    """

    def __init__(self, *given: Any, head_s: float, **named: Any) -> None:
        super().__init__(*given, **named)
        self._head_s = head_s
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._late = self.loop.call_later(self._head_s, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Whether part of a head is there, and the rest is not."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._settle()
        elif self._late is None and self.conn.trailing_data[0]:
            self._late = self.loop.call_later(self._head_s, self.timeout_keep_alive_handler)

    def _settle(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Bounded:
    """An application that refuses what comes over more than so many connections."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most
        self.connections: Sized = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; where it is refused its connection is closed."""
        if scope["type"] != "http" or len(self.connections) <= self._most:
            await self._app(scope, receive, send)
            return

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await refuse(closing, _full(self._most))


def _full(most: int) -> Refusal:
    return Refusal(
        "busy",
        "connections",
        expected=f"at most {most}",
        got="one more",
        remedy="try again",
        retry_after_s=RETRY_S,
    )
