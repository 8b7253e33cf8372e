"""How much a server takes on: all of its bounds in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import BrainfastError


@dataclass(frozen=True)
class Limits:
    """Bounds of one server; every wait and every queue has one.

    Requests that wait hold their decoded images: 4 times `pixels` times 3 bytes at most.

    images: of one request, and of one batch; request_bytes: of its body; pixels: of all its images
    together; objectives: of one request; top: candidates of one selection, of all its objectives.
    waiting: requests for the engine, or the pool, that wait for their turn; session_waiting: calls
    of one session that do; sessions: open at once; subscribers: of the events.
    timeout_s: how long a request waits for its answer, and the most that it may ask for; stall_s:
    how long a batch may take before new requests are refused; drain_s: how long an ending server
    goes on with what it has accepted.
    """

    images: int = 32
    request_bytes: int = 64 << 20
    pixels: int = 50_000_000
    objectives: int = 64
    top: int = 1000
    waiting: int = 64
    session_waiting: int = 16
    sessions: int = 16
    subscribers: int = 32
    timeout_s: float = 30.0
    stall_s: float = 10.0
    drain_s: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            given = getattr(self, field.name)
            whole = field.type == "int"
            numeric = isinstance(given, int if whole else int | float)
            if isinstance(given, bool) or not numeric or not 0 < given < float("inf"):
                raise BrainfastError(
                    field.name,
                    expected="a whole number above 0" if whole else "seconds above 0",
                    got=repr(given),
                )
