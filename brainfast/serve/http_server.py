"""The HTTP server's application: routes, and the guard around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from .http_body import Bodies
from .http_guard import Guard
from .http_predict import JSON, predict_router
from .http_sessions import session_router
from .metrics import CONTENT_TYPE
from .oip_routes import oip_router
from .refusal import Refusal
from .service import Service


def http_app(
    service: Service,
    token: str | None = None,
    *,
    hosts: Collection[str] | None = None,
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """The application for `service`: health, metrics, /v1, the Open Inference Protocol at /v2.

    token: asked of every request but the health checks; hosts: what a Host header may name, see
    `Guard`; routers: further routes, such as those of the page
    """
    bodies = Bodies(service.limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        bodies.close()

    # Without FastAPI's own pages, which load scripts from afar.
    app = FastAPI(title="brainfast", openapi_url=None, lifespan=lifespan)
    own = (predict_router, session_router, oip_router)
    for router in (health_router(service), *(make(service, bodies) for make in own), *routers):
        app.include_router(router)
    app.add_exception_handler(HTTPException, _not_here)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_middleware(
        Guard, metrics=service.metrics, token=token, hosts=hosts, send_s=service.limits.timeout_s
    )
    return app


def health_router(service: Service) -> APIRouter:
    """/healthz: the process lives. /readyz: requests are taken. /metrics: for Prometheus."""
    router = APIRouter()

    @router.api_route("/healthz", methods=["GET", "HEAD"], name="healthz")
    async def healthz() -> Response:
        return Response(b"ok\n", media_type="text/plain")

    @router.api_route("/readyz", methods=["GET", "HEAD"], name="readyz")
    async def readyz() -> Response:
        body = msgspec.json.encode({"state": service.state})
        return Response(body, 200 if service.state == "ready" else 503, media_type=JSON)

    @router.get("/metrics", name="metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return router


async def _not_here(request: Request, error: Exception) -> Response:
    """What no route takes."""
    raise Refusal(
        "not_found",
        "path",
        expected="a path and method of this server",
        got=f"{request.method} {request.url.path}",
    ) from error


async def _unreadable(request: Request, error: Exception) -> Response:
    """What a route that declares its arguments does not take."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    raise Refusal("invalid", name, expected=first["msg"], got="another value") from error
