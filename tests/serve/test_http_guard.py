"""Whom the HTTP server lets in, how many at once, and what each of its answers carries."""

from __future__ import annotations

import asyncio
import json

import pytest
from fastapi import APIRouter
from starlette.responses import Response

import serve_world as world
from brainfast.serve import http_guard
from brainfast.serve.http_guard import CHUNK, cookie_of
from brainfast.serve.http_server import http_app
from serve_http import Asking, assert_refused, client, ready
from serve_world import on_loop

TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Authorization": f"bearer  {TOKEN}"}, 200),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Cookie": f"brainfast={cookie_of(TOKEN)}"}, 200),
        ({"Cookie": f"brainfast={TOKEN}"}, 401),
        ({"Cookie": "brainfast="}, 401),
    ],
)
@on_loop
async def test_the_token_is_asked_of_everything_but_health(
    headers: dict[str, str], status: int
) -> None:
    async with client(await ready(), token=TOKEN) as http:
        for path in ("/v1/about", "/metrics", "/v2/models/toy", "/nowhere"):
            answer = await http.get(path, headers=headers)
            assert answer.status_code == (404 if (path, status) == ("/nowhere", 200) else status)
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
            assert (await http.get(path)).status_code == 200


@on_loop
async def test_a_page_with_the_token_gets_a_cookie_and_goes_on_without_it() -> None:
    async with client(await ready(), token=TOKEN) as http:
        wrong = await http.get("/v1/about", params={"token": "another"})
        assert_refused(wrong, 401, "unauthorised", "Bearer TOKEN")
        assert wrong.headers["www-authenticate"] == "Bearer"
        posted = await http.post("/v1/predict", params={"token": TOKEN}, content=b"x")
        assert posted.status_code == 401
        right = await http.get("/v1/about", params={"a": "1 2", "token": TOKEN})
        assert (right.status_code, right.headers["location"]) == (303, "/v1/about?a=1+2")
        cookie = right.headers["set-cookie"]
        assert TOKEN not in cookie
        assert "HttpOnly; SameSite=Strict" in cookie
        assert (await http.get(right.headers["location"])).status_code == 200
        elsewhere = await http.get("http://localhost//evil.example", params={"token": TOKEN})
        assert elsewhere.headers["location"] == "/evil.example"


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 400)],
)
@on_loop
async def test_names_that_point_here_are_not_this_server(host: str, status: int) -> None:
    async with client(await ready(), hosts=("localhost", "127.0.0.1", "::1")) as http:
        assert (await http.get("/v1/about", headers={"Host": host})).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost:8080", 200), ("http://evil.example", 401), ("null", 401)],
)
@on_loop
async def test_other_sites_may_not_ask_through_a_browser(origin: str, status: int) -> None:
    async with client(await ready()) as http:
        headers = {"Origin": origin, "Content-Type": "text/plain"}
        answer = await http.post("/v1/predict", content=world.file(1), headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


@on_loop
async def test_every_answer_is_guarded() -> None:
    async with client(await ready()) as http:
        for answer in [await http.get("/healthz"), await http.get("/v1/nothing")]:
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["cache-control"] == "no-store"


@on_loop
async def test_more_requests_at_once_than_may_be_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_guard, "IN_FLIGHT", 2)
    app = http_app(await ready())
    held = [Asking("/v1/predict", app) for _ in range(2)]
    await asyncio.sleep(0)
    third = Asking("/v1/predict", app, b"x")
    await third.task
    assert (third.status, json.loads(third.body)["code"]) == (429, "busy")
    health = Asking("/v2/health/live", app, b"x")
    await health.task
    assert health.status == 404  # it was let in, and takes no POST
    for asking in held:
        asking.leave()
        await asking.task


@on_loop
async def test_a_client_that_does_not_read_its_answer_is_given_up() -> None:
    service = await ready(timeout_s=0.05)
    asking = Asking("/v1/nothing", http_app(service), b"x")
    asking.reads = False
    await asking.task
    assert asking.sent == []
    assert b'code="gone"' in service.metrics.text()


@on_loop
async def test_large_answers_leave_in_pieces() -> None:
    service = await ready()
    router, data = APIRouter(), bytes(range(256)) * (CHUNK // 100)

    @router.post("/large")
    async def large() -> Response:
        return Response(data)

    asking = Asking("/large", http_app(service, routers=[router]), b"x")
    await asking.task
    pieces = asking.sent[1:]
    assert asking.body == data
    assert max(len(piece["body"]) for piece in pieces) == CHUNK
    assert [piece.get("more_body", False) for piece in pieces] == [True] * (len(pieces) - 1) + [
        False
    ]
