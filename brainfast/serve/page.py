"""The page beside the scanner: the image chosen, the predicted cortex and latencies, live."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import msgspec
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from .board import Board
from .http_predict import BINARY, JSON
from .page_images import SIDES, PoolImages
from .refusal import Refusal, draining, refusal_of
from .service import Service

if TYPE_CHECKING:
    from .page_maps import PageMap

T = TypeVar("T")

SCRIPTS = (
    *("page.js", "cortex.js", "film.js", "net.js"),
    *("plots.js", "response_map.js", "stream.js"),
)
FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    **dict.fromkeys(SCRIPTS, "text/javascript; charset=utf-8"),
    "icon.svg": "image/svg+xml",
}
# The page takes everything from this server, holds no inline script or style, and is in no frame.
SAFE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
WAITING = 64  # requests for a picture or a map
KEPT = 64  # pictures and maps in memory
LONGEST_NAME = 1024

Name = Annotated[str, Query(max_length=LONGEST_NAME)]


def page_router(service: Service, images: Path | None = None) -> APIRouter:
    """`/` and what it needs: `/page/...`, `/events`, `/v1/flat...` and `/v1/picture`.

    images: the folder that the pool was built from; without it the page shows names.
    """
    page = LivePage(service, images)
    router = APIRouter(lifespan=page.lifespan)
    answers: dict[str, Callable[..., Any]] = {
        "/": page.index,
        "/page/{name}": page.file,
        "/events": page.events,
        "/v1/flat": page.flat,
        "/v1/flat/raster": page.raster,
        "/v1/flat/response": page.response,
        "/v1/picture": page.picture,
    }
    for path, answer in answers.items():
        router.add_api_route(path, answer, methods=["GET"], response_class=Response)
    return router


class MadeMap(NamedTuple):
    """A map, and its parts as they go over the wire: zipping them takes too long for the loop."""

    drawn: PageMap
    zipped: dict[str, bytes]


class LivePage:
    """Answers the page's requests. Responses and pictures are computed on one thread of their own,
    one at a time: however many pages watch, sessions meet with one more thread and no more."""

    def __init__(self, service: Service, images: Path | None) -> None:
        self._service = service
        self._board = Board(service)
        self._images = PoolImages(images, service.pool, service.limits)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="brainfast-page")
        self._drawing = ThreadPoolExecutor(1, thread_name_prefix="brainfast-map")
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._wanted: dict[str, str] = {}
        self._map: asyncio.Future[MadeMap] | None = None
        self._jpeg = lru_cache(KEPT)(self._images.jpeg)
        self._values = lru_cache(KEPT)(_packed)

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """The map is made as the server starts: later it would take the processor from sessions."""
        self._start()
        yield
        await self._board.stop()
        self._end_map()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> asyncio.Future[MadeMap]:
        if self._map is not None:
            return self._map
        following, loop = self._board.start(), asyncio.get_running_loop()

        def hand_over(made: Future[MadeMap]) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(self._settle, made)

        self._map = loop.create_future()
        following.add_done_callback(lambda _: self._end_map())
        self._drawing.submit(_make_map, self._service.pool).add_done_callback(hand_over)
        return self._map

    def _settle(self, made: Future[MadeMap]) -> None:
        if self._map is None or self._map.done():
            return
        error = made.exception()
        if error is None:
            self._map.set_result(made.result())
        else:
            self._map.set_exception(error)

    def _end_map(self) -> None:
        """The service ends: nobody waits any longer for a map that is not there yet."""
        if self._map is not None and not self._map.done():
            self._map.set_exception(draining())
            self._map.exception()  # or asyncio would complain where nobody waited
        self._drawing.shutdown(wait=False, cancel_futures=True)

    async def index(self) -> Response:
        """The page."""
        return await self.file("index.html")

    async def file(self, name: str) -> Response:
        """One of the page's own files."""
        if name not in FILES:
            return _refused(
                Refusal("not_found", "file", expected=", ".join(FILES), got="another name")
            )
        return Response(_asset(name), media_type=FILES[name], headers=SAFE)

    async def events(
        self,
        last: Annotated[str, Query(max_length=64)] = "",
        last_event_id: Annotated[str, Header(max_length=64)] = "",
    ) -> Response:
        """Server-sent events; the browser's Last-Event-ID counts before `last`."""
        self._start()
        try:
            stream = self._board.stream(last_event_id or last)
        except Refusal as refusal:
            return _refused(refusal)
        headers = {**SAFE, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    async def flat(self, request: Request) -> Response:
        """JSON: what is drawn of a response, see `page_maps.PageMap`."""
        return await self._of_map(request, "about", JSON)

    async def raster(self, request: Request) -> Response:
        """The flat map's pixels, see `flat_raster.FlatSide.pack`; the hemispheres in order."""
        return await self._of_map(request, "raster", BINARY)

    async def response(self, image: Name, viewer: Name = "") -> Response:
        """The predicted response to a candidate, float32 little-endian [V], or [R] of bars.

        viewer: of two requests of one viewer for different images the older one is not computed
        any more, and answered with 204. Sessions go first: only what is looked at is computed.
        """
        if image not in self._images:
            return _refused(
                Refusal("not_found", "image", expected="a candidate", got="another name")
            )
        if len(self._wanted) >= WAITING:
            self._wanted.clear()
        self._wanted[viewer] = image
        try:
            drawn = (await asyncio.shield(self._start())).drawn
            if drawn.values is None:
                got = json.loads(drawn.about)["note"]
                raise Refusal("not_found", "map", expected="a pool with its engine", got=got)
            found = await self._in_turn(
                lambda: self._values(drawn, image), lambda: self._wanted.get(viewer, image) == image
            )
        except Exception as error:
            return _refused(refusal_of(error))
        if found is None:
            return Response(status_code=204, headers=SAFE)
        return Response(found, media_type=BINARY, headers=SAFE)

    async def picture(self, image: Name, size: Annotated[str, Query()] = "large") -> Response:
        """A candidate as JPEG, size "large" or "small"."""
        try:
            if size not in SIDES:
                raise Refusal("invalid", "size", expected=", ".join(SIDES), got="another")
            found = await self._in_turn(lambda: self._jpeg(image, SIDES[size]))
        except Exception as error:
            return _refused(refusal_of(error))
        return Response(found, media_type="image/jpeg", headers=SAFE)

    async def _of_map(self, request: Request, part: str, kind: str) -> Response:
        try:
            made = await asyncio.shield(self._start())
        except Exception as error:
            return _refused(refusal_of(error))
        body: bytes = getattr(made.drawn, part)
        headers = {**SAFE, "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["Content-Encoding"] = made.zipped[part], "gzip"
        return Response(body, media_type=kind, headers=headers)

    async def _in_turn(
        self, call: Callable[[], T], wanted: Callable[[], bool] = lambda: True
    ) -> T | None:
        """The call's result; None where nobody wants it any more when its turn comes."""
        if self._waiting >= WAITING:
            raise Refusal(
                "busy",
                "page",
                expected=f"at most {WAITING} requests",
                got="one more",
                retry_after_s=1.0,
            )
        self._waiting += 1
        try:
            async with self._turn:
                if not wanted():
                    return None
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._thread, call)
        finally:
            self._waiting -= 1


def _make_map(pool: Any) -> MadeMap:
    from .page_maps import page_map  # and with it matplotlib and the meshes, which take seconds

    drawn = page_map(pool)
    parts = {"about": drawn.about, "raster": drawn.raster}
    return MadeMap(drawn, {name: gzip.compress(part, 6) for name, part in parts.items()})


def _packed(drawn: PageMap, image: str) -> bytes:
    assert drawn.values is not None
    return drawn.values(image).astype("<f4").tobytes()


@lru_cache
def _asset(name: str) -> bytes:
    return files("brainfast.serve").joinpath("page", name).read_bytes()


def _refused(refusal: Refusal) -> Response:
    headers = dict(SAFE)
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = f"{refusal.retry_after_s:.0f}"
    body = msgspec.json.encode(refusal.reply())
    return Response(body, refusal.status, headers, media_type=JSON)
