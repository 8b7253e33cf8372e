"""A server from its first socket to its last log line: both wires, one loop, one service.

The loop's thread only passes things on. The engine's threads compete with it for the processor,
where the system favours a thread that mostly waits, and for the interpreter, which a thread that
computes in Python hands over every `SWITCH_S`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..errors import BrainfastError
from ..machine import loaded_uncollected
from .gate import Gate, NotYet
from .http_server import http_app
from .limits import Limits
from .listening import HttpAddress, HttpServer
from .service import Service
from .stderr_log import log_to_stderr

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..engine import Engine
    from ..group_engine import GroupEngine
    from ..pool import Pool
    from .zmq_server import ZmqServer

SWITCH_S = 0.0005  # Python's own 5 ms are half of what a choice may take
THREADS_END_S = 1.0

T = TypeVar("T")

_log = logging.getLogger("brainfast.serve")


@dataclass(frozen=True)
class Plan:
    """What is served, and where.

    load: gives engine and pool, on a thread of its own; name: of the model; http, zmq: None for
    none; token: asked of every client; logs: folder of the sessions' logs; images: folder of the
    pool's pictures, for the page; tell: is given the line with the addresses, as_json: of JSON
    """

    load: Callable[[], tuple[Engine | GroupEngine, Pool | None]]
    name: str
    http: HttpAddress | None
    zmq: str | None
    tell: Callable[[str], None]
    token: str | None = None
    logs: Path | None = None
    images: Path | None = None
    limits: Limits = field(default_factory=Limits)
    as_json: bool = False


def check_addresses(http: HttpAddress | None, zmq: str | None, token: str | None) -> None:
    """Refuse a server that nobody could ask, and one that anybody could."""
    if http is None and zmq is None:
        raise BrainfastError("serve", expected="--http or --zmq", got="both off")
    if http is not None and not http.local and token is None:
        raise BrainfastError(
            "--http",
            expected="a loopback address where there is no token",
            got=str(http),
            remedy="give --token-file, or serve 127.0.0.1 and let others in through ssh -L",
        )
    if zmq is not None:
        from .address import check_address

        check_address(zmq, token)


def run(plan: Plan) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then deliver what was begun and return.

    Sockets are bound first, so that an address that is taken is a BrainfastError before the engine
    is loaded; until it is, /healthz answers, and all else is "starting". A second signal ends the
    process at once.
    """
    check_addresses(plan.http, plan.zmq, plan.token)
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        with log_to_stderr():
            asyncio.run(_serve(plan))
        _end_threads()
    finally:
        sys.setswitchinterval(before)


async def _serve(plan: Plan) -> None:
    stop = _stop_at_signals()
    async with AsyncExitStack() as ending:  # in the order from below: the service, then its wires
        gate, http, zmq = Gate(), None, None
        if plan.http is not None:
            http = HttpServer(gate, plan.http.bind())
            ending.push_async_callback(http.stop)
        if plan.zmq is not None:
            zmq = await _bound_zmq(plan.zmq, plan)
            ending.push_async_callback(zmq.stop)
        if http is not None:
            http.start().add_done_callback(lambda _: stop.set())
        plan.tell(_addresses(plan, http, zmq))
        start = time.perf_counter()
        loaded = await _unless(stop, _on_thread(plan.load))
        if loaded is None:
            return
        service = _service(plan, *loaded)
        app = _app(plan, service)
        await ending.enter_async_context(app.router.lifespan_context(app))
        if http is not None:  # the last answers are written on threads that end with the lifespan
            ending.push_async_callback(http.stop)
        ending.push_async_callback(service.drain)
        ending.enter_context(loaded_uncollected())  # a collection of it all would stop a choice
        gate.open(app)
        if zmq is not None:
            zmq.service = service
        await _unless(stop, service.start())
        if not stop.is_set():
            _log.info("ready after %.1f s", time.perf_counter() - start)
        await stop.wait()
        _log.info("ending: what was begun is answered, nothing new is taken")


def _stop_at_signals() -> asyncio.Event:
    """Set by the first signal; the second ends the process."""
    stop = asyncio.Event()

    def on(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup does with SIGHUP
            asyncio.get_running_loop().add_signal_handler(number, on, number)
    return stop


async def _bound_zmq(address: str, plan: Plan) -> ZmqServer:
    from .zmq_server import ZmqServer

    server = ZmqServer(cast(Any, NotYet(plan.limits)), address, token=plan.token)
    await server.start()
    return server


def _service(plan: Plan, engine: Engine | GroupEngine, pool: Pool | None) -> Service:
    return Service(engine, name=plan.name, pool=pool, logs=plan.logs, limits=plan.limits)


def _app(plan: Plan, service: Service) -> FastAPI:
    from .page import page_router

    hosts = None if plan.http is None else plan.http.hosts(plan.token)
    return http_app(service, plan.token, hosts=hosts, routers=[page_router(service, plan.images)])


def _addresses(plan: Plan, http: HttpServer | None, zmq: ZmqServer | None) -> str:
    places = {
        "http": None if http is None else http.url,
        "zmq": None if zmq is None else zmq.address,
    }
    if plan.as_json:
        return json.dumps({"model": plan.name, **places, "pid": os.getpid()})
    return f"{plan.name}: {', '.join(place for place in places.values() if place)}"


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives; None, and no wait for it, where it is stopped."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        stopped.cancel()


async def _on_thread(work: Callable[[], T]) -> T:
    """What `work` gives, from a thread that an ending process does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(how: Callable[[Any], None], what: Any) -> None:
        if not future.done():
            how(what)

    def hand_over(how: Callable[[Any], None], what: Any) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits
            loop.call_soon_threadsafe(settle, how, what)

    def do() -> None:
        try:
            hand_over(future.set_result, work())
        except BaseException as error:
            hand_over(future.set_exception, error)

    threading.Thread(target=do, name="brainfast-load", daemon=True).start()
    return await future


def _end_threads() -> None:
    """Wait a moment for threads; one that is stuck in a kernel or a disk ends with the process."""
    end = time.monotonic() + THREADS_END_S
    others = [t for t in threading.enumerate() if t is not threading.current_thread()]
    for thread in others:
        thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        sys.stdout.flush()  # stderr keeps no lines, and may have no reader
        os._exit(0)
