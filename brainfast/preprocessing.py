"""How an image becomes a trunk's pixels, as data that is checked and written into the card."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, field_validator, model_validator

MAX_SIZE = 16384


class Preprocessing(BaseModel, extra="forbid", frozen=True):
    """pixels = (resize(image) / 255 - mean) / std, float32 [3,H,W].

    The whole image is squashed to `size` (H, W), never cropped: a crop would cut the visual field.
    `antialias=True` is Pillow's filter, whose support widens as the image shrinks;
    `antialias=False` samples the plain kernel, as `torch.nn.functional.interpolate` does. Both
    round to uint8, as torchvision does. `nearest` mixes no pixels, so the two are one there.
    """

    size: tuple[int, int] = (224, 224)
    resize: Literal["squash"] = "squash"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    antialias: bool = True
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layout: Literal["NCHW"] = "NCHW"

    @field_validator("size")
    @classmethod
    def _check_size(cls, size: tuple[int, int]) -> tuple[int, int]:
        if not all(1 <= side <= MAX_SIZE for side in size):
            raise ValueError(f"sides lie in 1..{MAX_SIZE}")
        return size

    @model_validator(mode="after")
    def _check_numbers(self) -> Preprocessing:
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError("mean and std are finite and std is above 0")
        if self.interpolation == "lanczos" and not self.antialias:
            raise ValueError("lanczos is only defined with antialias=True")
        return self
