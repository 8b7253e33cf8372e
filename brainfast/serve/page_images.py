"""The pool's own images, for a page: found by their names, known by their bytes."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path, PurePosixPath, PureWindowsPath

from PIL import Image

from ..pool import Pool
from .limits import Limits
from .pictures import decoded
from .refusal import Refusal

SIDES = {"large": 720, "small": 160}  # pixels along the longer side


class PoolImages:
    """Images of a folder that are candidates of a pool, as JPEG.

    A name must be one of the pool's, and the file's bytes those that the pool was built from: no
    other file can be asked for, and no other image is shown under a candidate's name.
    """

    def __init__(self, folder: Path | None, pool: Pool | None, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        items = pool.items if pool is not None else None
        self._digests = dict(zip(items.names, items.digests, strict=True)) if items else {}

    def __contains__(self, name: str) -> bool:
        return name in self._digests

    def jpeg(self, name: str, side: int) -> bytes:
        """The image, no larger than `side` pixels. Raises a BrainfastError."""
        picture = Image.fromarray(decoded([self._read(name)], self._limits)[0])
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        return stream.getvalue()

    def _read(self, name: str) -> bytes:
        if name not in self._digests:
            raise _absent("a candidate of the pool", "another name")
        if self._folder is None:
            raise _absent("a folder of images", "none", "start the server with --images FOLDER")
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or PureWindowsPath(name).drive:
            raise _absent("a name inside the folder of images", "one that leads out of it")
        path = self._folder / parts
        try:
            size = path.stat().st_size if path.is_file() else -1
            data = path.read_bytes() if 0 <= size <= self._limits.request_bytes else b""
        except (OSError, ValueError) as error:  # a NUL byte is a ValueError
            raise _absent("a file that can be read", type(error).__name__) from error
        if not data:
            raise _absent(f"a file in {self._folder.name}", "none of this name")
        if hashlib.sha256(data).hexdigest() != self._digests[name]:
            raise Refusal(
                "conflict",
                "image",
                expected="the bytes that the pool was built from",
                got="a file that differs",
                remedy="give the folder that the pool was built from",
            )
        return data


def _absent(expected: str, got: str, remedy: str | None = None) -> Refusal:
    return Refusal("not_found", "image", expected=expected, got=got, remedy=remedy)
