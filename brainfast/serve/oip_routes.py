"""/v2: the Open Inference Protocol, so that its clients work as they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from ..errors import BrainfastError
from .http_body import JSON_BYTES, Bodies, while_connected
from .http_predict import BINARY, JSON, answer
from .oip import VERSION, Asked, metadata, output_names, read_request, write_answer
from .refusal import Refusal
from .service import Service

LENGTH_HEADER = "Inference-Header-Content-Length"


def oip_router(service: Service, bodies: Bodies) -> APIRouter:
    """Health, metadata and inference, for the one model and its one version."""
    router = APIRouter(prefix="/v2")
    of_model = ("/models/{model}", f"/models/{{model}}/versions/{VERSION}")

    @router.get("", name="metadata")
    async def server() -> Response:
        version = service.about().version
        about = {"name": "brainfast", "version": version, "extensions": ["binary_tensor_data"]}
        return answer(about)

    @router.get("/health/live", name="healthz")
    async def live() -> Response:
        return answer({"live": True})

    @router.get("/health/ready", name="readyz")
    async def ready() -> Response:
        return _ready(service)

    async def model_ready(model: str) -> Response:
        _check_model(service, model)
        return _ready(service)

    async def model_metadata(model: str) -> Response:
        _check_model(service, model)
        return answer(metadata(service.name, service.about().vertices))

    async def infer(model: str, request: Request) -> Response:
        _check_model(service, model)
        outputs = output_names(service.about().subjects)
        async with bodies.read(request) as body:
            length = _header_length(request)
            asked = await bodies.off_loop(read_request, body, length, tuple(outputs), JSON_BYTES)
            subjects = [outputs[name] for name in asked.outputs]
            work = service.predict(
                asked.images,
                subjects=None if subjects == [""] else subjects,
                timeout_s=asked.timeout_s,
            )
            found = await while_connected(request, work)
        named = {name: found[outputs[name]] for name in asked.outputs}
        return await bodies.off_loop(_answer, service.name, asked, named)

    for path in of_model:
        router.add_api_route(path, model_metadata, methods=["GET"], name="metadata")
        router.add_api_route(f"{path}/ready", model_ready, methods=["GET"], name="readyz")
        router.add_api_route(f"{path}/infer", infer, methods=["POST"], name="predict")
    return router


def _ready(service: Service) -> Response:
    found = answer({"ready": service.state == "ready"})
    if service.state != "ready":
        found.status_code = 503
    return found


def _check_model(service: Service, model: str) -> None:
    if model != service.name:
        raise Refusal("not_found", "model", expected=service.name, got=repr(model))


def _header_length(request: Request) -> int | None:
    text = request.headers.get(LENGTH_HEADER)
    if text is None:
        return None
    if not text.isdecimal() or not text.isascii():
        raise BrainfastError(LENGTH_HEADER, expected="a number of bytes", got=repr(text))
    return int(text)


def _answer(model: str, asked: Asked, found: Mapping[str, NDArray[np.float32]]) -> Response:
    parts, length = write_answer(model, asked, found)
    if length is None:
        return Response(parts[0], media_type=JSON)
    return Response(b"".join(parts), media_type=BINARY, headers={LENGTH_HEADER: str(length)})
