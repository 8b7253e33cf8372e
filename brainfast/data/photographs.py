"""The colour scenes inside scikit-image's and scikit-learn's wheels, cut into many stimuli."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from ..errors import BrainfastError
from ..images import load_image

Pixels: TypeAlias = npt.NDArray[np.uint8]

SIZE = 425  # pixels, as NSD shows its images
CROP_SIDE = (0.35, 1.0)  # of the photograph's shorter side
JITTER = 0.15  # brightness, contrast and saturation change by at most this share

# Name -> package, file. motorcycle_right shows the scene of motorcycle_left and is left out.
SCENES: dict[str, tuple[str, str]] = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}


def photograph_path(name: str) -> Path:
    """Where the scene `name` lies; the packages are found but not imported."""
    if name not in SCENES:
        raise BrainfastError("photograph", expected=", ".join(SCENES), got=repr(name))
    package, file = SCENES[name]
    spec = find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else Path(file)
    if not path.is_file():
        raise BrainfastError(
            str(path),
            expected=f"the photograph {name} inside {package}",
            got="no such file",
            remedy="install scikit-image and scikit-learn from their wheels",
        )
    return path


def load_photograph(name: str) -> Pixels:
    """The scene `name`, uint8 [H,W,3]."""
    return load_image(photograph_path(name))


def cut(
    photograph: Pixels,  # [H,W,3]
    random: np.random.Generator,
    size: int = SIZE,
) -> Pixels:
    """One stimulus from a photograph, uint8 [size,size,3].

    A square crop, its side uniform in 0.35 to 1 of the shorter side and its place uniform,
    mirrored half of the time, with brightness, contrast and saturation changed by up to 15 %.
    """
    height, width = photograph.shape[:2]
    side = random.uniform(*CROP_SIDE) * min(height, width)
    left, top = random.uniform(0, width - side), random.uniform(0, height - side)
    box = (left, top, left + side, top + side)
    image = Image.fromarray(photograph).resize((size, size), Image.Resampling.BICUBIC, box=box)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(random.uniform(1 - JITTER, 1 + JITTER))
    return np.asarray(image, dtype=np.uint8)
