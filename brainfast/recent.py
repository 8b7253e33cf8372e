"""Values that were asked for last, up to so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Keeps values by key, and forgets the one that was asked for longest ago. From any thread."""

    def __init__(self, bytes_of: Callable[[T], int]) -> None:
        self._bytes_of = bytes_of
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> T | None:
        """The value of a key, which counts as asked for; None where it is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: Hashable, value: T, most_bytes: int) -> None:
        """Keep a value too, and forget others, or in the end it, until all fit."""
        with self._lock:
            self._kept[key] = value
            while sum(map(self._bytes_of, self._kept.values())) > most_bytes:
                self._kept.popitem(last=False)

    def __len__(self) -> int:
        return len(self._kept)
