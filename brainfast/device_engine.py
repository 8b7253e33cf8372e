"""Images to responses without leaving the device: resize, trunk and head in one CUDA graph."""

from __future__ import annotations

import queue
import re
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from .bytes_to_pixels import BytesToPixels
from .device_graphs import Function, Replay, Slot
from .device_heads import DeviceBlobGPT, DeviceFactorTopy, DeviceHead
from .errors import BrainfastError
from .folded import FoldedFactorTopy
from .folded_blobgpt import FoldedBlobGPT
from .images import Bytes, preprocess
from .machine import available_memory, usable_cores
from .runtimes import check_trunk_precision, place_trunk
from .strict_fp32 import strict_fp32

if TYPE_CHECKING:
    from .preprocessing import Preprocessing

Size = tuple[int, int]  # of an image, H and W
Floats = NDArray[np.float32]

LARGEST = 256  # images of one graph
GRAPHS = 16  # of one slot; the one that was not used for the longest time makes room
SIZES = 64  # image sizes that are remembered
STAGED_BYTES = 256 << 20  # of one graph's images


class DeviceRunner:
    """response [B,V] = head(trunk((resize(image) / 255 - mean) / std)), all on one device.

    A batch is padded to the next power of two, its bucket; more than 256 images are several
    batches. Every bucket is captured in a CUDA graph when it first comes or in `warm_up`. An
    answer does not depend on the images beside it, nor on the padding; between buckets the
    device's matrix products may sum in another order.

    Images of one size go to the device as bytes and are resized there, to the same bits as on the
    host, from the second batch of that size on: each size has a graph of its own. All others
    are resized on the host: the first batch of a size, batches of several sizes, and sizes whose
    sums float32 does not hold exactly.

    trunk: torch module, pixels [B,3,H,W] -> Tokens, moved and converted as by `TorchRuntime`, in
    trunk_precision "fp32", which is strict, or "bf16". preprocessing: of `brainfast.images`, or an
    object with its fields.
    Any number of threads may call one runner; `slots` of their calls are on the device at once,
    each with buffers and graphs of its own, the others wait. On the CPU the same code runs without
    graphs.
    """

    def __init__(
        self,
        trunk: Any,
        head: DeviceHead,
        preprocessing: Preprocessing,
        device: torch.device | str,
        trunk_precision: str = "fp32",
        *,
        slots: int = 1,
    ) -> None:
        if slots < 1:
            raise BrainfastError("slots", expected="at least 1", got=str(slots))
        self.device = torch.empty(0, device=device).device
        self.head, self.preprocessing = head, preprocessing
        self.trunk_precision = check_trunk_precision(trunk_precision)
        self._trunk = place_trunk(trunk, self.device, trunk_precision)
        self._lock = threading.Lock()
        self._met: deque[Size] = deque(maxlen=SIZES)
        self._resizes: OrderedDict[Size, BytesToPixels | None] = OrderedDict()
        self._slots: queue.LifoQueue[Slot] = queue.LifoQueue()
        for _ in range(slots):
            self._slots.put(Slot(self.device))
        self._count, self._warming = slots, threading.Lock()
        if self.device.type == "cuda":
            # Constants are packed on this stream, and read on others.
            torch.cuda.current_stream(self.device).synchronize()
        self._used = time.monotonic()
        self._cooling: Any = None  # ends keep_warm

    def predict(
        self, images: Sequence[Bytes] | Bytes, subjects: Sequence[str] | None = None
    ) -> Floats:  # [B,V], B >= 1
        """Responses to uint8 images, each [H,W,3] of any size, or one array [B,H,W,3].

        subjects: whose answers must be finite, all without; every subject's are computed.

        Errors: BrainfastError for other images, answers that are not finite, and a device without
        the memory, with a batch size that fits.
        """
        images = list(images)
        _check_images(images)
        source = self._device_size(images)
        rows = images if source else list(self._host_pixels(images))
        parts = [self._run(rows[i : i + LARGEST], source) for i in range(0, len(rows), LARGEST)]
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        asked = self.head.columns if subjects is None else subjects
        finite = np.all(
            [np.isfinite(found[:, self.head.columns[name]]).all(axis=1) for name in asked], axis=0
        )
        if not finite.all():
            raise BrainfastError(
                f"response to image {int(np.argmin(finite))}",
                expected="finite numbers",
                got="NaN or infinity",
                remedy="check the images and the trunk's weights and precision",
            )
        return found

    def warm_up(
        self, batch_sizes: Sequence[int] = (1,), sizes: Sequence[Size] | None = None
    ) -> None:
        """Capture the graphs of some batch sizes in every slot, for images of any size.

        And those that resize on the device, for images of `sizes` (H, W); the trunk's own where
        None.
        """
        if not all(1 <= batch <= LARGEST for batch in batch_sizes):
            raise BrainfastError(
                "batch_sizes", expected=f"numbers in 1..{LARGEST}", got=str(list(batch_sizes))
            )
        sizes = [self.preprocessing.size] if sizes is None else sizes
        exact = [size for size in sizes if self._resize_of(size) is not None]
        keys = [(_bucket(batch), source) for source in (None, *exact) for batch in batch_sizes]
        with self._warming:  # two who each had some of the slots would wait for one another
            slots = [self._slots.get() for _ in range(self._count)]
        try:
            for slot, (bucket, source) in product(slots, keys):
                if _fits_staging(bucket, source):
                    self._replay(slot, bucket, source)
        finally:
            for slot in slots:
                self._slots.put(slot)

    def keep_warm(self, every_ms: float | None = 5.0) -> None:
        """Replay the smallest graph when nothing was asked for so long; None stops it.

        Between the images of an experiment a GPU lowers its clocks, and answers the next one late.
        Off unless called: it takes power all the time.
        """
        if every_ms is not None and not every_ms > 0:
            raise BrainfastError("every_ms", expected="above 0", got=str(every_ms))
        if self._cooling is not None:
            self._cooling()  # stops the thread, and is forgotten by the interpreter's exit
        self._cooling = None
        if every_ms is not None:
            stop = threading.Event()
            arguments = (weakref.ref(self), stop, every_ms / 1e3)
            thread = threading.Thread(target=_keep_warm, args=arguments, daemon=True)
            self._cooling = weakref.finalize(self, _stop, stop, thread)
            thread.start()

    def replay_idle(self, seconds: float) -> None:
        """Replay the smallest graph, if no call came for so long and none is on its way."""
        try:
            slot = self._slots.get_nowait()
        except queue.Empty:
            return
        try:
            if slot.replays and time.monotonic() - self._used >= seconds:
                min(slot.replays.values(), key=lambda replay: replay.batch).replay()
        finally:
            self._slots.put(slot)

    def _run(self, rows: Sequence[NDArray[Any]], source: Size | None) -> Floats:
        slot = self._slots.get()
        try:
            found = self._replay(slot, _bucket(len(rows)), source).run(rows)
        finally:
            self._used = time.monotonic()
            self._slots.put(slot)
        return found

    def _replay(self, slot: Slot, bucket: int, source: Size | None) -> Replay:
        key = (bucket, source)
        if key not in slot.replays:
            while len(slot.replays) >= GRAPHS:
                slot.replays.popitem(last=False)
            made = self._attempt(slot, bucket, source)
            if isinstance(made, str):
                raise self._no_memory(slot, bucket, source, made)
            slot.replays[key] = made
        slot.replays.move_to_end(key)
        return slot.replays[key]

    def _attempt(self, slot: Slot, bucket: int, source: Size | None) -> Replay | str:
        """The graph, or how much an allocation asked for that failed.

        When this has returned, the error holds none of the memory any more.
        """
        try:
            if source is None:
                pixels = (bucket, 3, *self.preprocessing.size)
                return Replay(self._function(None), pixels, torch.float32, slot)
            return Replay(self._function(source), (bucket, *source, 3), torch.uint8, slot)
        except (RuntimeError, BrainfastError) as error:  # also what a broken capture ends in
            asked = _bytes_asked(error)
            if asked is None:
                raise
            return asked

    def _function(self, source: Size | None) -> Function:
        resize = None if source is None else self._resize_of(source)
        # Without the runner: a graph that held it would keep both alive until a collection.
        trunk, head = self._trunk, self.head
        kind, bf16 = self.device.type, self.trunk_precision == "bf16"

        def answer(batch: torch.Tensor) -> torch.Tensor:  # [B,V] of bytes, or of pixels
            with strict_fp32(), torch.autocast(kind, enabled=False, cache_enabled=False):
                pixels = batch if resize is None else resize(batch)
                with torch.autocast(kind, torch.bfloat16, enabled=bf16, cache_enabled=False):
                    tokens = trunk(pixels)
                return head(tokens)

        return answer

    def _no_memory(
        self, slot: Slot, bucket: int, source: Size | None, asked: str
    ) -> BrainfastError:
        """The error that names a smaller batch which was tried, and fits."""
        free, fits = _free_bytes(self.device), bucket // 2
        while fits:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if isinstance(self._attempt(slot, fits, source), Replay):
                break
            fits //= 2
        return BrainfastError(
            f"memory of {self.device} for a batch of {bucket}",
            expected=f"{asked} more",
            got=f"{free:,} bytes free",
            remedy=f"use batches of at most {fits}" if fits else "free memory on the device",
        )

    def _device_size(self, images: Sequence[Bytes]) -> Size | None:
        """The size of images that go to the device as bytes; None where the host resizes them."""
        sizes = {cast(Size, image.shape[:2]) for image in images}
        if len(sizes) > 1:
            return None
        size = sizes.pop()
        with self._lock:
            first = size not in self._met and size not in self._resizes
            self._met.append(size)
        if first or not _fits_staging(min(len(images), LARGEST), size):
            return None
        return size if self._resize_of(size) is not None else None

    def _resize_of(self, size: Size) -> BytesToPixels | None:
        """The resize of images of one size; None where the device would not give the same bits."""
        with self._lock:
            if size not in self._resizes:
                while len(self._resizes) >= SIZES:
                    self._resizes.popitem(last=False)
                made = BytesToPixels(size, self.preprocessing)
                self._resizes[size] = made.to(self.device) if made.exact else None
            self._resizes.move_to_end(size)
            return self._resizes[size]

    def _host_pixels(self, images: Sequence[Bytes]) -> Floats:  # [B,3,H,W]
        if len(images) == 1:
            return preprocess(images, self.preprocessing)
        with ThreadPoolExecutor(min(8, usable_cores(), len(images))) as pool:
            parts = pool.map(lambda image: preprocess([image], self.preprocessing), images)
            return np.concatenate(list(parts))

    def __repr__(self) -> str:
        vertices = sum(part.stop - part.start for part in self.head.columns.values())
        return f"DeviceRunner({self.device}, trunk {self.trunk_precision}, {vertices} vertices)"


def open_head(
    head: FoldedFactorTopy | FoldedBlobGPT | Mapping[str, FoldedBlobGPT],
    device: torch.device | str,
) -> DeviceHead:
    """A folded head on a device; heads of several subjects, who share a projection, are one."""
    if isinstance(head, FoldedFactorTopy):
        return DeviceFactorTopy(head, device)
    heads = {"": head} if isinstance(head, FoldedBlobGPT) else dict(head)
    return DeviceBlobGPT(next(iter(heads.values())).projection, heads, device)


def _stop(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():  # which drops the last reference, at times
        thread.join()


def _keep_warm(runner: weakref.ref[DeviceRunner], stop: threading.Event, seconds: float) -> None:
    while not stop.wait(seconds):
        found = runner()
        if found is None:
            return
        found.replay_idle(seconds)
        del found  # while this thread sleeps, nobody else's runner is kept alive


def _bucket(images: int) -> int:
    """The next power of two."""
    return 1 << (images - 1).bit_length()


def _fits_staging(images: int, size: Size | None) -> bool:
    return size is None or _bucket(images) * size[0] * size[1] * 3 <= STAGED_BYTES


def _bytes_asked(error: BaseException | None) -> str | None:
    """What an allocation that failed had asked for; None where another thing went wrong."""
    asked = error.expected if isinstance(error, BrainfastError) else None
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            found = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
            return asked or (found.group(1) if found else "memory")
        error = error.__cause__ or error.__context__
    return None


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def _check_images(images: Sequence[Bytes]) -> None:
    if len(images) == 0:
        raise BrainfastError("images", expected="at least one image", got="none")
    for index, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise BrainfastError(
                f"images[{index}]",
                expected="uint8 [H,W,3] with at least one pixel",
                got=f"{image.dtype} {list(image.shape)}",
                remedy="use brainfast.images.as_images",
            )
