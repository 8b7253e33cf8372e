"""Batches of images, subjects and responses of a group, decoded while the last step computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..images import as_images, preprocess
from ..machine import usable_cores
from ..preprocessing import Preprocessing
from ..tokens import Tokens
from .examples import Sampler

CROP_STREAM = 1  # tells the random numbers of crops from those of dropout
DROPOUT_STREAM = 2


class GroupSamples(Protocol):
    """The (subject, image) pairs of one side of a group's split."""

    subject_index: NDArray[np.int64]  # [n]
    image_ids: NDArray[np.str_]  # [n]

    def __len__(self) -> int: ...
    def image(self, index: int) -> Any: ...
    def responses(
        self, indices: Sequence[int] | NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...


class Texts(Protocol):
    """Text embeddings by image id."""

    def of(self, image_ids: Sequence[str] | NDArray[np.str_]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class GroupBatch:
    """What one pass through the trunk and the head needs of b samples: pixels, or their tokens."""

    samples: NDArray[np.int64]  # [b], numbers in the split
    pixels: torch.Tensor | Tokens  # [b,3,H,W]
    subjects: torch.Tensor  # [b] int64
    measured: torch.Tensor  # [b,V]
    present: torch.Tensor  # [b,V] bool

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device) -> GroupBatch:
        """The same batch on `device`."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        pixels = self.pixels
        return GroupBatch(
            self.samples,
            pixels.map(move) if isinstance(pixels, Tokens) else move(pixels),
            *(move(part) for part in (self.subjects, self.measured, self.present)),
        )


class GroupBatches:
    """The micro-batches of every step of one rank, from the seed and the step alone."""

    def __init__(
        self,
        split: GroupSamples,
        preprocessing: Preprocessing,
        *,
        batch: int,
        micro_batch: int,
        share: slice,
        crop_scale: tuple[float, float],
        seed: int,
        tokens: Callable[[NDArray[np.int64]], Tokens] | None = None,
    ) -> None:
        self.split, self.preprocessing = split, preprocessing
        self.micro_batch, self.share = micro_batch, share
        self.crop_scale, self.seed, self.tokens = crop_scale, seed, tokens
        self.sampler = Sampler(len(split), batch, seed)
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="brainfast-batches")
        self._decoders = ThreadPoolExecutor(usable_cores(), thread_name_prefix="brainfast-images")
        self._next: tuple[int, Future[GroupBatch]] | None = None

    def samples(self, step: int) -> NDArray[np.int64]:
        """Sample numbers [B] of the whole batch of `step`, over all ranks."""
        with self._lock:  # the thread that loads asks as well
            return self.sampler.indices(step)

    def step(self, step: int) -> list[GroupBatch]:
        """This rank's micro-batches of `step`, on the CPU; those of the next are begun."""
        if self._next is None or self._next[0] != step:
            self._next = (step, self._pool.submit(self._load, step))
        whole = self._next[1].result()
        self._next = (step + 1, self._pool.submit(self._load, step + 1))
        return list(_pieces(whole, self.micro_batch))

    def close(self) -> None:
        """Stop decoding."""
        self._pool.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def _load(self, step: int) -> GroupBatch:
        samples = self.samples(step)[self.share]
        measured, present = self.split.responses(samples)
        return GroupBatch(
            samples=samples,
            pixels=self._pixels(samples, step) if self.tokens is None else self.tokens(samples),
            subjects=torch.from_numpy(self.split.subject_index[samples]),
            measured=torch.from_numpy(measured),
            present=torch.from_numpy(present),
        )

    def _pixels(self, samples: NDArray[np.int64], step: int) -> torch.Tensor:
        parts = self._decoders.map(lambda sample: self._image(int(sample), step), samples)
        return torch.from_numpy(np.concatenate(list(parts)))

    def _image(self, sample: int, step: int) -> NDArray[np.float32]:  # [1,3,H,W]
        image: NDArray[np.uint8] = as_images(self.split.image(sample))[0]
        if self.crop_scale != (1.0, 1.0):
            rng = np.random.default_rng([self.seed, CROP_STREAM, step, sample])
            image = random_crop(image, self.crop_scale, rng)
        return preprocess([image], self.preprocessing)


def random_crop(
    image: NDArray[np.uint8],  # [H,W,3]
    scale: tuple[float, float],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """A square of `scale` of the image's area, anywhere in it; at most its shorter side."""
    height, width = image.shape[:2]
    share = rng.uniform(*scale)
    side = min(max(round(float(np.sqrt(share * height * width))), 1), height, width)
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    return image[top : top + side, left : left + side]


def dropout_mask(
    shape: tuple[int, ...],  # of one sample
    samples: NDArray[np.int64],  # [b]
    *,
    keep: float,
    seed: int,
    step: int,
    layer: int,
    device: torch.device,
) -> torch.Tensor:  # [b,*shape]
    """1/keep where a token's channel is kept, else 0; a function of seed, step, layer and sample.

    A sample is treated alike in whichever micro-batch, rank and place of the batch it stands. CPU
    and GPU draw other numbers.
    """
    mask = torch.empty(len(samples), *shape, device=device)
    for row, sample in zip(mask, samples.tolist(), strict=True):
        words = np.random.SeedSequence([seed, DROPOUT_STREAM, step, layer, sample])
        generator = torch.Generator(device).manual_seed(int(words.generate_state(1, np.uint64)[0]))
        row.bernoulli_(keep, generator=generator)
    return mask.div_(keep)


def _pieces(batch: GroupBatch, size: int) -> Iterator[GroupBatch]:
    for start in range(0, len(batch), size):
        part = slice(start, start + size)
        yield GroupBatch(
            batch.samples[part],
            batch.pixels[part],
            batch.subjects[part],
            batch.measured[part],
            batch.present[part],
        )
