"""What happens in a server, as it happens: for pages that watch."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Literal, TypeAlias
from weakref import WeakSet

import msgspec

from ..loop.ranking import Source
from .refusal import Refusal

KEPT = 100  # events that a page which opens later still gets
BEHIND = 256  # events that a subscriber may be behind before it loses the oldest

State: TypeAlias = Literal["starting", "ready", "stalled", "draining", "closed"]


class ChoiceEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="choice"):
    """An image was chosen; wall_s: seconds since 1970, as in every event."""

    session: str
    trial: int
    image: str
    objective: str
    score: float | None
    uncertainty: float | None
    ties: int
    source: Source
    late: bool
    latency_ms: float
    wall_s: float


class TellEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="tell"):
    """A trial was measured; response: of its objective, where it is known."""

    session: str
    trial: int
    image: str
    response: float | None
    wall_s: float


class SkipEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="skip"):
    """A trial was given up."""

    session: str
    trial: int
    image: str
    wall_s: float


class SessionEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="session"):
    """A session was opened or closed."""

    session: str
    what: Literal["opened", "closed"]
    wall_s: float


class PredictEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="predict"):
    """B images were answered; latency_ms: from the request to its answer."""

    B: int
    latency_ms: float
    wall_s: float


class StateEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="state"):
    """The server is in another state."""

    state: State
    wall_s: float


Event: TypeAlias = ChoiceEvent | TellEvent | SkipEvent | SessionEvent | PredictEvent | StateEvent


class Subscription:
    """The events from now on, in order, as an asynchronous iterator that ends with the server.

    lost: how many it never got, because it was more than `BEHIND` behind.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._waiting: deque[Event] = deque()
        self._news = asyncio.Event()
        self._ended = False

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    def close(self) -> None:
        """No further events; those that wait may still be read."""
        self._ended = True
        self._news.set()

    def put(self, event: Event) -> None:
        """Add an event, and drop the oldest where too many wait."""
        if self._ended:
            return
        if len(self._waiting) == BEHIND:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append(event)
        self._news.set()


class Events:
    """Hands every event to all who subscribed; used on the loop's thread alone.

    A subscriber that does not read loses its oldest events and holds nobody up.
    """

    def __init__(self, subscribers: int = 32) -> None:
        self._latest: deque[Event] = deque(maxlen=KEPT)
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._most, self._ended = subscribers, False

    @property
    def latest(self) -> tuple[Event, ...]:
        """The last hundred, oldest first."""
        return tuple(self._latest)

    def publish(self, event: Event) -> None:
        """Tell all subscribers; returns at once."""
        self._latest.append(event)
        for subscription in tuple(self._subscriptions):
            subscription.put(event)

    def subscribe(self) -> Subscription:
        """The events from now on; close it, or drop it, when nobody reads it any more."""
        if len(self._subscriptions) >= self._most:
            raise Refusal(
                "busy",
                "events",
                expected=f"at most {self._most} who watch",
                got="one more",
                remedy="close a page",
                retry_after_s=5.0,
            )
        subscription = Subscription()
        if self._ended:
            subscription.close()
        else:
            self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription and give its place back."""
        subscription.close()
        self._subscriptions.discard(subscription)

    def close(self) -> None:
        """End every subscription, once what waits was read."""
        self._ended = True
        for subscription in tuple(self._subscriptions):
            self.unsubscribe(subscription)
