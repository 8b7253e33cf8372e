"""What answers while the engine is being loaded: that the server is starting."""

from __future__ import annotations

from typing import NoReturn

from starlette.types import ASGIApp, Receive, Scope, Send

from .http_guard import refuse
from .limits import Limits
from .metrics import Metrics
from .refusal import Refusal

RETRY_S = 1.0


class Gate:
    """/healthz is well and all else is "starting", until an application takes over."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None

    def open(self, app: ASGIApp) -> None:
        """Hand every request from now on to `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if self._app is not None:
            await self._app(scope, receive, send)
        elif scope["path"] in ("/healthz", "/v2/health/live"):
            headers = [(b"content-type", b"text/plain"), (b"content-length", b"3")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"ok\n"})
        else:
            await refuse(send, starting())


class NotYet:
    """In the place of a service that is being loaded: whatever is asked of it is "starting"."""

    state = "starting"

    def __init__(self, limits: Limits) -> None:
        self.limits, self.metrics = limits, Metrics()

    def __getattr__(self, name: str) -> NoReturn:
        raise starting()


def starting() -> Refusal:
    """The refusal of everything while the engine is being loaded."""
    return Refusal(
        "starting",
        "server",
        expected="a loaded engine",
        got="one that is being loaded",
        remedy="ask again in a second",
        retry_after_s=RETRY_S,
    )
