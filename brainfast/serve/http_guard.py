"""Who may ask, and what every answer carries: the outermost layer of the HTTP server."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
import time
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .refusal import Refusal, refusal_of

COOKIE = "brainfast"
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
IN_FLIGHT = 256  # requests that are read, computed or answered at once
CHUNK = 1 << 18  # bytes of an answer that are handed on at once
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_log = logging.getLogger("brainfast.serve")


class Guard:
    """Checks host, origin and token, bounds what is in flight, and answers every error.

    token: asked of every path but the health checks, as "Authorization: Bearer ..." or as the
    cookie that a page gets for "?token=..."
    hosts: names that a Host header may have; None takes any. A server on loopback without a token
    must name them: a web site whose name is made to point here is then refused
    send_s: how long a client may leave its answer unread
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        token: str | None = None,
        hosts: Collection[str] | None = None,
        send_s: float = 30.0,
    ) -> None:
        self._app, self._metrics, self._send_s = app, metrics, send_s
        self._token = None if token is None else token.encode()
        self._cookie = None if token is None else cookie_of(token)
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, whatever becomes of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, code = time.perf_counter(), "internal"
        self._in_flight += 1
        try:
            code = await self._answer(scope, receive, _Answer(send, self._send_s))
        except ClientDisconnect:
            code = "gone"
        except asyncio.CancelledError:
            code = "draining"
            raise
        finally:
            self._in_flight -= 1
            operation = getattr(scope.get("route"), "name", "other")
            self._metrics.count("http", operation, code, time.perf_counter() - start)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> str:
        """Answer a request, with a refusal where it fails; "ok" or the refusal's code."""
        try:
            await self._pass(scope, receive, answer)
        except ClientDisconnect:
            raise
        except Exception as error:
            refusal = refusal_of(error)
            if answer.status:  # too late to say so: a cut-off body tells it
                raise
            await refuse(answer, refusal)
            return refusal.code
        return "ok" if answer.status < 400 else str(answer.status)

    async def _pass(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        if scope["path"] not in OPEN_PATHS:
            _check_origin(headers)
            self._check_load()
            location = self._location_without_token(scope)
            if location is not None:
                await self._let_in(answer, location)
                return
            if not self._knows_token(headers):
                raise _unauthorised()
        await self._app(scope, receive, answer)

    def _check_host(self, headers: Headers) -> None:
        if self._hosts is None:
            return
        host = _host_of(headers.get("host", ""))
        if host not in self._hosts:
            raise Refusal(
                "invalid", "Host", expected=" or ".join(sorted(self._hosts)), got=repr(host)
            )

    def _check_load(self) -> None:
        if self._in_flight > IN_FLIGHT:
            raise Refusal(
                "busy",
                "requests in flight",
                expected=f"at most {IN_FLIGHT}",
                got="one more",
                remedy="try again",
                retry_after_s=1.0,
            )

    def _knows_token(self, headers: Headers) -> bool:
        if self._token is None or self._cookie is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return hmac.compare_digest(given.strip().encode(), self._token)
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        if morsel is None:
            return False
        return hmac.compare_digest(morsel.value.encode(), self._cookie.encode())

    def _location_without_token(self, scope: Scope) -> str | None:
        """Where a page with the right "?token=" goes on without it."""
        pairs = parse_qsl(scope["query_string"].decode("latin-1"))
        given = [value for name, value in pairs if name == "token"]
        if self._token is None or scope["method"] != "GET" or not given:
            return None
        if not hmac.compare_digest(given[0].encode(), self._token):
            return None
        query = urlencode([pair for pair in pairs if pair[0] != "token"])
        # A path of one slash: two would name another host.
        path = "/" + scope.get("raw_path", b"/").decode("latin-1").partition("?")[0].lstrip("/\\")
        return f"{path}?{query}" if query else path

    async def _let_in(self, answer: _Answer, location: str) -> None:
        cookie = f"{COOKIE}={self._cookie}; HttpOnly; SameSite=Strict; Path=/"
        headers = [(b"location", location.encode("latin-1")), (b"set-cookie", cookie.encode())]
        await answer({"type": "http.response.start", "status": 303, "headers": headers})
        await answer({"type": "http.response.body", "body": b""})


class _Answer:
    """Sends an answer with the headers that all have, to a client that reads it."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send, self._seconds = send, seconds
        self.status = 0  # until it has begun

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        body = message.get("body", b"")
        for first in range(0, len(body) - CHUNK, CHUNK):
            piece = body[first : first + CHUNK]
            await self._wait({"type": message["type"], "body": piece, "more_body": True})
        if len(body) > CHUNK:
            message["body"] = body[(len(body) - 1) // CHUNK * CHUNK :]
        await self._wait(message)

    async def _wait(self, message: Message) -> None:
        """Send on once the client has read what came before; only pieces wait in memory."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError as error:
            _log.warning("a client left its answer unread for %g s", self._seconds)
            raise ClientDisconnect from error


async def refuse(send: Send, refusal: Refusal) -> None:
    """Send a refusal: {"code", "error", "retry_after_s"}, and Retry-After in whole seconds."""
    body = msgspec.json.encode(refusal.reply())
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if refusal.retry_after_s is not None:
        seconds = max(1, math.ceil(refusal.retry_after_s))
        headers.append((b"retry-after", str(seconds).encode()))
    if refusal.code == "unauthorised":
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def cookie_of(token: str) -> str:
    """What a page's cookie holds: not the token, and the same after a restart."""
    return hmac.new(token.encode(), b"brainfast page", hashlib.sha256).hexdigest()


def _check_origin(headers: Headers) -> None:
    """A browser says on whose behalf it asks; other web sites have nothing to ask here."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise Refusal("unauthorised", "Origin", expected="this server's own page", got=repr(origin))


def _host_of(header: str) -> str:
    """The name without its port: "[::1]:80" is "::1"."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _unauthorised() -> Refusal:
    return Refusal(
        "unauthorised",
        "token",
        expected="the server's",
        got="none, or another one",
        remedy="send 'Authorization: Bearer TOKEN', or open the page with ?token=TOKEN",
    )
