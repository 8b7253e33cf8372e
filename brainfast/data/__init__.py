"""Datasets on users' disks, and the splits that models are trained and scored on."""

from __future__ import annotations

from .algonauts import Algonauts
from .arrays import Arrays
from .splits import Split, split_by_image
from .submission import write_submission

__all__ = ["Algonauts", "Arrays", "Split", "split_by_image", "write_submission"]
