"""What an exported file says about itself, in its metadata. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from ..card import Card, Count
from ..errors import BrainfastError
from ..vertex_space import SpaceName, VertexSpace

CARD_KEY, ABOUT_KEY = "brainfast.card", "brainfast.export"

TrunkPrecision = Literal["fp32", "fp16", "bf16"]
Model = TypeVar("Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VerticesAbout(_Strict):
    """Which vertex of the mesh every column of a response is: left hemisphere, then right.

    rois: the columns of every region; hash: of mesh and vertices, as in the card.
    """

    mesh: SpaceName
    subject: str | None
    lh: tuple[int, ...]
    rh: tuple[int, ...]
    rois: dict[str, tuple[int, ...]]
    hash: str

    @classmethod
    def of(cls, space: VertexSpace) -> VerticesAbout:
        """Describe a vertex space."""
        return cls(
            mesh=space.name,
            subject=space.subject,
            lh=tuple(space.lh.tolist()),
            rh=tuple(space.rh.tolist()),
            rois={name: tuple(np.flatnonzero(mask)) for name, mask in space.rois.items()},
            hash=space.hash(),
        )

    def space(self) -> VertexSpace:
        """The vertex space that is described."""
        count = len(self.lh) + len(self.rh)
        rois = {}
        for name, columns in self.rois.items():
            rois[name] = np.isin(np.arange(count), columns)
        return VertexSpace(self.mesh, np.array(self.lh), np.array(self.rh), rois, self.subject)


class OutputAbout(_Strict):
    """One output: a response [B,V] in z units with its vertices, or scores [B,O] of objectives."""

    name: str
    subject: str | None
    vertices: VerticesAbout | None = None
    objectives: tuple[str, ...] = ()


class ExportAbout(_Strict):
    """What a file takes and gives.

    input: "images", uint8 [B,H0,W0,3] of the size `source`, or "pixels", float32 [B,3,H,W] that are
    preprocessed already. what: which part of the model, in words. versions: of the exporters.
    """

    format_version: Literal[1] = 1
    input: Literal["images", "pixels"]
    source: tuple[Count, Count] | None
    trunk_precision: TrunkPrecision
    head_precision: Literal["fp32"] = "fp32"
    opset: int
    what: str
    outputs: tuple[OutputAbout, ...]
    versions: dict[str, str]


def to_metadata(card: Card, about: ExportAbout) -> dict[str, str]:
    """The entries of an ONNX file's metadata."""
    return {CARD_KEY: card.model_dump_json(), ABOUT_KEY: about.model_dump_json()}


def from_metadata(name: str, found: Mapping[str, str]) -> tuple[Card, ExportAbout]:
    """Read back what `to_metadata` wrote into a file called `name`; anything else is an error."""
    return _read(name, found, CARD_KEY, Card), _read(name, found, ABOUT_KEY, ExportAbout)


def _read(name: str, found: Mapping[str, str], key: str, model: type[Model]) -> Model:
    if key not in found:
        raise BrainfastError(
            name,
            expected="a file that `brainfast export` wrote",
            got="another ONNX model",
            remedy="give the file's whole path, or export the model again",
        )
    version = _version(found[key])
    if version != 1:
        raise BrainfastError(
            name,
            expected="an export of format version 1",
            got=repr(version),
            remedy="update brainfast or export the model again",
        )
    try:
        return model.model_validate_json(found[key])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BrainfastError(
            f"{name}: {place}",
            expected="what `brainfast export` writes",
            got=first["msg"],
            remedy="export the model again",
        ) from error


def _version(text: str) -> object:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value.get("format_version") if isinstance(value, dict) else None
