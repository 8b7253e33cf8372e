"""The resize as matrix products against Pillow's bits."""

import numpy as np
import pytest
import torch
from PIL import Image

from brainfast.bytes_to_pixels import BytesToPixels
from brainfast.images import preprocess
from brainfast.preprocessing import Preprocessing

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pictures(count, height, width, seed=0):
    """Noise, and flat areas with hard edges, where a filter overshoots and is clipped."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    edges = 255 * generator.integers(0, 2, (count, height, width, 3), dtype=np.uint8)
    return np.concatenate([noise, edges])


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("source", "size"),
    [
        *(((425, 425), (224, 224)), ((37, 90), (32, 48)), ((32, 64), (32, 32))),
        *(((20, 20), (64, 31)), ((40, 30), (32, 32)), ((500, 333), (224, 224))),  # rows first
    ],
)
def test_antialiased_resize_is_pillows_to_the_bit(interpolation, source, size):
    settings = Preprocessing(size=size, interpolation=interpolation, mean=MEAN, std=STD)
    images = pictures(2, *source)
    module = BytesToPixels(source, settings)
    assert module.exact
    pixels = module(torch.from_numpy(images)).numpy()
    assert np.array_equal(pixels, preprocess(list(images), settings))


def test_a_pillow_that_resizes_otherwise_is_not_called_exact(monkeypatch):
    settings = Preprocessing(size=(32, 32), mean=MEAN, std=STD)
    assert BytesToPixels((41, 37), settings).exact
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, _: resize(image, size, Image.Resampling.HAMMING)
    )
    assert not BytesToPixels((41, 37), settings).exact


def test_both_orders_of_rows_and_columns_are_found(monkeypatch):
    settings = Preprocessing(size=(32, 32), mean=MEAN, std=STD)
    images = pictures(2, 41, 37)

    def in_turn(first):
        def resize(image, size, interpolation):
            between = (image.width, size[1]) if first else (size[0], image.height)
            return original(original(image, between, interpolation), size, interpolation)

        return resize

    original = Image.Image.resize
    for first in (True, False):
        monkeypatch.setattr(Image.Image, "resize", in_turn(first))
        module = BytesToPixels((41, 37), settings)
        assert (module.exact, module.rows_first) == (True, first)
        found = module(torch.from_numpy(images)).numpy()
        assert np.array_equal(found, preprocess(list(images), settings))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_plain_resize_differs_by_a_level_at_most_and_hardly_ever(interpolation):
    settings = Preprocessing(
        size=(32, 48), interpolation=interpolation, antialias=False, mean=MEAN, std=STD
    )
    images = pictures(4, 57, 91)
    module = BytesToPixels((57, 91), settings)
    assert not module.exact
    found = module(torch.from_numpy(images)).numpy()
    difference = np.abs(found - preprocess(list(images), settings))
    assert difference.max() <= 1.001 / 255 / min(STD)
    assert np.mean(difference > 1e-6) < 1e-3


def test_a_reduction_that_sums_too_much_says_that_it_is_not_exact():
    settings = Preprocessing(size=(2, 2), mean=MEAN, std=STD)
    module = BytesToPixels((200, 200), settings)
    assert not module.exact
    images = pictures(2, 200, 200)
    found = module(torch.from_numpy(images)).numpy()
    difference = np.abs(found - preprocess(list(images), settings))
    assert difference.max() <= 1.001 / 255 / min(STD)
