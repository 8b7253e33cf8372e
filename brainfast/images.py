"""Decoding and preprocessing of images, as data: what a trunk was given is written in its card."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from .errors import BrainfastError
from .machine import usable_cores
from .resize_weights import sampling_weights

if TYPE_CHECKING:
    from .preprocessing import Preprocessing

T = TypeVar("T")
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

MID_GREY = 127
BAND = 256  # rows that are blended at a time, in 32 bits
ACCEPTED = (
    "a path, a PIL image or a uint8 array (HW, HWC, CHW, NHWC or NCHW), or a sequence of them"
)
CHANNEL_COUNTS = (1, 3, 4)
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def as_images(images: Any, name: str = "images") -> list[Bytes]:
    """Turn one image or many into a list of uint8 arrays [H,W,3].

    Accepted: a path, a PIL image, a uint8 array [H,W], [H,W,C], [C,H,W], [N,H,W,C] or [N,C,H,W]
    with C of 1, 3 or 4, or a sequence in which each item is one image. The rules:

    - The channel axis is the outer or the last one of an image, whichever holds 1, 3 or 4; where
      both could, the array is refused, since a guess would be silent.
    - Grey becomes three equal channels. Alpha, and a palette's transparent colour, is composited
      over mid-grey (127, 127, 127). EXIF orientation is applied; of an animation the first frame.
    - 16-bit files keep their high byte. CMYK, YCbCr, HSV and LAB are converted by Pillow's plain
      formulas, without colour profiles. 32-bit integer and float images are refused.

    Errors: BrainfastError that names the file or `name[i]`: an unreadable, cut-off or oversized
    file (PIL.Image.MAX_IMAGE_PIXELS), another dtype or shape, an empty image, no image at all.
    """
    if isinstance(images, np.ndarray | Image.Image | str | os.PathLike) or _is_array(images):
        return _one(images, name, allow_many=True)
    if not isinstance(images, Sequence) or isinstance(images, bytes):
        raise BrainfastError(name, expected=ACCEPTED, got=type(images).__name__)
    if len(images) == 0:
        raise BrainfastError(name, expected="at least one image", got="none")
    return [
        _one(item, f"{name}[{index}]", allow_many=False)[0] for index, item in enumerate(images)
    ]


def as_sequence(images: Any, name: str = "images") -> Sequence[Any]:
    """One image or many as a sequence of single images; sequences stay lazy, nothing is decoded."""
    lazy = hasattr(images, "__getitem__") and hasattr(images, "__len__")
    if lazy and not _is_array(images) and not isinstance(images, str | bytes | Mapping):
        return cast(Sequence[Any], images)
    return as_images(images, name)


def load_image(path: str | os.PathLike[str]) -> Bytes:
    """Decode one file to uint8 [H,W,3] by the rules of `as_images`."""
    path = Path(path)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing there"
        raise BrainfastError(str(path), expected="an image file", got=got, remedy="check the path")
    return _decode_safely(path, str(path))


def preprocess(
    images: Sequence[Bytes],  # each [H,W,3], any size
    preprocessing: Preprocessing,
) -> Floats:  # [B,3,H,W]
    """pixels = (resize(image) / 255 - mean) / std, float32 [B,3,H,W], contiguous.

    Equal bit for bit to torchvision's Resize, ToTensor and Normalize.
    """
    height, width = preprocessing.size
    mean = np.asarray(preprocessing.mean, np.float32)[:, None]
    std = np.asarray(preprocessing.std, np.float32)[:, None]
    table = (np.arange(256, dtype=np.float32) / np.float32(255) - mean) / std
    pixels = np.empty((len(images), 3, height, width), np.float32)
    for image, out in zip(images, pixels, strict=True):
        small = _resize(image, preprocessing)
        for channel in range(3):
            np.take(table[channel], small[..., channel], out=out[channel])
    return pixels


def iter_pixels(
    images: Any, preprocessing: Preprocessing, batch_size: int, *, start: int = 0
) -> Iterator[Floats]:
    """Preprocessed batches [<=batch_size,3,H,W] in order from image `start`.

    The next batch is decoded on other threads while the caller works on this one, so that two
    batches at most are held.
    """

    def load(image: Bytes) -> Floats:
        return preprocess([image], preprocessing)

    for parts in _iter_batches(images, load, batch_size, start):
        yield np.concatenate(parts)


def iter_bytes(images: Any, batch_size: int) -> Iterator[list[Bytes]]:
    """Decoded batches of at most batch_size images, each [H,W,3] of its own size, in order.

    As `iter_pixels`, the next batch is decoded meanwhile.
    """

    return _iter_batches(images, lambda image: image, batch_size, 0)


def _iter_batches(
    images: Any, finish: Callable[[Bytes], T], batch_size: int, start: int
) -> Iterator[list[T]]:
    if batch_size < 1:
        raise BrainfastError("batch_size", expected="at least 1", got=str(batch_size))
    images = as_sequence(images)
    if len(images) == 0:
        raise BrainfastError("images", expected="at least one image", got="none")

    def load(index: int) -> T:
        return finish(_one(images[index], f"images[{index}]", allow_many=False)[0])

    if len(images) == 1 and start == 0:  # nothing to decode meanwhile, so no threads
        yield [load(0)]
        return
    starts = range(start, len(images), batch_size)
    with ThreadPoolExecutor(min(8, usable_cores()), thread_name_prefix="decode") as pool:

        def submit(first: int) -> list[Future[T]]:
            last = min(first + batch_size, len(images))
            return [pool.submit(load, index) for index in range(first, last)]

        try:
            pending = submit(starts[0]) if starts else []
            for first in starts:
                current = pending
                pending = submit(first + batch_size) if first + batch_size < len(images) else []
                yield [future.result() for future in current]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def hash_image(image: Bytes) -> str:
    """SHA-256 over the shape and the bytes of a uint8 array."""
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def _is_array(item: Any) -> bool:
    return hasattr(item, "__array__") and not isinstance(item, Image.Image)


def _one(item: Any, name: str, *, allow_many: bool) -> list[Bytes]:
    if isinstance(item, str | os.PathLike):
        return [load_image(item)]
    if isinstance(item, Image.Image):
        return [_decode_safely(item, name)]
    if _is_array(item):
        return _from_array(_to_numpy(item, name), name, allow_many=allow_many)
    raise BrainfastError(name, expected=ACCEPTED, got=type(item).__name__)


def _to_numpy(item: Any, name: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(item)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BrainfastError(
            name, expected="an array in host memory", got=str(error), remedy="call .cpu() on it"
        ) from error


def _from_array(array: npt.NDArray[Any], name: str, *, allow_many: bool) -> list[Bytes]:
    if array.dtype != np.uint8:
        remedy = "convert it to uint8 in 0..255"
        if np.issubdtype(array.dtype, np.floating):
            remedy = "for values in 0..1 pass (array * 255).round().astype(numpy.uint8)"
        raise BrainfastError(
            name, expected="a uint8 array", got=f"{array.dtype} {list(array.shape)}", remedy=remedy
        )
    many = array.ndim == 4
    if array.ndim not in (2, 3, 4) or (many and not allow_many):
        expected = "uint8 HW, HWC, CHW, NHWC or NCHW" if allow_many else "one image: HW, HWC or CHW"
        raise BrainfastError(name, expected=expected, got=f"shape {list(array.shape)}")
    if 0 in array.shape:
        raise BrainfastError(
            name, expected="at least one pixel", got=f"an empty array {list(array.shape)}"
        )
    if array.ndim == 2:
        return [_to_rgb(array[..., None])]
    array = _channels_last(array, name)
    return [_to_rgb(image) for image in array] if many else [_to_rgb(array)]


def _channels_last(array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    last, first = array.shape[-1] in CHANNEL_COUNTS, array.shape[-3] in CHANNEL_COUNTS
    if last and first:
        raise BrainfastError(
            name,
            expected="one axis of 1, 3 or 4 channels",
            got=f"shape {list(array.shape)}, which reads both ways",
            remedy="pass PIL.Image.fromarray(array), whose layout is fixed",
        )
    if not last and not first:
        raise BrainfastError(
            name, expected="an axis of 1, 3 or 4 channels", got=f"shape {list(array.shape)}"
        )
    return array if last else np.moveaxis(array, -3, -1)


def _to_rgb(image: Bytes) -> Bytes:
    """[H,W,1|3|4] to [H,W,3]."""
    channels = image.shape[-1]
    if channels == 1:
        return np.repeat(image, 3, axis=-1)
    if channels == 3:
        return image
    rgb = np.empty((*image.shape[:2], 3), np.uint8)
    for first in range(0, len(image), BAND):
        band = image[first : first + BAND]
        alpha = band[..., 3:].astype(np.uint32)
        blended = band[..., :3] * alpha + MID_GREY * (255 - alpha)
        rgb[first : first + BAND] = (blended + 127) // 255
    return rgb


def _decode_safely(source: Path | Image.Image, name: str) -> Bytes:
    try:
        if isinstance(source, Image.Image):
            return _decode(source, name)
        with Image.open(source) as image:
            return _decode(image, name)
    except BrainfastError:
        raise
    except Exception as error:  # decoders of hostile bytes raise nearly anything
        raise BrainfastError(
            name,
            expected="a whole image that Pillow reads",
            got=str(error).replace(f" {name!r}", "") or type(error).__name__,
            remedy="replace it or leave it out",
        ) from error


def _decode(image: Image.Image, name: str) -> Bytes:
    limit = Image.MAX_IMAGE_PIXELS
    if 0 in image.size:
        raise BrainfastError(name, expected="at least one pixel", got=f"size {image.size}")
    if limit is not None and image.width * image.height > limit:
        raise BrainfastError(
            name,
            expected=f"at most {limit} pixels",
            got=f"{image.width} x {image.height}",
            remedy="scale it down first, or raise PIL.Image.MAX_IMAGE_PIXELS if it is trusted",
        )
    if image.mode in ("I", "F"):
        raise BrainfastError(
            name,
            expected="an 8-bit or 16-bit image",
            got=f"32-bit values (PIL mode {image.mode})",
            remedy="convert it to 8 bits by a scale that you choose",
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return _to_rgb((np.asarray(image) >> 8).astype(np.uint8)[..., None])
    if image.has_transparency_data:
        return _to_rgb(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _resize(image: Bytes, preprocessing: Preprocessing) -> Bytes:
    height, width = preprocessing.size
    if image.shape[:2] == (height, width):
        return image
    interpolation = preprocessing.interpolation
    if preprocessing.antialias or interpolation == "nearest":
        small = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(small.resize((width, height), FILTERS[interpolation]))
    values = image.astype(np.float32)
    values = _sample(values, height, 0, interpolation)
    values = _sample(values, width, 1, interpolation)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _sample(values: Floats, size: int, axis: int, interpolation: str) -> Floats:
    shape = [1, 1, 1]
    shape[axis] = size
    result: Floats = np.zeros((), np.float32)
    for pixel, weight in sampling_weights(values.shape[axis], size, interpolation):
        result = result + np.take(values, pixel, axis=axis) * weight.reshape(shape)
    return result
