"""A pool's features times a matrix, in float64, of which little is ever held."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from ..machine import usable_cores
from .candidates import Pieces

Floats = NDArray[np.float64]

ROWS, COLUMNS = 256, 1024  # of a block in float64, 2 MB, which stay in a cache
TILE = 16  # rows and columns that BLAS takes together, or a multiple of them
AT_ONCE = 1 << 22  # features that a thread goes through before it asks for more
MOST_THREADS = 8
_BLAS = threading.Lock()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """OpenBLAS, which numpy and scipy bring along, stays on the thread that calls it.

    Then the bits do not depend on how many cores there are, several threads multiply at once, and
    a busy machine costs no more than its share: OpenBLAS' own threads wait for the slowest of them
    after every block. Whoever comes second waits, so that the setting is put back.
    """
    with _BLAS, ThreadpoolController().select(internal_api="openblas").limit(limits=1):
        yield


def block_rows(count: int) -> int:
    """Rows of a block where so many are multiplied at a time: two blocks, or one of few rows."""
    return min(ROWS, _tiled(-(-count // 2)))


def multiplied(
    features: Pieces,  # [N,F]
    matrix: Floats,  # [F,C]
    rows: int,
    out: Floats,  # [N,C]
) -> None:
    """out = features @ matrix: float64 products of float32 features, and their float64 sums.

    rows: of a block, see `block_rows`. BLAS is only given blocks of one shape, of whole tiles, so
    that equal candidates have equal products to the last bit, wherever they stand.
    """
    (N, C), F = out.shape, len(matrix)
    tiled = np.zeros((F, _tiled(C)))
    tiled[:, :C] = matrix
    step = rows * max(1, AT_ONCE // (rows * F))

    def multiply(first: int) -> None:
        wide, total = np.zeros((rows, min(COLUMNS, F))), np.empty((rows, tiled.shape[1]))
        part = np.empty_like(total)
        for start in range(first, min(first + step, N), rows):
            here = slice(start, min(start + rows, N))
            total[:] = 0.0
            for begin in range(0, F, COLUMNS):
                columns = slice(begin, min(begin + COLUMNS, F))
                block = wide[:, : columns.stop - begin]
                block[: here.stop - start] = features[here, columns]
                total += np.matmul(block, tiled[columns], out=part)
            out[here] = total[: here.stop - start, :C]

    def quietly(first: int) -> None:
        with np.errstate(invalid="ignore"):  # which every thread has for itself
            multiply(first)

    threads = min(MOST_THREADS, usable_cores())
    with one_blas_thread(), ThreadPoolExecutor(threads, thread_name_prefix="multiply") as pool:
        for _ in pool.map(quietly, range(0, N, step)):
            pass  # an error of a thread is raised here


def _tiled(count: int) -> int:
    return -(-count // TILE) * TILE
