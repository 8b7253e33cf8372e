"""Events: in order, to all, and never in the way."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import msgspec
import pytest

from brainfast.serve.events import BEHIND, KEPT, Event, Events, StateEvent
from brainfast.serve.refusal import Refusal
from serve_world import on_loop


def state(number: int) -> StateEvent:
    """Events that can be told apart."""
    return StateEvent("ready", float(number))


async def read(subscription: Any, count: int) -> list[float]:
    """When the next events happened."""
    return [(await anext(subscription)).wall_s for _ in range(count)]


@on_loop
async def test_all_who_subscribed_get_all_from_then_on() -> None:
    events = Events()
    events.publish(state(0))
    first = events.subscribe()
    events.publish(state(1))
    second = events.subscribe()
    waits = asyncio.ensure_future(read(second, 2))
    await asyncio.sleep(0)
    for number in (2, 3):
        events.publish(state(number))
    assert await read(first, 3) == [1, 2, 3]
    assert await waits == [2, 3]
    assert [event.wall_s for event in events.latest] == [0, 1, 2, 3]


@on_loop
async def test_who_does_not_read_loses_the_oldest_and_nobody_else_does() -> None:
    events = Events()
    slow, quick = events.subscribe(), events.subscribe()
    count, seen = BEHIND + 40, []
    for number in range(count):
        events.publish(state(number))
        seen += await read(quick, 1)
    assert seen == list(range(count))
    assert await read(slow, BEHIND) == list(range(40, count))
    assert (slow.lost, quick.lost) == (40, 0)
    assert [event.wall_s for event in events.latest] == list(range(count - KEPT, count))


@on_loop
async def test_the_end() -> None:
    events = Events()
    waits, left = events.subscribe(), events.subscribe()
    task = asyncio.ensure_future(read(waits, 2))
    events.publish(state(1))
    events.close()
    with pytest.raises(StopAsyncIteration):
        await task
    assert [event.wall_s async for event in left] == [1]
    assert [event async for event in events.subscribe()] == []


@on_loop
async def test_so_many_may_watch() -> None:
    events = Events(2)
    first, second = events.subscribe(), events.subscribe()
    with pytest.raises(Refusal) as caught:
        events.subscribe()
    assert caught.value.code == "busy"
    events.unsubscribe(first)
    events.unsubscribe(first)
    third = events.subscribe()
    del second  # whoever forgets to say so gives the place back too
    gc.collect()
    events.subscribe()
    events.publish(state(1))
    assert await read(third, 1) == [1]
    assert [event async for event in first] == []


def test_an_event_says_its_kind() -> None:
    data = msgspec.json.encode(state(3))
    assert msgspec.json.decode(data) == {"kind": "state", "state": "ready", "wall_s": 3.0}
    assert msgspec.json.decode(data, type=Event) == state(3)
