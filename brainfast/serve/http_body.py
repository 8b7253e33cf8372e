"""Bodies of HTTP requests: read within bounds, and what they hold."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from email.parser import BytesHeaderParser
from typing import Any, NamedTuple, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from ..errors import BrainfastError
from .limits import Limits
from .refusal import Refusal, draining

T = TypeVar("T")

JSON_BYTES = 4 << 20  # the most JSON of a request: reading it holds the interpreter
HELD = 4  # bodies of the largest size that are in memory at once
SMALL = 1 << 16  # bytes that are decoded sooner than a thread is asked to
THREADS = 2
IN_THE_JSON = "put its options into the JSON"
PARTS = 4096  # of a multipart body


class Part(NamedTuple):
    """One part of a multipart body; filename: None where it is a field."""

    name: str
    filename: str | None
    data: bytes


class Bodies:
    """Reads bodies, each and all together within bounds, and works on them off the loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._held, self._closed = limits, 0, False
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="http-body")

    def close(self) -> None:
        """End the threads when they have done what was begun: answers may be among it."""
        self._closed = True
        self._threads.shutdown(wait=False)

    async def off_loop(self, work: Callable[..., T], *arguments: Any) -> T:
        """What `work` returns, from a thread; once closed a Refusal."""
        if self._closed:
            raise draining()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)

    @asynccontextmanager
    async def read(self, request: Request, most: int | None = None) -> AsyncIterator[bytearray]:
        """The whole body, whose memory counts until the block ends.

        A body that is too large is refused as soon as that is known, one that does not arrive is
        "timed_out", and more of them than fit into memory are "busy".
        """
        most = self._limits.request_bytes if most is None else most
        check_length(request.headers.get("content-length"), most)
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise BrainfastError(
                "Content-Encoding",
                expected="none",
                got=request.headers["content-encoding"],
                remedy="send the body as it is",
            )
        body = bytearray()
        try:
            await self._fill(body, request, most)
            yield body
        finally:
            self._held -= len(body)

    async def json(self, request: Request, kind: type[T]) -> T:
        """The body as `kind`; an empty one is {}.

        Options in a query would be lost, and are refused.
        """
        if request.url.query:
            raise BrainfastError(
                "query", expected="none beside JSON", got=request.url.query, remedy=IN_THE_JSON
            )
        async with self.read(request, JSON_BYTES) as body:
            if len(body) <= SMALL:
                return msgspec.json.decode(body or b"{}", type=kind)
            return await self.off_loop(_decode, body, kind)

    async def _fill(self, body: bytearray, request: Request, most: int) -> None:
        seconds = self._limits.timeout_s
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > most:
                        raise too_large(f"more than {most} bytes", most)
                    if self._held + len(chunk) > HELD * self._limits.request_bytes:
                        raise _out_of_memory()
                    self._held += len(chunk)
                    body += chunk
        except TimeoutError as error:
            raise Refusal(
                "timed_out",
                "body",
                expected=f"all of it within {seconds:g} s",
                got=f"{len(body)} bytes",
                remedy="try again",
            ) from error


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away.

    The body must have been read.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def check_length(length: str | None, most: int) -> None:
    """Refuse a body that says beforehand that it is too large."""
    if length is not None and length.isdecimal() and int(length) > most:
        raise too_large(f"{length} bytes", most)


def too_large(got: str, most: int) -> Refusal:
    """The refusal of a body above `most` bytes."""
    return Refusal(
        "too_large",
        "body",
        expected=f"at most {most} bytes",
        got=got,
        remedy="send fewer or smaller images, in binary",
    )


def multipart(body: bytes | bytearray, boundary: str) -> list[Part]:
    """The parts of a multipart/form-data body (RFC 7578), in their order."""
    mark = b"--" + boundary.encode("latin-1")
    pieces = (b"\r\n" + body).split(b"\r\n" + mark, PARTS + 1)
    if not boundary or len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise BrainfastError(
            "body", expected="whole multipart/form-data", got="no parts, or no end of them"
        )
    return [_part(piece) for piece in pieces[1:-1]]


def from_base64(text: str, name: str) -> bytes:
    """The bytes of a base64 text."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise BrainfastError(name, expected="base64", got=str(error)) from error


def _part(piece: bytes) -> Part:
    head, blank, data = piece.partition(b"\r\n\r\n")
    about = BytesHeaderParser().parsebytes(head.lstrip(b"\r\n"))
    name = about.get_param("name", header="content-disposition")
    if not blank or not isinstance(name, str):
        raise BrainfastError("part", expected="a name and its data", got="neither")
    return Part(name, about.get_filename(), data)


def _decode(body: bytearray, kind: type[T]) -> T:
    return msgspec.json.decode(body, type=kind)


def _out_of_memory() -> Refusal:
    return Refusal(
        "busy",
        "bodies",
        expected="memory for all that arrive",
        got="too many at once",
        remedy="try again",
        retry_after_s=1.0,
    )
