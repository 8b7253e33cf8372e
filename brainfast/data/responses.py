"""Measured responses that stay on disk until rows of them are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import BrainfastError

Floats: TypeAlias = npt.NDArray[np.float32]
Indices: TypeAlias = npt.NDArray[np.int64]

PROBE_ROWS = 64  # rows read when a file is opened, enough to meet a bad scanning session
CHUNK_BYTES = 64 << 20


class Responses:
    """Responses float32 [n,V] in z units, kept as parts of columns (hemispheres), read by row.

    `responses[3]` is [V]; a slice, index array or mask gives [B,V]. Rows that hold NaN or
    infinity are a BrainfastError on reading; `check` looks at all of them. With `allow_nan`, NaN
    is a vertex that was not measured in that trial and is handed on.
    """

    def __init__(
        self,
        parts: Sequence[npt.NDArray[Any]],  # each [N,V_part]
        rows: Indices | None = None,  # [n]
        name: str = "responses",
        allow_nan: bool = False,
    ) -> None:
        self._parts = tuple(parts)
        self._rows = np.arange(len(parts[0]), dtype=np.int64) if rows is None else rows
        self._name = name
        self._allow_nan = allow_nan

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, V)."""
        return len(self), sum(part.shape[1] for part in self._parts)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Always float32, whatever the file has."""
        return np.dtype(np.float32)

    def rows(self, rows: Indices) -> Responses:
        """The same responses for some of the images, still unread."""
        return Responses(self._parts, self._rows[rows], self._name, self._allow_nan)

    def __getitem__(self, images: int | slice | Sequence[int] | npt.NDArray[Any]) -> Floats:
        chosen = self._rows[images]
        block = self._read(np.atleast_1d(chosen))
        return block[0] if np.ndim(chosen) == 0 else block

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("responses are read from disk, which always copies")
        return self[:].astype(dtype or np.float32, copy=False)

    def check(self) -> None:
        """Read everything once, in chunks; NaN or infinity anywhere is a BrainfastError."""
        step = max(1, CHUNK_BYTES // max(1, 4 * self.shape[1]))
        bad = np.zeros(self.shape[1], dtype=bool)
        for start in range(0, len(self), step):
            bad |= self._holes(self._raw(self._rows[start : start + step]))
        self._refuse(bad)

    def hash(self) -> str:
        """SHA-256 over the shape and every value; reads everything, and checks it, in chunks."""
        digest = hashlib.sha256(str(self.shape).encode())
        step = max(1, CHUNK_BYTES // max(1, 4 * self.shape[1]))
        for start in range(0, len(self), step):
            digest.update(self._read(self._rows[start : start + step]).tobytes())
        return digest.hexdigest()

    def probe(self) -> None:
        """Check a few rows from all over, which costs nothing and meets most bad files."""
        spread = np.linspace(0, len(self) - 1, min(PROBE_ROWS, len(self))).astype(np.int64)
        self._read(self._rows[spread])

    def _raw(self, rows: Indices) -> Floats:
        return np.concatenate([part[rows] for part in self._parts], axis=1, dtype=np.float32)

    def _read(self, rows: Indices) -> Floats:
        block = self._raw(rows)
        self._refuse(self._holes(block))
        return block

    def _holes(self, block: Floats) -> npt.NDArray[np.bool_]:
        """Which columns hold a value that will not do."""
        bad = np.isinf(block) if self._allow_nan else ~np.isfinite(block)
        return np.asarray(bad.any(axis=0))

    def _refuse(self, bad: npt.NDArray[np.bool_]) -> None:
        if bad.any():
            kind = "infinity" if self._allow_nan else "NaN or infinity"
            raise BrainfastError(
                self._name,
                expected="finite responses",
                got=f"{kind} in {bad.sum()} of {bad.size} vertices",
                remedy="leave these vertices out of the masks, or the trials out of the files",
            )


def open_array(path: Path, ndim: int, kinds: str, expected: str) -> npt.NDArray[Any]:
    """A .npy file as a read-only memory map, checked for what it holds.

    kinds: numpy's dtype kinds that will do, such as "f" or "iub"
    """
    if not path.is_file():
        raise BrainfastError(
            str(path), expected=expected, got="no such file", remedy="download it again"
        )
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BrainfastError(
            str(path),
            expected=expected,
            got=f"a file that cannot be read ({error})",
            remedy="download it again",
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != ndim or array.dtype.kind not in kinds:
        got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an npz"
        raise BrainfastError(str(path), expected=expected, got=got)
    return array
