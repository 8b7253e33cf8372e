from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision import transforms
from torchvision.transforms import functional

from brainfast.errors import BrainfastError
from brainfast.images import (
    as_images,
    as_sequence,
    hash_image,
    iter_pixels,
    load_image,
    preprocess,
)
from brainfast.preprocessing import Preprocessing

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EXIF_ORIENTATION = 0x0112


def photograph(height: int = 37, width: int = 53, channels: int = 3) -> np.ndarray:
    generator = np.random.default_rng(height * 1000 + width)
    return generator.integers(0, 256, (height, width, channels), np.uint8)


def settings(**changes: object) -> Preprocessing:
    return Preprocessing(**{"size": (24, 32), "mean": MEAN, "std": STD} | changes)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(24, 32), (64, 80), (37, 53)])
def test_preprocess_equals_torchvision_on_pil(interpolation, size):
    images = [photograph(), photograph(200, 120)]
    mode = transforms.InterpolationMode(interpolation)
    steps = [transforms.Resize(size, mode), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    reference = transforms.Compose(steps)
    expected = torch.stack([reference(Image.fromarray(image)) for image in images]).numpy()
    pixels = preprocess(images, settings(interpolation=interpolation, size=size))
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(24, 32), (64, 80), (1, 1), (11, 200)])
def test_without_antialias_equals_torch_interpolation(interpolation, size):
    image = photograph(113, 97)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    answer = torch.nn.functional.interpolate(
        tensor, size, mode=interpolation, align_corners=False, antialias=False
    )
    exact = answer.clamp(0, 255)[0].numpy()
    plain = settings(
        interpolation=interpolation, size=size, antialias=False, mean=(0,) * 3, std=(1,) * 3
    )
    got = preprocess([image], plain)[0] * 255
    assert np.abs(got - exact).max() <= 0.5 + 1e-3  # one rounding to uint8, no more
    mode = transforms.InterpolationMode(interpolation)
    rounded = functional.resize(
        torch.from_numpy(image).permute(2, 0, 1), list(size), mode, antialias=False
    ).numpy()
    assert np.mean(np.rint(got) != rounded) < 1e-3


def test_antialias_matters_where_the_image_shrinks():
    image = photograph(200, 200)
    with_filter = preprocess([image], settings(interpolation="bilinear"))
    without = preprocess([image], settings(interpolation="bilinear", antialias=False))
    assert with_filter.std() < 0.6 * without.std()


def test_the_whole_image_is_squashed_not_cropped():
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, :30], image[:, -30:] = 255, 255
    pixels = preprocess([image], settings(size=(20, 20), mean=(0,) * 3, std=(1,) * 3))
    assert pixels[0, :, 10, 0].min() > 0.9
    assert pixels[0, :, 10, -1].min() > 0.9
    assert pixels[0, :, 10, 10].max() == 0


def test_every_form_of_one_image_gives_the_same_bytes(tmp_path):
    image = photograph()
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    forms = [
        path,
        str(path),
        Image.fromarray(image),
        image,
        image[None],
        np.moveaxis(image, -1, 0),
        np.moveaxis(image, -1, 0)[None],
        torch.from_numpy(image),
        [path],
        (image,),
    ]
    for form in forms:
        (got,) = as_images(form)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, image)


def test_many_images_of_mixed_kinds_and_sizes(tmp_path):
    first, second = photograph(), photograph(20, 30)
    Image.fromarray(second).save(tmp_path / "b.png")
    got = as_images([first, tmp_path / "b.png"])
    np.testing.assert_array_equal(got[0], first)
    np.testing.assert_array_equal(got[1], second)
    batch = np.stack([first, first[::-1]])
    np.testing.assert_array_equal(np.stack(as_images(batch)), batch)
    np.testing.assert_array_equal(np.stack(as_images(np.moveaxis(batch, -1, 1))), batch)


@pytest.mark.parametrize("shape", [(9, 11), (9, 11, 1), (1, 9, 11)])
def test_grey_becomes_three_equal_channels(shape):
    grey = photograph(9, 11, 1).reshape(shape)
    (got,) = as_images(grey)
    assert got.shape == (9, 11, 3)
    for channel in range(3):
        np.testing.assert_array_equal(got[..., channel], grey.reshape(9, 11))


def test_alpha_is_composited_over_mid_grey(tmp_path):
    image = photograph(8, 16, 4)
    image[0, 0], image[0, 1] = (10, 20, 30, 0), (10, 20, 30, 255)
    image[0, 2] = (255, 0, 128, 51)
    Image.fromarray(image).save(tmp_path / "a.png")
    for form in (image, np.moveaxis(image, -1, 0), tmp_path / "a.png", Image.fromarray(image)):
        (got,) = as_images(form)
        assert got[0, 0].tolist() == [127, 127, 127]
        assert got[0, 1].tolist() == [10, 20, 30]
        assert got[0, 2].tolist() == [153, 102, 127]  # .2 * 255 + .8 * 127 = 152.6


def test_a_tall_image_is_composited_in_bands():
    tall = photograph(2000, 40, 4)
    colour, alpha = tall[..., :3].astype(int), tall[..., 3:].astype(int)
    expected = (colour * alpha + 127 * (255 - alpha) + 127) // 255
    tracemalloc.start()
    (got,) = as_images(tall)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(got, expected)
    assert peak < 3 * tall.nbytes


def test_palette_transparency_and_grey_alpha(tmp_path):
    palette = Image.fromarray(photograph(8, 9)).quantize(4)
    palette.info["transparency"] = int(np.asarray(palette)[0, 0])
    palette.save(tmp_path / "p.png")
    assert load_image(tmp_path / "p.png")[0, 0].tolist() == [127, 127, 127]
    Image.new("LA", (4, 5), (200, 0)).save(tmp_path / "la.png")
    assert np.unique(load_image(tmp_path / "la.png")).tolist() == [127]


def test_exif_orientation_is_applied(tmp_path):
    image = photograph(20, 30)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.rot90(image, -1))


def test_sixteen_bits_keep_the_high_byte(tmp_path):
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_are_converted_by_pillow(mode):
    if mode == "LAB":  # Pillow makes LAB images but does not convert to them
        image = Image.new(mode, (5, 6), (100, 20, 30))
    else:
        image = Image.fromarray(photograph()).convert(mode)
    (got,) = as_images(image)
    np.testing.assert_array_equal(got, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_images_are_refused(mode):
    with pytest.raises(BrainfastError, match="32-bit"):
        as_images(Image.new(mode, (4, 4)))


BAD = {
    "float": (np.zeros((4, 5, 3), np.float32), "round"),
    "uint16": (np.zeros((4, 5, 3), np.uint16), "uint8"),
    "bool": (np.zeros((4, 5), bool), "uint8"),
    "two channels": (np.zeros((6, 5, 2), np.uint8), "1, 3 or 4 channels"),
    "both ways": (np.zeros((3, 5, 3), np.uint8), "reads both ways"),
    "both ways, many": (np.zeros((2, 4, 5, 4), np.uint8), "reads both ways"),
    "vector": (np.zeros(7, np.uint8), "HWC"),
    "five axes": (np.zeros((1, 1, 4, 5, 3), np.uint8), "NHWC"),
    "empty": (np.zeros((0, 5, 3), np.uint8), "pixel"),
    "no images": (np.zeros((0, 4, 5, 3), np.uint8), "pixel"),
    "empty list": ([], "at least one image"),
    "batch in a list": ([np.zeros((2, 4, 5, 3), np.uint8)], r"images\[0\].*one image"),
    "number": (3, "a path"),
    "bytes": (b"abc", "a path"),
    "None in a list": ([np.zeros((6, 5, 3), np.uint8), None], r"images\[1\]"),
    "nested": ([[np.zeros((4, 5, 3), np.uint8)]], r"images\[0\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images_are_named(case):
    images, message = BAD[case]
    with pytest.raises(BrainfastError, match=message) as caught:
        as_images(images)
    assert "\n" not in str(caught.value)


def test_bad_files_are_named(tmp_path):
    whole = tmp_path / "whole.png"
    Image.fromarray(photograph(100, 100)).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:5000])
    text = tmp_path / "text.png"
    text.write_text("not an image")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for path in (cut, text, empty, tmp_path / "missing.png", tmp_path):
        with pytest.raises(BrainfastError) as caught:
            as_images([path])
        assert str(caught.value).startswith(f"{path}: expected")
        assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("1", (300, 300)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_999)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(BrainfastError, match=r"bomb\.png: expected at most 89999 pixels"),
    ):
        load_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # far above: Pillow's own error
    with pytest.raises(BrainfastError, match=r"bomb\.png"):
        load_image(path)


@pytest.mark.parametrize(
    "change",
    [
        {"size": (0, 4)},
        {"size": (4, 10**9)},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (float("nan"), 0.0, 0.0)},
        {"interpolation": "lanczos", "antialias": False},
        {"interpolation": "area"},
        {"crop": True},
    ],
)
def test_bad_preprocessing_is_refused(change):
    with pytest.raises(ValidationError):
        settings(**change)


def test_preprocessing_survives_json():
    given = settings(interpolation="bilinear", antialias=False)
    assert Preprocessing.model_validate_json(given.model_dump_json()) == given


@pytest.mark.parametrize("start", [0, 3, 7])
def test_batches_keep_order_and_stay_lazy(start):
    images = [photograph(10 + index, 20) for index in range(7)]

    asked: list[int] = []
    lock = threading.Lock()

    class Lazy:
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            with lock:
                asked.append(index)
            return images[index]

    batches = list(iter_pixels(Lazy(), settings(), 3, start=start))
    assert sorted(asked) == list(range(start, 7))
    assert all(len(batch) <= 3 for batch in batches)
    expected = preprocess(images[start:], settings())
    got = np.concatenate([*batches, expected[:0]])
    np.testing.assert_array_equal(got, expected)


def test_batches_report_the_bad_image(tmp_path):
    batches = iter_pixels([photograph(), tmp_path / "missing.png"], settings(), 1)
    assert next(batches).shape == (1, 3, 24, 32)
    with pytest.raises(BrainfastError, match=r"missing\.png"):
        next(batches)
    with pytest.raises(BrainfastError, match="batch_size"):
        next(iter_pixels([photograph()], settings(), 0))


def test_one_image_is_a_sequence_of_one():
    assert len(as_sequence(photograph())) == 1
    assert len(as_sequence(np.stack([photograph()] * 2))) == 2
    with pytest.raises(BrainfastError):
        as_sequence({"a": photograph()})


def test_hash_sees_bytes_and_shape():
    image = photograph()
    assert hash_image(image) == hash_image(np.asfortranarray(image))
    assert hash_image(image) != hash_image(image.reshape(53, 37, 3))
    changed = image.copy()
    changed[-1, -1, -1] ^= 1
    assert hash_image(changed) != hash_image(image)
