"""Asking the HTTP server without a socket: as httpx does, and below HTTP."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx

import serve_world as world
from brainfast.serve.http_server import http_app
from brainfast.serve.service import Service


def client(service: Service, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(http_app(service, **options))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8080")


async def ready(**options: Any) -> Service:
    service = world.service(**options)
    await service.start()
    return service


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def assert_refused(answer: httpx.Response, status: int, code: str, text: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert text in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


class Asking:
    """A request below HTTP: its body comes, and its client leaves, when the test says so."""

    def __init__(self, path: str, app: Any, body: bytes = b"") -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.reads = True
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        self.bring(body, more=not body)
        self.task = asyncio.create_task(app(scope, self.messages.get, self._send))

    def bring(self, body: bytes, more: bool = False) -> None:
        self.messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})

    async def _send(self, message: dict[str, Any]) -> None:
        if not self.reads:
            await asyncio.Event().wait()
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])
