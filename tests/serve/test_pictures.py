"""Images of requests: what is refused, and before what."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brainfast.images import as_images
from brainfast.serve.limits import Limits
from brainfast.serve.pictures import check_count, decoded
from brainfast.serve.refusal import Refusal
from serve_world import engine, file, picture


def header_of(width: int, height: int) -> bytes:
    """A PNG file that says so of itself, and has no pixel."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 10**6) + b"IDAT" + b"\0" * 64


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF", "PPM", "JPEG", "WEBP"])
def test_files_are_decoded_by_the_rules_of_images(format: str) -> None:
    data = file(4, format)
    (found,) = decoded([data], Limits())
    np.testing.assert_array_equal(found, as_images(Image.open(BytesIO(data)))[0])


def test_pixels_are_taken_as_they_are() -> None:
    found = decoded([picture(1), file(2)], Limits())
    for one, seed in zip(found, (1, 2), strict=True):
        np.testing.assert_array_equal(one, picture(seed))


@pytest.mark.parametrize("height", [1, 3, 4])
def test_the_last_axis_is_the_channels_whatever_the_height(height: int) -> None:
    image = picture(3, (height, 5))
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    expected = engine().predict([Image.fromarray(image)]).values
    for given in (image, buffer.getvalue()):
        (found,) = decoded([given], Limits())
        np.testing.assert_array_equal(np.asarray(found), image)
        np.testing.assert_array_equal(engine().predict([found]).values, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"not an image",
        file(1)[:60],
        file(1, "JPEG")[:200],
        header_of(100, 100),
        picture(1).astype(np.float32),
        picture(1)[..., 0],
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        "a/path.png",
        None,
        7,
    ],
)
def test_what_is_no_image_is_named(wrong: Any) -> None:
    images = [picture(1), wrong, picture(2)]
    check_count(images, Limits())
    with pytest.raises(ValueError, match=r"images\[1\]") as caught:
        decoded(images, Limits())
    assert getattr(caught.value, "code", "invalid") == "invalid"


@pytest.mark.parametrize("width", [8000, 60_000])  # below and above what Pillow opens
def test_a_file_that_says_it_is_huge_is_not_decoded(width: int) -> None:
    with pytest.raises(Refusal) as caught:
        decoded([picture(1), header_of(width, 8000)], Limits(pixels=10_000))
    assert (caught.value.code, caught.value.name) == ("too_large", "images[1]")


def test_headers_are_read_before_the_first_file_is_decoded() -> None:
    with pytest.raises(Refusal) as caught:
        decoded([file(1)[:60], header_of(8000, 8000)], Limits(pixels=10_000))
    assert caught.value.name == "images[1]"


def test_pixels_count_together() -> None:
    limits = Limits(pixels=3 * 72 - 1)
    assert len(decoded([picture(1)] * 2, limits)) == 2
    with pytest.raises(Refusal) as caught:
        decoded([picture(1), file(1), picture(2)], limits)
    assert (caught.value.code, caught.value.name) == ("too_large", "images[2]")


@pytest.mark.parametrize(
    ("images", "code"),
    [
        ([], "invalid"),
        (b"bytes", "invalid"),
        ("text", "invalid"),
        (7, "invalid"),
        ([b"x"] * 4, "too_large"),
        ([b"x" * 600, b"x" * 600], "too_large"),
        (np.zeros((3, 20, 20, 3), np.uint8), "too_large"),
    ],
)
def test_a_request_has_its_size(images: Any, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_count(images, Limits(images=3, request_bytes=1000))
    assert caught.value.code == code
