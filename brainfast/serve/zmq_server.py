"""The ZeroMQ side of `brainfast serve`: many clients' requests, none of which costs another."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import zmq
import zmq.asyncio

from ..errors import BrainfastError
from .address import check_address, claimed, remove_own
from .array_frames import Array, Frame
from .operations import operation, perform
from .refusal import Refusal, refusal_of
from .wire import AnyRequest, Predict, Score, message_id, read_request, refused, to_message

if TYPE_CHECKING:
    from .service import Service

WAY = "zmq"
EACH = 16  # requests of one client at once
BODIES = 4  # request_bytes that images of all requests at once may hold, and all else as many
# Messages that wait in a client's queue, in or out. ZeroMQ counts those that were taken off it by
# halves: with twice EACH, a client that reads its answers never loses one.
HIGH_WATER = 2 * EACH
HEARTBEAT_S, GONE_S = 5, 15  # a client that is silent for so long is given up
LINGER_S = 1.0  # for the last answers to leave
RETRY_S = 0.1

_log = logging.getLogger("brainfast.serve")


class ZmqServer:
    """Answers a `Service`'s requests at an address, all of a client's at once.

    address: see `check_address`; tcp port 0 takes a free one, which `address` then tells
    dropped: messages that got no answer, by reason: "unreadable" has not even a number to answer
    to, "unread" is of a client that takes no more answers, "gone" of one that left. They count as
    the operation "message" in the service's metrics.

    A client may have EACH requests under way, and all together no more than the service's lanes
    hold; what is beyond is refused as "busy". No answer is waited for to be read: one that does
    not fit a client's queue is dropped.
    """

    def __init__(self, service: Service, address: str, *, token: str | None = None) -> None:
        self.service = service
        self.dropped: Counter[str] = Counter()
        self._parsed = check_address(address, token)
        self.address = self._parsed.url
        self._token = token.encode() if token else None
        limits = service.limits
        self._most = limits.waiting + limits.sessions * limits.session_waiting
        self._most_bytes = BODIES * limits.request_bytes
        self._tasks: set[asyncio.Task[None]] = set()
        self._of_client: Counter[bytes] = Counter()
        self._bytes: Counter[bool] = Counter()  # of images, and of all else
        self._stopping = False
        self._context: zmq.asyncio.Context | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind and begin to answer; an address that cannot be had is a BrainfastError."""
        self._context = zmq.asyncio.Context()
        try:
            self._socket = self._bound(self._context)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._reader = asyncio.create_task(self._read(), name="brainfast-zmq")

    async def stop(self) -> None:
        """Refuse what is new, end what is under way within the service's `drain_s`, and close."""
        if self._context is None or self._reader is None:
            return
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.service.limits.drain_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        if self._parsed.path is not None:
            remove_own(self._parsed.path, self._inode)
        self._socket.close()
        context, self._context = self._context, None
        await asyncio.to_thread(context.term)

    async def __aenter__(self) -> ZmqServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _bound(self, context: zmq.asyncio.Context) -> zmq.asyncio.Socket:
        router = context.socket(zmq.ROUTER)
        router.set(zmq.ROUTER_MANDATORY, 1)  # an answer that nobody takes is an error to count
        router.set(zmq.LINGER, int(LINGER_S * 1e3))
        router.set(zmq.MAXMSGSIZE, self.service.limits.request_bytes)
        router.set(zmq.RCVHWM, HIGH_WATER)
        router.set(zmq.SNDHWM, HIGH_WATER)
        router.set(zmq.HEARTBEAT_IVL, HEARTBEAT_S * 1000)
        router.set(zmq.HEARTBEAT_TIMEOUT, GONE_S * 1000)
        router.set(zmq.TCP_KEEPALIVE, 1)
        router.set(zmq.IPV6, int(":" in self._parsed.host))
        try:
            if self._parsed.path is None:
                router.bind(self._parsed.url)
            else:
                with claimed(self._parsed.path):
                    router.bind(self._parsed.url)
                self._inode = self._parsed.path.stat().st_ino
        except zmq.ZMQError as error:
            raise BrainfastError(
                self._parsed.url,
                expected="an address of this machine that is free",
                got=zmq.strerror(error.errno or 0),
                remedy="choose another one, or end the server that has it",
            ) from error
        self.address = router.get_string(zmq.LAST_ENDPOINT)
        return router

    async def _read(self) -> None:
        while True:
            message = await self._socket.recv_multipart(copy=False)
            try:
                await self._take(bytes(message[0].buffer), [frame.buffer for frame in message[1:]])
            except Exception:  # a defect, which must not end the server
                _log.exception("a message was dropped")
                self._drop("unreadable")
            # Where messages are always waiting, reading never pauses by itself.
            await asyncio.sleep(0)

    async def _take(self, client: bytes, frames: Sequence[Frame]) -> None:
        id, size, asked = message_id(frames), sum(map(len, frames)), "unreadable"
        if id is None:
            self._drop("unreadable")
            return
        try:
            request, arrays = read_request(frames, self.service.limits)
            asked = operation(request)
            self._check(client, request, size)
        except Refusal as refusal:
            await self._send(client, to_message(refused(id, refusal)))
            self.service.metrics.count(WAY, asked, refusal.code, 0.0)
            return
        task = asyncio.create_task(self._answer(client, request, arrays))
        self._tasks.add(task)
        self._of_client[client] += 1
        self._bytes[_of_images(request)] += size
        task.add_done_callback(partial(self._ended, client, _of_images(request), size))

    def _check(self, client: bytes, request: AnyRequest, size: int) -> None:
        """That this client may ask, and that there is room for what it asks."""
        given = (request.token or "").encode()
        if self._token is not None and not hmac.compare_digest(given, self._token):
            got = "another one" if given else "none"
            raise Refusal("unauthorised", "token", expected="the server's", got=got)
        if self._stopping:
            raise _ending()
        for most, there, of in (
            (EACH, self._of_client[client] + 1, "requests of this client"),
            (self._most, len(self._tasks) + 1, "requests"),
            (self._most_bytes, self._bytes[_of_images(request)] + size, "bytes of requests"),
        ):
            if there > most:
                raise Refusal(
                    "busy",
                    "server",
                    expected=f"at most {most} {of} at once",
                    got=str(there),
                    remedy="try again",
                    retry_after_s=RETRY_S,
                )

    async def _answer(self, client: bytes, request: AnyRequest, arrays: list[Array]) -> None:
        most = self.service.limits.timeout_s
        seconds = min(request.timeout_s or most, most)
        try:
            with self.service.metrics.request(WAY, operation(request)):
                async with asyncio.timeout(seconds):
                    message = await perform(self.service, request, arrays, seconds)
        except asyncio.CancelledError:
            message = to_message(refused(request.id, _ending()))
        except Exception as error:
            message = to_message(refused(request.id, refusal_of(error)))
        await self._send(client, message)

    def _ended(self, client: bytes, images: bool, size: int, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._bytes[images] -= size
        self._of_client[client] -= 1
        if not self._of_client[client]:
            del self._of_client[client]

    async def _send(self, client: bytes, message: Sequence[Frame]) -> None:
        """Without waiting: a finished send, or none."""
        try:
            await self._socket.send_multipart([client, *message], flags=zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self._drop("unread")
        except zmq.ZMQError:
            self._drop("gone")

    def _drop(self, why: str) -> None:
        self.dropped[why] += 1
        self.service.metrics.requests_total.labels(WAY, "message", why).inc()


def _of_images(request: AnyRequest) -> bool:
    """Whether it waits for the trunk, and so must not take the room of what is told to sessions."""
    return isinstance(request, Predict | Score)


def _ending() -> Refusal:
    return Refusal("draining", "server", expected="one that goes on", got="one that ends")
