"""A client of `brainfast serve` over ZeroMQ, for programs with an event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from . import wire
from .array_frames import Array, as_array, is_array
from .async_session import AsyncSession
from .connection import Connection
from .refusal import Refusal
from .requests import About, OpenSession
from .wire import Candidate, Objective

IMAGE = "a path, an image file's bytes, or uint8 [H,W,3]"

R = TypeVar("R", bound=wire.Reply)


class AsyncClient:
    """Asks a server at ipc:// or tcp://; any number of requests at once, from one event loop.

    timeout_s: of each request that does not tell its own; none waits longer. Refused requests raise
    a `Refusal` with the server's line, its `code` and its `retry_after_s`. While the server is away
    requests wait for it, and what it did not answer is asked again when it is back.
    """

    def __init__(self, address: str, *, token: str | None = None, timeout_s: float = 30.0) -> None:
        self.timeout_s = checked_seconds(timeout_s)
        self.connection = Connection(address, token)

    async def about(self, *, timeout_s: float | None = None) -> About:
        """What the server answers for."""
        request = wire.AskAbout()
        reply, _ = await self._ask(request, wire.ToldAbout, timeout_s=timeout_s)
        return reply.about

    async def predict(
        self,
        images: Any,
        *,
        subjects: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Responses {subject: [B,V]} in z units; the key is "" of a model of one.

        images: paths or contents of image files, uint8 [H,W,3], or what numpy makes these of, as of
        a picture of PIL; one or many. They must stay as they are until the answer is there.
        """
        named = None if subjects is None else as_names("subjects", subjects)
        request = wire.Predict(subjects=named)
        reply, arrays = await self._ask_of(images, request, wire.Predicted, timeout_s=timeout_s)
        if len(arrays) != len(reply.subjects):
            raise _unlike(f"{len(reply.subjects)} arrays", str(len(arrays)))
        return {
            name: _own(array, np.float32)
            for name, array in zip(reply.subjects, arrays, strict=True)
        }

    async def score(
        self,
        images: Any,
        objective: Objective,
        *,
        subject: str | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.float64]:
        """Scores [B,O] of images, which are given as to `predict`."""
        request = wire.Score(objective=objective, subject=subject)
        _, arrays = await self._ask_of(images, request, wire.Scored, timeout_s=timeout_s)
        if len(arrays) != 1:
            raise _unlike("one array", str(len(arrays)))
        return _own(arrays[0], np.float64)

    async def select(
        self,
        objective: Objective,
        k: int = 10,
        *,
        exclude: Sequence[str] = (),
        subject: str | None = None,
        timeout_s: float | None = None,
    ) -> list[list[Candidate]]:
        """The k best candidates of every objective, [O][k]."""
        request = wire.Select(
            objective=objective, k=k, exclude=as_names("exclude", exclude), subject=subject
        )
        reply, _ = await self._ask(request, wire.Selected, timeout_s=timeout_s)
        return reply.candidates

    async def session(
        self,
        name: str,
        objective: Objective | None = None,
        *,
        timeout_s: float | None = None,
        **options: Any,
    ) -> AsyncSession:
        """Begin a session, or go on with one: resume=True. options: see `OpenSession`."""
        try:
            opened = msgspec.convert({"objective": objective, **options}, OpenSession)
        except msgspec.ValidationError as error:
            raise BrainfastError(
                "session", expected="the options of OpenSession", got=str(error)
            ) from None
        session = AsyncSession(self, name, opened)
        await session.open(timeout_s=timeout_s)
        return session

    def seconds(self, timeout_s: float | None) -> float:
        """How long a request waits that was given this time-out."""
        if timeout_s is None:
            return self.timeout_s
        return checked_seconds(timeout_s)

    def close(self) -> None:
        """Give up what is under way."""
        self.connection.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _ask(
        self, request: wire.Request, kind: type[R], *, timeout_s: float | None
    ) -> tuple[R, list[Array]]:
        async with self.connection.within(self.seconds(timeout_s)) as deadline:
            return await self.connection.ask(deadline, request, kind)

    async def _ask_of(
        self, images: Any, request: wire.Request, kind: type[R], *, timeout_s: float | None
    ) -> tuple[R, list[Array]]:
        async with self.connection.within(self.seconds(timeout_s)) as deadline:
            arrays = await read_images(images)
            return await self.connection.ask(deadline, request, kind, arrays)


async def read_images(images: Any) -> list[Array]:
    """Images one by one, as they go over the wire; read and decoded on another thread."""
    parts = images if isinstance(images, list | tuple) else [images]
    if all(isinstance(part, bytes | np.ndarray) for part in parts):
        return as_images(images)  # nothing to read or decode
    return await asyncio.to_thread(as_images, images)


def as_images(images: Any) -> list[Array]:
    """Contents of files, and uint8 [H,W,3], of whatever was given; else a BrainfastError."""
    if isinstance(images, bytes | str | PathLike):
        images = [images]
    elif is_array(images):
        images = as_array("images", images, expected=IMAGE)
        images = images[None] if images.ndim == 3 else images
    try:
        parts = list(images)
    except TypeError:
        got = type(images).__name__
        raise BrainfastError("images", expected="one or many", got=got) from None
    if not parts:
        raise BrainfastError("images", expected="at least one", got="none")
    return [_as_image(part) for part in parts]


def _as_image(image: Any) -> Array:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | PathLike):
        return read_file(Path(image))
    pixels = as_array("image", image, expected=IMAGE)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        got = f"{pixels.dtype} {list(pixels.shape)}"
        raise BrainfastError("image", expected=IMAGE, got=got)
    return pixels


def as_names(name: str, given: Iterable[str]) -> list[str]:
    """Names as a list; one text is none, since its letters would be taken for names."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise BrainfastError(name, expected="a list of names", got=f"{given!r:.80}")
    return list(given)


def read_file(path: Path) -> bytes:
    """An image file as it is."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BrainfastError(
            str(path), expected="an image file", got=error.strerror or str(error)
        ) from error


def checked_seconds(timeout_s: float) -> float:
    """A time-out, which must be finite and above 0."""
    if not 0 < timeout_s < math.inf:
        raise BrainfastError("timeout_s", expected="seconds above 0", got=repr(timeout_s))
    return float(timeout_s)


def _own(array: Array, dtype: type[Any]) -> NDArray[Any]:
    """An aligned copy that does not hold the message."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        raise _unlike(f"an array of {np.dtype(dtype)}", "another one")
    return np.array(array)


def _unlike(expected: str, got: str) -> Refusal:
    return Refusal("internal", "reply", expected=expected, got=got)
