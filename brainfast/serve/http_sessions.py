"""/v1/sessions: sessions in plain JSON, so that curl and MATLAB can run an experiment."""

from __future__ import annotations

import msgspec
import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from ..errors import BrainfastError
from .http_body import Bodies, from_base64
from .http_predict import answer
from .requests import OpenSession
from .service import Service

FLOAT = np.dtype("<f4")


class NextRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """trial: number of the choice that is wanted, which makes it safe to ask again."""

    trial: int | None = None
    objective: str | None = None


class TellRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """betas [V], null where nothing was measured; betas_b64: float32, little-endian."""

    trial: int
    betas: list[float | None] | None = None
    betas_b64: str | None = None
    subject: str | None = None


class SkipRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The trial whose measurement is given up."""

    trial: int


def session_router(service: Service, bodies: Bodies) -> APIRouter:
    """Open, ask, tell, skip, look and close.

    None of these is cancelled when its client goes away: what was asked for happens, and is there
    for the client's next try.
    """
    router = APIRouter(prefix="/v1/sessions")

    @router.get("", name="sessions")
    async def names() -> Response:
        return answer({"sessions": service.sessions()})

    @router.put("/{name}", name="open")
    async def open_session(name: str, request: Request) -> Response:
        return answer(await service.open_session(name, await bodies.json(request, OpenSession)))

    @router.get("/{name}", name="session")
    async def state(name: str) -> Response:
        return answer(await service.session(name))

    @router.delete("/{name}", name="close")
    async def close(name: str) -> Response:
        await service.close_session(name)
        return answer({"closed": name})

    @router.post("/{name}/next", name="next")
    async def next_choice(name: str, request: Request) -> Response:
        asked = await bodies.json(request, NextRequest)
        return answer(await service.next(name, asked.trial, objective=asked.objective))

    @router.post("/{name}/tell", name="tell")
    async def tell(name: str, request: Request) -> Response:
        asked = await bodies.json(request, TellRequest)
        betas = await bodies.off_loop(betas_of, asked)
        await service.tell(name, asked.trial, betas, subject=asked.subject)
        return answer({"told": asked.trial})

    @router.post("/{name}/skip", name="skip")
    async def skip(name: str, request: Request) -> Response:
        asked = await bodies.json(request, SkipRequest)
        await service.skip(name, asked.trial)
        return answer({"skipped": asked.trial})

    return router


def betas_of(asked: TellRequest) -> NDArray[np.float32]:  # [V]
    """What was measured, NaN where nothing was."""
    if (asked.betas is None) == (asked.betas_b64 is None):
        got = "neither" if asked.betas is None else "both"
        raise BrainfastError("betas", expected="betas or betas_b64", got=got)
    if asked.betas_b64 is None:
        with np.errstate(over="ignore"):  # the session refuses the infinities
            return np.array(asked.betas, np.float32)  # None becomes NaN
    data = from_base64(asked.betas_b64, "betas_b64")
    if len(data) % FLOAT.itemsize:
        raise BrainfastError(
            "betas_b64", expected="float32 values, 4 bytes each", got=f"{len(data)} bytes"
        )
    return np.frombuffer(data, FLOAT).astype(np.float32)
