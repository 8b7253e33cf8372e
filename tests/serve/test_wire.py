"""Messages of the ZeroMQ server: what is asked arrives, and nothing else gets through."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfast.serve import wire
from brainfast.serve.array_frames import ArrayInfo, to_frames
from brainfast.serve.limits import Limits
from brainfast.serve.refusal import Refusal
from brainfast.serve.requests import OpenSession

LIMITS = Limits(images=3, request_bytes=1 << 16)
PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
BETAS = np.array([1.5, np.nan, -2], np.float32)
FILE = b"\xff\xd8 a picture"

REQUESTS = [
    (wire.AskAbout(id=1), []),
    (wire.Predict(id=2, token="secret", timeout_s=0.5), [PIXELS, FILE, PIXELS[:1]]),
    (wire.Predict(id=3, subjects=["a", "b"]), [FILE]),
    (wire.Score(id=4, objective=["FFA - PPA", "EBA"], subject="a"), [PIXELS]),
    (wire.Select(id=5, objective="FFA", k=3, exclude=["x.png"]), []),
    (wire.Open(id=6, session="run", options=OpenSession(objective="FFA", resume=True)), []),
    (wire.Next(id=7, session="run", trial=3, objective="FFA"), []),
    (wire.Tell(id=8, session="run", trial=0), [BETAS]),
    (wire.Tell(id=9, session="run", trial=0, subject="a"), [BETAS.astype(np.float64)]),
    (wire.Skip(id=10, session="run", trial=1), []),
    (wire.AskSession(id=11, session="run"), []),
    (wire.Close(id=(1 << 63) - 1, session="run"), []),
]


def header(**fields: Any) -> bytes:
    return msgspec.msgpack.encode({"v": 1, "id": 1, "op": "about"} | fields)


def info(dtype: str, *shape: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape)}


def refusal_to(*frames: bytes, limits: Limits = LIMITS) -> Refusal:
    with pytest.raises(Refusal) as caught:
        wire.read_request(frames, limits)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(("request_", "arrays"), REQUESTS, ids=lambda given: type(given).__name__)
def test_what_is_asked_arrives(request_: Any, arrays: list[Any]) -> None:
    frames = [bytes(frame) for frame in wire.to_message(request_, arrays)]
    found, read = wire.read_request(frames, LIMITS)
    assert type(found) is type(request_)
    assert msgspec.structs.replace(found, arrays=[]) == request_
    assert wire.message_id(frames) == request_.id
    assert len(read) == len(arrays)
    for array, sent in zip(read, arrays, strict=True):
        if isinstance(sent, bytes):
            assert array == sent
        else:
            assert array.dtype == sent.dtype
            np.testing.assert_array_equal(array, sent)


def test_a_file_is_not_copied() -> None:
    frames = [memoryview(frame) for frame in wire.to_message(wire.Predict(id=1), [FILE])]
    _, (found,) = wire.read_request(frames, LIMITS)
    assert found is frames[1]
    assert wire.to_message(wire.Predict(id=1), [found])[1] is found


def test_the_header_is_the_one_in_the_documentation() -> None:
    message = wire.to_message(wire.Tell(id=5, session="run", trial=2, timeout_s=1.0), [BETAS])
    assert msgspec.msgpack.decode(message[0]) == {
        "op": "tell",
        "v": 1,
        "id": 5,
        "token": None,
        "timeout_s": 1.0,
        "session": "run",
        "trial": 2,
        "subject": None,
        "arrays": [{"dtype": "float32", "shape": [3]}],
    }
    assert bytes(message[1]) == BETAS.astype("<f4").tobytes()


def test_an_array_is_a_view_that_cannot_be_written() -> None:
    frame = PIXELS.tobytes()
    head = header(op="predict", arrays=[info("uint8", *PIXELS.shape)])
    (array,) = wire.read_request([head, frame], LIMITS)[1]
    assert isinstance(array, np.ndarray)
    assert np.shares_memory(array, np.frombuffer(frame, np.uint8))
    assert not array.flags.writeable


def test_arrays_in_any_order_of_memory_arrive_as_they_look() -> None:
    turned = PIXELS.transpose(1, 0, 2)[::-1]
    big = BETAS.astype(">f4")
    infos, frames = to_frames([turned])
    assert infos == [ArrayInfo("uint8", [4, 2, 3])]
    assert bytes(frames[0]) == turned.tobytes()
    with pytest.raises(Refusal, match="uint8 or float32 or float64, got >f4"):
        to_frames([big])


@pytest.mark.parametrize(
    ("fields", "frames", "line"),
    [
        ({"op": "dance"}, [], r"Invalid value 'dance'"),
        ({"op": "next"}, [], r"missing required field `session`"),
        ({"extra": 1}, [], r"unknown field `extra`"),
        ({"timeout_s": 0.0}, [], r"timeout_s"),
        ({"timeout_s": float("nan")}, [], r"timeout_s"),
        ({"timeout_s": -1}, [], r"timeout_s"),
        ({"token": 3}, [], r"token"),
        ({"v": 2, "op": "sing", "loud": True}, [], r"protocol: expected 1, got 2; install"),
        ({"v": 2}, [], r"protocol: expected 1, got 2"),
        ({"op": "skip", "session": "run", "trial": -1}, [], r">= 0"),
        ({"op": "select", "objective": "FFA", "k": 1 << 40}, [], r"\$\.k"),
        ({"op": "select", "objective": {"a": 1}}, [], r"objective"),
        ({"arrays": [info("uint8", 1)]}, [b"\0"], r"expected no arrays, got uint8 \[1\]"),
        ({}, [b"\0"], r"expected 0 frames, as told, got 1"),
        ({"op": "predict"}, [], r"expected images.* got none"),
        ({"op": "predict", "arrays": [info("file")]}, [], r"expected 1 frames, as told, got 0"),
        ({"op": "predict", "arrays": [info("file", 3)]}, [b"abc"], r"no shape of a file"),
        ({"op": "predict", "arrays": [info("int64", 1)]}, [b"\0" * 8], r"Invalid enum value"),
        ({"op": "predict", "arrays": [info("uint8", 2, 2, 4)]}, [b"\0" * 16], r"\[H,W,3\]"),
        ({"op": "predict", "arrays": [info("uint8", 0, 2, 3)]}, [b""], r"\[H,W,3\]"),
        ({"op": "predict", "arrays": [info("uint8", 2, 2, 3)]}, [b"\0" * 11], r"12 bytes of uint8"),
        (
            {"op": "predict", "arrays": [info("uint8", 1 << 39, 1 << 39, 3)]},
            [b"\0"],
            r"got 1 bytes",
        ),
        ({"op": "predict", "arrays": [info("uint8", -1, -1, 3)]}, [b"\0" * 3], r">= 0"),
        ({"op": "predict", "arrays": [info("uint8", 1, 1, 1, 1, 3)]}, [b"\0" * 3], r"length <= 4"),
        (
            {"op": "tell", "session": "s", "trial": 0, "arrays": [info("uint8", 3)]},
            [b"\0" * 3],
            r"one array of floats \[V\], got uint8 \[3\]",
        ),
        (
            {"op": "tell", "session": "s", "trial": 0, "arrays": [info("float32", 1, 1)]},
            [b"\0" * 4],
            r"one array of floats",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(
    fields: dict[str, Any], frames: list[bytes], line: str
) -> None:
    refusal = refusal_to(header(**fields), *frames)
    assert refusal.code == "invalid"
    with pytest.raises(Refusal, match=line):
        raise refusal


@pytest.mark.parametrize(
    ("frames", "line"),
    [
        ([header(), *[b""] * 4], r"at most 3 images, got 4"),
        ([header(), bytes(1 << 16)], r"request: expected at most 65536 bytes"),
    ],
)
def test_sizes_are_compared_before_anything_is_read(frames: list[bytes], line: str) -> None:
    refusal = refusal_to(*frames)
    assert refusal.code == "too_large"
    with pytest.raises(Refusal, match=line):
        raise refusal


def test_a_header_has_its_own_limit() -> None:
    huge = header(token="a" * wire.HEADER_BYTES)
    refusal = refusal_to(huge, limits=Limits(request_bytes=1 << 30))
    assert refusal.code == "too_large"
    assert wire.message_id([huge]) is None


def test_a_refusal_that_repeats_what_was_asked_is_cut() -> None:
    line = wire.refused(1, refusal_to(header(op="x" * 50_000))).error
    assert len(line) < 1500


NUMBERS = st.integers(-(1 << 40), 1 << 63) | st.floats()
SIZES = st.lists(st.integers(-2, 5) | st.integers(0, 1 << 41), max_size=5)
ARRAYS = st.lists(
    st.fixed_dictionaries(
        {"dtype": st.sampled_from(["uint8", "float32", "float64", "file", "bool"])},
        optional={"shape": SIZES},
    ),
    max_size=4,
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
OPS = ("about", "predict", "score", "select", "open", "next", "tell", "skip", "session", "close")
HEADERS = st.fixed_dictionaries(
    {"op": st.sampled_from(OPS) | ANYTHING, "id": st.integers(0, 9) | ANYTHING},
    optional={
        "v": st.sampled_from([1, 1, 1, 2]),
        "token": st.none() | ANYTHING,
        "timeout_s": NUMBERS,
        "arrays": ARRAYS | ANYTHING,
        "session": st.text(max_size=3) | ANYTHING,
        "trial": NUMBERS,
        "objective": st.text(max_size=3) | ANYTHING,
        "options": st.dictionaries(st.sampled_from(["objective", "seed", "exclude"]), ANYTHING),
        "subjects": ANYTHING,
        "exclude": ANYTHING,
    },
).map(msgspec.msgpack.encode)
FRAMES = st.lists(st.binary(max_size=60), max_size=5)


def outcome(frames: list[bytes]) -> tuple[Any, list[Any]] | Refusal:
    try:
        return wire.read_request(frames, LIMITS)
    except Refusal as refusal:
        return refusal


def check_any(frames: list[bytes]) -> None:
    """Either a request or a Refusal, and no more memory than in proportion to the bytes."""
    tracemalloc.start()
    try:
        found = outcome(frames)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000 + 100 * sum(map(len, frames))
    if isinstance(found, Refusal):
        assert found.code in ("invalid", "too_large")
        assert "\n" not in str(found)
    else:
        assert len(found[1]) == len(frames) - 1 == len(found[0].arrays)
    id = wire.message_id(frames)
    assert id is None or 0 <= id < 1 << 63


@given(FRAMES)
def test_any_bytes_give_a_request_or_a_refusal(frames: list[bytes]) -> None:
    check_any(frames)


@given(HEADERS, FRAMES)
def test_any_header_gives_a_request_or_a_refusal(head: bytes, frames: list[bytes]) -> None:
    check_any([head, *frames])


@given(st.sampled_from(REQUESTS), st.data())
def test_a_damaged_request_gives_a_request_or_a_refusal(asked: Any, data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in wire.to_message(*asked)]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = data.draw(st.sampled_from(frames))
        place = data.draw(st.integers(0, len(frame)))
        frame[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    check_any([bytes(frame) for frame in data.draw(st.permutations(frames))])


@pytest.mark.parametrize(
    "head",
    [
        b"\x81\xa6arrays\xdd\xff\xff\xff\xff",
        b"\x82\xa2op\xa6select\xa7exclude\xdd\x7f\xff\xff\xff",
        b"\x81\xa2id\xdb\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x82\xa2op\xa5about\xa1x" + b"\x91" * 60_000,
        b"\x82\xa2op\xa5about\xa5token\xa2\xff\xfe",
    ],
)
def test_lengths_that_are_not_there_and_deep_nests_cost_nothing(head: bytes) -> None:
    check_any([head])


@given(FRAMES)
def test_any_bytes_give_a_reply_or_a_refusal(frames: list[bytes]) -> None:
    with pytest.raises(Refusal):
        wire.read_reply(frames)


def test_a_reply_may_have_fields_of_a_newer_server() -> None:
    head = msgspec.msgpack.encode({"op": "done", "id": 3, "v": 1, "ok": True, "mood": "good"})
    reply, arrays = wire.read_reply([head])
    assert (type(reply), reply.id, arrays) == (wire.Done, 3, [])
