"""Images as requests bring them: checked before they are decoded."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from ..images import CHANNEL_COUNTS, as_images
from .lane import BUSY_RETRY_S
from .limits import Limits
from .refusal import Refusal

Pixels: TypeAlias = NDArray[np.uint8]
Image: TypeAlias = bytes | memoryview | Pixels
Decoded: TypeAlias = Pixels | Pillow.Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


class Room:
    """So many pixels may be held at once by the images of all requests together."""

    def __init__(self, pixels: int) -> None:
        self._most, self._taken, self._lock = pixels, 0, threading.Lock()
        self._returned: deque[int] = deque()

    def take(self, pixels: int) -> None:
        """Room for these; where there is too little of it, a Refusal."""
        with self._lock:
            while self._returned:
                self._taken -= self._returned.popleft()
            if self._taken + pixels > self._most:
                raise Refusal(
                    "busy",
                    "images",
                    expected=f"at most {self._most} pixels in all requests that wait",
                    got=str(self._taken + pixels),
                    remedy="ask again a little later",
                    retry_after_s=BUSY_RETRY_S,
                )
            self._taken += pixels

    def give_back(self, pixels: int) -> None:
        """From any thread, and without the lock: a garbage collection may do so inside `take`."""
        self._returned.append(pixels)


class Share:
    """What one request takes of a room; given back once."""

    def __init__(self, room: Room) -> None:
        self._room, self._pixels = room, 0

    def take(self, pixels: int) -> None:
        """So much, once."""
        self._room.take(pixels)
        self._pixels = pixels

    def release(self) -> None:
        """Give it back."""
        pixels, self._pixels = self._pixels, 0
        if pixels:
            self._room.give_back(pixels)


def _nothing(pixels: int) -> None:
    pass


def check_count(images: Any, limits: Limits) -> None:
    """Refuse what is no sequence, none at all, too many, and too many bytes."""
    if isinstance(images, bytes | str) or not isinstance(images, Sequence | np.ndarray):
        raise _invalid("images", "a list of files or of uint8 [H,W,3]", type(images).__name__)
    if len(images) == 0:
        raise _invalid("images", "at least one image", "none")
    if len(images) > limits.images:
        raise Refusal(
            "too_large",
            "images",
            expected=f"at most {limits.images} in a request",
            got=str(len(images)),
            remedy="ask for a part of them at a time",
        )
    size = sum(_bytes(image) for image in images)
    if size > limits.request_bytes:
        raise Refusal(
            "too_large",
            "images",
            expected=f"at most {limits.request_bytes} bytes in a request",
            got=str(size),
            remedy="ask for a part of them at a time, or scale them down",
        )


def decoded(
    images: Sequence[Image], limits: Limits, take: Callable[[int], None] = _nothing
) -> list[Decoded]:
    """Files and arrays as an engine takes them, by the rules of `brainfast.images.as_images`.

    All headers are looked at before the first file is decoded: `limits.pixels` counts them
    together, and `take` is called with their sum, which it may refuse. What is no image, or of a
    kind that is not read here, is a Refusal that says which one: `images[3]`.
    """
    opened = [_open(image, f"images[{index}]") for index, image in enumerate(images)]
    pixels = 0
    for index, image in enumerate(opened):
        width, height = image.size if isinstance(image, Pillow.Image) else image.shape[1::-1]
        pixels += width * height
        if pixels > limits.pixels:
            raise Refusal(
                "too_large",
                f"images[{index}]",
                expected=f"at most {limits.pixels} pixels in all images of a request",
                got=f"{width} x {height}" + (f", {pixels} in all" if index else ""),
                remedy="scale them down first: the model reads far fewer",
            )
    take(pixels)
    return [_plain(image) for image in as_images([_plain(image) for image in opened])]


def _plain(image: Decoded) -> Decoded:
    """The same image, so that nobody takes its height for channels."""
    tall = isinstance(image, np.ndarray) and image.shape[0] not in CHANNEL_COUNTS
    return image if tall or isinstance(image, Pillow.Image) else Pillow.fromarray(image)


def _bytes(image: Any) -> int:
    """How much an image takes as it came; 0 of what is none and is refused when it is opened."""
    return int(getattr(image, "nbytes", 0)) or (len(image) if isinstance(image, bytes) else 0)


def _open(image: Any, name: str) -> Decoded:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise _invalid(name, "uint8 [H,W,3]", f"{image.dtype} {list(image.shape)}")
        return image
    if not isinstance(image, bytes | memoryview):
        raise _invalid(name, "an image file or uint8 [H,W,3]", type(image).__name__)
    try:
        return Pillow.open(BytesIO(image), formats=FORMATS)
    except Pillow.DecompressionBombError as error:
        raise Refusal("too_large", name, expected="fewer pixels", got=str(error)) from error
    except Exception as error:  # readers of hostile bytes raise nearly anything
        got = f"{len(image)} bytes that are none" if image else "no bytes"
        raise _invalid(name, f"an image file ({', '.join(FORMATS)})", got) from error


def _invalid(name: str, expected: str, got: str) -> Refusal:
    return Refusal("invalid", name, expected=expected, got=got)
