"""The HTTP server on a real service: what it answers, what it refuses, and what it lets go."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import serve_world as world
from brainfast.serve.http_body import THREADS, Bodies, multipart
from brainfast.serve.http_numbers import json_numbers, read_bytes_u8
from brainfast.serve.http_server import http_app
from brainfast.serve.limits import Limits
from serve_http import Asking, assert_refused, b64, client, ready
from serve_world import Gate, happens, on_loop

BINARY = {"Accept": "application/octet-stream"}


def asked_of(path: str, files: list[bytes], way: str) -> dict[str, Any]:
    """The arguments of a request that brings files in one of the ways that there are."""
    if way == "json":
        return {"json": {"images_b64": [b64(file) for file in files]}}
    if way == "parts":
        return {"files": [("image", (f"{n}.png", file)) for n, file in enumerate(files)]}
    return {"content": files[0], "headers": {"Content-Type": "image/png"}}


@pytest.mark.parametrize(("way", "count"), [("body", 1), ("parts", 3), ("json", 3)])
@on_loop
async def test_predict_answers_as_the_engine_does(way: str, count: int) -> None:
    engine = world.engine()
    files = [world.file(seed) for seed in range(count)]
    expected = engine.predict([world.picture(seed) for seed in range(count)])
    async with client(await ready(on=engine)) as http:
        asked = asked_of("/v1/predict", files, way)
        headers = asked.pop("headers", {})
        whole = await http.post("/v1/predict", **asked, headers=headers)
        binary = await http.post("/v1/predict", **asked, headers=headers | BINARY)
    np.testing.assert_array_equal(np.float32(whole.json()["response"]), expected.values)
    assert binary.headers["shape"] == f"{count},{world.V}"
    np.testing.assert_array_equal(
        np.frombuffer(binary.content, "<f4").reshape(count, -1), expected.values
    )


@on_loop
async def test_rois_are_the_means_of_their_vertices() -> None:
    engine = world.engine()
    response = engine.predict([world.picture(1)])
    async with client(await ready(on=engine)) as http:
        found = await http.post("/v1/predict", params={"rois": 1}, content=world.file(1))
    rois = found.json()["rois"]
    assert list(rois) == engine.space.roi_names()
    for name, means in rois.items():
        np.testing.assert_allclose(means, response.roi(name).mean(axis=1), rtol=1e-6)


@on_loop
async def test_a_model_of_several_answers_by_subject() -> None:
    group, file = world.group(), world.file(2)
    expected = group.predict([world.picture(2)])
    async with client(await ready(on=group)) as http:
        everybody = await http.post("/v1/predict", content=file)
        one = await http.post("/v1/predict?subject=b", content=file, headers=BINARY)
        rois = await http.post("/v1/predict?subject=a&subject=b&rois=true", content=file)
        too_many = await http.post("/v1/predict", content=file, headers=BINARY)
        unknown = await http.post("/v1/predict?subject=c", content=file)
    for subject, values in everybody.json()["response"].items():
        np.testing.assert_array_equal(np.float32(values), expected[subject].values)
    np.testing.assert_array_equal(np.frombuffer(one.content, "<f4"), expected["b"].values[0])
    assert set(rois.json()["rois"]) == {"a", "b"}
    assert_refused(too_many, 400, "invalid", "one of a, b")
    assert_refused(unknown, 400, "invalid", "'c'")


@on_loop
async def test_score_is_the_services() -> None:
    service = await ready()
    files = [world.file(1), world.file(2)]
    expected = await service.score(files, ["FFA - PPA", "V1v"])
    async with client(service) as http:
        asked = {"images_b64": [b64(file) for file in files], "objective": ["FFA - PPA", "V1v"]}
        plain = await http.post("/v1/score", json=asked)
        parts = await http.post(
            "/v1/score",
            files=[("a", ("a.png", file)) for file in files],
            data={"objective": "FFA - PPA"},
        )
        query = await http.post("/v1/score?objective=FFA+-+PPA", content=files[0])
    np.testing.assert_array_equal(plain.json()["scores"], expected)
    np.testing.assert_allclose(parts.json()["scores"], expected[:, :1], rtol=1e-6)
    np.testing.assert_allclose(query.json()["scores"], expected[:1, :1], rtol=1e-6)


@on_loop
async def test_a_session_in_plain_json(tmp_path: Path) -> None:
    service = await ready(candidates=world.pool(), logs=tmp_path)
    measured = world.betas(3)
    holes = [None if n == 4 else float(value) for n, value in enumerate(measured)]
    async with client(service) as http:
        place = "/v1/sessions/run-1"
        opened = await http.put(place, json={"objective": "FFA - PPA", "deadline_ms": 60_000.0})
        assert (opened.status_code, opened.json()["trials"]) == (200, 0)
        first = await http.post(f"{place}/next", json={"trial": 0})
        again = await http.post(f"{place}/next", json={"trial": 0})
        assert first.json() == again.json()
        second = await http.post(f"{place}/next")  # no body: always the next one
        third = await http.post(f"{place}/next", json={})
        assert [answer.json()["trial"] for answer in (first, second, third)] == [0, 1, 2]
        told = await http.post(f"{place}/tell", json={"trial": 0, "betas": holes})
        assert told.json() == {"told": 0}
        packed = np.where(np.arange(world.V) == 4, np.nan, measured).astype("<f4").tobytes()
        same = await http.post(f"{place}/tell", json={"trial": 0, "betas_b64": b64(packed)})
        assert same.status_code == 200
        other = await http.post(f"{place}/tell", json={"trial": 0, "betas": [0.5] * world.V})
        assert_refused(other, 409, "conflict", "trial 0")
        assert (await http.post(f"{place}/skip", json={"trial": 1})).json() == {"skipped": 1}
        far = await http.post(f"{place}/next", json={"trial": 7})
        assert_refused(far, 409, "conflict", "7")
        state = (await http.get(place)).json()
        assert (state["trials"], state["told"], state["skipped"]) == (3, 1, 1)
        assert (await http.get("/v1/sessions")).json() == {"sessions": ["run-1"]}
        assert (await http.delete(place)).json() == {"closed": "run-1"}
        assert_refused(await http.get(place), 404, "not_found", "run-1")
    events = [json.loads(line) for line in (tmp_path / "run-1.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds == ["session", "choice", "choice", "choice", "tell", "skip"]


TELL = "/v1/sessions/none/tell"


@pytest.mark.parametrize(
    ("method", "path", "how", "status", "text"),
    [
        ("POST", "/v1/predict", {"content": b""}, 400, "at least one image, got none"),
        ("POST", "/v1/predict", {"content": b"no image"}, 400, "images[0]"),
        ("POST", "/v1/predict?size=3", {"content": b"x"}, 400, "size"),
        ("POST", "/v1/predict?rois=perhaps", {"content": b"x"}, 400, "rois"),
        ("POST", "/v1/predict?timeout_s=31", {"content": b"x"}, 400, "timeout_s"),
        ("POST", "/v1/predict", {"json": {"images_b64": "*"}}, 400, "images_b64"),
        ("POST", "/v1/predict", {"json": {"images": []}}, 400, "images"),
        ("POST", "/v1/predict", {"json": [1]}, 400, "object"),
        ("POST", "/v1/predict?rois=1", {"json": {}}, 400, "put its options into the JSON"),
        ("POST", "/v1/predict?images_b64=AA", {"content": b"x"}, 400, "images_b64"),
        ("POST", "/v1/score", {"content": b"x"}, 400, "objective"),
        ("POST", "/v1/score?objective=XYZ", {"content": world.file(1)}, 400, "XYZ"),
        ("POST", "/v1/select", {"json": {"objective": "FFA"}}, 404, "pool"),
        ("POST", "/v1/select", {"content": b"{"}, 400, "truncated"),
        ("PUT", "/v1/sessions/a%20b", {"json": {}}, 400, "session"),
        ("PUT", "/v1/sessions/a", {"json": {"objectiv": "FFA"}}, 400, "objectiv"),
        ("POST", "/v1/sessions/none/next", {}, 404, "none"),
        ("POST", TELL, {"json": {"trial": 0, "betas": "many"}}, 400, "betas"),
        ("POST", TELL, {"json": {"trial": 0}}, 400, "betas or betas_b64, got neither"),
        ("POST", TELL, {"json": {"trial": 0, "betas_b64": "AAA="}}, 400, "4 bytes each"),
        ("POST", TELL, {"json": {"betas": [1]}}, 400, "trial"),
        ("GET", "/v1/nothing", {}, 404, "GET /v1/nothing"),
        ("GET", "/v1/predict", {}, 404, "GET /v1/predict"),
    ],
)
@on_loop
async def test_mistakes_are_one_line(
    method: str, path: str, how: dict[str, Any], status: int, text: str
) -> None:
    async with client(await ready()) as http:
        answer = await http.request(method, path, **how)
    assert_refused(answer, status, "invalid" if status == 400 else "not_found", text)


@on_loop
@pytest.mark.filterwarnings("error")
async def test_betas_that_float32_cannot_hold_are_refused_and_nothing_else(tmp_path: Path) -> None:
    service = await world.opened(tmp_path)
    await service.next("run", 0)
    async with client(service) as http:
        told = {"trial": 0, "betas": [1e39] * world.V}
        answer = await http.post("/v1/sessions/run/tell", json=told)
    assert_refused(answer, 400, "invalid", "finite betas, or NaN, got 30 infinite")


@pytest.mark.parametrize("body", [b"", b"--x\r\n\r\n", b"--x--", b"--x\r\nno head\r\n--x--"])
@on_loop
async def test_forms_that_are_none(body: bytes) -> None:
    async with client(await ready()) as http:
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        assert_refused(
            await http.post("/v1/predict", content=body, headers=kind), 400, "invalid", "expected"
        )


@on_loop
async def test_a_file_without_a_name_is_no_field() -> None:
    def form(size: int, count: int) -> bytes:
        head = b"--x\r\nContent-Disposition: form-data; name=image\r\n\r\n"
        return (head + b"a" * size + b"\r\n") * count + b"--x--\r\n"

    async with client(await ready()) as http:
        for size, count in (((1 << 16) + 1, 1), (1 << 14, 5)):
            answer = await http.post(
                "/v1/predict",
                content=form(size, count),
                headers={"Content-Type": "multipart/form-data; boundary=x"},
            )
            assert_refused(answer, 400, "invalid", "part 'image': expected a file name")


@on_loop
async def test_a_large_body_is_the_same_image() -> None:
    data = world.file(1, "BMP") + bytes(1 << 17)  # what follows the image is not read
    async with client(await ready()) as http:
        whole = await http.post("/v1/predict", content=data)
        small = await http.post("/v1/predict", content=world.file(1, "BMP"))
    assert whole.json() == small.json()


@on_loop
async def test_answers_that_are_being_written_are_written_to_their_end() -> None:
    bodies = Bodies(Limits())
    gates = [Gate() for _ in range(THREADS)]
    held = [asyncio.create_task(bodies.off_loop(gate.wait)) for gate in gates]
    for gate in gates:
        await happens(gate.entered)
    queued = asyncio.create_task(bodies.off_loop(str, 7))
    await asyncio.sleep(0)
    bodies.close()
    late = await world.refusal(bodies.off_loop(str, 8))
    assert late.code == "draining"
    for gate in gates:
        gate.open()
    assert await queued == "7"
    await asyncio.gather(*held)


def test_parts_keep_every_byte() -> None:
    data = bytes(range(256)) + b"\r\n--\r\n\r\n--bound"
    body = b"--bound-1\r\nContent-Disposition: form-data; name=a; filename=f\r\n\r\n" + data
    (part,) = multipart(body + b"\r\n--bound-1--\r\n", "bound-1")
    assert part == ("a", "f", data)


@on_loop
async def test_a_body_is_refused_as_soon_as_it_is_too_large() -> None:
    service = await ready(request_bytes=1000)
    read = 0

    async def chunks() -> Any:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * 100

    async with client(service) as http:
        said = await http.post("/v1/predict", content=b"x" * 1001)
        found = await http.post("/v1/predict", content=chunks())
    assert_refused(said, 413, "too_large", "at most 1000 bytes, got 1001")
    assert_refused(found, 413, "too_large", "at most 1000 bytes")
    assert read == 11


@on_loop
async def test_json_is_small_and_bodies_come_as_they_are() -> None:
    async with client(await ready()) as http:
        large = await http.post("/v1/select", content=b" " * (5 << 20))
        packed = await http.post("/v1/predict", content=b"x", headers={"Content-Encoding": "gzip"})
    assert_refused(large, 413, "too_large", "got 5242880")
    assert_refused(packed, 400, "invalid", "gzip")


@on_loop
async def test_a_body_that_does_not_come_is_given_up() -> None:
    service = await ready(timeout_s=0.05)
    asking = Asking("/v1/predict", http_app(service))
    await asking.task
    assert asking.status == 504
    assert json.loads(asking.body)["code"] == "timed_out"


@on_loop
async def test_bodies_that_fill_the_memory_are_refused() -> None:
    service = await ready(request_bytes=1000)
    app = http_app(service)
    waiting = [Asking("/v1/predict", app) for _ in range(4)]
    for asking in waiting:
        asking.bring(b"x" * 1000, more=True)
    await asyncio.sleep(0)
    while not all(asking.messages.empty() for asking in waiting):
        await asyncio.sleep(0)
    late = Asking("/v1/predict", app, b"x" * 500)
    await late.task
    assert late.status == 429
    assert (b"retry-after", b"1") in late.sent[0]["headers"]
    for asking in waiting:
        asking.leave()
        await asking.task
    room = Asking("/v1/predict", app, b"x" * 500)
    await room.task
    assert room.status == 400  # it was read, and is no image


@on_loop
async def test_a_client_that_goes_away_is_not_computed_for() -> None:
    engine = world.engine()
    service = await ready(on=engine)
    gate = engine.runtime.next_gate()
    first = asyncio.create_task(service.predict([world.picture(1)]))
    await world.happens(gate.entered)
    asking = Asking("/v1/predict", http_app(service), world.file(2))
    while 'waiting{lane="engine"} 1.0' not in service.metrics.text().decode():
        await asyncio.sleep(0.001)
    asking.leave()
    await asking.task
    assert asking.sent == []
    engine.runtime.seen.clear()
    gate.open()
    await first
    await service.predict([world.picture(3), world.picture(4)])
    assert engine.runtime.seen == [2]
    assert b'code="gone",operation="predict",way="http"} 1.0' in service.metrics.text()


@on_loop
async def test_a_stalled_engine_is_told_at_once_with_when_to_ask_again() -> None:
    engine, clock = world.engine(), world.TestClock()
    service = await ready(on=engine, clock=clock, stall_s=5.0)
    gate = engine.runtime.next_gate()
    first = asyncio.create_task(service.predict([world.picture(1)]))
    await world.happens(gate.entered)
    clock.now += 6
    async with client(service) as http:
        answer = await http.post("/v1/predict", content=world.file(1))
        assert_refused(answer, 503, "stalled", "sessions go on")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/healthz")).status_code == 200
        gate.open()
        await first
        assert (await http.get("/readyz")).json() == {"state": "ready"}


@on_loop
async def test_ready_is_between_starting_and_draining() -> None:
    service = world.service()
    async with client(service) as http:
        before = await http.get("/readyz")
        early = await http.post("/v1/predict", content=world.file(1))
        await service.start()
        during = await http.get("/readyz")
        await service.drain()
        after = await http.get("/readyz")
        late = await http.post("/v1/predict", content=world.file(1))
    assert [answer.status_code for answer in (before, during, after)] == [503, 200, 503]
    assert before.json() == {"state": "starting"}
    assert_refused(early, 503, "starting", "warming up")
    assert early.headers["retry-after"] == "1"
    assert_refused(late, 503, "draining", "expected")


@on_loop
async def test_a_defect_is_one_line_and_its_traceback_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = await ready()

    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(service, "predict", broken)
    async with client(service) as http:
        answer = await http.post("/v1/predict", content=world.file(1))
    assert_refused(answer, 500, "internal", "RuntimeError")
    assert "secret" not in answer.text
    assert "a secret path" in caplog.text
    assert b'code="internal",operation="predict",way="http"} 1.0' in service.metrics.text()


def test_numbers_in_pieces_are_the_same_numbers() -> None:
    values = np.random.default_rng(1).standard_normal(20_001).astype(np.float32)
    values[7] = np.nan
    found = json.loads(json_numbers(values))
    assert found[7] is None
    found[7] = np.nan
    np.testing.assert_array_equal(np.float32(found), values)
    assert json_numbers(values[:0]) == b"[]"
    whole = np.random.default_rng(2).integers(0, 256, (40, 1000), np.uint8)
    np.testing.assert_array_equal(
        read_bytes_u8(json.dumps(whole.tolist()).encode(), "x"), whole.ravel()
    )
