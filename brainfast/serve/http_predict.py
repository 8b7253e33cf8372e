"""/v1: what the model answers, for curl and MATLAB. Images come as a body, in parts, or in JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from email.message import Message
from typing import Any, TypeVar

import msgspec
import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from ..errors import BrainfastError
from .about import spaces_of
from .http_body import SMALL, Bodies, Part, from_base64, multipart, while_connected
from .http_numbers import json_rows
from .requests import Id
from .service import Service

T = TypeVar("T")
Floats = NDArray[np.float32]

JSON = "application/json"
BINARY = "application/octet-stream"
FORM = "multipart/form-data"


class PredictRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose responses, all without. rois: means by region in place of every vertex."""

    subject: str | list[str] | None = None
    rois: bool = False
    timeout_s: float | None = None
    images_b64: str | list[str] | None = None


class ScoreRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """objective: "FFA - PPA", or several."""

    objective: str | list[str]
    subject: str | None = None
    timeout_s: float | None = None
    images_b64: str | list[str] | None = None


class SelectRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The k best of the pool for every objective, without those that are excluded."""

    objective: str | list[str]
    k: int = 10
    exclude: Id | list[Id] = msgspec.field(default_factory=list)
    subject: str | None = None
    timeout_s: float | None = None


class Asking:
    """Reads requests about images, whichever way they were put."""

    def __init__(self, bodies: Bodies) -> None:
        self.bodies = bodies

    @asynccontextmanager
    async def images(self, request: Request, kind: type[T]) -> AsyncIterator[tuple[list[bytes], T]]:
        """Files and options. Their memory counts until the block ends.

        JSON holds both. Otherwise the body is one file, or the parts of a form are, and options
        are fields of the form or lie in the query.
        """
        media, boundary = _media_type(request)
        if media == JSON:
            asked: Any = await self.bodies.json(request, kind)
            given = asked.images_b64
            texts = [given] if isinstance(given, str) else given or []
            yield [from_base64(text, "images_b64") for text in texts], asked
            return
        options = _listed(request.query_params.multi_items())
        async with self.bodies.read(request) as body:
            if media != FORM:
                file = await self._copy(body)
                yield [file] if file else [], _options(options, kind)
                return
            parts = await self.bodies.off_loop(multipart, body, boundary)
            fields = _fields(parts)
            files = [part.data for part in parts if part.filename]
            yield files, _options(options | _listed(fields), kind)

    async def _copy(self, body: bytearray) -> bytes:
        return bytes(body) if len(body) <= SMALL else await self.bodies.off_loop(bytes, body)


def predict_router(service: Service, bodies: Bodies) -> APIRouter:
    """/v1/about, predict, score and select."""
    router, asking = APIRouter(prefix="/v1"), Asking(bodies)
    regions = Regions(service)

    @router.get("/about", name="about")
    async def about() -> Response:
        return answer(service.about())

    @router.post("/predict", name="predict")
    async def predict(request: Request) -> Response:
        async with asking.images(request, PredictRequest) as (files, asked):
            subjects = [asked.subject] if isinstance(asked.subject, str) else asked.subject
            work = service.predict(files, subjects=subjects, timeout_s=asked.timeout_s)
            found = await while_connected(request, work)
        if asked.rois:
            return await bodies.off_loop(regions.answer, found)
        if BINARY in request.headers.get("accept", ""):
            return _binary(found)
        return await bodies.off_loop(_rows, found)

    @router.post("/score", name="score")
    async def score(request: Request) -> Response:
        async with asking.images(request, ScoreRequest) as (files, asked):
            work = service.score(
                files, asked.objective, subject=asked.subject, timeout_s=asked.timeout_s
            )
            scores = await while_connected(request, work)
        return answer({"objective": asked.objective, "scores": msgspec.Raw(json_rows(scores))})

    @router.post("/select", name="select")
    async def select(request: Request) -> Response:
        asked = await bodies.json(request, SelectRequest)
        exclude = [asked.exclude] if isinstance(asked.exclude, str) else asked.exclude
        work = service.select(
            asked.objective,
            asked.k,
            exclude=exclude,
            subject=asked.subject,
            timeout_s=asked.timeout_s,
        )
        found = await while_connected(request, work)
        return answer({"objective": asked.objective, "candidates": found})

    return router


class Regions:
    """Means by region. The columns of every region are looked up once."""

    def __init__(self, service: Service) -> None:
        self._spaces = spaces_of(service.engine)
        self._columns: dict[str, dict[str, NDArray[np.int64]]] = {}

    def answer(self, found: Mapping[str, Floats]) -> Response:
        """{"rois": {region: [B means]}}, by subject where there are several."""
        means = {subject: self._means(subject, values) for subject, values in found.items()}
        return answer({"rois": means.get("", means)})

    def _means(self, subject: str, values: Floats) -> dict[str, list[float]]:
        if subject not in self._columns:
            space = self._spaces[subject]
            self._columns[subject] = {name: space.roi(name) for name in space.roi_names()}
        return {
            name: values[:, columns].mean(axis=1).tolist()
            for name, columns in self._columns[subject].items()
        }


def answer(found: Any) -> Response:
    """JSON of structs, dataclasses and plain values."""
    return Response(msgspec.json.encode(found), media_type=JSON)


def _rows(found: Mapping[str, Floats]) -> Response:
    """{"response": [[V numbers] B times]}, by subject where there are several."""
    rows = {subject: msgspec.Raw(json_rows(values)) for subject, values in found.items()}
    return answer({"response": rows.get("", rows)})


def _binary(found: Mapping[str, Floats]) -> Response:
    """float32, little-endian, [B,V] as the header Shape says."""
    if len(found) != 1:
        raise BrainfastError(
            "subject",
            expected=f"one of {', '.join(found)} for an answer in binary",
            got=str(len(found)),
            remedy="add ?subject=, or accept application/json",
        )
    (values,) = found.values()
    shape = ",".join(map(str, values.shape))
    data = np.ascontiguousarray(values, dtype="<f4").tobytes()
    return Response(data, media_type=BINARY, headers={"Shape": shape})


def _media_type(request: Request) -> tuple[str, str]:
    """The content type, and its boundary if it has one."""
    header = Message()
    header["content-type"] = request.headers.get("content-type", BINARY)
    boundary = header.get_param("boundary", "")
    return header.get_content_type(), boundary if isinstance(boundary, str) else ""


def _fields(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """Names and texts of the parts that are no files; a file without a name is told from them."""
    fields = [part for part in parts if not part.filename]
    size = sum(len(part.data) for part in fields)
    if size > SMALL:
        largest = max(fields, key=lambda part: len(part.data))
        raise BrainfastError(
            f"part {largest.name!r:.80}",
            expected=f"a file name, or at most {SMALL} bytes in all parts without one",
            got=f"no file name and {size} bytes",
        )
    return [(part.name, part.data.decode("utf-8", "replace")) for part in fields]


def _listed(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Values by name, several of one name as a list."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            earlier = found[name]
            found[name] = [*(earlier if isinstance(earlier, list) else [earlier]), value]
        else:
            found[name] = value
    return found


def _options(options: dict[str, Any], kind: type[T]) -> T:
    """Options as text, such as rois=1."""
    if "images_b64" in options:
        raise BrainfastError("images_b64", expected="images as files", got="a field beside them")
    return msgspec.convert(options, kind, strict=False)
