"""Raw tokens of a set of images on disk: computed once, memory-mapped, resumed after a kill."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from ..errors import BrainfastError
from ..files import hash_file, write_json
from ..images import as_images, as_sequence, hash_image
from ..machine import available_memory, usable_cores
from ..tokens import Tokens, downsample
from ..trunks import Trunk
from .token_file import (
    DATA_FILE,
    INDEX_FILE,
    PARTIAL_FILE,
    Index,
    Key,
    Kind,
    check_key,
    damaged,
    layout,
    locked,
    read_index,
    reserve,
    told_disk_errors,
)

CHUNK = 64  # images held at once while moments are summed

Moments = list[tuple[torch.Tensor, torch.Tensor]]  # per layer: mean [C], std [C]
Progress = bool | Callable[[int, int], None]  # a bar, none, or function(done, total)


class TokenCache:
    """Tokens of N images: local.{l} [N,C_l,H,W] on one grid and global.{l} [N,C_l].

    A folder with one safetensors file (fp32, or bf16 at half the size) and a JSON index. The key
    holds the trunk's name and weights, preprocessing, layers, grid, dtype and the images' bytes in
    their order; a cache of another key is refused by an error that names what changed.
    """

    def __init__(self, index: Index, arrays: dict[str, npt.NDArray[Any]]) -> None:
        self.index = index
        self._arrays = arrays

    @classmethod
    def build(
        cls,
        folder: str | Path,
        trunk: Trunk,
        images: Any,
        *,
        grid: tuple[int, int] = (8, 8),
        dtype: Kind = "fp32",
        batch_size: int = 16,
        progress: Progress = False,
    ) -> TokenCache:
        """Compute what is missing and open the cache; a complete one opens at once.

        `images` are those of `brainfast.images.as_images`, or a lazy sequence of single images.
        After each batch the data are synced and then the index, so a run that was killed goes on
        behind its last whole batch and, with the same batch size, ends in the same bytes. The
        space is reserved first. Data become `tokens.safetensors` when whole.

        Errors: BrainfastError for a stale cache, too little space (nothing is left behind), a disk
        error later (what is done stays, and the next call goes on), tokens that are not finite,
        and a folder that another process is building in.
        """
        folder, sequence = Path(folder), as_sequence(images)
        key = _key(trunk, sequence, tuple(grid), dtype)
        empty = Index(key=key, images=len(sequence), channels=tuple(trunk.config.channels), done=0)
        with told_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with told_disk_errors(folder), locked(folder):
            index = _begin(folder, empty)
            if not (folder / DATA_FILE).is_file():
                _fill(folder, index, trunk, sequence, batch_size, progress)
                os.replace(folder / PARTIAL_FILE, folder / DATA_FILE)
        return cls.open(folder)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        trunk: Trunk | None = None,
        images: Any = None,
        grid: tuple[int, int] | None = None,
        dtype: Kind | None = None,
    ) -> TokenCache:
        """Map a complete cache; what is given must be what it was built with."""
        folder = Path(folder)
        index = read_index(folder)
        want: dict[str, Any] = {"grid": grid and tuple(grid), "dtype": dtype}
        if trunk is not None:
            want |= _trunk_key(trunk)
        if images is not None:
            want["images_hash"] = hash_images(as_sequence(images))
        check_key(folder, index, {name: value for name, value in want.items() if value})
        path = folder / DATA_FILE
        if not path.is_file():
            raise BrainfastError(
                str(folder),
                expected=f"tokens of {index.images} images",
                got=f"{index.done} of them",
                remedy="build it again to go on where it stopped",
            )
        place = layout(index)
        with path.open("rb") as file:
            header = file.read(len(place.header))
        if path.stat().st_size != place.size or header != place.header:
            raise damaged(path)
        flat = np.memmap(path, np.uint8, "r")
        stored = np.dtype(np.float32 if index.key.dtype == "fp32" else np.int16)
        arrays = {
            name: flat[first : first + math.prod(shape) * stored.itemsize]
            .view(stored)
            .reshape(shape)
            for name, (first, shape) in place.places.items()
        }
        return cls(index, arrays)

    def __len__(self) -> int:
        return self.index.images

    @property
    def layers(self) -> tuple[int, ...]:
        """The trunk layers that are kept."""
        return self.index.key.layers

    @property
    def nbytes(self) -> int:
        """Size of all tokens in bytes."""
        return sum(array.nbytes for array in self._arrays.values())

    def tokens(self, indices: Any) -> Tokens:
        """Tokens of some images as torch float32 on the CPU; `indices` is a slice or integers."""
        return self.stored(indices).map(lambda rows: rows.float())

    def stored(self, indices: Any) -> Tokens:
        """The same in the dtype that the file has: torch float32 or bfloat16."""
        chosen = self._rows(indices)

        def read(name: str) -> torch.Tensor:
            rows = torch.from_numpy(np.array(self._arrays[name][chosen]))
            return rows if rows.dtype == torch.float32 else rows.view(torch.bfloat16)

        return Tokens(
            tuple(read(f"local.{layer}") for layer in self.layers),
            tuple(read(f"global.{layer}") for layer in self.layers),
            self.layers,
        )

    def resident(self) -> TokenCache:
        """The cache read into memory where it takes at most half of what is free, else itself."""
        if self.nbytes > available_memory() // 2:
            return self
        return TokenCache(self.index, {name: np.array(a) for name, a in self._arrays.items()})

    def moments(self, indices: Any = None) -> tuple[Moments, Moments]:
        """Mean and population standard deviation per channel of the local and the global tokens.

        Over the images `indices` (all when None) and, for local tokens, the grid. float64 [C] each,
        summed in float64 by chunks (Chan, Golub and LeVeque 1979).
        """
        chosen = self._rows(slice(None) if indices is None else indices)
        rows = np.arange(len(self))[chosen]
        if len(rows) == 0:
            raise BrainfastError("indices", expected="at least one image", got="none")
        sums = [_Moments() for _ in range(2 * len(self.layers))]
        for first in range(0, len(rows), CHUNK):
            tokens = self.tokens(rows[first : first + CHUNK])
            for total, array in zip(sums, (*tokens.local, *tokens.global_), strict=True):
                total.add(array)
        results = [total.result() for total in sums]
        return results[: len(self.layers)], results[len(self.layers) :]

    def _rows(self, indices: Any) -> Any:
        if isinstance(indices, slice):
            return indices
        rows = np.asarray(indices)
        if rows.size == 0:
            return slice(0, 0)
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise BrainfastError(
                "indices", expected="a slice or integers", got=f"{rows.dtype} {list(rows.shape)}"
            )
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= len(self):
            raise BrainfastError(
                "indices", expected=f"0..{len(self) - 1}", got=f"{low if low < 0 else high}"
            )
        run = bool((np.diff(rows) == 1).all())
        return slice(low, high + 1) if run else rows


class _Moments:
    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, array: torch.Tensor) -> None:  # [B,C] or [B,C,H,W]
        values = array.double().transpose(0, 1).flatten(1)  # [C,n]
        count = self.count + values.shape[1]
        mean = values.mean(1)
        step = mean - self.mean
        self.squares = self.squares + (values - mean[:, None]).square().sum(1)
        self.squares = self.squares + step.square() * (self.count * values.shape[1] / count)
        self.mean = self.mean + step * (values.shape[1] / count)
        self.count = count

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mean, (self.squares / self.count).sqrt()


def _key(trunk: Trunk, images: Sequence[Any], grid: tuple[int, ...], dtype: Kind) -> Key:
    if len(grid) != 2 or min(grid) < 1:
        raise BrainfastError("grid", expected="two sides of at least 1", got=str(grid))
    if dtype not in ("fp32", "bf16"):
        raise BrainfastError("dtype", expected="fp32 or bf16", got=repr(dtype))
    if len(images) == 0:
        raise BrainfastError("images", expected="at least one image", got="none")
    return Key(**_trunk_key(trunk), grid=grid, dtype=dtype, images_hash=hash_images(images))


def _trunk_key(trunk: Trunk) -> dict[str, Any]:
    config = trunk.config
    return {
        "trunk": config.name,
        "weights_hash": config.weights_hash,
        "preprocessing": config.preprocessing,
        "layers": tuple(config.layers),
    }


def hash_images(images: Sequence[Any]) -> str:
    """SHA-256 over the images in order: a file's bytes, or an array's."""

    def digest(index: int) -> str:
        item = images[index]
        if isinstance(item, str | os.PathLike):
            return hash_file(Path(item))
        return hash_image(as_images(item, f"images[{index}]")[0])

    with ThreadPoolExecutor(min(4, usable_cores())) as pool:
        digests = list(pool.map(digest, range(len(images))))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _begin(folder: Path, empty: Index) -> Index:
    """The index to go on from: the one on disk where its data are there, else a new file's."""
    data, partial = folder / DATA_FILE, folder / PARTIAL_FILE
    place = layout(empty)
    if (folder / INDEX_FILE).exists():
        index = read_index(folder)
        check_key(folder, index, dict(empty.key))
        if (index.images, index.channels) != (empty.images, empty.channels):
            raise damaged(folder / INDEX_FILE)
        if data.is_file() or (partial.is_file() and partial.stat().st_size == place.size):
            return index
    elif data.exists():
        raise damaged(folder / INDEX_FILE)
    reserve(partial, place)
    write_json(folder / INDEX_FILE, empty.model_dump(mode="json"))
    return empty


def _fill(
    folder: Path,
    index: Index,
    trunk: Trunk,
    images: Sequence[Any],
    batch_size: int,
    progress: Progress,
) -> None:
    places, done = layout(index).places, index.done
    report: Any = nullcontext(progress if callable(progress) else lambda _done, _total: None)
    if progress is True:
        report = _bar(done, index.images)
    with (folder / PARTIAL_FILE).open("r+b", buffering=0) as file, report as tell:
        for tokens in trunk.features(images, batch_size, start=done):
            last = done + tokens.B
            small = downsample(tokens, index.key.grid)
            small.check_finite(f"tokens of images {done}..{last - 1}")
            for name, array in _named(small):
                first, shape = places[name]
                data = _to_bytes(array, index.key.dtype)
                file.seek(first + done * (len(data) // tokens.B))
                _write_all(file, data, (tokens.B, *shape[1:]), array.shape)
            os.fsync(file.fileno())
            done = last
            write_json(
                folder / INDEX_FILE,
                index.model_copy(update={"done": done}).model_dump(mode="json"),
            )
            tell(done, index.images)


@contextmanager
def _bar(done: int, total: int) -> Iterator[Callable[[int, int], None]]:
    with tqdm(desc="tokens", unit="image", initial=done, total=total) as bar:
        yield lambda now, _total: bar.update(now - bar.n)


def _named(tokens: Tokens) -> Iterator[tuple[str, torch.Tensor]]:
    for layer, local, global_ in zip(tokens.layers, tokens.local, tokens.global_, strict=True):
        yield f"local.{layer}", local
        yield f"global.{layer}", global_


def _to_bytes(array: torch.Tensor, dtype: Kind) -> memoryview:
    array = array.detach().cpu().float().contiguous()
    stored = array if dtype == "fp32" else array.bfloat16().view(torch.int16)
    return stored.numpy().reshape(-1).view(np.uint8).data


def _write_all(file: Any, data: memoryview, want: tuple[int, ...], got: tuple[int, ...]) -> None:
    if tuple(got) != want:
        raise BrainfastError("tokens of the trunk", expected=str(want), got=str(tuple(got)))
    while data:
        data = data[file.write(data) :]
