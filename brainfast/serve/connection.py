"""A client's connection: it comes back by itself, and what was not answered is asked again."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from ..errors import BrainfastError
from .address import Address
from .array_frames import Array, Frame
from .refusal import Code, Refusal
from .wire import (
    AnyReply,
    Predict,
    Refused,
    Reply,
    Request,
    Score,
    Select,
    message_id,
    read_reply,
    to_message,
)

AT_ONCE = 16  # requests under way, as many as the server takes of one client
SLOW = AT_ONCE // 2  # of these for what a stalled trunk holds up: sessions have the others
MOST = 256  # of either kind, with those that wait for their turn
RECONNECT_MS, RECONNECT_MOST_MS = 20, 500
HEARTBEAT_MS, GONE_MS = 2000, 6000  # a server that is silent for so long is given up

Q = TypeVar("Q", bound=Request)
R = TypeVar("R", bound=Reply)


class ServerRefusal(Refusal):
    """What the server said instead of an answer, in its own words.

    repeated: whether the request had been sent before, so that it may have been done already.
    """

    def __init__(
        self, code: Code, line: str, retry_after_s: float | None = None, *, repeated: bool = False
    ) -> None:
        super().__init__(
            code, "server", expected="an answer", got=line, retry_after_s=retry_after_s
        )
        self.args = (line,)
        self.repeated = repeated


@dataclass(frozen=True)
class Deadline:
    """A moment on the event loop's clock."""

    moment: float

    def left(self) -> float:
        """Seconds until then, a millisecond at least."""
        return max(self.moment - asyncio.get_running_loop().time(), 1e-3)


@dataclass
class _Waiting:
    """A request that is not answered.

    sent: on the connection that there is now; times: on this and on those before it.
    """

    message: list[Frame]
    answer: asyncio.Future[tuple[AnyReply, list[Array]]]
    sent: bool = False
    times: int = 0


@dataclass
class _Line:
    """Requests of one kind, which wait for their turn behind one another alone."""

    turn: asyncio.Semaphore
    asked: int = 0


class Connection:
    """Asks a server, and takes its answers in whatever order they come.

    Made when it is first used, in the event loop that runs then. While there is no server, requests
    wait here, each until its time is over. Those that a server took with it when it ended are sent
    again to the next one, so all must be safe to repeat. Predictions, scores and selections never
    take the turn of a session's request.

    count: connections made so far.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address, self._token = Address.parse(address).url, token
        self.count = 0
        self._ids = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._slow, self._quick = _line(SLOW), _line(AT_ONCE - SLOW)
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._release: weakref.finalize[..., Connection] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def within(self, seconds: float) -> AsyncIterator[Deadline]:
        """What takes longer is given up: a Refusal, "timed_out"."""
        try:
            async with asyncio.timeout(seconds):
                yield Deadline(asyncio.get_running_loop().time() + seconds)
        except TimeoutError:
            raise Refusal(
                "timed_out",
                self.address,
                expected=f"an answer within {seconds:g} s",
                got="none" if self._connected else "no connection",
                remedy=None if self._connected else "is 'brainfast serve' running there?",
            ) from None

    async def ask(
        self, deadline: Deadline, request: Request, kind: type[R], arrays: Sequence[Array] = ()
    ) -> tuple[R, list[Array]]:
        """The reply, of this kind, and its arrays; the server's refusal is raised.

        The server is told of the deadline; who keeps it here is `within`. A request whose fields
        are not of their types is a BrainfastError, and never sent.
        """
        request = _checked(request)
        self._open()
        line = self._slow if isinstance(request, Predict | Score | Select) else self._quick
        if line.asked >= MOST:
            raise Refusal(
                "busy", "client", expected=f"at most {MOST} requests at once", got="one more"
            )
        line.asked += 1
        try:
            async with line.turn:
                self._check_open()
                reply, found = await self._exchange(deadline, request, arrays)
        finally:
            line.asked -= 1
        if not isinstance(reply, kind):
            got = type(reply).__name__
            raise Refusal("internal", self.address, expected=kind.__name__, got=got)
        return reply, found

    def close(self) -> None:
        """Give up what is under way."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                waiting.answer.set_exception(closed())
        if self._release is not None:
            self._release()

    async def _exchange(
        self, deadline: Deadline, request: Request, arrays: Sequence[Array]
    ) -> tuple[AnyReply, list[Array]]:
        id = next(self._ids)
        request = msgspec.structs.replace(
            request, id=id, token=self._token, timeout_s=deadline.left()
        )
        answer: asyncio.Future[tuple[AnyReply, list[Array]]]
        answer = asyncio.get_running_loop().create_future()
        waiting = self._waiting[id] = _Waiting(to_message(request, arrays), answer)
        try:
            await self._send(waiting)
            reply, found = await answer
        finally:
            del self._waiting[id]
        if isinstance(reply, Refused):
            raise ServerRefusal(
                reply.code, reply.error, reply.retry_after_s, repeated=waiting.times > 1
            )
        return reply, found

    def _check_open(self) -> None:
        if self._closed:
            raise closed()

    def _open(self) -> None:
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._loop is not None:
            if self._loop is not loop:
                raise BrainfastError(
                    "client",
                    expected="the event loop that it was first used in",
                    got="another",
                    remedy="make a client for each",
                )
            return
        self._loop = loop
        context = zmq.asyncio.Context()
        dealer = self._socket = context.socket(zmq.DEALER)
        # What is given up while there is no server must not be asked when there is one again.
        dealer.set(zmq.IMMEDIATE, 1)
        dealer.set(zmq.LINGER, 0)
        dealer.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        dealer.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MOST_MS)
        dealer.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        dealer.set(zmq.HEARTBEAT_TIMEOUT, GONE_MS)
        dealer.set(zmq.IPV6, int("[" in self.address))
        seen = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        self._events = dealer.get_monitor_socket(seen)
        self._release = weakref.finalize(self, _released, dealer, context)
        self._release.atexit = False  # another thread may still be using them
        try:
            dealer.connect(self.address)
        except zmq.ZMQError as error:
            self.close()
            raise BrainfastError(
                self.address,
                expected="an address to connect to",
                got=zmq.strerror(error.errno or 0),
            ) from error
        self._tasks = [
            asyncio.create_task(self._watch(), name="brainfast-watch"),
            asyncio.create_task(self._receive(), name="brainfast-receive"),
        ]

    @property
    def _connected(self) -> bool:
        """Whether a server takes messages now."""
        open_ = self._loop is not None and not self._closed
        return open_ and bool(int(self._socket.get(zmq.EVENTS)) & zmq.POLLOUT)

    async def _send(self, waiting: _Waiting) -> None:
        """Where there is a connection; else `_watch` sends it when there is one."""
        if not self._connected:
            return
        try:
            await self._socket.send_multipart(waiting.message, flags=zmq.NOBLOCK, copy=False)
            waiting.sent = True
            waiting.times += 1
        except zmq.Again:  # it broke just now
            return

    async def _watch(self) -> None:
        while True:
            event = (await recv_monitor_message(self._events))["event"]
            if event == zmq.EVENT_DISCONNECTED:
                for waiting in self._waiting.values():
                    waiting.sent = False
                continue
            self.count += 1
            for waiting in list(self._waiting.values()):
                if not waiting.sent:
                    await self._send(waiting)

    async def _receive(self) -> None:
        while True:
            message = await self._socket.recv_multipart(copy=False)
            frames = [frame.buffer for frame in message]
            id = message_id(frames)
            waiting = None if id is None else self._waiting.get(id)
            if waiting is None or waiting.answer.done():
                continue  # of a request that was given up
            try:
                waiting.answer.set_result(read_reply(frames))
            except Refusal as refusal:
                waiting.answer.set_exception(refusal)


def _checked(request: Q) -> Q:
    """The request in Python's own types, numbers and texts of numpy among them."""
    name = str(type(request).__struct_config__.tag)

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        got = type(value).__name__
        raise BrainfastError(name, expected="texts, numbers and lists of them", got=got)

    try:
        return msgspec.convert(msgspec.to_builtins(request, enc_hook=plain), type(request))
    except msgspec.ValidationError as error:
        raise BrainfastError(name, expected="fields of their types", got=str(error)) from None


def _line(at_once: int) -> _Line:
    return _Line(asyncio.Semaphore(at_once))


def _released(dealer: zmq.asyncio.Socket, context: zmq.asyncio.Context) -> None:
    # In this order: ZeroMQ waits for ever to tell of an event that nobody listens for.
    dealer.disable_monitor()
    context.destroy(linger=0)


def closed() -> BrainfastError:
    """What every call of a client that was closed gets."""
    return BrainfastError("client", expected="an open one", got="one that was closed")
