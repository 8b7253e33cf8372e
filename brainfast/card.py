"""The model card: what a model is, where it came from and how well it does. No torch is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import BrainfastError
from .files import read_json, write_json
from .preprocessing import Preprocessing

FORMAT_VERSION = 1
CARD_FILE = "config.json"


Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=1, le=1024)]  # of a token grid


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrunkConfig(_Strict):
    """Which image model gives the tokens, with which weights, and how images enter it.

    name: a timm identifier; layers: the blocks that are read; size: height and width in pixels;
    block_gain: factor on the block matrices of a random trunk; channels: C_l of every layer;
    grid: height and width of the token grid; weights_hash: SHA-256 of all weights.
    """

    name: str
    layers: tuple[int, ...] = Field(min_length=1)
    size: tuple[Count, Count]
    pretrained: bool
    seed: int = 0
    block_gain: float = 1.0
    weights_hash: str
    preprocessing: Preprocessing
    channels: tuple[Count, ...]
    grid: tuple[Side, Side]


class HeadCard(_Strict):
    """How the folded arrays are to be read, and the options that the head was trained with."""

    grid: tuple[Side, Side]
    samples: int = Field(default=1, ge=1)
    pool_space: bool = False
    options: dict[str, Any] = Field(default_factory=dict)


class BlobHeadCard(_Strict):
    """How the folded arrays of BlobGPT are to be read, and the options it was trained with."""

    grids: tuple[tuple[Side, Side], ...]
    class_token: bool
    options: dict[str, Any] = Field(default_factory=dict)


class SpaceCard(_Strict):
    """The vertices that the model answers for; their indices lie in `vertices.safetensors`.

    surface and coordinates_hash: of the positions that a topographic model depends on.
    """

    name: str
    subject: str | None
    vertices: int = Field(ge=1)
    rois: tuple[str, ...]
    hash: str
    rois_hash: str
    surface: str | None = None
    coordinates_hash: str | None = None
    visual_angle_deg: float | None = None


class TrainingCard(_Strict):
    """The recipe, the data and the moment of training.

    data: how a group's split was made; split_hash: None for an imported model, of which nobody
    knows which images it was trained on.
    """

    recipe: dict[str, Any]
    split_hash: str | None
    split_hashes: dict[str, str]
    images: dict[str, int]
    data: dict[str, Any] = Field(default_factory=dict)
    seed: int
    steps: int
    best_step: int
    soup_steps: tuple[int, ...] = ()
    torch_version: str


class ScoreCard(_Strict):
    """Scores on one split: means over vertices; NaN is stored as null with the reason."""

    split: str
    split_hash: str
    images: int
    subject: str | None = None
    r2_mean: float | None
    r2_median: float | None
    r_mean: float | None
    challenge_mean: float | None
    challenge_median: float | None
    ceiling_mean: float | None
    reason: str | None = None


class ParityCard(_Strict):
    """How far a compiled form is from the float64 twin, in standard deviations of the response.

    pixels_differ: of an exported file that preprocesses, how many of the pixels differ from those
    of `images.preprocess`; 0 is bit-exact.
    """

    form: str
    precision: str
    trunk_precision: str
    images: int
    subject: str | None = None
    max_error: float
    rms_error: float
    r2_change: float | None = None
    pixels_differ: int | None = None


class Card(_Strict):
    """`config.json` of a model folder.

    space: all vertices of the model; subjects: those of every subject, where it has several.
    """

    format_version: Literal[1] = 1
    model: str
    brainfast_version: str
    trunk: TrunkConfig
    head: HeadCard | BlobHeadCard
    space: SpaceCard
    subjects: dict[str, SpaceCard] = Field(default_factory=dict)
    training: TrainingCard | None = None
    scores: tuple[ScoreCard, ...] = ()
    parity: tuple[ParityCard, ...] = ()
    model_hash: str
    licence: str = "not stated"
    citation: str = ""

    def credited(self, licence: str | None = None, citation: str | None = None) -> Card:
        """The card with a licence and a citation, where they are given."""
        given = {"licence": licence, "citation": citation}
        return self.model_copy(update={k: v for k, v in given.items() if v is not None})

    def write(self, folder: Path) -> None:
        """Write `config.json` into `folder`, atomically."""
        write_json(folder / CARD_FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Card:
        """Read `config.json`; anything unknown, missing or of a newer format is an error."""
        path = folder / CARD_FILE
        if not path.is_file():
            raise BrainfastError(
                str(folder),
                expected="a model folder with config.json",
                got="no config.json",
                remedy="give the folder that Encoder.save wrote",
            )
        value = read_json(path)
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            raise BrainfastError(
                str(path),
                expected=f"format_version {FORMAT_VERSION}",
                got=repr(version),
                remedy="update brainfast or save the model again",
            )
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise BrainfastError(
                f"{path}: {place}", expected="a valid model card", got=first["msg"]
            ) from error
