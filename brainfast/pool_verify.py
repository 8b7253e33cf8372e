"""What is wrong with a pool: its bytes, its numbers, and the images that it was built from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .files import hash_file
from .pool_file import DATA_FILE, ITEMS_FILE, changed_since, images_hash, read_index
from .pool_source import Item, digests

if TYPE_CHECKING:
    from .pool import Pool


def problems_of(pool: Pool, sources: Sequence[Item] | None, progress: bool) -> list[str]:
    """A line each, see `Pool.verify`."""
    problems, items = [], pool.items
    if read_index(pool.path) != pool.index:
        raise changed_since(pool.path)
    if hash_file(pool.path / DATA_FILE) != pool.index.data_hash:
        problems.append(f"{DATA_FILE}: bytes that were not written by the build")
    if images_hash(items.digests) != pool.index.key.images_hash:
        problems.append(f"{ITEMS_FILE}: images whose hashes differ from those of the key")
    for block in pool.rows.blocks(len(items.names)):
        bad = np.flatnonzero(~pool.rows.finite(block))
        names = [items.names[block.start + int(row)] for row in bad]
        problems += [f"{name}: features that are not finite" for name in names]
    return problems if sources is None else problems + _compare(pool, sources, progress)


def _compare(pool: Pool, sources: Sequence[Item], progress: bool) -> list[str]:
    found = dict(zip((item.name for item in sources), digests(sources, progress), strict=True))
    every = dict(zip(pool.items.names, pool.items.digests, strict=True))
    kept = {name: every[name] for name in pool.names}
    missing = [f"{name}: not in the source" for name in kept if name not in found]
    changed = [f"{n}: other bytes" for n, old in kept.items() if found.get(n, old) != old]
    return missing + changed + [f"{n}: not in the pool" for n in found if n not in every]
