from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from brainfast.card import TrunkConfig
from brainfast.data import token_file
from brainfast.data.token_cache import TokenCache
from brainfast.errors import BrainfastError
from brainfast.images import iter_pixels
from brainfast.preprocessing import Preprocessing
from brainfast.tokens import Tokens, downsample
from brainfast.trunks import Trunk

SETTINGS = Preprocessing(size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
CONFIG = TrunkConfig(
    name="stand-in",
    layers=(1, 4),
    size=(32, 32),
    pretrained=False,
    weights_hash="0" * 64,
    preprocessing=SETTINGS,
    channels=(3, 2),
    grid=(32, 32),
)


class StandIn:
    """A trunk of known arithmetic that counts the images it is asked for."""

    def __init__(self, pause_s: float = 0.0, poison: int | None = None, **changes) -> None:
        self.config = CONFIG.model_copy(update=changes)
        self.pause_s, self.poison = pause_s, poison
        self.seen: list[int] = []

    def features(self, images, batch_size, *, start=0):
        for pixels in iter_pixels(images, self.config.preprocessing, batch_size, start=start):
            time.sleep(self.pause_s)
            x = torch.from_numpy(pixels)
            first = start + sum(self.seen)
            self.seen.append(len(x))
            if self.poison is not None and first <= self.poison < first + len(x):
                x[0, 0, 0, 0] = float("nan")
            local = (x, x[:, 1:, ::4, ::4] ** 2)
            yield Tokens(local, tuple(part.mean((2, 3)) for part in local), self.config.layers)


def photographs(count: int = 11) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (20 + i, 30, 3), np.uint8) for i in range(count)]


def reference(images) -> Tokens:
    (tokens,) = StandIn().features(images, len(images))
    return downsample(tokens)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("source", ["arrays", "paths", "mixed"])
def test_cache_holds_the_downsampled_tokens(tmp_path, dtype, source):
    images = photographs()
    given = []
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
        as_path = source == "paths" or (source == "mixed" and index % 2)
        given.append(tmp_path / f"{index}.png" if as_path else image)
    reports: list[tuple[int, int]] = []
    cache = TokenCache.build(
        tmp_path / "cache",
        StandIn(),
        given,
        dtype=dtype,
        batch_size=4,
        progress=lambda *now: reports.append(now),
    )
    assert reports == [(4, 11), (8, 11), (11, 11)]
    assert len(cache) == 11
    assert cache.layers == (1, 4)
    want = reference(images)
    got = cache.tokens(slice(None))
    for ours, exact in zip((*got.local, *got.global_), (*want.local, *want.global_), strict=True):
        assert ours.dtype == torch.float32
        expected = exact if dtype == "fp32" else exact.bfloat16().float()
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_file_is_plain_safetensors(tmp_path, dtype):
    cache = TokenCache.build(tmp_path, StandIn(), photographs(), dtype=dtype)
    tensors = load_file(tmp_path / "tokens.safetensors")
    assert set(tensors) == {"local.1", "local.4", "global.1", "global.4"}
    assert tensors["local.4"].dtype == (torch.float32 if dtype == "fp32" else torch.bfloat16)
    assert tuple(tensors["local.4"].shape) == (11, 2, 8, 8)
    torch.testing.assert_close(cache.tokens([3]).global_[1], tensors["global.4"][[3]].float())


@pytest.mark.parametrize(
    "indices",
    [slice(2, 9, 3), [3, 4, 5], [10, 0, 0], np.array([7]), torch.tensor([1, 9]), [], range(3)],
)
def test_tokens_are_taken_in_the_order_asked(tmp_path, indices):
    cache = TokenCache.build(tmp_path, StandIn(), photographs())
    everything = reference(photographs())
    rows = np.arange(11)[indices if isinstance(indices, slice) else np.asarray(indices, int)]
    for form in (cache, cache.resident()):
        got = form.tokens(indices)
        torch.testing.assert_close(got.local[1], everything.local[1][rows], rtol=0, atol=0)
        torch.testing.assert_close(got.global_[0], everything.global_[0][rows], rtol=0, atol=0)
        got.local[1].zero_()  # a copy: the file is not touched
        again = form.tokens(indices).local[1]
        torch.testing.assert_close(again, everything.local[1][rows], rtol=0, atol=0)


@pytest.mark.parametrize("indices", [[11], [-1], [0.5], [[0, 1]], [True, False]])
def test_bad_indices_are_refused(tmp_path, indices):
    cache = TokenCache.build(tmp_path, StandIn(), photographs())
    with pytest.raises(BrainfastError, match="indices"):
        cache.tokens(indices)


def test_resident_only_where_it_fits(tmp_path, monkeypatch):
    cache = TokenCache.build(tmp_path, StandIn(), photographs())
    assert cache.resident() is not cache
    monkeypatch.setattr("brainfast.data.token_cache.available_memory", lambda: cache.nbytes)
    assert cache.resident() is cache


@pytest.mark.parametrize("indices", [None, [4], [0, 9, 2, 3], range(8)])
def test_moments_are_those_of_all_values(tmp_path, monkeypatch, indices):
    monkeypatch.setattr("brainfast.data.token_cache.CHUNK", 3)
    cache = TokenCache.build(tmp_path, StandIn(), photographs())
    local, global_ = cache.moments(indices)
    tokens = cache.tokens(slice(None) if indices is None else indices)
    for (mean, std), array in zip(
        (*local, *global_), (*tokens.local, *tokens.global_), strict=True
    ):
        values = np.moveaxis(array.double().numpy(), 1, 0).reshape(array.shape[1], -1)
        assert mean.dtype == torch.float64
        np.testing.assert_allclose(mean, values.mean(1), rtol=1e-12)
        np.testing.assert_allclose(std, values.std(1), rtol=1e-10, atol=1e-12)
    with pytest.raises(BrainfastError, match="at least one image"):
        cache.moments([])


def test_a_complete_cache_opens_without_the_trunk_running(tmp_path):
    TokenCache.build(tmp_path, StandIn(), photographs())
    before = contents(tmp_path)
    trunk = StandIn()
    cache = TokenCache.build(tmp_path, trunk, photographs())
    assert trunk.seen == []
    assert contents(tmp_path) == before
    opened = TokenCache.open(tmp_path, trunk=trunk, images=photographs(), grid=(8, 8), dtype="fp32")
    assert opened.index == cache.index


def test_a_real_trunk_goes_through(tmp_path):
    trunk = Trunk.create("vit_tiny_patch16_224", pretrained=False, size=32, layers=(0, 1))
    cache = TokenCache.build(tmp_path, trunk, photographs(3), grid=(4, 4), batch_size=2)
    want = torch.cat([downsample(t, (4, 4)).local[1] for t in trunk.features(photographs(3), 2)])
    torch.testing.assert_close(cache.tokens(slice(None)).local[1], want, rtol=0, atol=0)


class HaltError(Exception):
    pass


def stop_after(batches: int):
    calls = iter(range(batches))

    def report(_done: int, _total: int) -> None:
        if next(calls) == batches - 1:
            raise HaltError

    return report


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_finished_batches_are_not_computed_again(tmp_path, batches):
    whole = TokenCache.build(tmp_path / "whole", StandIn(), photographs(), batch_size=3)
    trunk = StandIn()
    with pytest.raises(HaltError):
        TokenCache.build(
            tmp_path / "cut", trunk, photographs(), batch_size=3, progress=stop_after(batches)
        )
    assert not (tmp_path / "cut" / "tokens.safetensors").exists()
    if batches < 4:
        with pytest.raises(BrainfastError, match=f"got {3 * batches} of them"):
            TokenCache.open(tmp_path / "cut")
    second = StandIn()
    again = TokenCache.build(tmp_path / "cut", second, photographs(), batch_size=3)
    assert sum(second.seen) == 11 - min(3 * batches, 11)
    assert again.index == whole.index
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


KILLED = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("stand_in", {file!r})
module = importlib.util.module_from_spec(spec)
sys.modules["stand_in"] = module
spec.loader.exec_module(module)
print("ready", flush=True)
module.TokenCache.build(
    {folder!r}, module.StandIn(pause_s=0.1), module.photographs(), batch_size=1,
    progress=lambda done, total: print(done, flush=True),
)
"""


def test_kill_and_resume_end_in_the_same_bytes(tmp_path):
    code = KILLED.format(file=__file__, folder=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "4":
            break
    with pytest.raises(BrainfastError, match="another one at work"):
        TokenCache.build(tmp_path / "killed", StandIn(), photographs(), batch_size=1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    done = json.loads((tmp_path / "killed" / "tokens.json").read_text())["done"]
    assert 4 <= done < 11
    trunk = StandIn()
    TokenCache.build(tmp_path / "killed", trunk, photographs(), batch_size=1)
    assert sum(trunk.seen) == 11 - done
    TokenCache.build(tmp_path / "whole", StandIn(), photographs(), batch_size=1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_stale_cache_names_what_changed(tmp_path):
    images = photographs()
    TokenCache.build(tmp_path, StandIn(), images)
    before = contents(tmp_path)
    other = [image.copy() for image in images]
    other[5][0, 0, 0] ^= 1
    bilinear = SETTINGS.model_copy(update={"interpolation": "bilinear"})
    cases = [
        ({"trunk": StandIn(weights_hash="1" * 64)}, {"trunk weights"}),
        ({"trunk": StandIn(preprocessing=bilinear)}, {"preprocessing"}),
        ({"trunk": StandIn(layers=(1, 5))}, {"layers"}),
        ({"trunk": StandIn(name="x", weights_hash="1" * 64)}, {"trunk", "trunk weights"}),
        ({"images": other}, {"images"}),
        ({"images": images[::-1]}, {"images"}),
        ({"images": images[:-1]}, {"images"}),
        ({"grid": (4, 4)}, {"grid"}),
        ({"dtype": "bf16", "grid": (4, 8)}, {"dtype", "grid"}),
    ]
    for change, named in cases:
        given = {"trunk": StandIn(), "images": images} | change
        with pytest.raises(BrainfastError, match="delete") as building:
            TokenCache.build(tmp_path, **given)
        with pytest.raises(BrainfastError, match="delete") as opening:
            TokenCache.open(tmp_path, **change)
        for caught in (building, opening):
            words = caught.value.got.removeprefix("a cache of other ").split(", ")
            assert set(words) == named
    assert contents(tmp_path) == before


def test_a_stale_partial_is_refused_too(tmp_path):
    with pytest.raises(HaltError):
        TokenCache.build(tmp_path, StandIn(), photographs(), batch_size=3, progress=stop_after(1))
    with pytest.raises(BrainfastError, match="grid"):
        TokenCache.build(tmp_path, StandIn(), photographs(), grid=(4, 4))


def test_tokens_that_are_not_finite_stop_the_build_and_name_the_images(tmp_path):
    with pytest.raises(BrainfastError, match=r"tokens of images 4\.\.7: .*global\.1|local\.1"):
        TokenCache.build(tmp_path, StandIn(poison=5), photographs(), batch_size=4)
    trunk = StandIn()
    TokenCache.build(tmp_path, trunk, photographs(), batch_size=4)
    assert sum(trunk.seen) == 7


def test_an_unreadable_image_is_named_and_the_rest_is_kept(tmp_path):
    images: list[object] = list(photographs())
    (tmp_path / "bad.png").write_text("no image")
    images[6] = tmp_path / "bad.png"
    with pytest.raises(BrainfastError, match=r"bad\.png"):
        TokenCache.build(tmp_path / "cache", StandIn(), images, batch_size=2)
    assert json.loads((tmp_path / "cache" / "tokens.json").read_text())["done"] == 6
    images[6] = tmp_path / "missing.png"
    with pytest.raises(BrainfastError, match=r"missing\.png"):
        TokenCache.build(tmp_path / "other", StandIn(), images)
    assert not (tmp_path / "other").exists()


def test_too_little_space_is_told_before_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(token_file.shutil, "disk_usage", lambda _path: usage(10**6, 0, 1000))
    trunk = StandIn()
    with pytest.raises(BrainfastError, match="GB of free space"):
        TokenCache.build(tmp_path / "cache", trunk, photographs())
    assert trunk.seen == []
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tokens.lock"]


def test_a_disk_that_fills_while_space_is_reserved_leaves_nothing(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(token_file.os, "posix_fallocate", full)
    with pytest.raises(BrainfastError, match="GB of free space"):
        TokenCache.build(tmp_path / "cache", StandIn(), photographs())
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tokens.lock"]


def test_a_disk_error_while_writing_keeps_what_is_done(tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) > 8:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(BrainfastError, match="Input/output error"):
        TokenCache.build(tmp_path, StandIn(), photographs(), batch_size=2)
    monkeypatch.setattr(os, "fsync", real)
    done = json.loads((tmp_path / "tokens.json").read_text())["done"]
    assert 0 < done < 11
    trunk = StandIn()
    TokenCache.build(tmp_path, trunk, photographs(), batch_size=2)
    assert sum(trunk.seen) == 11 - done


def test_file_systems_without_reservation_or_locks_work(tmp_path, monkeypatch):
    def unsupported(*_arguments):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(token_file.os, "posix_fallocate", unsupported)
    monkeypatch.setattr(fcntl, "flock", unsupported)
    cache = TokenCache.build(tmp_path, StandIn(), photographs())
    want = reference(photographs()).local[0]
    torch.testing.assert_close(cache.tokens(slice(None)).local[0], want, rtol=0, atol=0)


def test_damaged_files_are_refused(tmp_path):
    TokenCache.build(tmp_path, StandIn(), photographs())
    data, index = tmp_path / "tokens.safetensors", tmp_path / "tokens.json"
    whole, text = data.read_bytes(), index.read_text()
    for bad in (whole[:-1], whole[:10], b"", whole.replace(b"F32", b"I32", 1)):
        data.write_bytes(bad)
        with pytest.raises(BrainfastError, match="damaged"):
            TokenCache.open(tmp_path)
        with pytest.raises(BrainfastError, match="damaged"):
            TokenCache.build(tmp_path, StandIn(), photographs())
    data.write_bytes(whole)
    record = json.loads(text)
    changes = [{"done": 99}, {"images": 10**15}, {"channels": [3]}, {"channels": [0, 2]}, {"x": 1}]
    for bad in ["{", "[]", "null", *(json.dumps(record | change) for change in changes)]:
        index.write_text(bad)
        with pytest.raises(BrainfastError):
            TokenCache.open(tmp_path)
    index.unlink()
    with pytest.raises(BrainfastError, match="damaged"):
        TokenCache.build(tmp_path, StandIn(), photographs())
    with pytest.raises(BrainfastError, match=r"tokens\.json"):
        TokenCache.open(tmp_path)


def test_a_deleted_data_file_is_built_again(tmp_path):
    TokenCache.build(tmp_path, StandIn(), photographs())
    before = contents(tmp_path)
    (tmp_path / "tokens.safetensors").unlink()
    TokenCache.build(tmp_path, StandIn(), photographs())
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [{"grid": (0, 8)}, {"grid": (8,)}, {"dtype": "fp16"}, {"images": []}, {"batch_size": 0}],
)
def test_bad_options_are_refused(tmp_path, change):
    given = {"images": photographs()} | change
    with pytest.raises(BrainfastError):
        TokenCache.build(tmp_path / "cache", StandIn(), given.pop("images"), **given)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BrainfastError, match="can be written to"):
        TokenCache.build(tmp_path / "file", StandIn(), photographs())
