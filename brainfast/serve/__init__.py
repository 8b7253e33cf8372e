"""`brainfast serve`: one engine, one pool and their sessions, for several programs at once.

Needs the extra: pip install 'brainfast[serve]'. Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import AsyncClient, Client
    from .limits import Limits
    from .refusal import Refusal
    from .requests import OpenSession, SessionState
    from .service import Service

__all__ = [
    "AsyncClient",
    "Client",
    "Limits",
    "OpenSession",
    "Refusal",
    "Service",
    "SessionState",
]

_HOME = {
    "AsyncClient": "client",
    "Client": "client",
    "Limits": "limits",
    "OpenSession": "requests",
    "Refusal": "refusal",
    "Service": "service",
    "SessionState": "requests",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
