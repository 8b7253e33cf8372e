"""The Open Inference Protocol: by hand, in its binary form, and by NVIDIA's own client."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

import serve_world as world
from brainfast.errors import BrainfastError
from brainfast.serve.http_server import http_app
from brainfast.serve.listening import HttpAddress, HttpServer
from brainfast.serve.oip import read_request, write_answer
from serve_world import on_loop

B, H, W = 3, 9, 8
IMAGES = np.stack([world.picture(seed) for seed in range(B)])
LENGTH = "Inference-Header-Content-Length"


async def client(on: Any) -> httpx.AsyncClient:
    service = world.service(on)
    await service.start()
    transport = httpx.ASGITransport(http_app(service))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


def images(data: Any, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "images", "shape": [B, H, W, 3], "datatype": "UINT8", "data": data}
    return {"inputs": [tensor | changes]}


@pytest.mark.parametrize("nested", [True, False])
@on_loop
async def test_json_in_and_out(nested: bool) -> None:
    engine = world.engine()
    expected = engine.predict(list(IMAGES)).values
    async with await client(engine) as http:
        asked = images(IMAGES.tolist() if nested else IMAGES.ravel().tolist()) | {"id": "seven"}
        answer = (await http.post("/v2/models/toy/infer", json=asked)).json()
    (output,) = answer["outputs"]
    assert (answer["model_name"], answer["model_version"]) == ("toy", "1")
    assert (answer["id"], output["name"], output["datatype"]) == ("seven", "response", "FP32")
    found = np.float32(output["data"]).reshape(output["shape"])
    np.testing.assert_array_equal(found, expected)


@on_loop
async def test_files_in_json_are_base64() -> None:
    engine = world.engine()
    files = [base64.b64encode(world.file(seed)).decode() for seed in range(B)]
    tensor = {"name": "files", "shape": [B], "datatype": "BYTES", "data": files}
    async with await client(engine) as http:
        answer = await http.post("/v2/models/toy/versions/1/infer", json={"inputs": [tensor]})
    expected = engine.predict(list(IMAGES)).values
    np.testing.assert_array_equal(np.float32(answer.json()["outputs"][0]["data"]), expected.ravel())


@on_loop
async def test_metadata_and_health() -> None:
    async with await client(world.group()) as http:
        server = (await http.get("/v2")).json()
        model = (await http.get("/v2/models/toy")).json()
        states = [
            (await http.get(path)).status_code
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/toy/ready")
        ]
        other = await http.get("/v2/models/other/ready")
    assert (server["name"], server["extensions"]) == ("brainfast", ["binary_tensor_data"])
    assert [(output["name"], output["shape"]) for output in model["outputs"]] == [
        ("response.a", [-1, 30]),
        ("response.b", [-1, 20]),
    ]
    assert states == [200, 200, 200]
    assert (other.status_code, other.json()["error"]) == (404, "model: expected toy, got 'other'")


def binary(tensor: dict[str, Any], data: bytes) -> tuple[bytes, int]:
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + data, len(header)


UINT8 = {"name": "images", "shape": [1, 1, 2, 3], "datatype": "UINT8"}
FILES = {"name": "files", "shape": [2], "datatype": "BYTES"}


@pytest.mark.parametrize(
    ("tensor", "data", "text"),
    [
        (UINT8 | {"parameters": {"binary_data_size": 6}}, b"12345", "binary_data_size"),
        (UINT8 | {"parameters": {"binary_data_size": 5}}, b"12345", "6 elements"),
        (UINT8 | {"parameters": {"binary_data_size": True}}, b"1", "binary_data_size"),
        (UINT8 | {"parameters": {"binary_data_size": 6}, "data": [1]}, b"123456", "both"),
        (UINT8 | {"data": [1, 2, 3, 4, 5, 6]}, b"1", "1 more bytes"),
        (FILES | {"parameters": {"binary_data_size": 5}}, b"\x01\0\0\0a", "2 elements"),
        (FILES | {"parameters": {"binary_data_size": 5}}, b"\x02\0\0\0a", "1 bytes of 2"),
        (FILES | {"parameters": {"binary_data_size": 2}}, b"\x02\0", "0 bytes of 2"),
    ],
)
def test_binary_tensors_that_do_not_fit(tensor: dict[str, Any], data: bytes, text: str) -> None:
    body, length = binary(tensor, data)
    with pytest.raises(BrainfastError, match=text):
        read_request(body, length, ["response"], 1 << 20)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "got none"),
        (images([1], name="pixels"), "'pixels'"),
        (images([1], datatype="FP32"), "expected UINT8, got FP32"),
        (images([1], shape=[B, 3, H, W]), r"expected \[B,H,W,3\]"),
        (images([1], shape=[0, H, W, 3]), "shape of images"),
        (images([1], shape=[-1, H, W, 3]), "shape of images"),
        (images([1], shape="many"), "shape"),
        (images([1, 2]), "648 elements"),
        (images([256] * 648), "whole numbers from 0 to 255"),
        (images([-1] * 648), "whole numbers from 0 to 255"),
        (images([0.5] * 648), "whole numbers from 0 to 255"),
        (images([[], [1], [], [2]]), "whole numbers from 0 to 255"),
        (images(["a"] * 648), "whole numbers from 0 to 255"),
        (images([10**30] * 648), "whole numbers from 0 to 255"),
        (images([1], name="files", datatype="BYTES", shape=[1]), "base64"),
        (images(["*"], name="files", datatype="BYTES", shape=[1]), "base64"),
        (images(["AA=="], name="files", datatype="BYTES", shape=[2]), "2 elements"),
        (images([0] * 648) | {"outputs": [{"name": "latent"}]}, "expected response, got 'latent'"),
        (
            images([0] * 648)
            | {"outputs": [{"name": "response", "parameters": {"classification": 1}}]},
            "no classification",
        ),
        (images([0] * 648, parameters={"shared_memory_region": "x"}), "no shared_memory_region"),
        (images([0] * 648) | {"parameters": {"timeout": -1}}, "microseconds"),
    ],
)
def test_mistakes_in_the_json(asked: dict[str, Any], text: str) -> None:
    with pytest.raises(BrainfastError, match=text) as error:
        read_request(json.dumps(asked).encode(), None, ["response"], 1 << 20)
    assert "\n" not in str(error.value)


def test_a_list_that_is_no_json_is_refused() -> None:
    text = json.dumps(images(["?"])).replace('["?"]', "[1 2]").encode()
    with pytest.raises(BrainfastError, match="inference request in JSON"):
        read_request(text, None, ["response"], 1 << 20)


@pytest.mark.parametrize("length", ["-1", "0", "9999", "x", "²"])
@on_loop
async def test_the_length_of_the_json_is_checked(length: str) -> None:
    async with await client(world.engine()) as http:
        headers = {LENGTH: length.encode()}
        answer = await http.post("/v2/models/toy/infer", content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
    assert LENGTH in answer.json()["error"]


@given(st.binary(max_size=200), st.none() | st.integers(-5, 300))
def test_noise_is_a_mistake_and_nothing_worse(noise: bytes, length: int | None) -> None:
    with pytest.raises(BrainfastError):
        read_request(noise, length, ["response"], 1 << 20)


@given(st.binary(max_size=60))
def test_noise_behind_a_good_header_is_files_or_a_mistake(noise: bytes) -> None:
    body, length = binary(FILES | {"parameters": {"binary_data_size": len(noise)}}, noise)
    try:
        found = read_request(body, length, ["response"], 1 << 20).images
    except BrainfastError:
        return
    assert b"".join(len(file).to_bytes(4, "little") + file for file in found) == noise


def test_only_what_is_asked_for_is_answered() -> None:
    asked = images([0] * 648) | {
        "outputs": [{"name": "response.b", "parameters": {"binary_data": True}}],
        "parameters": {"timeout": 2_500_000},
    }
    read = read_request(json.dumps(asked).encode(), None, ["response.a", "response.b"], 1 << 20)
    assert (read.outputs, read.timeout_s) == ({"response.b": True}, 2.5)
    values = np.arange(4, dtype=np.float32).reshape(2, 2)
    parts, length = write_answer("toy", read, {"response.b": values})
    assert length == len(parts[0])
    assert parts[1] == values.astype("<f4").tobytes()
    assert [output["name"] for output in json.loads(parts[0])["outputs"]] == ["response.b"]


@contextmanager
def running(on: Any) -> Iterator[str]:
    """A server on a port of its own, for clients that need one."""
    listener = HttpAddress("127.0.0.1", 0).bind()
    started, place = threading.Event(), {}

    async def serve() -> None:
        service = world.service(on)
        await service.start()
        server = HttpServer(http_app(service), listener)
        place.update(loop=asyncio.get_running_loop(), stop=asyncio.Event(), url=server.url)
        server.start()
        started.set()
        await place["stop"].wait()
        await service.drain()
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(world.PATIENCE_S)
    try:
        yield place["url"].removeprefix("http://")
    finally:
        place["loop"].call_soon_threadsafe(place["stop"].set)
        thread.join()


def tensor(name: str, values: np.ndarray, kind: str, *, binary: bool) -> triton.InferInput:
    found = triton.InferInput(name, list(values.shape), kind)
    found.set_data_from_numpy(values, binary_data=binary)
    return found


def test_tritonclient_works_as_it_is() -> None:
    group = world.group()
    expected = {name: one.values for name, one in group.predict(list(IMAGES)).items()}
    files = np.array([world.file(seed) for seed in range(B)], dtype=np.object_)
    with running(group) as url, triton.InferenceServerClient(url) as asking:
        assert asking.is_server_live()
        assert asking.is_server_ready()
        assert asking.is_model_ready("toy")
        assert asking.is_model_ready("toy", "1")
        assert asking.get_server_metadata()["name"] == "brainfast"
        assert asking.get_model_metadata("toy")["inputs"][0]["datatype"] == "UINT8"
        for sent in (
            tensor("images", IMAGES, "UINT8", binary=True),
            tensor("images", IMAGES, "UINT8", binary=False),
            tensor("files", files, "BYTES", binary=True),
        ):
            everything = asking.infer("toy", [sent], request_id="1", timeout=10_000_000)
            for name, values in expected.items():
                np.testing.assert_array_equal(everything.as_numpy(f"response.{name}"), values)
            for binary_data in (True, False):
                wanted = triton.InferRequestedOutput("response.b", binary_data=binary_data)
                one = asking.infer("toy", [sent], outputs=[wanted])
                np.testing.assert_array_equal(one.as_numpy("response.b"), expected["b"])
                assert one.as_numpy("response.a") is None
        wrong = tensor("images", IMAGES[:, :, :, :2], "UINT8", binary=True)
        with pytest.raises(InferenceServerException, match=r"\[400\] shape of images"):
            asking.infer("toy", [wrong])
        with pytest.raises(InferenceServerException, match=r"\[404\] model: expected toy"):
            asking.infer("other", [wrong])
