"""Real pictures of one size, for the check of an exported file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.photographs import load_photograph
from ..errors import BrainfastError
from ..images import as_images

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "china")


def to_size(images: Any, source: tuple[int, int] | None) -> list[NDArray[np.uint8]]:
    """Images [H,W,3] squashed to one size (H, W); None leaves them as they are."""
    found = as_images(images)
    if source is None:
        return found
    height, width = source
    return [
        image
        if image.shape[:2] == (height, width)
        else np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        for image in found
    ]


def photographs() -> list[NDArray[np.uint8]]:
    """Some photographs out of the wheels of scikit-image and scikit-learn, those that are there."""
    found = []
    for name in PHOTOGRAPHS:
        try:
            found.append(load_photograph(name))
        except BrainfastError:
            continue
    return found
