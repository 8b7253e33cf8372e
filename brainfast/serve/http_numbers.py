"""Many numbers to and from JSON, a piece at a time.

Each piece holds the interpreter for less than a millisecond, so that a thread which writes ten
million numbers never keeps the event loop from an experiment's next image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError

PIECE = 8192  # numbers
TEXT_PIECE = 1 << 15  # characters


def json_numbers(
    values: NDArray[Any],  # [n]
) -> bytes:
    """[1.5,-0.25,...] in JSON; what is not finite is null."""
    pieces = (
        msgspec.json.encode(values[first : first + PIECE].tolist())[1:-1]
        for first in range(0, len(values), PIECE)
    )
    return b"[" + b",".join(pieces) + b"]"


def json_rows(
    values: NDArray[Any],  # [B,n]
) -> bytes:
    """[[...],[...]] in JSON, a row an image."""
    return b"[" + b",".join(json_numbers(row) for row in values) + b"]"


def read_bytes_u8(text: bytes, name: str) -> NDArray[np.uint8]:  # [n]
    """Whole numbers from 0 to 255 in valid JSON, in lists of any depth, row by row."""
    parts = [np.zeros(0, np.uint8)]
    for piece in _pieces(text):
        numbers = piece.translate(None, b"[] \t\r\n")
        if numbers.translate(None, b"0123456789,") or b",," in b"," + numbers + b",":
            raise _not_bytes(name, "something else")
        found = np.fromstring(numbers, np.int64, sep=",")
        if found.max() > 255:
            raise _not_bytes(name, "a larger one")
        parts.append(found.astype(np.uint8))
    return np.concatenate(parts)


def _pieces(text: bytes) -> Iterator[bytes]:
    """The text, cut at commas."""
    start = 0
    while start < len(text):
        end = text.find(b",", start + TEXT_PIECE)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def _not_bytes(name: str, got: str) -> BrainfastError:
    return BrainfastError(name, expected="whole numbers from 0 to 255", got=got)
