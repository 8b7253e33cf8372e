"""Messages of the ZeroMQ server: `[header, array, array, ...]`, the header a struct in msgpack.

A request is a struct tagged by `op`, with the client's own number for it, `id`, which its reply
carries too. Both tell of every array that follows, see `array_frames`. Needs neither an engine nor
a socket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias, TypeVar

import msgspec

from .array_frames import FILE, Array, ArrayInfo, Frame, from_frames, to_frames
from .limits import Limits
from .refusal import Code, Refusal
from .requests import PROTOCOL, About, OpenSession, SessionState

HEADER_BYTES = 1 << 20

Id = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Objective: TypeAlias = str | list[str]
Names: TypeAlias = Annotated[list[str], msgspec.Meta(max_length=100_000)]


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="op"):
    """What all requests tell.

    id: the client's number for it, given as it is sent; one that bears none gets no answer
    timeout_s: how long the client waits; the server's limit if None
    """

    id: Id = 0
    v: int = PROTOCOL
    token: str | None = None
    timeout_s: Seconds | None = None
    arrays: list[ArrayInfo] = msgspec.field(default_factory=list)


class AskAbout(Request, tag="about"):
    """What the server answers for."""


class Predict(Request, tag="predict"):
    """Responses to the images that follow; of all subjects where none is named."""

    subjects: Names | None = None


class Score(Request, tag="score"):
    """Scores of the images that follow."""

    objective: Objective
    subject: str | None = None


class Select(Request, tag="select"):
    """The best candidates of the pool."""

    objective: Objective
    k: Count = 10
    exclude: Names = msgspec.field(default_factory=list)
    subject: str | None = None


class Open(Request, tag="open"):
    """Begin a session, or go on with its log.

    again: the same was sent before, and may have been done: a log that it began is gone on with.
    """

    session: str
    options: OpenSession
    again: bool = False


class Next(Request, tag="next"):
    """Choice number `trial`, which is made now if it is the next; None always makes one."""

    session: str
    trial: Count | None = None
    objective: str | None = None


class Tell(Request, tag="tell"):
    """What was measured for a choice: the betas [V] that follow."""

    session: str
    trial: Count
    subject: str | None = None


class Skip(Request, tag="skip"):
    """Give up the measurement of a choice."""

    session: str
    trial: Count


class AskSession(Request, tag="session"):
    """Where a session is."""

    session: str


class Close(Request, tag="close"):
    """End a session; its log stays."""

    session: str


AnyRequest: TypeAlias = (
    AskAbout | Predict | Score | Select | Open | Next | Tell | Skip | AskSession | Close
)


class Choice(msgspec.Struct, frozen=True):
    """The image to show, and how it came about; as `brainfast.Choice`."""

    image: str
    trial: int
    objective: str
    score: float | None
    value: float | None
    uncertainty: float | None
    ties: int
    source: str
    late: bool
    latency_ms: float


class Candidate(msgspec.Struct, frozen=True):
    """One of the pool's best: its name, its row in the pool, its score, and its category."""

    name: str
    row: int
    score: float
    category: str


class Reply(msgspec.Struct, kw_only=True, tag_field="op"):
    """What all replies tell. Fields that a newer server adds are passed over."""

    id: Id
    v: int = PROTOCOL
    ok: bool = True
    arrays: list[ArrayInfo] = msgspec.field(default_factory=list)


class ToldAbout(Reply, tag="about"):
    """What the server answers for."""

    about: About


class Predicted(Reply, tag="predict"):
    """An array float32 [B,V] follows for every one of `subjects`, "" for a model of one."""

    subjects: list[str]


class Scored(Reply, tag="score"):
    """An array float64 [B,O] follows."""


class Selected(Reply, tag="select"):
    """Candidates [O][k], best first."""

    candidates: list[list[Candidate]]


class Chosen(Reply, tag="next"):
    """The image to show."""

    choice: Choice


class State(Reply, tag="session"):
    """Where the session is."""

    state: SessionState


class Done(Reply, tag="done"):
    """A tell, skip or close was done."""


class Refused(Reply, tag="error"):
    """Why there is no answer: a code for programs, and one line for people."""

    code: Code
    error: str
    retry_after_s: float | None = None


AnyReply: TypeAlias = ToldAbout | Predicted | Scored | Selected | Chosen | State | Done | Refused
Header = TypeVar("Header", bound=Request | Reply)


class _Preface(msgspec.Struct):
    id: Id
    v: int = PROTOCOL


_ENCODER = msgspec.msgpack.Encoder()
_REQUEST: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)
_REPLY: msgspec.msgpack.Decoder[AnyReply] = msgspec.msgpack.Decoder(AnyReply)
_PREFACE = msgspec.msgpack.Decoder(_Preface)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def to_message(header: Request | Reply, arrays: Sequence[Array] = ()) -> list[Frame]:
    """A header, told of its arrays, and these as frames."""
    infos, frames = to_frames(arrays)
    return [_ENCODER.encode(msgspec.structs.replace(header, arrays=infos)), *frames]


def read_request(frames: Sequence[Frame], limits: Limits) -> tuple[AnyRequest, list[Array]]:
    """A request and its arrays, checked whole; whatever else these bytes are is a Refusal.

    Counts and sizes are compared with the limits before anything is decoded, and shapes with the
    bytes that are there before an array is made.
    """
    _check_sizes(frames, limits)
    try:
        request = _REQUEST.decode(frames[0])
    except _UNREADABLE as error:
        preface = _preface(frames)
        if preface is not None:
            _check_version(preface.v)
        raise _unreadable("request", error) from None
    _check_version(request.v)
    arrays = from_frames(request.arrays, frames[1:])
    _check_arrays(request)
    return request, arrays


def message_id(frames: Sequence[Frame]) -> int | None:
    """The number of a request that may be wrong in all else, None where there is none."""
    preface = _preface(frames)
    return None if preface is None else preface.id


def read_reply(frames: Sequence[Frame]) -> tuple[AnyReply, list[Array]]:
    """A reply and its arrays; whatever else these bytes are is a Refusal."""
    try:
        reply = _REPLY.decode(frames[0] if frames else b"")
    except _UNREADABLE as error:
        raise _unreadable("reply", error) from None
    return reply, from_frames(reply.arrays, frames[1:])


def refused(id: int, refusal: Refusal) -> Refused:
    """A refusal as the reply to a request."""
    short = refusal.reply()
    return Refused(
        id=id, ok=False, code=short.code, error=short.error, retry_after_s=short.retry_after_s
    )


def _unreadable(name: str, error: Exception) -> Refusal:
    return Refusal("invalid", name, expected="one of this protocol", got=str(error))


def _preface(frames: Sequence[Frame]) -> _Preface | None:
    if not frames or len(frames[0]) > HEADER_BYTES:
        return None
    try:
        return _PREFACE.decode(frames[0])
    except _UNREADABLE:
        return None


def _check_sizes(frames: Sequence[Frame], limits: Limits) -> None:
    if not frames:
        raise Refusal("invalid", "request", expected="a header", got="no frame")
    if len(frames) > 1 + limits.images:
        raise Refusal(
            "too_large",
            "request",
            expected=f"at most {limits.images} images",
            got=str(len(frames) - 1),
        )
    for name, size, most in (
        ("header", len(frames[0]), HEADER_BYTES),
        ("request", sum(map(len, frames)), limits.request_bytes),
    ):
        if size > most:
            raise Refusal("too_large", name, expected=f"at most {most} bytes", got=str(size))


def _check_version(v: int) -> None:
    if v != PROTOCOL:
        raise Refusal(
            "invalid",
            "protocol",
            expected=str(PROTOCOL),
            got=str(v),
            remedy="install the server's version of brainfast",
        )


def _check_arrays(request: Request) -> None:
    """That the arrays are what this request needs."""
    infos = request.arrays
    if isinstance(request, Predict | Score):
        expected, fits = "images: files, or uint8 [H,W,3]", bool(infos) and all(map(_image, infos))
    elif isinstance(request, Tell):
        expected, fits = "betas: one array of floats [V]", len(infos) == 1 and _betas(infos[0])
    else:
        expected, fits = "no arrays", not infos
    if not fits:
        got = ", ".join(map(str, infos[:3])) or "none"
        raise Refusal("invalid", "arrays", expected=expected, got=got)


def _image(info: ArrayInfo) -> bool:
    pixels = info.dtype == "uint8" and len(info.shape) == 3 and info.shape[2] == 3
    return info.dtype == FILE or (pixels and min(info.shape) > 0)


def _betas(info: ArrayInfo) -> bool:
    return info.dtype in ("float32", "float64") and len(info.shape) == 1
