"""Reads a pickle as inert data: none of its calls runs, and nothing of ours is changed by it."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

MAX_MEMO = 1 << 20
MAX_ENCODED = 64  # characters; a number of numpy has 32 bytes at most

Call: TypeAlias = Callable[..., Any]

# What plain values and calls need in protocols 0 to 5; no extension registry, no new objects.
OPCODE_NAMES = """
PROTO FRAME STOP MARK POP POP_MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
GLOBAL STACK_GLOBAL REDUCE BUILD NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1
UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES
STRING BINSTRING SHORT_BINSTRING TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3
LIST EMPTY_LIST APPEND APPENDS DICT EMPTY_DICT SETITEM SETITEMS FLOAT BINFLOAT
"""
OPCODES = frozenset(OPCODE_NAMES.split())
PERSISTENT = frozenset({"PERSID", "BINPERSID"})


class Opaque:
    """Stands for a value that nobody needs: it takes any parts and any state, and keeps none."""

    __slots__ = ()

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Global:
    """Stands for a function or class that a pickle names: it can be called, and not changed.

    Without it the opcode BUILD would set attributes, such as `__defaults__`, of our function.
    """

    __slots__ = ("_call", "name")

    def __init__(self, name: str, call: Call) -> None:
        self.name, self._call = name, call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"a change of {self.name!r}")


def load_inert(
    data: bytes,
    calls: Mapping[tuple[str, str], Call],
    persistent: Call | None = None,
) -> Any:
    """The value that a pickle describes, where `calls` answers for the globals that it may name.

    calls: (module, name) -> what runs in place of it, with whatever arguments the file holds.
        What it returns must have `__setstate__` or no attributes to set, and must be small: a
        pickle can repeat a call in a few bytes
    persistent: answers for persistent ids; without it there may be none

    Raises pickle.UnpicklingError for another global or opcode, and nearly anything for a pickle
    that is malformed.
    """
    allowed = OPCODES if persistent is None else OPCODES | PERSISTENT
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in allowed:
            raise pickle.UnpicklingError(f"pickle opcode {opcode.name}")
        if "PUT" in opcode.name and not 0 <= int(argument or 0) <= MAX_MEMO:
            raise pickle.UnpicklingError(f"pickle memo {argument}")
    return _Unpickler(data, calls, persistent).load()


def decode_bytes(text: str, encoding: str) -> bytes:
    """What `_codecs.encode` does in pickles of protocol 2: it is how they spell bytes.

    A few only, since a pickle can ask again and again for the same text in two bytes.
    """
    if encoding != "latin1" or len(text) > MAX_ENCODED:
        raise pickle.UnpicklingError(f"{len(text)} characters in encoding {encoding!r}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, data: bytes, calls: Mapping[tuple[str, str], Call], persistent: Call | None
    ) -> None:
        super().__init__(io.BytesIO(data))
        self._calls, self._persistent = calls, persistent

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if (module, name) not in self._calls:
            raise pickle.UnpicklingError(f"a call of {full!r}")
        return Global(full, self._calls[module, name])

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("a persistent id")
        return self._persistent(pid)
