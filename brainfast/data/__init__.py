"""Datasets on users' disks, and the splits that models are trained and scored on."""

from __future__ import annotations

from .algonauts import Algonauts
from .arrays import Arrays
from .group import Group, GroupSplit
from .splits import Split, split_by_image
from .submission import write_submission

__all__ = [
    "Algonauts",
    "Arrays",
    "Group",
    "GroupSplit",
    "Split",
    "split_by_image",
    "write_submission",
]
